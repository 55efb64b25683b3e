//! Every rule of `src/rules.rs`, broken once. The answer is printed as its number.

use std::ffi::{CString, c_int, c_void};
use std::sync::Arc;

use cudarc::cublas::sys as blas;
use cudarc::cusolver::sys as solver;
use cudarc::driver::{CudaStream, DriverError, result, sys};
use cudarc::nvrtc::sys as nvrtc;

use crate::{BYTES, Device, Outcome, launch, misuse, program, shape, text, upload};

fn answer(code: i32) -> Outcome {
    println!("answer {code}");
    Ok(code == 0)
}

fn driver(code: sys::CUresult) -> Outcome {
    answer(code as i32)
}

fn called(result: Result<(), DriverError>) -> Outcome {
    answer(result.err().map_or(0, |error| error.0 as i32))
}

fn blas_handle(stream: &CudaStream) -> blas::cublasHandle_t {
    let mut handle = std::ptr::null_mut();
    // SAFETY: a place for a handle, and a live stream.
    unsafe {
        blas::cublasCreate_v2(&mut handle).result().unwrap();
        blas::cublasSetStream_v2(handle, stream.cu_stream().cast()).result().unwrap();
    }
    handle
}

fn solver_handle(stream: &CudaStream) -> (solver::cusolverDnHandle_t, solver::cusolverDnParams_t) {
    let (mut handle, mut params) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: places for handles, and a live stream.
    unsafe {
        solver::cusolverDnCreate(&mut handle).result().unwrap();
        solver::cusolverDnCreateParams(&mut params).result().unwrap();
        solver::cusolverDnSetStream(handle, stream.cu_stream().cast()).result().unwrap();
    }
    (handle, params)
}

const VECTORS: solver::cusolverEigMode_t = solver::cusolverEigMode_t::CUSOLVER_EIG_MODE_VECTOR;
const LOWER: solver::cublasFillMode_t = solver::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER;
const REAL: solver::cudaDataType = solver::cudaDataType::CUDA_R_64F;

/// Decomposes n×n zeros at `place` with this workspace on the host; on the device `bytes` at `work`.
fn decompose(
    (handle, params): (solver::cusolverDnHandle_t, solver::cusolverDnParams_t),
    [matrix, values, work, info]: [u64; 4],
    bytes: usize,
    host: &mut [u8],
) -> i32 {
    let (n, pointer) = (4, |at: u64| at as *mut c_void);
    // SAFETY: the places are of the sizes that are told, but where a rule is broken, which the stand-in has to say.
    unsafe {
        solver::cusolverDnXsyevd(
            handle,
            params,
            VECTORS,
            LOWER,
            n,
            REAL,
            pointer(matrix),
            n,
            REAL,
            pointer(values),
            REAL,
            pointer(work),
            bytes,
            host.as_mut_ptr().cast(),
            host.len(),
            info as *mut c_int,
        ) as i32
    }
}

