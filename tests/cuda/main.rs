//! Merges and single operations on a CUDA device, beside the CPU's. Every module is run as a process of its own by
//! `scripts/cuda/standin` and `scripts/cuda/gpu-test`: what breaks a device breaks one of them.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../support/mod.rs"]
mod support;

mod both;

mod batches;
mod bench;
mod failures;
mod goldens;
mod low_rank;
mod merge;
mod ops;
mod stages;
mod standin;
