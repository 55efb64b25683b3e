//! The memory that a merge allocates: bounded by the plan, whatever the size of the models.

use super::graph::{gram_bytes, line_bytes, line_products_bytes, norms_bytes, searches, select_bytes};
use super::{Options, TensorPlan};
use crate::backend::cpu::low_rank;
use crate::backend::cpu::prune::Scratch;
use crate::backend::device::LANE_SLOTS;
use crate::error::{Cause, Error, Result};
use crate::ops::search::COUNTERS;
use crate::ops::{Changes, Geometry, Granularity, MatrixRule, Program, SEGMENT};
use crate::units::format_bytes;

/// Elements of an output buffer, at most and at least. Powers of two, and multiples of [`SEGMENT`].
const CHUNK_ELEMS: std::ops::RangeInclusive<u32> = 16..=20;
/// Threads' stacks and small change of one thread.
const THREAD_BYTES: u64 = 256 << 10;
/// The program itself, its tables of arguments, log buffers.
const PROGRAM_BYTES: u64 = 6 << 20;
/// Names, shapes and places of one tensor of one checkpoint or the output.
const ENTRY_BYTES: u64 = 600;

/// What a merge allocates, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Threads that compute; fewer than asked for where the budget does not hold more.
    pub threads: usize,
    /// Threads that write.
    pub writers: usize,
    /// Elements of an output buffer.
    pub chunk_elems: u64,
    /// Bytes of an output buffer.
    pub buffer_bytes: u64,
    /// Output buffers.
    pub buffers: usize,
    /// Tables of tensors, and the program.
    pub tables: u64,
    /// Working memory of one computing thread.
    pub per_thread: u64,
    /// The most that one step needs beside all that.
    pub largest_step: u64,
    /// What all of it takes together, at most.
    pub total: u64,
    /// What is left to steps, which run at the same time as far as it goes.
    pub for_steps: u64,
    /// Page-locked memory of the lanes of devices, and what their threads take beside it.
    pub lanes: u64,
}

/// Lanes of CUDA devices, as far as the host's memory is concerned.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lanes<'a> {
    /// How many, on all devices together.
    pub count: usize,
    /// Bytes of a page-locked slot on the way to a device.
    pub slot_bytes: u64,
    /// Whether a device makes each tensor; empty if none does.
    pub on_device: &'a [bool],
}

impl Memory {
    /// Fits the merge into the budget: shrinks buffers first, then the number of threads.
    ///
    /// # Errors
    /// `Input` if it cannot be, naming the tensor that needs most and the least budget that would do.
    pub(super) fn fit(tensors: &[TensorPlan], options: Options, lanes: Lanes<'_>) -> Result<Self> {
        let budget = options.memory_budget;
        for threads in (1..=options.threads.max(1)).rev() {
            for bits in CHUNK_ELEMS.rev() {
                // Fewer threads only once even the smallest buffers do not fit; the smallest of all is tried last.
                let plan = Self::of(tensors, threads, 1 << bits, lanes);
                if plan.total <= budget {
                    return Ok(Self { for_steps: budget - (plan.total - plan.largest_step), ..plan });
                }
            }
        }
        let least = Self::of(tensors, 1, 1 << CHUNK_ELEMS.start(), lanes);
        let largest = tensors.iter().max_by_key(|t| (step_bytes(t), t.elems * t.elem_bytes));
        let needs = largest.map_or(String::new(), |t| match step_bytes(t) {
            0 => format!("; the largest tensor is `{}`", t.name),
            bytes => format!("; the largest part is `{}`, which takes {}", t.name, format_bytes(bytes)),
        });
        Err(Error::input(format!(
            "the merge does not fit into a memory budget of {}: it takes at least {}{needs}",
            format_bytes(budget),
            format_bytes(least.total),
        ))
        .because(Cause::Memory)
        .hint(format!("give --memory-budget {}MiB or more", least.total.div_ceil(1 << 20))))
    }