/// Breaks a rule.
pub fn broken(rule: &str) -> Outcome {
    // SAFETY: none of these is safe; the stand-in has to say so.
    unsafe {
        match rule {
            "initialized" => return driver(sys::cuDeviceGetCount(&mut 0)),
            "context-current" => {
                result::init()?;
                return driver(sys::cuMemAlloc_v2(&mut 0, 64));
            }
            "context-released" => {
                result::init()?;
                return driver(sys::cuDevicePrimaryCtxRelease_v2(0));
            }
            // These are programs of their own.
            "kernel-alignment" => return program("misaligned"),
            "kernel-barrier" => return program("divergent"),
            "kernel-shared" => return program("shared-overrun"),
            "copy-range" => return misuse("copy-past-end"),
            "copy-context" => return misuse("stream-of-other-device"),
            "pinned-busy" => return misuse("pinned-freed-early"),
            "compiler-architecture" => return unknown_architecture(),
            _ => {}
        }
        let device = Device::open(0)?;
        let stream = device.stream();
        let place = device.memory(BYTES)?;
        if let Some(outcome) = of_libraries(rule, &device, &stream, place) {
            return outcome;
        }
        match rule {
            "shared-opt-in" => {
                let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                driver(sys::cuFuncSetAttribute(device.kernel("counted").cu_function(), most, 226 << 10))
            }
            "shared-launch" => {
                called(launch(&stream, &device.kernel("counted"), shape(1, 256, 47 << 10), place, place))
            }
            "block-threads" => called(launch(&stream, &device.kernel("sums"), shape(1, 512, 0), place, place)),
            "block-registers" => called(launch(&stream, &device.kernel("heavy"), shape(1, 512, 0), place, place)),
            "grid-size" => {
                let mut wide = shape(1, 32, 0);
                wide.grid_dim.1 = 65_536;
                called(launch(&stream, &device.kernel("reversed"), wide, place, place))
            }
            "launch-arguments" => {
                let (kernel, none) = (device.kernel("reversed"), std::ptr::null_mut());
                driver(sys::cuLaunchKernel(
                    kernel.cu_function(),
                    1,
                    1,
                    1,
                    32,
                    1,
                    1,
                    128,
                    stream.cu_stream(),
                    none,
                    none,
                ))
            }
            "launch-context" => {
                let other = Device::open(1)?;
                let kernel = device.kernel("reversed");
                let mut pointers = [(&raw const place).cast_mut().cast(), (&raw const place).cast_mut().cast()];
                let (function, of) = (kernel.cu_function(), other.stream());
                let (all, none) = (pointers.as_mut_ptr(), std::ptr::null_mut());
                driver(sys::cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 128, of.cu_stream(), all, none))
            }
            "function-handle" => {
                let registers = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS;
                driver(sys::cuFuncGetAttribute(&mut 0, registers, 16 as sys::CUfunction))
            }
            "module-handle" => driver(sys::cuModuleUnload(16 as sys::CUmodule)),
            "module-busy" => {
                let (mut module, image) = (std::ptr::null_mut(), CString::new(text()).unwrap());
                sys::cuModuleLoadData(&mut module, image.as_ptr().cast()).result()?;
                let (mut kernel, size) = (std::ptr::null_mut(), BYTES as u32 / 4);
                sys::cuModuleGetFunction(&mut kernel, module, c"twice".as_ptr()).result()?;
                let at = (&raw const place).cast_mut().cast();
                let mut pointers = [at, at, (&raw const size).cast_mut().cast()];
                let (all, none) = (pointers.as_mut_ptr(), std::ptr::null_mut());
                sys::cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream.cu_stream(), all, none).result()?;
                driver(sys::cuModuleUnload(module))
            }
            "ptx-version" | "binary-for-gpu" => {
                let (version, target) = if rule == "ptx-version" { ("99.0", 80) } else { ("8.0", 200) };
                let image = CString::new(format!(".version {version}\n.target sm_{target}\n.entry twice(\n")).unwrap();
                driver(sys::cuModuleLoadData(&mut std::ptr::null_mut(), image.as_ptr().cast()))
            }
            "stream-handle" => {
                let mut other = std::ptr::null_mut();
                sys::cuStreamCreate(&mut other, 1).result()?;
                sys::cuStreamDestroy_v2(other).result()?;
                driver(sys::cuStreamDestroy_v2(other))
            }
            "stream-flags" => driver(sys::cuStreamCreate(&mut std::ptr::null_mut(), 8)),
            "event-flags" => driver(sys::cuEventCreate(&mut std::ptr::null_mut(), 4)),
            "event-handle" | "event-context" | "event-clock" | "wait-flags" => {
                let mut event = std::ptr::null_mut();
                sys::cuEventCreate(&mut event, 2).result()?;
                match rule {
                    "event-handle" => {
                        sys::cuEventDestroy_v2(event).result()?;
                        driver(sys::cuEventRecord(event, stream.cu_stream()))
                    }
                    "event-context" => driver(sys::cuEventRecord(event, Device::open(1)?.stream().cu_stream())),
                    "event-clock" => {
                        sys::cuEventRecord(event, stream.cu_stream()).result()?;
                        stream.synchronize()?;
                        driver(sys::cuEventElapsedTime(&mut 0.0, event, event))
                    }
                    _ => driver(sys::cuStreamWaitEvent(stream.cu_stream(), event, 1)),
                }
            }
            "allocation-size" => driver(sys::cuMemAlloc_v2(&mut 0, 0)),
            "free-known" => {
                result::free_sync(place)?;
                driver(sys::cuMemFree_v2(place))
            }
            "free-busy" => {
                upload(place, &mut device.pinned()?, &stream)?;
                driver(sys::cuMemFree_v2(place))
            }
            "pinned-known" => {
                let slot = device.pinned()?;
                result::free_host(slot.0.cast())?;
                driver(sys::cuMemFreeHost(slot.0.cast()))
            }
            "set-alignment" => driver(sys::cuMemsetD32Async(place + 2, 0, 4, stream.cu_stream())),
            other => panic!("no program breaks the rule {other}"),
        }
    }
}

