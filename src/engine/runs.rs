//! The sources of a matrix, which a merge of matrices reads several times.

use twox_hash::xxhash3_128::Hasher;

use super::Engine;
use super::sources::{stored_bytes, with_sources};
use super::tensor::hashed_as;
use crate::backend::cpu::low_rank::ReadRuns;
use crate::backend::cpu::prune::Sources;
use crate::error::{Error, Result};
use crate::output::source_digest::{BLOCK_ELEMS, block_bytes};
use crate::plan::TensorPlan;

/// Hashed as they first pass by in order.
pub(super) struct Runs<'a, 'p> {
    engine: &'a Engine<'p>,
    tensor: &'a TensorPlan,
    raw: &'a mut Vec<Vec<u8>>,
    is_first: bool,
    /// The element up to which everything has been hashed.
    hashed: u64,
    hashers: Vec<Hasher>,
    blocks: Vec<(usize, usize, u128)>,
}

impl<'a, 'p> Runs<'a, 'p> {
    pub fn new(engine: &'a Engine<'p>, tensor: &'a TensorPlan, raw: &'a mut Vec<Vec<u8>>, is_first: bool) -> Self {
        let hashers = tensor.reads().map(|_| Hasher::new()).collect();
        Self { engine, tensor, raw, is_first, hashed: 0, hashers, blocks: Vec::new() }
    }

    /// Digests of the sources' blocks: source, block, digest.
    pub fn blocks(self) -> Vec<(usize, usize, u128)> {
        self.blocks
    }
}

impl ReadRuns for Runs<'_, '_> {
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()> {
        if self.engine.schedule.is_over() {
            // The error that ends the run is noted already, unless it is a signal that nobody has looked at yet.
            return Err(Error::internal("the merge is being stopped"));
        }
        let Self { engine, tensor, raw, is_first, hashed, hashers, blocks } = self;
        let end = start + len as u64;
        with_sources(engine.plan, tensor, start, end, raw, |sources| {
            let count = |elems: u64, is_first: bool| {
                let bytes = tensor.reads().map(|at| stored_bytes(engine.plan, tensor, at, elems)).sum();
                engine.progress.add_read(bytes, is_first);
            };
            let mut fresh = 0;
            if start <= *hashed && *hashed < end {
                hash_on(sources, *hashed, tensor.elems, hashers, blocks);
                fresh = end - *hashed;
                count(fresh, *is_first);
                *hashed = end;
            }
            count(len as u64 - fresh, false);
            take(sources);
        })
    }

    fn again(&mut self, passes: u64) {
        let of = |at| stored_bytes(self.engine.plan, self.tensor, at, self.tensor.elems);
        self.engine.progress.add_unplanned(passes * self.tensor.reads().map(of).sum::<u64>());
    }
}

/// Hashes the elements of a run from `from` on, block by block.
fn hash_on(
    sources: &Sources<'_>,
    from: u64,
    elems: u64,
    hashers: &mut [Hasher],
    blocks: &mut Vec<(usize, usize, u128)>,
) {
    let end = sources.start + sources.len as u64;
    for (source, (stored, hasher)) in sources.base.iter().chain(sources.models).zip(hashers).enumerate() {
        let size = block_bytes(hashed_as(stored.dtype)) / BLOCK_ELEMS;
        let mut at = from;
        while at < end {
            let next = ((at / BLOCK_ELEMS + 1) * BLOCK_ELEMS).min(end);
            let bytes = |e: u64| ((e - sources.start) * size) as usize;
            hasher.write(&stored.bytes[bytes(at)..bytes(next)]);
            if next.is_multiple_of(BLOCK_ELEMS) || next == elems {
                blocks.push((source, ((next - 1) / BLOCK_ELEMS) as usize, hasher.finish_128()));
                *hasher = Hasher::new();
            }
            at = next;
        }
    }
}
