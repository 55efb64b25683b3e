//! cuBLAS and cuSOLVER.

use cudarc::cublas::sys as blas;
use cudarc::cusolver::sys as solver;
use cudarc::driver::result;

use crate::{Device, Outcome};

/// A product and a decomposition, in memory whose rest is poison.
pub fn product_and_decomposition() -> Outcome {
    let device = Device::open(0)?;
    let stream = device.stream();
    let n = 24i32;
    let rows = 40i32;
    let values: Vec<f32> = (0..n * rows).map(|index| ((index * 31) % 17) as f32 - 8.0).collect();
    let matrix = device.memory(4 * values.len())?;
    let (gram, eigenvalues, info) =
        (device.memory(4 * (n * n) as usize)?, device.memory(4 * n as usize)?, device.memory(4)?);
    // SAFETY: every operand has the size that its call names.
    unsafe {
        result::memcpy_htod_async(matrix, &values, stream.cu_stream())?;
        let mut handle = std::ptr::null_mut();
        blas::cublasCreate_v2(&mut handle).result().unwrap();
        blas::cublasSetStream_v2(handle, stream.cu_stream().cast()).result().unwrap();
        let (plain, transposed) = (blas::cublasOperation_t::CUBLAS_OP_N, blas::cublasOperation_t::CUBLAS_OP_T);
        let at = matrix as *const f32;
        blas::cublasSgemm_v2(handle, plain, transposed, n, n, rows, &1.0, at, n, at, n, &0.0, gram as *mut f32, n)
            .result()
            .unwrap();
        let mut handle = std::ptr::null_mut();
        solver::cusolverDnCreate(&mut handle).result().unwrap();
        solver::cusolverDnSetStream(handle, stream.cu_stream().cast()).result().unwrap();
        let mut params = std::ptr::null_mut();
        solver::cusolverDnCreateParams(&mut params).result().unwrap();
        let (vectors, lower) =
            (solver::cusolverEigMode_t::CUSOLVER_EIG_MODE_VECTOR, solver::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER);
        let real = solver::cudaDataType::CUDA_R_32F;
        let (mut bytes, mut host_bytes) = (0, 0);
        let (a, w) = (gram as *mut std::ffi::c_void, eigenvalues as *mut std::ffi::c_void);
        solver::cusolverDnXsyevd_bufferSize(
            handle,
            params,
            vectors,
            lower,
            n.into(),
            real,
            a,
            n.into(),
            real,
            w,
            real,
            &mut bytes,
            &mut host_bytes,
        )
        .result()
        .unwrap();
        let (work, mut host) = (device.memory(bytes)?, vec![0u8; host_bytes]);
        solver::cusolverDnXsyevd(
            handle,
            params,
            vectors,
            lower,
            n.into(),
            real,
            a,
            n.into(),
            real,
            w,
            real,
            work as *mut _,
            bytes,
            host.as_mut_ptr().cast(),
            host_bytes,
            info as *mut i32,
        )
        .result()
        .unwrap();
        let (mut values_out, mut vectors_out, mut info_out) =
            (vec![0f32; n as usize], vec![0f32; (n * n) as usize], vec![7i32]);
        result::memcpy_dtoh_async(&mut values_out, eigenvalues, stream.cu_stream())?;
        result::memcpy_dtoh_async(&mut vectors_out, gram, stream.cu_stream())?;
        result::memcpy_dtoh_async(&mut info_out, info, stream.cu_stream())?;
        stream.synchronize()?;
        if info_out[0] != 0 {
            println!("info {}", info_out[0]);
            return Ok(false);
        }
        // ‖Aᵀ v‖² = λ for every pair, and the values ascend.
        let mut right = values_out.is_sorted();
        for (value, vector) in values_out.iter().zip(vectors_out.chunks_exact(n as usize)) {
            let square: f64 = values
                .chunks_exact(n as usize)
                .map(|column| column.iter().zip(vector).map(|(x, v)| f64::from(x * v)).sum::<f64>().powi(2))
                .sum();
            // Sums of 40 products of numbers to 8, in f32.
            right &= (square - f64::from(*value)).abs() < 1e-2;
        }
        Ok(right)
    }
}