/// Those of cuBLAS and cuSOLVER.
unsafe fn of_libraries(rule: &str, device: &Device, stream: &Arc<CudaStream>, place: u64) -> Option<Outcome> {
    let (plain, transposed) = (blas::cublasOperation_t::CUBLAS_OP_N, blas::cublasOperation_t::CUBLAS_OP_T);
    let (at, one) = (place as *mut f64, 1.0);
    // SAFETY: none of these is safe; the stand-in has to say so.
    unsafe {
        let product = |handle, a: *const f64, lda, stride| {
            blas::cublasDgemmStridedBatched(
                handle,
                plain,
                plain,
                4,
                4,
                4,
                &one,
                a,
                lda,
                0,
                at,
                4,
                0,
                &one,
                at.add(64),
                4,
                stride,
                2,
            ) as i32
        };
        Some(answer(match rule {
            "library-handle" => {
                let handle = blas_handle(stream);
                blas::cublasDestroy_v2(handle).result().unwrap();
                blas::cublasDestroy_v2(handle) as i32
            }
            "library-device" => {
                let handle = blas_handle(stream);
                let other = Device::open(1).unwrap();
                other.context.bind_to_thread().unwrap();
                product(handle, at, 4, 16)
            }
            "library-stream" => {
                let handle = blas_handle(stream);
                let other = Device::open(1).unwrap().stream();
                device.context.bind_to_thread().unwrap();
                blas::cublasSetStream_v2(handle, other.cu_stream().cast()) as i32
            }
            "library-operand" => product(blas_handle(stream), [0.0; 16].as_ptr(), 4, 16),
            "workspace-alignment" => {
                blas::cublasSetWorkspace_v2(blas_handle(stream), (place + 16) as *mut c_void, 1024) as i32
            }
            "product-leading" => product(blas_handle(stream), at, 3, 16),
            "product-overlap" => product(blas_handle(stream), at, 4, 8),
            "transpose-overlap" => {
                let (handle, zero) = (blas_handle(stream), 0.0);
                blas::cublasDgeam(handle, transposed, transposed, 4, 4, &one, at, 4, &zero, at, 4, at, 4) as i32
            }
            "eigen-shape" | "svd-shape" => {
                let ((handle, params), none) = (solver_handle(stream), std::ptr::null());
                let (mut bytes, mut host) = (0, 0);
                if rule == "eigen-shape" {
                    solver::cusolverDnXsyevd_bufferSize(
                        handle, params, VECTORS, LOWER, 8, REAL, none, 7, REAL, none, REAL, &mut bytes, &mut host,
                    ) as i32
                } else {
                    let thin = b'S' as i8;
                    solver::cusolverDnXgesvd_bufferSize(
                        handle, params, thin, thin, 4, 8, REAL, none, 4, REAL, none, REAL, none, 4, REAL, none, 8,
                        REAL, &mut bytes, &mut host,
                    ) as i32
                }
            }
            "eigen-batch" => {
                type Size = unsafe extern "C" fn(
                    *mut c_void,
                    *mut c_void,
                    c_int,
                    c_int,
                    i64,
                    c_int,
                    *const c_void,
                    i64,
                    c_int,
                    *const c_void,
                    c_int,
                    *mut usize,
                    *mut usize,
                    i64,
                ) -> c_int;
                let ((handle, params), none) = (solver_handle(stream), std::ptr::null());
                let size = solver::culib().get::<Size>(b"cusolverDnXsyevBatched_bufferSize\0").unwrap();
                let (handle, params) = (handle.cast(), params.cast());
                size(handle, params, 1, 0, 4096, 1, none, 4096, 1, none, 1, &mut 0, &mut 0, 128)
            }
            "eigen-workspace" => {
                decompose(solver_handle(stream), [place, place + 256, place + 512, place + 1024], 8, &mut [0; 8])
            }
            "eigen-host" => {
                let (handles, mut host) = (solver_handle(stream), [0; 4096]);
                let work = device.memory(1 << 16).unwrap();
                let _ = result::memset_d8_async(place, 0, BYTES, stream.cu_stream());
                for _ in 0..2 {
                    decompose(handles, [place, place + 256, work, place + 1024], 1 << 16, &mut host);
                }
                stream.synchronize().map_or(1, |()| 0)
            }
            _ => return None,
        }))
    }
}

fn unknown_architecture() -> Outcome {
    result::init()?;
    let (source, option) = (c"", c"--gpu-architecture=sm_33");
    let (mut handle, none) = (std::ptr::null_mut(), std::ptr::null());
    let options = [c"--fmad=false".as_ptr(), option.as_ptr()];
    // SAFETY: a place for a handle, texts that end in a zero byte, as many options as are told.
    unsafe {
        nvrtc::nvrtcCreateProgram(&mut handle, source.as_ptr(), none, 0, std::ptr::null(), std::ptr::null());
        answer(nvrtc::nvrtcCompileProgram(handle, 2, options.as_ptr()) as i32)
    }
}
