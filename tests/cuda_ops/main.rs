//! Every operation of the CUDA backend beside its CPU twin, bit for bit. Needs a device, or the stand-in
//! (`scripts/cuda/standin`); without either, each test says so and passes.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../cuda_common/mod.rs"]
mod cuda_common;

mod blend;
mod cases;
mod select;
mod sums;
