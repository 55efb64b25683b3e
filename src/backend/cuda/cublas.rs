//! cuBLAS as far as it is needed: products of matrices in f64, batched over matrices of one shape, and a matrix's transpose; for
//! `bench` a product in f32.
#![allow(unsafe_code)]

use cudarc::cublas::{result, sys};
use cudarc::driver::CudaStream;

use super::error;
use crate::error::{Error, Result};

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
    handle: sys::cublasHandle_t,
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
        // SAFETY: it only tries to load libraries of these names.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("libcublas"));
        }
        let handle = result::create_handle().map_err(|e| failed(label, "start", e.0))?;
        let blas = Self { handle, label: label.to_owned() };
        // SAFETY: the handle has just been made, and the stream outlives it in `Lane`.
        unsafe { result::set_stream(handle, stream.cu_stream().cast()) }
            .map_err(|e| failed(label, "take a stream", e.0))?;
        Ok(blas)
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
        let op = |x: &Operand| match x.is_transposed {
            true => sys::cublasOperation_t::CUBLAS_OP_T,
            false => sys::cublasOperation_t::CUBLAS_OP_N,
        };
        let [alpha, beta] = by;
        let Sides { m, n, k, batch } = sides;
        if m == 0 || n == 0 || batch == 0 {
            return Ok(());
        }
        // SAFETY: of the operands the caller promises; the scalars are read before the call returns, as they are the host's.
        unsafe {
            result::dgemm_strided_batched(
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
        }
        .map_err(|e| failed(&self.label, "multiply matrices", e.0))
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
        let (one, zero, op) = (1.0f64, 0.0f64, sys::cublasOperation_t::CUBLAS_OP_T);
        let (from, to) = (a.ptr as *const f64, c.ptr as *mut f64);
        let (m, n, lda, ldc) = (int(columns)?, int(rows)?, int(a.ld)?, int(c.ld)?);
        // SAFETY: of the operands the caller promises; with a factor of 0 the second one, named as the first, is not read. The
        // scalars are the host's, read before the call returns.
        unsafe { sys::cublasDgeam(self.handle, op, op, m, n, &one, from, lda, &zero, from, lda, to, ldc) }
            .result()
            .map_err(|e| failed(&self.label, "transpose a matrix", e.0))
    }

    /// C ← A A, of square matrices in f32, all of it: without the short form TF32.
    ///
    /// # Errors
    /// A side that cuBLAS cannot count, or what it says.
    ///
    /// # Safety
    /// As of [`Self::product`]; A and C must not overlap.
    pub unsafe fn square_single(&mut self, side: usize, a: u64, c: u64) -> Result<()> {
        use sys::cublasMath_t::{CUBLAS_DEFAULT_MATH, CUBLAS_PEDANTIC_MATH};
        let (n, op) = (int(side)?, sys::cublasOperation_t::CUBLAS_OP_N);
        let (a, c, one, zero) = (a as *const f32, c as *mut f32, 1f32, 0f32);
        let said = |e: result::CublasError| failed(&self.label, "multiply matrices in f32", e.0);
        // SAFETY: the handle is live. Without short forms is the default, which an environment variable can change.
        unsafe { sys::cublasSetMathMode(self.handle, CUBLAS_PEDANTIC_MATH) }.result().map_err(said)?;
        // SAFETY: of the operands the caller promises; the scalars are the host's and are read before the call returns.
        let done = unsafe { result::sgemm(self.handle, op, op, n, n, n, &one, a, n, a, n, &zero, c, n) };
        // SAFETY: the handle is live.
        let back = unsafe { sys::cublasSetMathMode(self.handle, CUBLAS_DEFAULT_MATH) }.result();
        done.and(back).map_err(said)
    }
}

/// A number as cuBLAS takes it.
fn int(x: usize) -> Result<i32> {
    i32::try_from(x).map_err(|_| Error::internal(format!("a side of {x} for cuBLAS")))
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed here alone. What it says changes nothing.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(label: &str, doing: &str, status: sys::cublasStatus_t) -> Error {
    match status {
        sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => error::out_of_memory(label, doing, "cuBLAS found no memory"),
        _ => Error::environment(format!("cuBLAS on {label} could not {doing}: {status:?}")),
    }
}

/// A library that low-rank work needs and that is not there.
pub fn missing(library: &str) -> Error {
    Error::environment(format!("{library} was not found, and merges of matrices by singular vectors need it"))
        .hint("install CUDA's libraries (cuBLAS and cuSOLVER of CUDA 13), or put them on LD_LIBRARY_PATH")
}
