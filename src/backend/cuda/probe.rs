//! What there is of CUDA on this machine. Each library is asked for before it is used: the bindings panic where one is missing.
//!
//! Nothing here opens a context but [`measure`]: what a plan asks takes nothing of a device.
#![allow(unsafe_code)]

use std::env;
use std::ffi::{c_int, c_void};
use std::sync::{Once, OnceLock};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::libraries::{self, Name, file_of, in_driver};
use crate::backend::device::{Cuda, CudaDevice, Library, Version};

/// The oldest CUDA that a driver must support.
pub const LEAST_DRIVER: Version = Version(12, 0);
/// The release of the driver that is the oldest to do so.
const LEAST_RELEASE: &str = "525";
/// The least compute capability that kernels are built for.
pub const LEAST_CAPABILITY: Version = Version(7, 5);

/// Queues of work that a device is to have, as it has 8 unless asked: a lane has three streams, and two in one queue wait for each
/// other.
const CONNECTIONS: &str = "CUDA_DEVICE_MAX_CONNECTIONS";

/// Looks for the driver, the libraries and the devices.
pub fn find() -> Cuda {
    let mut found = Cuda::default();
    let done = driver().and_then(|()| find_devices(&mut found));
    found.libraries = libraries();
    if let Err((problem, remedy)) = done {
        (found.problem, found.remedy) = (Some(problem), Some(remedy));
    }
    found
}

/// The newest CUDA that the driver's library supports; `None` where there is none.
pub(super) fn driver_version() -> Option<Version> {
    static VERSION: OnceLock<Option<Version>> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let function = in_driver(c"cuDriverGetVersion").ok()?;
        // SAFETY: the driver's function of this name has this type, and may be called before the driver is started.
        let function = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int) -> c_int>(function) };
        let mut version: c_int = 0;
        (function(&mut version) == 0)
            .then_some(Version(version.unsigned_abs() / 1000, version.unsigned_abs() % 1000 / 10))
    })
}

/// Whether the driver's library is there, and is what the bindings will call; else a problem and a remedy.
fn driver() -> Result<(), (String, String)> {
    let least =
        format!("install an NVIDIA driver that supports CUDA {LEAST_DRIVER} (release {LEAST_RELEASE} or later)");
    let Ok(own) = in_driver(c"cuInit") else {
        let problem = "libcuda.so.1, which comes with NVIDIA's driver, was not found".to_owned();
        let remedy = match crate::backend::device::nvidia_driver() {
            Some(kernel) => format!("{least}; the kernel's part is loaded ({kernel}), its library is missing here"),
            None => least,
        };
        return Err((problem, remedy));
    };
    static QUEUES: Once = Once::new();
    QUEUES.call_once(|| {
        if env::var_os(CONNECTIONS).is_none() {
            // SAFETY: once, before the driver starts and with it whatever of it reads the environment; Rust's own reads and
            // writes exclude each other.
            unsafe { env::set_var(CONNECTIONS, "32") };
        }
    });
    // The bindings try other names first, and a toolkit has stubs under one of them.
    // SAFETY: it only tries to load libraries of these names, whose initialisers are the driver's own.
    let bound = unsafe { sys::is_culib_present() }.then(|| {
        // SAFETY: the library is there; a symbol is looked up and not used.
        unsafe { sys::culib().get::<*const c_void>(b"cuInit\0") }.ok().map(|symbol| *symbol)
    });
    match bound.flatten() {
        Some(bound) if std::ptr::eq(bound, own) => Ok(()),
        bound => {
            let path = bound.and_then(file_of).map_or_else(|| "libcuda.so".into(), |path| path.display().to_string());
            let own = file_of(own).map_or_else(|| "libcuda.so.1".into(), |path| path.display().to_string());
            Err((
                format!("the loader finds `{path}`, a stub or another driver, before the driver's own `{own}`"),
                "take its folder off LD_LIBRARY_PATH: stubs are for linking".to_owned(),
            ))
        }
    }
}

/// Finds the devices, or says why there are none and what to do.
fn find_devices(found: &mut Cuda) -> Result<(), (String, String)> {
    let failed = |what: &str, error: DriverError| {
        let said = super::error::describe(error);
        match error.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => no_device(),
            sys::CUresult::CUDA_ERROR_STUB_LIBRARY => (
                "libcuda.so.1 is a stub of the toolkit, which stands for a driver when programs are linked".to_owned(),
                "take its folder off LD_LIBRARY_PATH, or install NVIDIA's driver".to_owned(),
            ),
            _ => (format!("NVIDIA's driver {what}: {said}"), "check the driver with `nvidia-smi`".to_owned()),
        }
    };
    // Tells nothing of devices and may be asked before the driver starts, which an old one need not do.
    let version = driver_version().ok_or_else(|| {
        ("NVIDIA's driver does not tell its version".to_owned(), "check the driver with `nvidia-smi`".to_owned())
    })?;
    found.driver = Some(version);
    if version < LEAST_DRIVER {
        return Err((
            format!("NVIDIA's driver is too old: it supports CUDA {version}, and {LEAST_DRIVER} is needed"),
            format!("install a driver of release {LEAST_RELEASE} or later"),
        ));
    }
    result::init().map_err(|e| failed("does not start", e))?;
    let count = CudaContext::device_count().map_err(|e| failed("does not count its devices", e))?;
    for ordinal in 0..count {
        found.devices.push(device(ordinal));
    }
    if found.devices.is_empty() {
        return Err(no_device());
    }
    Ok(())
}

