//! How matrices are decomposed on a device: how many at once, and what memory that takes.
//!
//! Tasks of one matrix go together, and where all of them do, so do matrices of one shape, as they repeat across layers. How
//! many follows from the shape and from [`GROUP_BYTES`] alone, so that the libraries are called alike on every device and in
//! every run (on hardware a batched call need not give the bits of a single one); only where a device's pool does not hold
//! that many are there fewer, half of them, half of that.

use super::needs::{self, Needs, source_bytes};
use crate::backend::cpu::low_rank;
use crate::backend::cuda::lane::TURNS;
use crate::backend::cuda::ops::StageBlob;
use crate::backend::cuda::ops::low_rank::add_scratch_bytes;
use crate::backend::cuda::pool::{ALIGN_BYTES, Pool};
use crate::error::Result;
use crate::ops::{Geometry, MatrixRule, Program};
use crate::plan::batches::{alike, cut};
use crate::plan::{Plan, TensorPlan};

/// Bytes of task vectors that are decomposed together, about.
const GROUP_BYTES: u64 = 1 << 30;
/// Bytes of low-rank parts on their way into the sum, about: of several matrices, or a panel of one.
const PANEL_BYTES: u64 = 64 << 20;

/// What a solver says of matrices: workspace in bytes for so many of a side, and how many of those wished can go together.
pub(super) struct SolverLimits<'a> {
    pub workspace: &'a dyn Fn(usize, usize) -> Result<u64>,
    pub batch: &'a dyn Fn(usize, usize) -> usize,
    /// Workspace in bytes for the singular value decomposition of a matrix of so many rows and no more columns.
    pub svd: &'a dyn Fn(usize, usize) -> Result<u64>,
}

/// How matrices of a shape are truncated on a device.
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
    /// Matrices that are merged together: more than one only where `group` is all tasks.
    pub layers: usize,
    /// Most singular triples that can be kept.
    pub most: usize,
    /// Low-rank parts that are made together.
    pub together: usize,
    /// Rows of a panel of a low-rank part: all where several are made together.
    pub rows: usize,
}

impl Matrix {
    /// Of a tensor that is merged by truncation, with up to `alike` of its kind; `batch` tells how many matrices of a side can
    /// be decomposed at once.
    pub fn of(tensor: &TensorPlan, alike: usize, batch: &dyn Fn(usize, usize) -> usize) -> Option<Self> {
        let Program::LowRank(work) = &tensor.program else { return None };
        let MatrixRule::Truncate(rank) = work.rule else { return None };
        let (m, n) = tensor.matrix();
        let (r, long, tasks) = (m.min(n) as usize, m.max(n) as usize, tensor.models.len());
        let bytes = (8 * m * n).max(1);
        let at_once = batch(r, (GROUP_BYTES / bytes).clamp(1, (tasks * alike.max(1)) as u64) as usize);
        let layers = (at_once / tasks.max(1)).clamp(1, alike.max(1));
        let group = at_once.clamp(1, tasks.max(1));
        let together = (PANEL_BYTES / bytes).clamp(1, (group * layers) as u64) as usize;
        let rows = (PANEL_BYTES / (8 * n).max(1)).clamp(1, m.max(1)) as usize;
        let (most, m, n) = (rank.most(m, n) as usize, m as usize, n as usize);
        Some(Self { m, n, r, long, group, layers, most, together, rows })
    }

    /// Elements of the matrix.
    pub fn elems(&self) -> u64 {
        self.m as u64 * self.n as u64
    }

    /// Gram matrices at once.
    pub fn count(&self) -> usize {
        self.group * self.layers
    }

    /// Spans beside the sources, in the order of [`super::low_rank`]; `blob` bytes for the stages of each matrix.
    pub fn work(&self, blob: u64, solver_bytes: u64, out_bytes: u64) -> Vec<u64> {
        let (r, count, layers) = (self.r as u64, self.count() as u64, self.layers as u64);
        let together = self.together as u64;
        let mut work = vec![
            blob_stride(blob) * layers,
            8 * self.elems() * count,
            8 * r * r * count,
            8 * r * count,
            4 * count,
            solver_bytes,
            8 * self.long as u64 * self.most as u64 * together,
            8 * self.rows as u64 * self.n as u64 * together,
            8 * self.elems() * layers,
            add_scratch_bytes(self.elems()),
            8 * 3 * count,
            16 * layers,
        ];
        work.extend([out_bytes; TURNS]);
        work
    }
}

