//! Sums in the CPU's order: `kernels/sums.cu`. CPU twin: [`crate::backend::cpu::stats`].

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, Shape, arg};
use super::params::{DeviceSources, Load, MAX_MODELS, Place, of_two, score_code, spread};
use super::shape::{by_threads, slots};
use super::stages::Stages;
use crate::backend::cpu::BLOCK;
use crate::error::Result;
use crate::ops::{Geometry, Gram, SEGMENT, Score, Sums, Vectors};

/// `Sums` of sums.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    limits: [u64; MAX_MODELS],
    tops: [u64; MAX_MODELS],
    blocks: u64,
    run_elems: u64,
    run_blocks: u64,
    items: u64,
    score: u32,
    with_base: u32,
}

const _: () = assert!(size_of::<Params>() == 1720);

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
}

impl Stat {
    /// Numbers of each of what it has groups of: models, or pairs of vectors.
    fn numbers(self) -> u64 {
        match self {
            Stat::Norms => 6,
            Stat::TrimNorms => 2,
            Stat::Gram | Stat::Rows => 1,
        }
    }

    /// What it has numbers of: models, or pairs of vectors, θ₀ perhaps among them.
    fn width(self, models: usize) -> u64 {
        match self {
            Stat::Gram => Gram::len(models + 1) as u64,
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
        Self::of_runs(if stat == Stat::Rows { geometry.row_elems.max(1) } else { len }, len)
    }

    /// Of runs of so many elements.
    fn of_runs(run_elems: u64, len: u64) -> Self {
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

/// Bytes of scratch and of the result of [`line_products`], of a run of `len` elements of whole lines of `line_elems`.
pub fn line_bytes(line_elems: u64, len: u64, vectors: usize) -> [u64; 2] {
    let lines = len.checked_div(line_elems).unwrap_or_default();
    [line_elems.div_ceil(BLOCK as u64), 1].map(|each| lines * each * Gram::len(vectors) as u64 * 8)
}

/// What [`make`] is to do beside [`Stat`].
struct Job<'a> {
    stat: Stat,
    wide: bool,
    geometry: Geometry,
    stages: Stages,
    /// Keys of the least magnitudes that trimming keeps, and of the largest where there is such a cut.
    cuts: [&'a [u64]; 2],
    score: Option<Score>,
    /// Whether θ₀ is one of the vectors whose products are taken.
    with_base: bool,
    /// Elements of a line, where lines are summed apart.
    line: Option<u64>,
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
    let job =
        Job { stat: Stat::Norms, wide, geometry, stages, cuts: [&[]; 2], score: None, with_base: false, line: None };
    make(kernels, stream, &job, sources, scratch, out)
}

/// Σ |τ| before and after trimming at the cuts (keys of the least magnitudes kept, and of the largest or nothing), of a run that starts at a segment: `f64[segments][models][2]`. Twin:
/// [`crate::backend::cpu::stats::trim_norms`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn trim_norms(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    geometry: Geometry,
    stages: Stages,
    cuts: [&[u64]; 2],
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    let job = Job { stat: Stat::TrimNorms, wide, geometry, stages, cuts, score: None, with_base: false, line: None };
    make(kernels, stream, &job, sources, scratch, out)
}

/// Products of every two vectors, of a run that starts at a segment: `f64[segments][Gram::len(vectors)]`. Twin:
/// [`crate::backend::cpu::stats::gram`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn gram(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    of: Vectors,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    products(kernels, stream, wide, of, None, geometry, stages, sources, scratch, out)
}

/// The same of every line of `line_elems` elements of a run of whole lines: `f64[lines][Gram::len(vectors)]`; see [`line_bytes`].
/// Twin: [`crate::backend::cpu::lines::add_products`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn line_products(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    of: Vectors,
    line_elems: u64,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    products(kernels, stream, wide, of, Some(line_elems.max(1)), geometry, stages, sources, scratch, out)
}

#[allow(clippy::too_many_arguments)]
fn products(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    of: Vectors,
    line: Option<u64>,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    let job = Job { stat: Stat::Gram, wide, geometry, stages, cuts: [&[]; 2], score: None, with_base: false, line };
    if of != Vectors::Parameters {
        let job = Job { with_base: of == Vectors::BaseAndTaskVectors, ..job };
        return make(kernels, stream, &job, sources, scratch, out);
    }
    // Parameters, measured from nothing.
    let all: Vec<Place> = sources.base.iter().chain(sources.models).copied().collect();
    let job = Job { stages: Stages::default(), ..job };
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
    let job = Job {
        stat: Stat::Rows,
        wide,
        geometry,
        stages,
        cuts: [&[]; 2],
        score: Some(score),
        with_base: false,
        line: None,
    };
    make(kernels, stream, &job, sources, scratch, out)
}

fn make(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    job: &Job<'_>,
    sources: &DeviceSources<'_>,
    scratch: u64,
    out: u64,
) -> Result<()> {
    let blocks = match job.line {
        Some(line_elems) => Blocks::of_runs(line_elems, sources.len),
        None => Blocks::of(job.stat, job.geometry, sources.len),
    };
    let Blocks { run_elems, run_blocks, items } = blocks;
    if items == 0 {
        return Ok(());
    }
    let params = Params {
        load: Load::new(sources, job.geometry, job.stages)?,
        limits: spread(job.cuts[0].iter().copied(), 0),
        tops: spread(job.cuts[1].iter().copied(), u64::MAX),
        blocks: scratch,
        run_elems,
        run_blocks,
        items,
        score: job.score.map_or(0, score_code),
        with_base: u32::from(job.with_base),
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
    };
    let shape = Shape { grid: ((items * LANES).div_ceil(threads.into()), groups), threads, shared_bytes };
    kernels.launch(stream, "sums", of_two(kind, names), shape, &[arg(&params)])?;

    let width = u64::from(width) * job.stat.numbers();
    let (each, divisor, apart) = match job.stat {
        Stat::Rows => (run_blocks, run_elems as f64, 1_u32),
        _ if job.line.is_some() => (run_blocks, 1.0, 0),
        _ => (BLOCKS_OF_A_SEGMENT, 1.0, 0),
    };
    let shape = by_threads(items.div_ceil(each) * width);
    let args = [arg(&scratch), arg(&out), arg(&items), arg(&each), arg(&width), arg(&divisor), arg(&apart)];
    kernels.launch(stream, "sums", "sums_fold", shape, &args)
}
