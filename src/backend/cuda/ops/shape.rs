//! Grids: a thread takes a vector of 8 elements; a block of what works in slots is as large as shared memory allows.

use super::super::module::{Kernels, Shape};
use crate::error::{Error, Result};

/// Elements of a vector, as in common.cuh.
pub(super) const VECTOR: u64 = 8;
/// Threads of a block of kernels that take no slots.
pub(super) const THREADS: u32 = 256;

/// Shared memory of a block that lets several lie on a multiprocessor at the same time.
const COMFORTABLE_BYTES: u32 = 56 << 10;

/// A block for each 2048 elements.
pub(super) fn by_vectors(len: u64) -> Shape {
    Shape { grid: (len.div_ceil(VECTOR * u64::from(THREADS)), 1), threads: THREADS, shared_bytes: 0 }
}

/// A thread for each of so many.
pub(super) fn by_threads(count: u64) -> Shape {
    Shape { grid: (count.div_ceil(u64::from(THREADS)), 1), threads: THREADS, shared_bytes: 0 }
}

/// Threads and shared memory of a block with slots for `arrays` arrays of `value_bytes` and `fixed_bytes` beside them.
///
/// # Errors
/// `Environment` if not even the smallest block fits the device.
pub(super) fn slots(
    kernels: &Kernels,
    arrays: u32,
    value_bytes: u32,
    doubles: u32,
    fixed_bytes: u32,
) -> Result<(u32, u32)> {
    let bytes = |threads: u32| {
        VECTOR as u32 * (threads + 1) * (arrays * value_bytes + doubles * size_of::<f64>() as u32) + fixed_bytes
    };
    let most = kernels.shared_bytes();
    let threads = [128, 64].into_iter().find(|t| bytes(*t) <= COMFORTABLE_BYTES.min(most)).unwrap_or(32);
    if bytes(threads) <= most {
        return Ok((threads, bytes(threads)));
    }
    Err(Error::device(format!(
        "{arrays} models at once take {} bytes of the device's shared memory, and a block has {most}",
        bytes(threads)
    ))
    .hint("merge fewer models at a time, or use `--device cpu`"))
}