/// That there is no device, and what hides them as far as that can be seen.
fn no_device() -> (String, String) {
    let hidden = "NVIDIA's driver finds no device";
    match env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) if list.is_empty() => (
            format!("{hidden}: CUDA_VISIBLE_DEVICES is set and empty, which hides every device"),
            "unset CUDA_VISIBLE_DEVICES, or name devices in it".to_owned(),
        ),
        Ok(list) => (
            format!("{hidden}: CUDA_VISIBLE_DEVICES is `{list}`, which leaves none"),
            "name devices in CUDA_VISIBLE_DEVICES as `nvidia-smi -L` lists them".to_owned(),
        ),
        Err(_) => {
            (hidden.to_owned(), "check `nvidia-smi` and, in a container, that the devices are passed to it".to_owned())
        }
    }
}

fn device(ordinal: c_int) -> CudaDevice {
    let mut found = CudaDevice {
        ordinal: ordinal.unsigned_abs(),
        name: "unknown".into(),
        capability: Version(0, 0),
        total_bytes: 0,
        free_bytes: None,
        multiprocessors: 0,
        problem: None,
    };
    match describe(&mut found, ordinal) {
        Err(error) => found.problem = Some(format!("it cannot be used: {}", super::error::describe(error))),
        Ok(()) if found.problem.is_none() && found.capability < LEAST_CAPABILITY => {
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
    if of(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE)? == PROHIBITED {
        found.problem = Some(
            "its compute mode is `prohibited`, in which no program may use it (`nvidia-smi -c 0` ends that)".into(),
        );
    }
    Ok(())
}

/// `CU_COMPUTEMODE_PROHIBITED`.
const PROHIBITED: u32 = 2;

/// How much of a device's memory is free, for which it is opened.
pub fn measure(device: &mut CudaDevice) {
    if device.problem.is_some() {
        return;
    }
    match CudaContext::new(device.ordinal as usize).and_then(|context| context.mem_get_info()) {
        Ok((free, total)) => (device.free_bytes, device.total_bytes) = (Some(free as u64), total as u64),
        Err(error) => device.problem = Some(super::error::not_opened(error)),
    }
}

/// The libraries beside the driver's.
fn libraries() -> Vec<Library> {
    let library = |name: Name, purpose, version: fn(&libraries::Library) -> Option<String>| {
        let opened = libraries::open(name);
        Library {
            name: name.stem(),
            purpose,
            problem: opened.err().map(str::to_owned),
            path: opened.ok().map(|library| library.path.clone()),
            version: opened.ok().and_then(version),
        }
    };
    vec![
        library(Name::Cublas, "products of matrices in low-rank methods", |library| {
            let of = |which: c_int| {
                let function = library.symbol(c"cublasGetProperty")?;
                // SAFETY: cuBLAS's function of this name has this type: `libraryPropertyType`, a place for a number.
                let get =
                    unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(c_int, *mut c_int) -> c_int>(function) };
                let mut value = 0;
                (get(which, &mut value) == 0).then_some(value)
            };
            Some(format!("{}.{}.{}", of(0)?, of(1)?, of(2)?))
        }),
        library(Name::Cusolver, "eigenvectors in low-rank methods", |library| {
            let function = library.symbol(c"cusolverGetVersion")?;
            // SAFETY: cuSOLVER's function of this name has this type.
            let get = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int) -> c_int>(function) };
            let mut version = 0;
            // As in 11702: 11.7.2.
            let parts = |v: c_int| format!("{}.{}.{}", v / 1000, v % 1000 / 100, v % 100);
            (get(&mut version) == 0).then(|| parts(version))
        }),
        library(Name::Nvrtc, "compiling kernels where the build had no nvcc", |library| {
            let function = library.symbol(c"nvrtcVersion")?;
            // SAFETY: NVRTC's function of this name has this type.
            let get =
                unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int, *mut c_int) -> c_int>(function) };
            let (mut major, mut minor) = (0, 0);
            (get(&mut major, &mut minor) == 0).then(|| format!("{major}.{minor}"))
        }),
    ]
}
