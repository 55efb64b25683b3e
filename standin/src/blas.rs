//! cuBLAS: products of matrices in f32 and f64. Operands are checked against their blocks when the call is made.

use std::ffi::{c_int, c_longlong, c_void};

use crate::codes::Code;
use crate::failures::Kind;
use crate::gemm::{Matrix, Product, Real};
use crate::libraries::{self, operand};
use crate::put;
use crate::rules;
use crate::world::{self, World};

pub(crate) const NOT_INITIALIZED: c_int = 1;
const ALLOC_FAILED: c_int = 3;
pub(crate) const INVALID_VALUE: c_int = 7;
pub(crate) const EXECUTION_FAILED: c_int = 13;

pub(crate) fn call(body: impl FnOnce(&mut World) -> Result<(), c_int>) -> c_int {
    body(&mut world::lock()).err().unwrap_or(0)
}

pub(crate) fn invalid(_: Code) -> c_int {
    INVALID_VALUE
}

#[unsafe(no_mangle)]
extern "C" fn cublasCreate_v2(place: *mut usize) -> c_int {
    call(|world| {
        if world.config.failures.strike(Kind::Blas) {
            return Err(NOT_INITIALIZED);
        }
        let handle = libraries::create(world).map_err(|_| NOT_INITIALIZED)?;
        put(place, handle).map_err(invalid)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasDestroy_v2(handle: usize) -> c_int {
    call(|world| {
        libraries::find(world, handle).map_err(|_| NOT_INITIALIZED)?;
        libraries::handles().remove(&handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetStream_v2(handle: usize, stream: usize) -> c_int {
    call(|world| {
        libraries::set_stream(world, handle, stream).map_err(invalid)?;
        // As the library has it: the workspace is its own again.
        libraries::change(world, handle, |found| found.workspace = (0, 0)).map_err(invalid)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetWorkspace_v2(handle: usize, workspace: *mut c_void, len: usize) -> c_int {
    call(|world| {
        let device = libraries::find(world, handle).map_err(invalid)?.device;
        operand(world, "workspace of cuBLAS", device, workspace as usize, len).map_err(invalid)?;
        if !(workspace as usize).is_multiple_of(256) {
            return Err(world.breaks(rules::WORKSPACE_ALIGNMENT, "a workspace at no multiple of 256").0);
        }
        libraries::change(world, handle, |found| found.workspace = (workspace as usize, len)).map_err(invalid)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetMathMode(handle: usize, mode: c_int) -> c_int {
    call(|world| libraries::change(world, handle, |found| found.math_mode = mode).map_err(invalid))
}

#[unsafe(no_mangle)]
extern "C" fn cublasGetMathMode(handle: usize, mode: *mut c_int) -> c_int {
    call(|world| {
        let found = libraries::find(world, handle).map_err(invalid)?;
        put(mode, found.math_mode).map_err(invalid)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasSetPointerMode_v2(handle: usize, mode: c_int) -> c_int {
    call(|world| {
        libraries::find(world, handle).map_err(invalid)?;
        // Factors in device memory are not modelled.
        if mode == 0 { Ok(()) } else { Err(INVALID_VALUE) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasGetPointerMode_v2(handle: usize, mode: *mut c_int) -> c_int {
    call(|world| {
        libraries::find(world, handle).map_err(invalid)?;
        put(mode, 0).map_err(invalid)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cublasGetVersion_v2(_handle: usize, version: *mut c_int) -> c_int {
    call(|_| put(version, 130_000).map_err(invalid))
}

#[unsafe(no_mangle)]
extern "C" fn cublasGetProperty(which: c_int, value: *mut c_int) -> c_int {
    call(|world| put(value, if which == 0 { world.config.driver_version / 1000 } else { 0 }).map_err(invalid))
}

/// Arguments of a product, as the interface has them.
struct Arguments<T> {
    transposed: [c_int; 2],
    sizes: [c_int; 3],
    alpha: *const T,
    beta: *const T,
    /// A, B, C: address, leading dimension, elements to the next of the batch.
    operands: [(usize, c_int, c_longlong); 3],
    batch: c_int,
}

pub(crate) fn factor<T: Real>(place: *const T) -> Result<T, c_int> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and in this pointer mode the interface requires a host address of a `T`.
    Ok(unsafe { place.read() })
}

fn multiply<T: Real>(world: &mut World, handle: usize, arguments: Arguments<T>) -> Result<(), c_int> {
    let handle = libraries::find(world, handle).map_err(|_| NOT_INITIALIZED)?;
    let [m, n, k] = arguments.sizes.map(|size| usize::try_from(size).ok());
    let (Some(m), Some(n), Some(k), Ok(batch)) = (m, n, k, usize::try_from(arguments.batch)) else {
        return Err(world.breaks(rules::PRODUCT_LEADING, "a product with a negative side").0);
    };
    if m == 0 || n == 0 || batch == 0 {
        return Ok(());
    }
    let transposed = arguments.transposed.map(|operation| operation != 0);
    let shapes = [if transposed[0] { (k, m) } else { (m, k) }, if transposed[1] { (n, k) } else { (k, n) }, (m, n)];
    let mut matrices = [(Matrix { at: 0, leading: 0 }, 0); 3];
    for (index, ((at, leading, stride), (rows, columns))) in arguments.operands.into_iter().zip(shapes).enumerate() {
        let Some(leading) = usize::try_from(leading).ok().filter(|leading| *leading >= rows.max(1)) else {
            let text = format!("a product with columns of {rows} and a leading dimension of {leading}");
            return Err(world.breaks(rules::PRODUCT_LEADING, &text).0);
        };
        let stride = usize::try_from(stride).map_err(|_| INVALID_VALUE)? * size_of::<T>();
        let matrix = Matrix { at, leading };
        let extent = matrix.extent(rows, columns, size_of::<T>());
        if extent > 0 {
            let name = ["A of a product", "B of a product", "C of a product"][index];
            operand(world, name, handle.device, at, extent + (batch - 1) * stride).map_err(invalid)?;
        }
        if index == 2 && batch > 1 && stride < extent {
            return Err(world.breaks(rules::PRODUCT_OVERLAP, "results of a batch overlap").0);
        }
        matrices[index] = (matrix, stride);
    }
    if world.config.failures.strike(Kind::Blas) {
        return Err(EXECUTION_FAILED);
    }
    if world.config.failures.strike(Kind::BlasMemory) {
        return Err(ALLOC_FAILED);
    }
    world.product_operations[size_of::<T>() / 8] += 2 * (m * n * k * batch) as u64;
    let product = Product { transposed, m, n, k, alpha: factor(arguments.alpha)?, beta: factor(arguments.beta)? };
    let stream = world.stream(handle.stream).map_err(|_| EXECUTION_FAILED)?;
    let run = move || {
        libraries::scribble(handle.workspace.0, handle.workspace.1);
        for index in 0..batch {
            let [a, b, c] = matrices.map(|(matrix, stride)| Matrix { at: matrix.at + index * stride, ..matrix });
            product.compute(a, b, c);
        }
        Ok(())
    };
    let results = (0..batch).map(|index| Matrix { at: matrices[2].0.at + index * matrices[2].1, ..matrices[2].0 });
    let writes = match product.beta == T::ZERO {
        true => results.flat_map(|c| c.ranges(m, n, size_of::<T>())).collect(),
        false => Vec::new(),
    };
    libraries::enqueue(world, stream, run, writes);
    Ok(())
}

macro_rules! products {
    ($($type:ty, $one:ident, $batched:ident;)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $one(
            handle: usize, op_a: c_int, op_b: c_int, m: c_int, n: c_int, k: c_int,
            alpha: *const $type, a: usize, lda: c_int, b: usize, ldb: c_int,
            beta: *const $type, c: usize, ldc: c_int,
        ) -> c_int {
            $batched(handle, op_a, op_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1)
        }

        #[unsafe(no_mangle)]
        extern "C" fn $batched(
            handle: usize, op_a: c_int, op_b: c_int, m: c_int, n: c_int, k: c_int,
            alpha: *const $type, a: usize, lda: c_int, stride_a: c_longlong, b: usize, ldb: c_int, stride_b: c_longlong,
            beta: *const $type, c: usize, ldc: c_int, stride_c: c_longlong, batch: c_int,
        ) -> c_int {
            let arguments = Arguments {
                transposed: [op_a, op_b],
                sizes: [m, n, k],
                alpha,
                beta,
                operands: [(a, lda, stride_a), (b, ldb, stride_b), (c, ldc, stride_c)],
                batch,
            };
            call(|world| multiply(world, handle, arguments))
        }
    )* };
}

products! {
    f32, cublasSgemm_v2, cublasSgemmStridedBatched;
    f64, cublasDgemm_v2, cublasDgemmStridedBatched;
}
