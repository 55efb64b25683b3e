//! Sums in the CPU's order: `kernels/sums.cu`. CPU twin: [`crate::backend::cpu::stats`].

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, Shape, arg};
use super::params::{DeviceSources, Load, Place, of_two, score_code};
use super::shape::{by_threads, slots};
use super::sparse::{ChosenAt, Sparse};
use super::stages::Stages;
use crate::backend::cpu::BLOCK;
use crate::error::Result;
use crate::ops::{Geometry, Gram, Measured, SEGMENT, Score, Sums, Vectors};

/// `Sums` of sums.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    sparse: Sparse,
    blocks: u64,
    run_elems: u64,
    run_blocks: u64,
    items: u64,
    score: u32,
    with_base: u32,
    maxima: u64,
    exponentials: u64,
}

const _: () = assert!(size_of::<Params>() == 2288);

/// Models whose sums a block of threads makes.
const GROUP: u32 = 4;
/// Threads that make the sums of a block of elements.
const LANES: u64 = 8;
const BLOCKS_OF_A_SEGMENT: u64 = (SEGMENT / BLOCK) as u64;

/// What is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stat {
    /// [`sums`]
    Norms,
    /// [`trim_norms`]
    TrimNorms,
    /// [`gram`]
    Gram,
    /// [`row_scores`]
    Rows,
    /// The largest of a row of the base, and of the model, of [`divergence`].
    Maxima,
    /// Sums of their exponentials.
    Exponentials,
    /// Divergences.
    Divergence,
}

impl Stat {
    /// Numbers of each of what it has groups of: models, or pairs of vectors.
    fn numbers(self) -> u64 {
        match self {
            Stat::Norms => 6,
            Stat::TrimNorms => 2,
            Stat::Gram | Stat::Rows | Stat::Maxima | Stat::Exponentials | Stat::Divergence => 1,
        }
    }

    /// What it has numbers of: models, or pairs of vectors, θ₀ perhaps among them.
    fn width(self, models: usize) -> u64 {
        match self {
            Stat::Gram => Gram::len(models + 1) as u64,
            Stat::Maxima | Stat::Exponentials => 2,
            _ => models as u64,
        }
    }
}

/// How a run falls into blocks.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    /// Elements and blocks of a row, or of the whole run.
    run_elems: u64,
    run_blocks: u64,
    items: u64,
}

impl Blocks {
    fn of(stat: Stat, geometry: Geometry, len: u64) -> Self {
        let run_elems = match stat {
            Stat::Rows => geometry.row_elems.max(1),
            Stat::Maxima | Stat::Exponentials | Stat::Divergence => geometry.last.max(1),
            _ => len,
        };
        let run_blocks = run_elems.div_ceil(BLOCK as u64);
        Self { run_elems, run_blocks, items: len.checked_div(run_elems).unwrap_or_default() * run_blocks }
    }
}

/// Bytes of scratch for a run of `len` elements.
pub fn scratch_bytes(stat: Stat, geometry: Geometry, len: u64, models: usize) -> u64 {
    Blocks::of(stat, geometry, len).items * stat.width(models) * stat.numbers() * 8
}

/// Bytes of the result for a run of `len` elements.
pub fn out_bytes(stat: Stat, geometry: Geometry, len: u64, models: usize) -> u64 {
    let groups = match stat {
        Stat::Rows => len / geometry.row_elems.max(1),
        _ => len.div_ceil(SEGMENT as u64),
    };
    groups * stat.width(models) * stat.numbers() * 8
}

/// [`Sums`] from six numbers of [`sums`]' result.
pub fn sums_of(numbers: [f64; 6]) -> Sums {
    let [l1, squares, deviation, dot, rest, base] = numbers;
    Sums { l1, squares, deviation, dot, rest, base }
}

/// What [`make`] is to do beside [`Stat`].
struct Job<'a> {
    stat: Stat,
    wide: bool,
    geometry: Geometry,
    stages: Stages,
    /// What is dropped, of what trimming leaves and of products.
    dropping: Option<&'a Measured>,
    chosen: ChosenAt,
    /// Maxima and sums of exponentials by row, of what follows them.
    rows: [u64; 2],
    score: Option<Score>,
    /// Whether θ₀ is one of the vectors whose products are taken.
    with_base: bool,
}

impl Job<'_> {
    fn new(stat: Stat, wide: bool, geometry: Geometry, stages: Stages) -> Self {
        Self {
            stat,
            wide,
            geometry,
            stages,
            dropping: None,
            chosen: ChosenAt::default(),
            rows: [0; 2],
            score: None,
            with_base: false,
        }
    }
}

/// Norms of a run that starts at a segment: `f64[segments][models][6]`, for [`sums_of`]. Twin:
/// [`crate::backend::cpu::stats::sums`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn sums(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    let job = Job::new(Stat::Norms, wide, geometry, stages);
    make(kernels, stream, &job, sources, scratch, out)
}

/// Σ |τ| before and after the method drops what it drops, of a run that starts at a segment: `f64[segments][models][2]`. Twin:
/// [`crate::backend::cpu::stats::trim_norms`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn trim_norms(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    m: &Measured,
    stages: Stages,
    chosen: ChosenAt,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    let job = Job { dropping: Some(m), chosen, ..Job::new(Stat::TrimNorms, wide, m.geometry, stages) };
    make(kernels, stream, &job, sources, scratch, out)
}

