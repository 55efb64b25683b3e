//! What there is of CUDA on this machine. Each library is asked for before it is used: the bindings panic where one is missing.
#![allow(unsafe_code)]

use std::ffi::c_int;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::backend::device::{Cuda, CudaDevice, Library, Version};

/// The oldest CUDA that a driver must support: that of the compiler which kernels are built with.
pub const LEAST_DRIVER: Version = Version(13, 0);
/// The least compute capability that kernels are built for.
pub const LEAST_CAPABILITY: Version = Version(8, 0);

/// Looks for the driver, the libraries and the devices.
pub fn find() -> Cuda {
    let mut found = Cuda { libraries: libraries(), ..Cuda::default() };
    // SAFETY: it only tries to load libraries of these names, whose initialisers are the driver's own.
    if !unsafe { sys::is_culib_present() } {
        found.problem = Some("libcuda.so.1, which comes with NVIDIA's driver, was not found".into());
        let least = format!("install an NVIDIA driver that supports CUDA {LEAST_DRIVER} (release 580 or later)");
        found.remedy = Some(match crate::backend::device::nvidia_driver() {
            Some(kernel) => format!("{least}; the kernel's part is loaded ({kernel}), its library is missing here"),
            None => least,
        });
        return found;
    }
    if let Err((problem, remedy)) = find_devices(&mut found) {
        found.problem = Some(problem);
        found.remedy = Some(remedy);
    }
    found
}

/// Finds the devices, or says why there are none and what to do.
fn find_devices(found: &mut Cuda) -> Result<(), (String, String)> {
    let failed = |what: &str, error: DriverError| {
        let said = super::error::describe(error);
        match error.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => (
                "NVIDIA's driver finds no device".to_owned(),
                "check `nvidia-smi`, CUDA_VISIBLE_DEVICES and, in a container, that the devices are passed to it"
                    .to_owned(),
            ),
            _ => (format!("NVIDIA's driver {what}: {said}"), "check the driver with `nvidia-smi`".to_owned()),
        }
    };
    result::init().map_err(|e| failed("does not start", e))?;
    let mut version: c_int = 0;
    // SAFETY: the library is there, and the pointer is to a live integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| failed("does not tell its version", e))?;
    let version = Version(version.unsigned_abs() / 1000, version.unsigned_abs() % 1000 / 10);
    found.driver = Some(version);
    if version < LEAST_DRIVER {
        return Err((
            format!("NVIDIA's driver is too old: it supports CUDA {version}, and {LEAST_DRIVER} is needed"),
            "install a driver of release 580 or later".to_owned(),
        ));
    }
    let count = CudaContext::device_count().map_err(|e| failed("does not count its devices", e))?;
    for ordinal in 0..count {
        found.devices.push(device(ordinal));
    }
    if found.devices.is_empty() {
        return Err(failed("", DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)));
    }
    Ok(())
}

fn device(ordinal: c_int) -> CudaDevice {
    let mut found = CudaDevice {
        ordinal: ordinal.unsigned_abs(),
        name: "unknown".into(),
        capability: Version(0, 0),
        total_bytes: 0,
        free_bytes: 0,
        multiprocessors: 0,
        problem: None,
    };
    match describe(&mut found, ordinal) {
        Err(error) => found.problem = Some(format!("it cannot be used: {}", super::error::describe(error))),
        Ok(()) if found.capability < LEAST_CAPABILITY => {
            let capability = found.capability;
            found.problem = Some(format!("its compute capability is {capability}, and {LEAST_CAPABILITY} is needed"));
        }
        Ok(()) => {}
    }
    found
}

fn describe(found: &mut CudaDevice, ordinal: c_int) -> Result<(), DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = result::device::get(ordinal)?;
    found.name = result::device::get_name(device)?;
    // SAFETY: `device` comes from the driver.
    let of = |attribute| unsafe { result::device::get_attribute(device, attribute) }.map(c_int::unsigned_abs);
    found.capability = Version(
        of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    found.multiprocessors = of(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    // SAFETY: as above.
    found.total_bytes = unsafe { result::device::total_mem(device) }? as u64;
    let (free, total) = CudaContext::new(found.ordinal as usize)?.mem_get_info()?;
    (found.free_bytes, found.total_bytes) = (free as u64, total as u64);
    Ok(())
}

/// The libraries beside the driver's.
fn libraries() -> Vec<Library> {
    // SAFETY: loading a library by NVIDIA's names runs its own initialisers, nothing else.
    let cublas = unsafe { cudarc::cublas::sys::is_culib_present() };
    // SAFETY: see above.
    let cusolver = unsafe { cudarc::cusolver::sys::is_culib_present() };
    // SAFETY: see above.
    let nvrtc = unsafe { cudarc::nvrtc::sys::is_culib_present() };
    let library = |name, purpose, is_present: bool, version: fn() -> Option<String>| Library {
        name,
        purpose,
        is_present,
        version: is_present.then(version).flatten(),
    };
    vec![
        library("cublas", "products of matrices in low-rank methods", cublas, cublas_version),
        library("cusolver", "eigenvectors in low-rank methods", cusolver, cusolver_version),
        library("nvrtc", "compiling kernels where the build had no nvcc", nvrtc, nvrtc_version),
    ]
}

fn cublas_version() -> Option<String> {
    use cudarc::cublas::sys::libraryPropertyType_t as Property;
    use cudarc::cublas::sys::{cublasGetProperty, cublasStatus_t, culib};
    // SAFETY: the library is loaded; a symbol is looked up and not used.
    unsafe { culib().get::<*const ()>(b"cublasGetProperty\0") }.ok()?;
    let of = |property| {
        let mut value: c_int = 0;
        // SAFETY: the symbol is there, and the pointer is to a live integer.
        let status = unsafe { cublasGetProperty(property, &mut value) };
        (status == cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(value)
    };
    Some(format!("{}.{}.{}", of(Property::MAJOR_VERSION)?, of(Property::MINOR_VERSION)?, of(Property::PATCH_LEVEL)?))
}

fn cusolver_version() -> Option<String> {
    use cudarc::cusolver::sys::{culib, cusolverGetVersion, cusolverStatus_t};
    // SAFETY: the library is loaded; a symbol is looked up and not used.
    unsafe { culib().get::<*const ()>(b"cusolverGetVersion\0") }.ok()?;
    let mut version: c_int = 0;
    // SAFETY: the symbol is there, and the pointer is to a live integer.
    let status = unsafe { cusolverGetVersion(&mut version) };
    // As in 11702: 11.7.2.
    let parts = format!("{}.{}.{}", version / 1000, version % 1000 / 100, version % 100);
    (status == cusolverStatus_t::CUSOLVER_STATUS_SUCCESS).then_some(parts)
}

fn nvrtc_version() -> Option<String> {
    use cudarc::nvrtc::sys::{culib, nvrtcResult, nvrtcVersion};
    // SAFETY: the library is loaded; a symbol is looked up and not used.
    unsafe { culib().get::<*const ()>(b"nvrtcVersion\0") }.ok()?;
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: the symbol is there, and the pointers are to live integers.
    let status = unsafe { nvrtcVersion(&mut major, &mut minor) };
    (status == nvrtcResult::NVRTC_SUCCESS).then(|| format!("{major}.{minor}"))
}
