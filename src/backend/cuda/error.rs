//! Errors of CUDA as merganser's: which device, what was being done, what it said, what to do. All are the environment's, so
//! that `--resume` can go on.

use cudarc::driver::{DriverError, sys::CUresult};

use crate::error::Error;
use crate::units::format_bytes;

/// What the driver says of an error: its name and its text.
pub fn describe(error: DriverError) -> String {
    let text = |s: Result<&std::ffi::CStr, DriverError>| s.map(|s| s.to_string_lossy().into_owned()).ok();
    match (text(error.error_name()), text(error.error_string())) {
        (Some(name), Some(what)) => format!("{what} ({name})"),
        (Some(name), None) => name,
        (None, _) => format!("error {}", error.0 as u32),
    }
}

/// Why a device cannot be opened.
pub fn not_opened(error: DriverError) -> String {
    let said = describe(error);
    match error.0 {
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => format!(
            "it cannot be opened: another program has it for itself, as its compute mode is `exclusive process`, or it is \
             partitioned (MIG) and no slice is named: {said}"
        ),
        _ => format!("it cannot be opened: {said}"),
    }
}

/// A library's status by its name in the library's header: `PREFIX` and the name, or the number where it is a new one.
pub fn status(prefix: &str, names: &[(std::ffi::c_int, &str)], status: std::ffi::c_int) -> String {
    match names.iter().find(|(number, _)| *number == status) {
        Some((_, name)) => format!("{prefix}{name}"),
        None => format!("status {status}"),
    }
}

/// An error of the driver while `doing` something (a phrase such as "copy to the device") on a device of this label.
pub fn driver(label: &str, doing: &str, error: DriverError) -> Error {
    use CUresult as E;
    let said = describe(error);
    match error.0 {
        E::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(label, doing, &said),
        // After these the context is gone: nothing more can be had of the device in this process.
        E::CUDA_ERROR_ILLEGAL_ADDRESS
        | E::CUDA_ERROR_LAUNCH_FAILED
        | E::CUDA_ERROR_LAUNCH_TIMEOUT
        | E::CUDA_ERROR_ECC_UNCORRECTABLE
        | E::CUDA_ERROR_HARDWARE_STACK_ERROR
        | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | E::CUDA_ERROR_DEVICE_UNAVAILABLE
        | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | E::CUDA_ERROR_SYSTEM_NOT_READY
        | E::CUDA_ERROR_DEVICE_NOT_LICENSED
        | E::CUDA_ERROR_DEINITIALIZED => Error::device(format!("{label} was lost while it was to {doing}: {said}"))
            .hint(
                "check the device with `nvidia-smi` and the kernel's log; another device or `--device cpu` can go on",
            ),
        _ => Error::device(format!("{label} could not {doing}: {said}")),
    }
}

/// Too little device memory.
pub fn out_of_memory(label: &str, doing: &str, said: &str) -> Error {
    Error::device(format!("{label} ran out of memory when it was to {doing}: {said}"))
        .hint("end what else uses the device, or give a smaller --device-memory")
        .out_of_device_memory()
}

/// A pool that cannot hold the least that a step takes.
pub fn pool_too_small(label: &str, tensor: &str, needs: u64, has: u64) -> Error {
    Error::device(format!(
        "{label} has too little memory for `{tensor}`: even in the smallest pieces it takes {}, and {} can be had",
        format_bytes(needs),
        format_bytes(has)
    ))
    .of_tensor(tensor)
    .hint("end what else uses the device, raise --device-memory, or use `--device cpu`")
}
