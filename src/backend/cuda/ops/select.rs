//! The exact k-th key: `kernels/select.cu`. CPU twin: [`crate::backend::cpu::select`].
//!
//! Upload a [`SelectState`] a model, zero the counters, then [`levels`] times: [`count`] every run of the tensor, [`advance`]. The states then
//! hold the cuts. Nothing of it needs the host in between.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, Shape, arg};
use super::params::{DeviceSources, Load, of_five, of_two, score_code};
use super::shape::{THREADS, VECTOR, slots};
use super::stages::Stages;
use crate::error::Result;
use crate::ops::search::{Cut, Levels, Ranked, Search};
use crate::ops::{Geometry, Score};

/// Counters of a pass and model.
pub const BINS: usize = Levels::BINS;
const BIN_BITS: u32 = Levels::BITS;
/// Bits of a key, in f32 and in f64.
const KEY_BITS: [u32; 2] = [31, 63];
/// The number of [`Ranked::Spread`] in the kernels.
const SPREAD: u32 = 5;
/// The number of [`Ranked::Importance`] in the kernels.
const IMPORTANCE: u32 = 6;
/// Models that a block counts at once.
const GROUP: u32 = 4;
/// Blocks that walk over a run; more do not count faster, and each adds its counters to the others'.
const MOST_BLOCKS: u64 = 2048;

/// `SelectState` of select.cu: the search for one model's cut.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct SelectState {
    lo: u64,
    rank: u64,
    beyond: u64,
    key: u64,
    kept: u64,
    shift: u32,
    bits: u32,
    lowest: u32,
    status: u32,
    zeros: u64,
    share: f64,
    elems: u64,
}

/// `Select` of select.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    states: u64,
    bins: u64,
    score: u32,
    group: u32,
    narrow: u32,
    pad: u32,
    rows: u64,
    row_elems: u64,
}

const _: () = assert!(size_of::<SelectState>() == 80 && size_of::<Params>() == 704);

impl SelectState {
    /// A search for the `rank`-th largest key (from 1), or the smallest where `lowest`.
    pub fn new(rank: u64, lowest: bool, wide: bool) -> Self {
        let shift = KEY_BITS[usize::from(wide)] - BIN_BITS;
        Self { rank, shift, bits: BIN_BITS, lowest: lowest.into(), status: 1, share: -1.0, ..Self::zeroed() }
    }

    /// What a search looks for.
    pub fn of(search: &Search, wide: bool) -> Self {
        let (rank, lowest) = search.wanted();
        let state = Self::new(rank, lowest, wide);
        search.wanted_share().map_or(state, |(share, elems)| Self { share, elems, ..state })
    }

    /// A search that knows so much of its key, one of f32.
    pub fn at(levels: &Levels) -> Self {
        let Levels { lo, rank, beyond, shift, bits } = *levels;
        Self { lo, rank, beyond, shift, bits, ..Self::new(rank, false, false) }
    }

    /// For a model without a search.
    pub fn none() -> Self {
        Self::zeroed()
    }

    /// What was found; `None` where nothing was searched for.
    pub fn cut(&self) -> Option<Cut> {
        (self.status == 2).then_some(Cut { key: self.key, kept: self.kept })
    }
}

/// Passes over the sources that a search takes.
pub fn levels(wide: bool) -> u32 {
    KEY_BITS[usize::from(wide)].div_ceil(BIN_BITS)
}

/// Bytes of the counters.
pub fn bins_bytes(models: usize) -> u64 {
    (models * BINS * size_of::<u64>()) as u64
}

/// Bytes of the states.
pub fn states_bytes(models: usize) -> u64 {
    (models * size_of::<SelectState>()) as u64
}

/// Counts a run for every model with a search. `narrow`: keys are those of f32, whatever is computed;
/// `rows`: where what [`Ranked::Importance`] weighs rows by lies.
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn count(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    ranked: Ranked<'_>,
    wide: bool,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    states: u64,
    bins: u64,
    narrow: bool,
    rows: u64,
) -> Result<()> {
    if sources.len == 0 {
        return Ok(());
    }
    let score = match ranked {
        Ranked::Magnitude => score_code(Score::Magnitude),
        Ranked::Score(score) => score_code(score),
        Ranked::Spread => SPREAD,
        Ranked::Importance(_) => IMPORTANCE,
    };
    let mut params = Params {
        load: Load::new(sources, geometry, stages)?,
        states,
        bins,
        score,
        group: GROUP,
        rows,
        row_elems: geometry.last.max(1),
        narrow: u32::from(narrow),
        pad: 0,
    };
    let (models, kind) = (params.load.sources.count, sources.kind(wide));
    let is_plain =
        (!narrow || !wide) && score == score_code(Score::Magnitude) && stages.count == 0 && sources.base.is_some();
    let (kernel, threads, shared_bytes) = if is_plain {
        let names =
            ["select_plain_bf16", "select_plain_f16", "select_plain_f32", "select_plain_any", "select_plain_f64"];
        (of_five(kind, names), THREADS, 0)
    } else {
        let fixed = |group: u32| group * BINS as u32 * size_of::<u32>() as u32;
        let fitting = |group: &u32| slots(kernels, models, kind.value_bytes(), 0, fixed(*group)).is_ok();
        params.group = [GROUP, 2].into_iter().find(fitting).unwrap_or(1);
        let (threads, shared_bytes) = slots(kernels, models, kind.value_bytes(), 0, fixed(params.group))?;
        (of_two(kind, ["select_tile_any", "select_tile_f64"]), threads, shared_bytes)
    };
    // A block's counters have 32 bits.
    let least = sources.len >> 31;
    let blocks = sources.len.div_ceil(VECTOR * u64::from(threads)).min(MOST_BLOCKS).max(least);
    let shape = Shape { grid: (blocks, models.div_ceil(params.group)), threads, shared_bytes };
    kernels.launch(stream, "select", kernel, shape, &[arg(&params)])
}

/// Ends a pass: narrows every search, and zeroes the counters for the next.
///
/// # Errors
/// `Environment` if it cannot be launched.
pub fn advance(kernels: &Kernels, stream: &Arc<CudaStream>, models: usize, states: u64, bins: u64) -> Result<()> {
    let shape = Shape { grid: (models as u64, 1), threads: THREADS, shared_bytes: 0 };
    kernels.launch(stream, "select", "select_advance", shape, &[arg(&states), arg(&bins)])
}
