//! Blocks of task vectors, and what `lwptv` stages do to them.

use super::stored::{Stored, Widen};
use super::{BLOCK, vector};
use crate::ops::{Geometry, Mask, Prune, RELATIVE_EPSILON, Real, Score, StageState};

/// The sources of a run of elements of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// θ₀, where the program reads it.
    pub base: Option<Stored<'a>>,
    /// The models, in order.
    pub models: &'a [Stored<'a>],
    /// Index in the tensor of the run's first element.
    pub start: u64,
    /// Elements.
    pub len: usize,
}

/// Buffers of one worker; all sized when it starts.
#[derive(Debug, Default)]
pub struct Scratch<C> {
    /// θ₀.
    pub base: Vec<C>,
    /// Task vectors, or parameters, by model.
    pub tau: Vec<Vec<C>>,
    pub(super) a: Vec<C>,
    pub(super) c: Vec<C>,
    pub(super) words: Vec<u32>,
    pub(super) sum: Vec<f64>,
    pub(super) magnitudes: Vec<f64>,
}

impl<C: Real> Scratch<C> {
    /// For up to this many models.
    pub fn new(models: usize) -> Self {
        Self::of(models, BLOCK)
    }

    /// For blocks of so many elements.
    pub(super) fn of(models: usize, elems: usize) -> Self {
        let block = || vec![C::ZERO; elems];
        Self {
            base: block(),
            tau: (0..models).map(|_| block()).collect(),
            a: block(),
            c: block(),
            words: vec![0; elems],
            sum: vec![0.0; elems],
            magnitudes: vec![0.0; elems],
        }
    }

    /// Bytes that [`Scratch::new`] allocates.
    pub fn bytes(models: usize) -> u64 {
        (BLOCK * ((models + 3) * size_of::<C>() + 4 + 16)) as u64
    }
}

/// Widens θ₀ and makes every task vector of elements `at..at + n` of the run.
pub(super) fn load<C: Widen>(sources: &Sources<'_>, at: usize, n: usize, scratch: &mut Scratch<C>) {
    let base = &mut scratch.base[..n];
    match sources.base {
        Some(stored) => stored.widen(at, base),
        None => base.fill(C::ZERO),
    }
    for (stored, tau) in sources.models.iter().zip(&mut scratch.tau) {
        stored.widen(at, &mut tau[..n]);
        vector::subtract(&mut tau[..n], base);
    }
}

/// Widens θ₀, where it is among the sources, and the models' parameters of elements `at..at + n` of the run.
pub(super) fn load_parameters<C: Widen>(sources: &Sources<'_>, at: usize, n: usize, scratch: &mut Scratch<C>) {
    if let Some(stored) = sources.base {
        stored.widen(at, &mut scratch.base[..n]);
    }
    for (stored, values) in sources.models.iter().zip(&mut scratch.tau) {
        stored.widen(at, &mut values[..n]);
    }
}

/// Sums τ and |τ| over the models, where a score looks at other tasks.
pub(super) fn sum_models<C: Real>(score: Score, models: usize, n: usize, scratch: &mut Scratch<C>) {
    if !score.is_relational() {
        return;
    }
    let (sum, magnitudes) = (&mut scratch.sum[..n], &mut scratch.magnitudes[..n]);
    sum.fill(0.0);
    magnitudes.fill(0.0);
    for tau in &scratch.tau[..models] {
        vector::add_sums(sum, magnitudes, &tau[..n]);
    }
}

/// Scores of one model's block into `scratch.a`; [`sum_models`] must have been called.
pub(super) fn score<C: Real>(score: Score, model: usize, models: usize, n: usize, scratch: &mut Scratch<C>) {
    let (out, x) = (&mut scratch.a[..n], &scratch.tau[model][..n]);
    match score {
        Score::Magnitude => vector::score_magnitude(out, x),
        Score::Relative => vector::score_relative(out, x, &scratch.base[..n], C::of(RELATIVE_EPSILON)),
        Score::Deviation => vector::score_deviation(out, x, &scratch.sum[..n], models as f64),
        Score::Agreement => vector::score_agreement(out, x, &scratch.sum[..n], &scratch.magnitudes[..n]),
        Score::Tall => vector::score_tall(out, x, &scratch.sum[..n]),
    }
}

/// Applies measured stages, in order, to the task vectors of `n` elements from element `first` of the tensor.
pub(super) fn apply<C: Real>(
    stages: &[(Prune, StageState)],
    geometry: Geometry,
    models: usize,
    first: u64,
    n: usize,
    scratch: &mut Scratch<C>,
) {
    for (prune, state) in stages {
        if state.masks.iter().any(|m| matches!(m, Mask::Elements { .. })) {
            // Before any mask of this stage: the scores are of the task vectors that entered it.
            sum_models(prune.score, models, n, scratch);
        }
        for (t, (mask, factor)) in state.masks.iter().zip(&state.factors).enumerate() {
            match mask {
                Mask::All => {}
                Mask::None => scratch.tau[t][..n].fill(C::ZERO),
                Mask::Rows(keep) => mask_runs(&mut scratch.tau[t][..n], first, geometry.row_elems, keep),
                Mask::Columns(keep) if geometry.inner == 1 => mask_columns(&mut scratch.tau[t][..n], first, keep),
                Mask::Columns(keep) => mask_runs(&mut scratch.tau[t][..n], first, geometry.inner, keep),
                Mask::Elements { cut, lowest } => {
                    score(prune.score, t, models, n, scratch);
                    vector::mask_by_score(&mut scratch.tau[t][..n], &scratch.a[..n], *cut, *lowest);
                }
            }
            if *factor != 1.0 {
                vector::scale(&mut scratch.tau[t][..n], C::of(*factor));
            }
        }
    }
}

/// Zeroes runs of `run` equal-masked elements; the mask repeats where the runs outnumber it.
fn mask_runs<C: Real>(x: &mut [C], first: u64, run: u64, keep: &[u8]) {
    let mut at = 0;
    while at < x.len() {
        let element = first + at as u64;
        let end = ((run - element % run) as usize + at).min(x.len());
        if keep[(element / run % keep.len() as u64) as usize] == 0 {
            x[at..end].fill(C::ZERO);
        }
        at = end;
    }
}

/// Zeroes columns of a row-major matrix whose rows are as long as the mask.
fn mask_columns<C: Real>(x: &mut [C], first: u64, keep: &[u8]) {
    let mut column = (first % keep.len() as u64) as usize;
    let mut rest = x;
    while !rest.is_empty() {
        let n = rest.len().min(keep.len() - column);
        let (now, later) = rest.split_at_mut(n);
        vector::mask(now, &keep[column..column + n]);
        rest = later;
        column = 0;
    }
}
