//! What a step takes of a device's memory, and whether the tensor's sources lie there whole or come in chunks.

use crate::backend::cpu::SEGMENT;
use crate::backend::cpu::prune::Geometry;
use crate::backend::cuda::lane::TURNS;
use crate::backend::cuda::ops::StageBlob;
use crate::backend::cuda::pool::Pool;
use crate::backend::{MatrixRule, Program};
use crate::plan::graph::Kind;
use crate::plan::{Plan, TensorPlan};

/// Bytes of centred task vectors that are decomposed together, about. Results do not depend on how much memory a device has:
/// this is a constant.
const GROUP_BYTES: u64 = 1 << 30;
/// Bytes of a panel of a low-rank part on its way into the sum, about.
const PANEL_BYTES: u64 = 64 << 20;

/// A step's wish.
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
        let fits = |needs: &Self| Pool::taken_by(needs.sources.iter().chain(&needs.work).copied()) <= pool_bytes;
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

/// How a matrix is decomposed on a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// min(m, n): the side of a Gram matrix.
    pub r: usize,
    /// max(m, n).
    pub long: usize,
    /// Tasks that are decomposed together.
    pub group: usize,
    /// Most singular triples that can be kept.
    pub most: usize,
    /// Rows of a panel of the low-rank part.
    pub rows: usize,
}

impl Matrix {
    /// Of a tensor that is merged by truncation; `batch` tells how many matrices of a side can be decomposed at once.
    pub fn of(tensor: &TensorPlan, batch: &dyn Fn(usize, usize) -> usize) -> Option<Self> {
        let Program::LowRank(work) = &tensor.program else { return None };
        let MatrixRule::Truncate(rank) = work.rule else { return None };
        let (m, n) = tensor.matrix();
        let (r, long) = (m.min(n), m.max(n));
        let at_once = (GROUP_BYTES / (8 * m * n).max(1)).clamp(1, tensor.models.len() as u64) as usize;
        let rows = (PANEL_BYTES / (8 * n).max(1)).clamp(1, m.max(1)) as usize;
        let (r, long) = (r as usize, long as usize);
        let most = rank.most(m, n) as usize;
        Some(Self { m: m as usize, n: n as usize, r, long, group: batch(r, at_once), most, rows })
    }

    /// Elements of the matrix.
    pub fn elems(&self) -> u64 {
        self.m as u64 * self.n as u64
    }

    /// Spans beside the sources, in the order of [`super::low_rank`].
    pub fn work(&self, blob: u64, solver_bytes: u64, out_bytes: u64) -> Vec<u64> {
        use crate::backend::cuda::ops::low_rank::add_scratch_bytes;
        let (r, group) = (self.r as u64, self.group as u64);
        let mut work = vec![
            blob,
            8 * self.elems() * group,
            8 * r * r * group,
            8 * r * group,
            4 * group,
            solver_bytes,
            8 * self.long as u64 * self.most as u64,
            8 * self.rows as u64 * self.n as u64,
            8 * self.elems(),
            add_scratch_bytes(self.elems()),
            8 * (2 + group),
            16,
        ];
        work.extend([out_bytes; TURNS]);
        work
    }
}

/// The workspace of an eigenvalue solver as long as no device is open: generously, as the pool is sized by it.
pub(super) fn solver_estimate(r: u64, group: u64) -> u64 {
    8 * (6 * r * r + 256 * r) * group + (8 << 20)
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
        if *kind == Kind::Merge
            && let Some(matrix) = Matrix::of(tensor, &|_, wanted| wanted)
        {
            let solver = solver_estimate(matrix.r as u64, matrix.group as u64);
            let work = matrix.work(blob, solver, most_chunk * tensor.elem_bytes);
            most = most.max(Pool::taken_by(whole.iter().copied().chain(work)));
            continue;
        }
        let work = |chunk| super::stats::work(*kind, tensor, blob, chunk);
        let run = super::stats::run_of(*kind, geometry, least_chunk);
        let chunked = source_bytes(plan, tensor, run).into_iter().cycle().take(TURNS * whole.len());
        let with_all = |chunk| Pool::taken_by(whole.iter().copied().chain(work(chunk)));
        most = most.max(with_all(most_chunk));
        least = least.max(Pool::taken_by(chunked.chain(work(least_chunk))).min(with_all(least_chunk)));
    }
    [most, least]
}
