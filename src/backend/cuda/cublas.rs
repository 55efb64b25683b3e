//! cuBLAS as far as it is needed: products of matrices in f64, batched over matrices of one shape, and a matrix's transpose; for
//! `bench` a product in f32.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_longlong, c_void};

use cudarc::driver::CudaStream;

use super::error;
use super::libraries::{self, Name, functions};
use crate::error::{Error, Result};

type Handle = *mut c_void;

functions! {
    /// What is called of cuBLAS, by its manual.
    Functions {
        create: c"cublasCreate_v2" = fn(*mut Handle);
        destroy: c"cublasDestroy_v2" = fn(Handle);
        set_stream: c"cublasSetStream_v2" = fn(Handle, *mut c_void);
        set_math_mode: c"cublasSetMathMode" = fn(Handle, c_int);
        multiply: c"cublasDgemmStridedBatched" = fn(
            Handle, c_int, c_int, c_int, c_int, c_int, *const f64, *const f64, c_int, c_longlong, *const f64, c_int,
            c_longlong, *const f64, *mut f64, c_int, c_longlong, c_int,
        );
        multiply_single: c"cublasSgemm_v2" = fn(
            Handle, c_int, c_int, c_int, c_int, c_int, *const f32, *const f32, c_int, *const f32, c_int, *const f32,
            *mut f32, c_int,
        );
        add: c"cublasDgeam" = fn(
            Handle, c_int, c_int, c_int, c_int, *const f64, *const f64, c_int, *const f64, *const f64, c_int, *mut f64,
            c_int,
        );
    }
}

/// `cublasOperation_t`.
const PLAIN: c_int = 0;
const TRANSPOSED: c_int = 1;
/// `cublasMath_t`.
const DEFAULT_MATH: c_int = 0;
const PEDANTIC_MATH: c_int = 2;
/// `cublasStatus_t`, by its number.
const STATUSES: [(c_int, &str); 9] = [
    (1, "NOT_INITIALIZED"),
    (3, "ALLOC_FAILED"),
    (7, "INVALID_VALUE"),
    (8, "ARCH_MISMATCH"),
    (11, "MAPPING_ERROR"),
    (13, "EXECUTION_FAILED"),
    (14, "INTERNAL_ERROR"),
    (15, "NOT_SUPPORTED"),
    (16, "LICENSE_ERROR"),
];
const ALLOC_FAILED: c_int = 3;

/// An operand: column-major matrices of one shape, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Address of the first matrix.
    pub ptr: u64,
    /// Elements from a column to the next.
    pub ld: usize,
    /// Elements from a matrix to the next.
    pub stride: u64,
    /// Whether its transpose is meant.
    pub is_transposed: bool,
}

impl Operand {
    /// The transpose.
    pub fn t(self) -> Self {
        Self { is_transposed: !self.is_transposed, ..self }
    }
}

/// Matrices' sides: C is m×n, the sum runs over k.
#[derive(Debug, Clone, Copy)]
pub struct Sides {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// How many products.
    pub batch: usize,
}

/// A handle, bound to a stream.
#[derive(Debug)]
pub struct Blas {
    handle: Handle,
    functions: Functions,
    label: String,
}

// SAFETY: a handle may be used by any thread, one at a time: all uses take `&mut self`.
unsafe impl Send for Blas {}

impl Blas {
    /// Of this stream, whose context must be current.
    ///
    /// # Errors
    /// What cuBLAS says.
    pub fn new(stream: &CudaStream, label: &str) -> Result<Self> {
        let functions = Functions::of(libraries::open(Name::Cublas).map_err(missing)?)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the pointer is to a live handle's place.
        let status = unsafe { (functions.create)(&mut handle) };
        said(label, "start", status)?;
        let blas = Self { handle, functions, label: label.to_owned() };
        // SAFETY: the handle has just been made, and the stream outlives it in `Lane`.
        blas.said("take a stream", unsafe { (functions.set_stream)(handle, stream.cu_stream().cast()) })?;
        Ok(blas)
    }

    fn said(&self, doing: &str, status: c_int) -> Result<()> {
        said(&self.label, doing, status)
    }

