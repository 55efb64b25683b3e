//! The CUDA backend: what was found, devices and their memory, streams and page-locked slots, kernels, cuBLAS and cuSOLVER.
//!
//! Nothing here knows files or plans; `engine::lanes` drives it. All libraries are loaded at run time and asked for first, so
//! that a machine without them is told so and nothing else happens.

pub mod cublas;
pub mod cusolver;
pub mod error;
pub mod event;
pub mod gpu;
pub mod lane;
pub(super) mod libraries;
pub mod module;
#[cfg(not(merganser_fatbin))]
mod nvrtc;
pub mod ops;
pub mod pinned;
pub mod pool;
pub mod probe;
pub mod rates;
pub mod solver;
