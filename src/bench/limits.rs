//! How fast memory is copied.

use super::{Bench, Unit, rounds};
use crate::error::Result;

/// Name of the limit that element-wise paths are held against.
pub(super) const COPY: &str = "memory copy";

/// Bytes copied between two looks at the wish to stop.
const STEP_BYTES: usize = 4 << 20;

/// One half of the block is copied onto the other, by one thread, two, four … and all.
pub(super) fn memory(bench: &mut Bench<'_>) -> Result<()> {
    let mut block = bench.take_block()?;
    let half = block.len() / 2;
    let all = bench.settings.threads;
    let some = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < all);
    let result = some.chain([all]).try_for_each(|threads| {
        bench.limit(COPY, (threads, Unit::Bytes, 2.0 * half as f64), |stop| {
            let (from, rest) = block.split_at_mut(half);
            let part = half.div_ceil(threads);
            let parts = from.chunks(part).zip(rest.chunks_mut(part)).collect();
            rounds::in_parallel(parts, |(from, to)| {
                for (from, to) in from.chunks(STEP_BYTES).zip(to.chunks_mut(STEP_BYTES)) {
                    rounds::check(stop)?;
                    let len = from.len().min(to.len()); // of an odd half the rest is longer
                    to[..len].copy_from_slice(&from[..len]);
                }
                Ok(())
            })
        })
    });
    bench.block = block;
    result
}
