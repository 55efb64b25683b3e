//! The CUDA backend.

pub mod module;
#[cfg(not(merganser_fatbin))]
mod nvrtc;
pub mod ops;