    /// C ← α A B + β C, for every product of a batch.
    ///
    /// # Errors
    /// Sides that cuBLAS cannot count, or what it says.
    ///
    /// # Safety
    /// The operands must be device memory of the stream's context that holds as many elements as `sides` says, and that only
    /// this stream's work uses until it is done.
    pub unsafe fn product(&mut self, sides: Sides, a: Operand, b: Operand, c: Operand, by: [f64; 2]) -> Result<()> {
        let op = |x: &Operand| if x.is_transposed { TRANSPOSED } else { PLAIN };
        let [alpha, beta] = by;
        let Sides { m, n, k, batch } = sides;
        if m == 0 || n == 0 || batch == 0 {
            return Ok(());
        }
        // SAFETY: of the operands the caller promises; the scalars are read before the call returns, as they are the host's.
        let status = unsafe {
            (self.functions.multiply)(
                self.handle,
                op(&a),
                op(&b),
                int(m)?,
                int(n)?,
                int(k)?,
                &alpha,
                a.ptr as *const f64,
                int(a.ld)?,
                a.stride as i64,
                b.ptr as *const f64,
                int(b.ld)?,
                b.stride as i64,
                &beta,
                c.ptr as *mut f64,
                int(c.ld)?,
                c.stride as i64,
                int(batch)?,
            )
        };
        self.said("multiply matrices", status)
    }

    /// C ← Aᵀ, of a matrix A of `rows` and `columns`.
    ///
    /// # Errors
    /// Sides that cuBLAS cannot count, or what it says.
    ///
    /// # Safety
    /// As of [`Self::product`]; A and C must not overlap.
    pub unsafe fn transpose(&mut self, (rows, columns): (usize, usize), a: Operand, c: Operand) -> Result<()> {
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let (one, zero, op) = (1.0f64, 0.0f64, TRANSPOSED);
        let (from, to) = (a.ptr as *const f64, c.ptr as *mut f64);
        let (m, n, lda, ldc) = (int(columns)?, int(rows)?, int(a.ld)?, int(c.ld)?);
        // SAFETY: of the operands the caller promises; with a factor of 0 the second one, named as the first, is not read. The
        // scalars are the host's, read before the call returns.
        let status =
            unsafe { (self.functions.add)(self.handle, op, op, m, n, &one, from, lda, &zero, from, lda, to, ldc) };
        self.said("transpose a matrix", status)
    }

    /// C ← A A, of square matrices in f32, all of it: without the short form TF32.
    ///
    /// # Errors
    /// A side that cuBLAS cannot count, or what it says.
    ///
    /// # Safety
    /// As of [`Self::product`]; A and C must not overlap.
    pub unsafe fn square_single(&mut self, side: usize, a: u64, c: u64) -> Result<()> {
        let (n, op, handle) = (int(side)?, PLAIN, self.handle);
        let (a, c, one, zero) = (a as *const f32, c as *mut f32, 1f32, 0f32);
        let doing = "multiply matrices in f32";
        // SAFETY: the handle is live. Without short forms is the default, which an environment variable can change.
        self.said(doing, unsafe { (self.functions.set_math_mode)(handle, PEDANTIC_MATH) })?;
        // SAFETY: of the operands the caller promises; the scalars are the host's and are read before the call returns.
        let done = unsafe { (self.functions.multiply_single)(handle, op, op, n, n, n, &one, a, n, a, n, &zero, c, n) };
        // SAFETY: the handle is live.
        let back = unsafe { (self.functions.set_math_mode)(handle, DEFAULT_MATH) };
        self.said(doing, done).and(self.said(doing, back))
    }
}

/// A number as cuBLAS takes it.
fn int(x: usize) -> Result<i32> {
    i32::try_from(x).map_err(|_| Error::internal(format!("a side of {x} for cuBLAS")))
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed here alone. What it says changes nothing.
        let _ = unsafe { (self.functions.destroy)(self.handle) };
    }
}

fn said(label: &str, doing: &str, status: c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        ALLOC_FAILED => Err(error::out_of_memory(label, doing, "cuBLAS found no memory")),
        _ => {
            let status = error::status("CUBLAS_STATUS_", &STATUSES, status);
            Err(Error::device(format!("cuBLAS on {label} could not {doing}: {status}")))
        }
    }
}

/// A library that low-rank work needs and that is not there, or not as it should be.
pub(super) fn missing(why: &str) -> Error {
    Error::device(format!("merges of matrices by singular vectors need cuBLAS and cuSOLVER: {why}"))
        .hint("install CUDA's libraries (cuBLAS and cuSOLVER of CUDA 12 or 13), or put them on LD_LIBRARY_PATH")
}
