//! Statistics of a tensor's task vectors: norms for layers, mean scores for rows and columns, products of vectors.
//!
//! Sums run in f64, in an order that the tensor's shape alone fixes: partial sums of [`SEGMENT`] elements for norms, one
//! running sum a row or a column for scores.

use super::blend::load_pruned;
use super::prune::{self, Scratch, Sources};
use super::stored::Widen;
use super::vector::{dot, lane_sum, task_sums};
use super::{BLOCK, in_registers, simd, sparsify};
use crate::ops::{Geometry, Gram, Measured, Prune, SEGMENT, Score, StageState, Sums, Vectors};

/// Norms of a run that starts at a segment, by segment and model, of the task vectors that `stages` leave.
pub fn sums<C: Widen>(
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    scratch: &mut Scratch<C>,
) -> Vec<Vec<Sums>> {
    let models = sources.models.len();
    let mut segments = Vec::with_capacity(sources.len.div_ceil(SEGMENT));
    for segment in (0..sources.len).step_by(SEGMENT) {
        let end = (segment + SEGMENT).min(sources.len);
        let mut totals = vec![Sums::default(); models];
        for at in (segment..end).step_by(BLOCK) {
            let n = BLOCK.min(end - at);
            load_pruned(geometry, stages, sources, at, n, scratch);
            add_block(n, &mut totals, scratch);
        }
        segments.push(totals);
    }
    segments
}

/// Adds a block of `n` elements, whose task vectors and θ₀ are in `scratch`, to the sums of every model. Leaves the sum of
/// the task vectors in `scratch`.
pub(super) fn add_block<C: Widen>(n: usize, totals: &mut [Sums], scratch: &mut Scratch<C>) {
    let models = totals.len();
    prune::sum_models(Score::Deviation, models, n, scratch);
    let (base, sum) = (&scratch.base[..n], &scratch.sum[..n]);
    let (base, mean) = (dot(base, base), 1.0 / models as f64);
    for (total, tau) in totals.iter_mut().zip(&scratch.tau) {
        let [l1, squares, deviation, dot, rest] = task_sums(&tau[..n], sum, mean);
        total.add(&Sums { l1, squares, deviation, dot, rest, base });
    }
}

/// Σ τ² of each model over a run that starts at a segment, by segment and model, of the task vectors that `stages` leave.
pub fn squares<C: Widen>(
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    scratch: &mut Scratch<C>,
) -> Vec<Vec<f64>> {
    let models = sources.models.len();
    let mut segments = Vec::with_capacity(sources.len.div_ceil(SEGMENT));
    for segment in (0..sources.len).step_by(SEGMENT) {
        let end = (segment + SEGMENT).min(sources.len);
        let mut totals = vec![0.0; models];
        for at in (segment..end).step_by(BLOCK) {
            let n = BLOCK.min(end - at);
            load_pruned(geometry, stages, sources, at, n, scratch);
            for (total, tau) in totals.iter_mut().zip(&scratch.tau) {
                *total += dot(&tau[..n], &tau[..n]);
            }
        }
        segments.push(totals);
    }
    segments
}

/// Mean score of each whole row of a run of rows, by model and row.
pub fn row_scores<C: Widen>(
    score: Score,
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    scratch: &mut Scratch<C>,
) -> Vec<Vec<f64>> {
    let models = sources.models.len();
    let row_elems = geometry.row_elems as usize;
    let rows = sources.len / row_elems.max(1);
    let mut means = vec![vec![0.0; rows]; models];
    if row_elems == 1 {
        // A vector: its rows are its elements, and a row at a time would be a block an element.
        for at in (0..rows).step_by(BLOCK) {
            let n = BLOCK.min(rows - at);
            score_block(score, geometry, stages, sources, at, n, scratch, |t, scores| {
                means[t][at..at + n].iter_mut().zip(scores).for_each(|(m, s)| *m = s.f64());
            });
        }
        return means;
    }
    for row in 0..rows {
        for column in (0..row_elems).step_by(BLOCK) {
            let n = BLOCK.min(row_elems - column);
            score_block(score, geometry, stages, sources, row * row_elems + column, n, scratch, |t, scores| {
                means[t][row] += lane_sum(n, |i| scores[i].f64());
            });
        }
        means.iter_mut().for_each(|m| m[row] /= row_elems as f64);
    }
    means
}

/// Adds the scores of a run of consecutive elements to the totals of the columns it falls into.
///
/// `totals[t]` holds columns `first_column..`; the run lies within one row and within those columns.
#[allow(clippy::too_many_arguments)]
pub fn add_column_scores<C: Widen>(
    score: Score,
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    first_column: u64,
    totals: &mut [Vec<f64>],
    scratch: &mut Scratch<C>,
) {
    add_column_scores_with(simd::level(), score, geometry, stages, sources, first_column, totals, scratch);
}

