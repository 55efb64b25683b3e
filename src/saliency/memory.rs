//! The memory that a survey allocates, fitted into the budget by its number of threads.

use super::jobs::{UNIT_ELEMS, cut_columns, cut_rows};
use super::ordered::RESULTS_AHEAD;
use super::report;
use super::stage::batches;
use super::survey::{Options, Query};
use crate::backend::cpu::pairs::SignBits;
use crate::backend::cpu::prune::Scratch;
use crate::error::{Cause, Error, Result};
use crate::ops::pairs::Measures;
use crate::ops::search::{COUNTERS, Totals};
use crate::ops::{Geometry, Granularity, SEGMENT};
use crate::plan::{Plan, TensorPlan};
use crate::units::format_bytes;

/// Threads' stacks and small change of one thread.
const THREAD_BYTES: u64 = 256 << 10;
/// The program itself, its tables of arguments, log buffers.
const PROGRAM_BYTES: u64 = 6 << 20;
/// Names, shapes and places of one tensor of one checkpoint or the report.
const ENTRY_BYTES: u64 = 600;

/// What a survey allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Threads that compute.
    pub threads: usize,
    /// What all of it takes, at most, in bytes.
    pub total: u64,
}

/// Takes the most threads that the budget holds.
///
/// # Errors
/// `Input` if it does not hold one, naming the least budget that would do.
pub(super) fn fit(plan: &Plan, tensors: &[usize], asked: &[Query], options: &Options) -> Result<Memory> {
    let shared = shared_bytes(plan, tensors, asked);
    let per_thread = thread_bytes(plan, tensors, asked);
    let of =
        |threads: usize| Memory { threads, total: shared.saturating_add(per_thread.saturating_mul(threads as u64)) };
    let fitting = (1..=options.threads.max(1)).rev().map(of).find(|memory| memory.total <= options.memory_budget);
    fitting.ok_or_else(|| {
        let least = of(1).total;
        Error::input(format!(
            "the survey does not fit into a memory budget of {}: it takes at least {}",
            format_bytes(options.memory_budget),
            format_bytes(least),
        ))
        .because(Cause::Memory)
        .hint(format!("give --memory-budget {}MiB or more", least.div_ceil(1 << 20)))
    })
}

/// Tables, the report, masks, scores and counters.
fn shared_bytes(plan: &Plan, tensors: &[usize], asked: &[Query]) -> u64 {
    let of = |t: &usize| &plan.tensors[*t];
    let models = models_of(plan, tensors);
    let entries = (tensors.len() + plan.layers.groups().len() + 1) as u64;
    let headers = plan.tensors.len() as u64 * (plan.sources.len() as u64 + 2) * ENTRY_BYTES;
    let kept = 24 * models as u64 * asked.len() as u64;
    let measured = entries * (ENTRY_BYTES + 2 * Measures::bytes(models) + 2 * kept);
    let written = report::bytes(entries, models as u64, asked.len() as u64);
    // Masks of every stage but the last are held for all tensors; those of a batch, for every question, twice.
    let last = plan.recipe.stages.len().saturating_sub(1);
    let chained: u64 = tensors.iter().map(of).map(|t| (0..last).map(|s| mask_bytes(t, s)).sum::<u64>()).sum();
    let all: Vec<usize> = (0..tensors.len()).collect();
    let batch_bytes = |batch: &Vec<usize>| -> u64 {
        let per_question = |a: &Query| batch.iter().map(|at| mask_bytes(of(&tensors[*at]), a.stage)).sum::<u64>();
        2 * asked.iter().map(per_question).sum::<u64>()
    };
    let batches = batches(&all, |at| plan.pass_bytes(tensors[at]));
    let masks = batches.iter().map(batch_bytes).max().unwrap_or_default();
    // Scores of one tensor, and their order.
    let scores = tensors.iter().map(|t| 8 * (models as u64 + 1) * scored_units(of(t))).max().unwrap_or_default();
    let counters = if counts(plan, tensors) { (models * Totals::BYTES) as u64 } else { 0 };
    PROGRAM_BYTES + headers + measured + written + chained + masks + scores + counters
}

/// One thread's buffers, and its share of the results that wait.
fn thread_bytes(plan: &Plan, tensors: &[usize], asked: &[Query]) -> u64 {
    let of = |t: &usize| &plan.tensors[*t];
    let models = models_of(plan, tensors);
    let elem_bytes = if tensors.iter().map(of).any(|t| t.wide) { 8 } else { 4 };
    // What a run of sources takes where they cannot be mapped and are read instead.
    let by_rows = |t: &&TensorPlan| t.stages().iter().any(|p| p.granularity == Granularity::Row);
    let longest = tensors.iter().map(of).filter(by_rows).map(|t| Geometry::of(&t.shape).row_elems);
    let runs = (models as u64 + 1) * longest.fold(SEGMENT as u64, u64::max) * elem_bytes;
    let counters = if counts(plan, tensors) { 4 * (models * COUNTERS) as u64 } else { 0 };
    let segments = UNIT_ELEMS / SEGMENT as u64;
    let measures = segments * (Measures::bytes(models) + 8 * (models * asked.len()) as u64);
    let scored = tensors.iter().map(|t| 8 * models as u64 * units_at_once(of(t))).max().unwrap_or_default();
    let results = (RESULTS_AHEAD as u64 + 1) * measures.max(scored);
    let scratch = Scratch::<f32>::bytes(models) + Scratch::<f64>::bytes(models) + SignBits::bytes(models);
    scratch + runs + counters + results + THREAD_BYTES
}

fn models_of(plan: &Plan, tensors: &[usize]) -> usize {
    tensors.iter().map(|t| plan.tensors[*t].models.len()).max().unwrap_or_default()
}

fn counts(plan: &Plan, tensors: &[usize]) -> bool {
    let stages = tensors.iter().flat_map(|t| plan.tensors[*t].stages());
    stages.into_iter().any(|p| p.granularity == Granularity::Element)
}

/// Bytes of the masks of a stage.
fn mask_bytes(tensor: &TensorPlan, stage: usize) -> u64 {
    let geometry = Geometry::of(&tensor.shape);
    let units = match tensor.stage(stage).map(|(_, p)| p.granularity) {
        Some(Granularity::Row) => geometry.rows,
        Some(Granularity::Column) => geometry.columns,
        _ => 0,
    };
    tensor.models.len() as u64 * (units + size_of::<crate::ops::Mask>() as u64)
}

/// The most rows or columns that a stage scores of a tensor.
fn scored_units(tensor: &TensorPlan) -> u64 {
    let geometry = Geometry::of(&tensor.shape);
    let units = tensor.stages().iter().map(|p| match p.granularity {
        Granularity::Row => geometry.rows,
        Granularity::Column => geometry.columns,
        _ => 0,
    });
    units.max().unwrap_or_default()
}

/// The most rows or columns that one unit of work scores.
fn units_at_once(tensor: &TensorPlan) -> u64 {
    let geometry = Geometry::of(&tensor.shape);
    let units = tensor.stages().iter().map(|p| match p.granularity {
        Granularity::Row => cut_rows(geometry).1.min(geometry.rows),
        Granularity::Column => cut_columns(geometry).1.min(geometry.columns),
        _ => 0,
    });
    units.max().unwrap_or_default()
}
