//! Who carries out operations: the CPU and CUDA devices. What they carry out is data, in [`crate::ops`].
//!
//! Operations are fused: an element-wise merge is one pass that reads every source in its stored dtype and writes the
//! merged elements, whatever stages and rules it is made of. The CPU backend is the oracle of every other.

pub mod checked;
pub mod contract;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
