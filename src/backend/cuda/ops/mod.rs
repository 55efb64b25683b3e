//! Launches of the kernels in `kernels/`, one file an operation.
//!
//! An operation takes device pointers as numbers, checks what can be checked of them, and puts a launch on a stream: it allocates
//! nothing, waits for nothing and returns before anything has run. Whoever calls sees to it that the memory is there, holds what it
//! should when the stream gets to it, and stays until then.
//!
//! **Alignment.** A pointer is a multiple of its elements' size. Accesses are 16 bytes wide where the first element of a run lies at a multiple
//! of 16 bytes; other runs, and the ends of all, go by the element. Blobs, scratch and results lie at multiples of 16 bytes.
//!
//! **Bits.** Results are those of the CPU's functions named beside each operation, but for the payload and the sign of a NaN, which NVIDIA's
//! arithmetic does not keep: a cut that is itself a NaN may count other NaNs as tied with it.

pub mod blend;
pub mod columns;
pub mod low_rank;
pub mod overlap;
mod params;
pub mod ranks;
pub mod select;
mod shape;
mod sparse;
mod stages;
pub mod sums;

pub use params::{DeviceSources, MAX_MODELS, Place};
pub use sparse::ChosenAt;
pub use stages::{StageBlob, Stages};