/// Products of every two vectors, of a run that starts at a segment: `f64[segments][Gram::len(vectors)]`; of task vectors as stages and
/// the method leave them. Twin: [`crate::backend::cpu::stats::gram`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn gram(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    of: Vectors,
    m: &Measured,
    stages: Stages,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    let job = Job { dropping: Some(m), ..Job::new(Stat::Gram, wide, m.geometry, stages) };
    if of != Vectors::Parameters {
        let job = Job { with_base: of == Vectors::BaseAndTaskVectors, ..job };
        return make(kernels, stream, &job, sources, scratch, out);
    }
    // Parameters, measured from nothing.
    let all: Vec<Place> = sources.base.iter().chain(sources.models).copied().collect();
    let job = Job { stages: Stages::default(), dropping: None, ..job };
    make(kernels, stream, &job, &DeviceSources { base: None, models: &all, ..*sources }, scratch, out)
}

/// Mean score of each row of a run of whole rows: f64[models][rows of the run]. Twin:
/// [`crate::backend::cpu::stats::row_scores`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn row_scores(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    score: Score,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    let job = Job { score: Some(score), ..Job::new(Stat::Rows, wide, geometry, stages) };
    make(kernels, stream, &job, sources, scratch, out)
}

/// Bytes of the maxima, or of the sums of exponentials, of a run of so many rows.
pub fn row_pairs_bytes(rows: u64) -> u64 {
    rows * 16
}

/// The divergence of each row of a run of whole rows along the last dimension from the base's: f64[rows]. `rows`: room for maxima and for
/// sums of exponentials ([`row_pairs_bytes`]). Twin: [`crate::backend::cpu::divergence::rows`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn divergence(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    scratch: u64,
    rows: [u64; 2],
    out: u64,
) -> Result<()> {
    let job = |stat| Job { rows, ..Job::new(stat, wide, geometry, stages) };
    make(kernels, stream, &job(Stat::Maxima), sources, scratch, rows[0])?;
    make(kernels, stream, &job(Stat::Exponentials), sources, scratch, rows[1])?;
    make(kernels, stream, &job(Stat::Divergence), sources, scratch, out)
}

fn make(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    job: &Job<'_>,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    let Blocks { run_elems, run_blocks, items } = Blocks::of(job.stat, job.geometry, sources.len);
    if items == 0 {
        return Ok(());
    }
    let params = Params {
        load: Load::new(sources, job.geometry, job.stages)?,
        sparse: job.dropping.map_or_else(Sparse::zeroed, |m| Sparse::of(m, job.chosen)),
        blocks: scratch,
        run_elems,
        run_blocks,
        items,
        score: job.score.map_or(0, score_code),
        with_base: u32::from(job.with_base),
        maxima: job.rows[0],
        exponentials: job.rows[1],
    };
    let (models, kind) = (params.load.sources.count, sources.kind(job.wide));
    // θ₀ takes the place of one more model, the sum over models that of one array in f64.
    let (threads, shared_bytes) = slots(kernels, models + 1, kind.value_bytes(), 1, 0)?;
    let (names, groups, width) = match job.stat {
        Stat::Norms => (["sums_norms_any", "sums_norms_f64"], models.div_ceil(GROUP), models),
        Stat::TrimNorms => (["sums_trim_any", "sums_trim_f64"], models.div_ceil(GROUP), models),
        Stat::Gram => {
            let pairs = Gram::len(models as usize + usize::from(job.with_base)) as u32;
            (["sums_gram_any", "sums_gram_f64"], pairs.div_ceil(GROUP), pairs)
        }
        Stat::Rows => (["sums_rows_any", "sums_rows_f64"], models.div_ceil(GROUP), models),
        Stat::Maxima => (["sums_maxima_any", "sums_maxima_f64"], 1, 2),
        Stat::Exponentials => (["sums_exponentials_any", "sums_exponentials_f64"], 1, 2),
        Stat::Divergence => (["sums_divergence_any", "sums_divergence_f64"], 1, 1),
    };
    let shape = Shape { grid: ((items * LANES).div_ceil(threads.into()), groups), threads, shared_bytes };
    kernels.launch(stream, "sums", of_two(kind, names), shape, &[arg(&params)])?;

    let width = u64::from(width) * job.stat.numbers();
    let (each, divisor, how) = match job.stat {
        Stat::Rows => (run_blocks, run_elems as f64, 1_u32),
        Stat::Maxima => (run_blocks, 1.0, 2),
        Stat::Exponentials => (run_blocks, 1.0, 0),
        Stat::Divergence => (run_blocks, 1.0, 3),
        _ => (BLOCKS_OF_A_SEGMENT, 1.0, 0),
    };
    let shape = by_threads(items.div_ceil(each) * width);
    let args = [arg(&scratch), arg(&out), arg(&items), arg(&each), arg(&width), arg(&divisor), arg(&how)];
    kernels.launch(stream, "sums", "sums_fold", shape, &args)
}