/// The same on an instruction set; `None` is the portable loops.
#[allow(clippy::too_many_arguments)]
pub(super) fn add_column_scores_with<C: Widen>(
    level: Option<simd::Level>,
    score: Score,
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    first_column: u64,
    totals: &mut [Vec<f64>],
    scratch: &mut Scratch<C>,
) {
    let inner = geometry.inner;
    let done = level.map_or(0, |level| {
        in_registers::add_column_scores::<C>(level, score, geometry, stages, sources, first_column, totals)
    });
    for at in (done..sources.len).step_by(BLOCK) {
        let n = BLOCK.min(sources.len - at);
        let element = (sources.start + at as u64) % (geometry.columns * inner).max(1);
        score_block(score, geometry, stages, sources, at, n, scratch, |t, scores| {
            let totals = &mut totals[t];
            if inner == 1 {
                let first = (element - first_column) as usize;
                totals[first..first + n].iter_mut().zip(scores).for_each(|(sum, s)| *sum += s.f64());
            } else {
                for (i, s) in scores.iter().enumerate() {
                    totals[((element + i as u64) / inner - first_column) as usize] += s.f64();
                }
            }
        });
    }
}

#[allow(clippy::too_many_arguments)]
fn score_block<C: Widen>(
    score: Score,
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    at: usize,
    n: usize,
    scratch: &mut Scratch<C>,
    mut take: impl FnMut(usize, &[C]),
) {
    let models = sources.models.len();
    load_pruned(geometry, stages, sources, at, n, scratch);
    prune::sum_models(score, models, n, scratch);
    for t in 0..models {
        prune::score(score, t, models, n, scratch);
        take(t, &scratch.a[..n]);
    }
}

/// Σ |τ| before and after the method drops what it drops, by segment of a run that starts at one, and by model.
pub fn trim_norms<C: Widen>(m: &Measured, sources: &Sources<'_>, scratch: &mut Scratch<C>) -> Vec<Vec<[f64; 2]>> {
    let models = sources.models.len();
    let mut kept = vec![0; models];
    let mut segments = Vec::with_capacity(sources.len.div_ceil(SEGMENT));
    for segment in (0..sources.len).step_by(SEGMENT) {
        let end = (segment + SEGMENT).min(sources.len);
        let mut totals = vec![[0.0; 2]; models];
        for at in (segment..end).step_by(BLOCK) {
            let n = BLOCK.min(end - at);
            load_pruned(m.geometry, &m.stages, sources, at, n, scratch);
            let l1 = |tau: &[C]| lane_sum(n, |i| tau[i].abs().f64());
            totals.iter_mut().zip(&scratch.tau).for_each(|(total, tau)| total[0] += l1(tau));
            sparsify::drop(m, models, sources.start + at as u64, n, scratch, &mut kept);
            totals.iter_mut().zip(&scratch.tau).for_each(|(total, tau)| total[1] += l1(tau));
        }
        segments.push(totals);
    }
    segments
}

/// Products of every two vectors in the order of [`Gram::pairs`], by segment of a run that starts at one; of task vectors as stages
/// and the method leave them.
pub fn gram<C: Widen>(of: Vectors, m: &Measured, sources: &Sources<'_>, scratch: &mut Scratch<C>) -> Vec<Vec<f64>> {
    let models = sources.models.len();
    let mut kept = vec![0; models];
    let has_base = of != Vectors::TaskVectors && sources.base.is_some();
    let vectors = models + usize::from(has_base);
    let mut segments = Vec::with_capacity(sources.len.div_ceil(SEGMENT));
    for segment in (0..sources.len).step_by(SEGMENT) {
        let end = (segment + SEGMENT).min(sources.len);
        let mut totals = vec![0.0; Gram::len(vectors)];
        for at in (segment..end).step_by(BLOCK) {
            let n = BLOCK.min(end - at);
            match of {
                Vectors::TaskVectors | Vectors::BaseAndTaskVectors => {
                    load_pruned(m.geometry, &m.stages, sources, at, n, scratch);
                    sparsify::apply(m, models, sources.start + at as u64, n, scratch, &mut kept);
                }
                Vectors::Parameters => prune::load_parameters(sources, at, n, scratch),
            }
            let Scratch { base, tau, .. } = &*scratch;
            let vector = |i: usize| match i.checked_sub(usize::from(has_base)) {
                Some(model) => &tau[model][..n],
                None => &base[..n],
            };
            for (total, (a, b)) in totals.iter_mut().zip(Gram::pairs(vectors)) {
                *total += dot(vector(a), vector(b));
            }
        }
        segments.push(totals);
    }
    segments
}
