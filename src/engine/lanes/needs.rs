//! What a step takes of a device's memory, and whether the tensor's sources lie there whole or come in chunks.

use super::matrices::{EXPECTED, needs_by};
use crate::backend::cuda::lane::TURNS;
use crate::backend::cuda::ops::StageBlob;
use crate::backend::cuda::pool::Pool;
use crate::ops::{Geometry, Program, SEGMENT};
use crate::plan::graph::Kind;
use crate::plan::{Plan, TensorPlan};

/// What a step asks for.
#[derive(Debug)]
pub(super) struct Needs {
    /// Spans for sources: one a source, or [`TURNS`] times one a source for chunks.
    pub sources: Vec<u64>,
    /// Spans for everything else.
    pub work: Vec<u64>,
    /// Whether sources come in chunks.
    pub is_streamed: bool,
    /// Elements of a launch, at most: a multiple of [`SEGMENT`].
    pub chunk: u64,
}

/// Bytes of so many elements of each source.
pub(super) fn source_bytes(plan: &Plan, tensor: &TensorPlan, elems: u64) -> Vec<u64> {
    tensor.reads().map(|at| elems * (plan.stored(at).0.dtype.bitsize() as u64 / 8)).collect()
}

/// Elements of a launch at most: no more than the tensor has, in whole segments.
pub(super) fn most_chunk(tensor: &TensorPlan, most: u64) -> u64 {
    most.min(tensor.elems.next_multiple_of(SEGMENT as u64)).max(SEGMENT as u64)
}

/// Elements of a launch that are worth trying, the most first.
fn chunks(tensor: &TensorPlan, most: u64) -> impl Iterator<Item = u64> + use<> {
    let least = SEGMENT as u64;
    let first = most_chunk(tensor, most);
    // Halves of what is no power of two would cut segments.
    std::iter::successors(Some(first), move |chunk| {
        (*chunk > least).then(|| (chunk / 2).next_multiple_of(least).min(chunk - least))
    })
}

impl Needs {
    /// The widest way in which a step fits into a pool: sources whole, else in the largest chunks; `None` if the smallest do
    /// not fit. `work` gives the spans beside the sources for launches of so many elements, `run` what of them a chunk of
    /// the sources holds.
    pub fn fit(
        plan: &Plan,
        tensor: &TensorPlan,
        pool_bytes: u64,
        most: u64,
        work: &dyn Fn(u64) -> Vec<u64>,
        run: &dyn Fn(u64) -> u64,
    ) -> Option<Self> {
        let fits = |needs: &Self| needs.taken() <= pool_bytes;
        let whole = source_bytes(plan, tensor, tensor.elems);
        for is_streamed in [false, true] {
            for chunk in chunks(tensor, most) {
                let sources = if is_streamed {
                    let once = source_bytes(plan, tensor, run(chunk));
                    (0..TURNS).flat_map(|_| once.iter().copied()).collect()
                } else {
                    whole.clone()
                };
                let needs = Self { sources, work: work(chunk), is_streamed, chunk };
                if fits(&needs) {
                    return Some(needs);
                }
            }
        }
        None
    }
}

/// What the steps of a tensor take at most, with its sources there whole, and at least; of a matrix both are the same.
pub(super) fn range(plan: &Plan, index: usize, kinds: &[Kind]) -> [u64; 2] {
    let tensor = &plan.tensors[index];
    let (models, geometry) = (tensor.models.len(), Geometry::of(&tensor.shape));
    let blob = StageBlob::most_bytes(tensor.stages(), models, geometry);
    let (most_chunk, least_chunk) = (most_chunk(tensor, plan.memory.chunk_elems), SEGMENT as u64);
    let whole = source_bytes(plan, tensor, tensor.elems);
    let (mut most, mut least) = (0, 0);
    for kind in kinds {
        if *kind == Kind::Merge && matches!(tensor.program, Program::LowRank(_)) {
            let tensors = super::together(plan, &index);
            // The first of a batch takes what all of it takes.
            if tensors[0] == index {
                let needs = needs_by(plan, tensors, &EXPECTED, plan.memory.chunk_elems);
                most = most.max(needs.ok().flatten().map_or(0, |needs| needs.taken()));
            }
            continue;
        }
        let work = |chunk| super::stats::work(*kind, tensor, blob, chunk);
        let run = super::stats::run_of(*kind, tensor, least_chunk);
        let chunked = source_bytes(plan, tensor, run).into_iter().cycle().take(TURNS * whole.len());
        let with_all = |chunk| Pool::taken_by(whole.iter().copied().chain(work(chunk)));
        most = most.max(with_all(most_chunk));
        least = least.max(Pool::taken_by(chunked.chain(work(least_chunk))).min(with_all(least_chunk)));
    }
    [most, least]
}