/// How a matrix is merged on a device by orthogonal factors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Orthogonal {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// min(m, n).
    pub r: usize,
    /// max(m, n).
    pub long: usize,
    /// Tasks that are decomposed together.
    pub group: usize,
    /// Singular triples of the sum of all tasks.
    pub common: usize,
    /// Singular triples of each task.
    pub each: usize,
    /// All of them: columns of the factors.
    pub columns: usize,
}

impl Orthogonal {
    /// Of a tensor that is merged by polar factors.
    pub fn of(tensor: &TensorPlan, batch: &dyn Fn(usize, usize) -> usize) -> Option<Self> {
        let Program::LowRank(work) = &tensor.program else { return None };
        if matches!(work.rule, MatrixRule::Truncate(_)) {
            return None;
        }
        let ((m, n), tasks) = (tensor.matrix(), tensor.models.len());
        let (r, long) = (m.min(n) as usize, m.max(n) as usize);
        let (common, each) = low_rank::subspaces(work.rule, (m, n), tasks);
        let at_once = (GROUP_BYTES / (8 * m * n).max(1)).clamp(1, tasks.max(1) as u64) as usize;
        let group = if each == 0 { 1 } else { batch(r, at_once).clamp(1, at_once) };
        let columns = common + each * tasks;
        Some(Self { m: m as usize, n: n as usize, r, long, group, common, each, columns })
    }

    /// Elements of the matrix.
    pub fn elems(&self) -> u64 {
        self.m as u64 * self.n as u64
    }

    /// Bytes of a workspace for all that is decomposed.
    pub fn solver_bytes(&self, says: &SolverLimits<'_>) -> Result<u64> {
        let mut most = (says.workspace)(self.r, self.group)?.max((says.workspace)(self.r, 1)?);
        most = most.max((says.svd)(self.long, self.r)?);
        if self.columns > 0 {
            most = most.max((says.workspace)(self.columns, 1)?);
            most = most.max((says.svd)(self.m, self.columns)?).max((says.svd)(self.n, self.columns)?);
        }
        Ok(most)
    }

    /// Spans beside the sources, in the order of [`super::orthogonal`].
    pub fn work(&self, blob: u64, solver_bytes: u64, out_bytes: u64) -> Vec<u64> {
        let (r, group, columns) = (self.r as u64, self.group as u64, self.columns as u64);
        let whole = 8 * self.elems();
        let mut work = vec![
            blob_stride(blob),
            whole * group,
            8 * r * r * group,
            8 * r * group,
            4 * group,
            solver_bytes,
            8 * self.m as u64 * columns,
            8 * self.n as u64 * columns,
            whole,
            whole,
            whole,
            8 * r * COLUMN_NUMBERS,
            add_scratch_bytes(self.elems()),
            8 * (1 + group),
            16,
        ];
        work.extend([out_bytes; TURNS]);
        work
    }
}

/// Numbers of each column that lie on the device: zero, its norm, what it is scaled by, whether it is kept, its singular value.
pub(super) const COLUMN_NUMBERS: u64 = 5;

/// Bytes from the stages of a matrix to those of the next.
pub(super) fn blob_stride(blob: u64) -> u64 {
    blob.next_multiple_of(ALIGN_BYTES)
}

/// The workspace of an eigenvalue solver as long as no device is open: generously, as the pool is sized by it.
fn solver_estimate(r: u64, count: u64) -> u64 {
    8 * (6 * r * r + 256 * r) * count + (8 << 20)
}

/// The same of a singular value decomposition.
fn svd_estimate(rows: u64, columns: u64) -> u64 {
    8 * (2 * rows * columns + 4 * columns * columns + 256 * (rows + columns)) + (8 << 20)
}

fn blob_bytes(tensor: &TensorPlan) -> u64 {
    StageBlob::most_bytes(tensor.stages(), tensor.models.len(), Geometry::of(&tensor.shape))
}

