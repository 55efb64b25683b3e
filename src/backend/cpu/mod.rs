//! The CPU backend: cache-sized blocks, widened once, worked on in vector loops, narrowed once.
//!
//! **Invariant:** an element's result depends on nothing but that element's sources and the tensor's statistics, and
//! every statistic is summed in an order fixed by the tensor's shape; so results do not depend on chunks or threads.

pub mod allocator;
pub mod blend;
pub mod device;
pub mod features;
mod in_registers;
pub mod lines;
pub mod low_rank;
pub mod overlap;
pub mod pairs;
mod portable;
pub mod prune;
pub mod ram;
pub mod select;
mod simd;
pub mod stats;
pub mod stored;
pub mod trace;
mod vector;

/// Elements worked on at once: a block of every model's task vector stays in the core's own cache.
pub const BLOCK: usize = 2048;