    fn of(tensors: &[TensorPlan], threads: usize, chunk_elems: u64, lanes: Lanes<'_>) -> Self {
        let largest = tensors.iter().map(|t| t.elems).max().unwrap_or_default();
        let chunk_elems =
            chunk_elems.min(largest.next_multiple_of(SEGMENT as u64).next_power_of_two()).max(SEGMENT as u64);
        let elem_bytes = tensors.iter().map(|t| t.elem_bytes).max().unwrap_or(1);
        let writers = (threads / 4).clamp(2, 4);
        let buffers = threads + 2 * writers + lanes.count;
        let buffer_bytes = chunk_elems * elem_bytes;
        let models = tensors.iter().map(|t| t.models.len()).max().unwrap_or_default();
        let sources = models as u64 + 1;
        let counts = tensors.iter().map(searches).max().unwrap_or_default() * 4 * COUNTERS as u64;
        // What a run of sources takes where they cannot be mapped and are read instead.
        let longest_row = tensors.iter().filter(|t| t.stages().iter().any(|p| p.granularity == Granularity::Row));
        let longest_run = longest_row.map(|t| Geometry::of(&t.shape).row_elems).fold(SEGMENT as u64, u64::max);
        let runs = sources * longest_run * if tensors.iter().any(|t| t.wide) { 8 } else { 4 };
        let low_rank = tensors.iter().filter(|t| matches!(t.program, Program::LowRank(_))).map(TensorPlan::matrix);
        let packing = low_rank.map(|(m, n)| low_rank::packing_bytes(m, n)).max().unwrap_or_default();
        let lines = tensors.iter().map(line_products_bytes).max().unwrap_or_default();
        let per_thread = lines
            + Scratch::<f32>::bytes(models)
            + 2 * Scratch::<f64>::bytes(models)
            + counts
            + runs
            + packing
            + THREAD_BYTES;
        let masks = tensors.iter().map(mask_bytes).max().unwrap_or_default();
        let held_masks: u64 =
            if tensors.iter().any(|t| t.stages().iter().any(|p| p.rescale != crate::ops::Rescale::None)) {
                tensors.iter().map(mask_bytes).sum()
            } else {
                masks * (threads as u64 + 1)
            };
        let (factors, own): (Vec<_>, Vec<_>) =
            tensors.iter().partition(|t| matches!(t.program, Program::Factor { .. }));
        // A factor stands in the output's tables alone; its name is in the header, the index and the manifest.
        let entries = own.len() as u64 * (sources + 2) + factors.len() as u64 * 3;
        let tables = PROGRAM_BYTES + entries * ENTRY_BYTES + held_masks;
        let of_step = |(i, t)| if lanes.on_device.get(i) == Some(&true) { device_bytes(t) } else { step_bytes(t) };
        let largest_step = tensors.iter().enumerate().map(of_step).max().unwrap_or_default();
        let [up, down] = LANE_SLOTS.map(|slots| slots as u64);
        // A lane reads runs of sources that cannot be mapped, as a thread does.
        let lane = up * lanes.slot_bytes + down * buffer_bytes + runs + THREAD_BYTES;
        let lanes = lanes.count as u64 * lane;
        let total = tables
            + threads as u64 * per_thread
            + buffers as u64 * (buffer_bytes + crate::output::direct_alignment())
            + largest_step
            + lanes;
        Self {
            threads,
            writers,
            chunk_elems,
            buffer_bytes,
            buffers,
            tables,
            per_thread,
            largest_step,
            total,
            for_steps: largest_step,
            lanes,
        }
    }
}

/// Bytes of the masks of rows and columns, and of the weights of lines, of all models.
fn mask_bytes(tensor: &TensorPlan) -> u64 {
    let geometry = Geometry::of(&tensor.shape);
    let of = |granularity| match granularity {
        Granularity::Row => geometry.rows,
        Granularity::Column => geometry.columns,
        _ => 0,
    };
    tensor.models.len() as u64 * tensor.stages().iter().map(|p| of(p.granularity)).sum::<u64>() + line_bytes(tensor)
}

/// The most that a step of this tensor needs beside threads and buffers.
pub fn step_bytes(tensor: &TensorPlan) -> u64 {
    stage_bytes(tensor).max(low_rank_bytes(tensor))
}

/// The same, without the merge of a matrix.
fn stage_bytes(tensor: &TensorPlan) -> u64 {
    let models = tensor.models.len() as u64;
    let geometry = Geometry::of(&tensor.shape);
    let mut most = select_bytes(searches(tensor));
    for prune in tensor.stages() {
        most = most.max(match prune.granularity {
            Granularity::Row => models * geometry.rows * 8,
            Granularity::Column => models * geometry.columns * 8,
            _ => norms_bytes(tensor.elems, models),
        });
    }
    if let Program::Blend(blend) = &tensor.program {
        if blend.sparsify.restores_norm() {
            most = most.max(norms_bytes(tensor.elems, models));
        }
        if tensor.weighs_lines() {
            most = most.max(line_bytes(tensor));
        } else if blend.combine.fit.is_some() {
            most = most.max(gram_bytes(tensor));
        }
        if blend.combine.overlap.is_some() {
            most = most.max(models * size_of::<Changes>() as u64);
        }
    }
    most
}

/// The most that a step of a tensor that a device makes needs of the host's memory.
fn device_bytes(tensor: &TensorPlan) -> u64 {
    let statistics = match tensor.program {
        Program::LowRank(_) => stage_bytes(tensor),
        _ => step_bytes(tensor),
    };
    statistics.max(device_step_bytes(tensor))
}

/// What the merge of a matrix on a device needs of the host's memory: a task's factors where they are stored, singular values.
pub(super) fn device_step_bytes(tensor: &TensorPlan) -> u64 {
    let Program::LowRank(work) = &tensor.program else { return 0 };
    let (m, n) = tensor.matrix();
    match work.rule {
        MatrixRule::Truncate(rank) if !tensor.factors.is_empty() => 8 * (rank.most(m, n) * (m + n + 5) + n),
        MatrixRule::Truncate(_) => 8 * m.min(n),
        // Singular values of as many tasks as are decomposed together, and numbers to scale columns by.
        _ => 8 * m.min(n) * (tensor.models.len() as u64 + 6),
    }
}

/// What the step of a matrix merge needs; 0 for other tensors.
pub(super) fn low_rank_bytes(tensor: &TensorPlan) -> u64 {
    let Program::LowRank(work) = &tensor.program else { return 0 };
    let (m, n) = tensor.matrix();
    // Norms of a factor's columns and their order, and a row on its way out.
    let k = match work.rule {
        MatrixRule::Truncate(rank) => rank.most(m, n),
        _ => 0,
    };
    let factors = if tensor.factors.is_empty() { 0 } else { 8 * (5 * k + n) };
    low_rank::bytes(work, (m, n), tensor.wide) + factors
}
