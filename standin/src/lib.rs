//! A stand-in for NVIDIA's driver, cuBLAS, cuSOLVER and NVRTC: a shared object that answers to their names and computes on the
//! CPU, so that merganser's unchanged CUDA backend runs where there is no GPU. `scripts/cuda/standin` builds it and links it
//! under the libraries' names.
//!
//! It is not kind: streams run as late and in as strange an order as CUDA allows (`schedule`), memory is poison until it is
//! written (`memory`), bounds of every copy are checked, and calls fail when asked to (`failures`). What a real device
//! would mostly forgive, such as a missing wait, gives a wrong answer here on some seed.
//!
//! What it knows of registers and static shared memory is what the kernels' committed table says (`compiled`), what it knows of
//! a card's limits is what NVIDIA's tables say (`cards`). It says nothing of speed or of how the real libraries converge.

mod blas;
mod cards;
mod codes;
mod compiled;
mod config;
mod contexts;
mod copies;
mod eigen;
mod failures;
mod gemm;
mod images;
mod kernels;
mod launches;
mod libraries;
mod memory;
mod nvrtc;
mod order;
mod report;
mod rules;
mod sabotage;
mod schedule;
mod solver;
mod streams;
mod svd;
mod transpose;
mod world;

/// Writes a result through a pointer of the caller's.
fn put<T>(place: *mut T, value: T) -> Result<(), codes::Code> {
    if place.is_null() {
        return Err(codes::Code::INVALID_VALUE);
    }
    // SAFETY: not null, and the C interface requires it to point to a `T`.
    unsafe { place.write(value) };
    Ok(())
}

/// Whether the process runs under the address sanitizer.
fn sanitized() -> bool {
    static SANITIZED: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        // SAFETY: only looks the name up.
        !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__asan_init".as_ptr()) }.is_null()
    });
    *SANITIZED
}