/// What the merges of these tensors, of one shape, take together: their sources whole where it is one, else in chunks. `work`
/// gives the spans beside the sources for stages of so many bytes and pieces of the output of so many.
pub(super) fn needs_of(plan: &Plan, tensors: &[usize], work: &dyn Fn(u64, u64) -> Vec<u64>, most: u64) -> Needs {
    let all = || tensors.iter().map(|t| &plan.tensors[*t]);
    let chunk = all().map(|t| needs::most_chunk(t, most)).max().unwrap_or_default();
    let blob = all().map(blob_bytes).max().unwrap_or_default();
    let out_bytes = chunk * all().map(|t| t.elem_bytes).max().unwrap_or_default();
    let work = work(blob, out_bytes);
    if let [tensor] = tensors {
        let tensor = &plan.tensors[*tensor];
        return Needs { sources: source_bytes(plan, tensor, tensor.elems), work, is_streamed: false, chunk };
    }
    let mut once: Vec<u64> = Vec::new();
    for tensor in all() {
        let bytes = source_bytes(plan, tensor, chunk);
        once.resize(bytes.len().max(once.len()), 0);
        once.iter_mut().zip(bytes).for_each(|(most, bytes)| *most = bytes.max(*most));
    }
    let sources = (0..TURNS).flat_map(|_| once.iter().copied()).collect();
    Needs { sources, work, is_streamed: true, chunk }
}

impl Needs {
    /// What all of it takes of a pool.
    pub fn taken(&self) -> u64 {
        Pool::taken_by(self.sources.iter().chain(&self.work).copied())
    }
}

/// What the merges of these tensors take of a device whose solver says so; `None` if they are not merged by matrices.
pub(super) fn needs_by(plan: &Plan, tensors: &[usize], says: &SolverLimits<'_>, most: u64) -> Result<Option<Needs>> {
    let Some(first) = tensors.first().map(|t| &plan.tensors[*t]) else { return Ok(None) };
    if let Some(matrix) = Matrix::of(first, tensors.len(), says.batch) {
        let solver = (says.workspace)(matrix.r, matrix.count())?;
        return Ok(Some(needs_of(plan, tensors, &|blob, out| matrix.work(blob, solver, out), most)));
    }
    let Some(matrix) = Orthogonal::of(first, says.batch) else { return Ok(None) };
    let solver = matrix.solver_bytes(says)?;
    Ok(Some(needs_of(plan, tensors, &|blob, out| matrix.work(blob, solver, out), most)))
}

/// What can be said of a solver while no device is open.
pub(super) const EXPECTED: SolverLimits<'static> = SolverLimits {
    workspace: &|r, count| Ok(solver_estimate(r as u64, count as u64)),
    batch: &|_, wanted| wanted,
    svd: &|rows, columns| Ok(svd_estimate(rows as u64, columns as u64)),
};

/// The least that a solver could say: matrices that do not fit with that do not fit.
pub(super) const LEAST: SolverLimits<'static> =
    SolverLimits { workspace: &|_, _| Ok(0), batch: &|_, wanted| wanted, svd: &|_, _| Ok(0) };

/// Whether each tensor's matrices fit into a pool, and which tensors are decomposed together.
pub(super) fn arrange(plan: &Plan, pool: u64, says: &SolverLimits<'_>) -> Result<(Vec<bool>, Vec<Vec<usize>>)> {
    let most = plan.memory.chunk_elems;
    let fits = |tensors: &[usize]| Ok(needs_by(plan, tensors, says, most)?.is_some_and(|needs| needs.taken() <= pool));
    let fit = (0..plan.tensors.len()).map(|t| fits(&[t])).collect::<Result<Vec<bool>>>()?;
    let mut together = Vec::new();
    for all in alike(&plan.tensors, &fit) {
        let mut most = Matrix::of(&plan.tensors[all[0]], all.len(), says.batch).map_or(1, |matrix| matrix.layers);
        // Tensors of a list may differ in the types of their sources, and with them in what they take.
        while most > 1 && cut(&all, most).map(&fits).collect::<Result<Vec<bool>>>()?.contains(&false) {
            most /= 2;
        }
        together.extend(cut(&all, most).filter(|part| part.len() > 1).map(<[usize]>::to_vec));
    }
    Ok((fit, together))
}
