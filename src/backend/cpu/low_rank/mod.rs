//! Merges of one matrix by singular vectors: CART (arXiv 2412.12153) and its uncentred control in `truncated`, TSV-M
//! (arXiv 2412.00081) and Iso-C and Iso-CTS (arXiv 2502.04959) in `orthogonal`; both read task vectors through
//! `task_vectors`.

mod certificate;
mod element;
mod elementwise;
mod orthogonal;
mod panels;
mod task_vectors;
mod truncated;

#[cfg(test)]
mod tests;

use crate::ops::{LowRank, LowRankFacts, MatrixRule, Prune, StageState};
use faer::MatRef;
use faer::traits::RealField;

use self::panels::Shape;
use self::task_vectors::TaskVectors;
use super::prune::{Scratch, Sources};
use super::stored::Widen;
use crate::error::Result;

pub use self::element::{Element, element};
pub use self::truncated::Decomposition;

/// Singular triples that an orthogonal merge of an m×n matrix takes of what its tasks share, and of each task.
pub fn subspaces(rule: MatrixRule, (m, n): (u64, u64), models: usize) -> (usize, usize) {
    let shape = Shape { m: m as usize, n: n as usize };
    match rule {
        MatrixRule::Truncate(_) | MatrixRule::Isotropic => (0, 0),
        MatrixRule::TaskSingular => (0, orthogonal::specific_rank(shape, models)),
        MatrixRule::CommonAndSpecific { common } => orthogonal::subspaces(shape.short(), models, common),
    }
}

/// Where a matrix's elements come from.
pub trait ReadRuns {
    /// Calls `take` with the sources of elements `start..start + len` of the tensor.
    ///
    /// # Errors
    /// If a source cannot be read.
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()>;

    /// The tensor will be read so many times more than [`passes`] says.
    fn again(&mut self, _passes: u64) {}
}

/// Takes the factors (left m×k, right n×k) of the low-rank part of a model, L_t = left rightᵀ. The columns of both are
/// orthogonal, those of one of them of length 1.
pub type TakeFactors<'a, C> = dyn FnMut(usize, MatRef<'_, C>, MatRef<'_, C>) -> Result<()> + 'a;

/// Bytes that [`merge`] allocates for an m×n matrix, beside the worker's scratch.
pub fn bytes(work: &LowRank, (m, n): (u64, u64), wide: bool) -> u64 {
    let (shape, models) = (Shape { m: m as usize, n: n as usize }, work.weights.len() as u64);
    match work.rule {
        MatrixRule::Truncate(rank) => truncated::bytes(shape, models, rank, wide),
        rule => orthogonal::bytes(shape, models, rule),
    }
}

/// Bytes that [`merge_many`] allocates more for several λ than [`merge`] for one.
pub fn bytes_of_more(work: &LowRank, (m, n): (u64, u64), wide: bool) -> u64 {
    let (shape, models) = (Shape { m: m as usize, n: n as usize }, work.weights.len() as u64);
    match work.rule {
        MatrixRule::Truncate(_) => truncated::bytes_of_more(shape, models, wide),
        _ => 0,
    }
}

/// How often [`merge`] reads the sources of an m×n matrix.
pub fn passes(work: &LowRank, (m, n): (u64, u64), wide: bool) -> u64 {
    let (shape, models) = (Shape { m: m as usize, n: n as usize }, work.weights.len() as u64);
    match work.rule {
        MatrixRule::Truncate(rank) => truncated::passes(shape, models, rank, wide),
        rule => orthogonal::passes(models, rule),
    }
}

/// How often [`merge`] reads the sources at most: where float32 has no certificate for any task.
pub fn most_passes(work: &LowRank, (m, n): (u64, u64), wide: bool) -> u64 {
    let shape = Shape { m: m as usize, n: n as usize };
    let again = match work.rule {
        MatrixRule::Truncate(rank) => truncated::more_passes(shape, work.weights.len() as u64, rank, wide),
        _ => 0,
    };
    passes(work, (m, n), wide) + again
}

/// Bytes that a thread keeps for the packed operands of its matrix products, at most: both sides of a product, 512 of its
/// depth at a time. The matrix library keeps them for each thread until it ends.
///
/// Products are as deep as a panel where both sides are short (Gram matrices), and no deeper than the short side where one is long.
pub fn packing_bytes(m: u64, n: u64) -> u64 {
    const DEPTH: u64 = 512;
    let short = m.min(n);
    8 * (DEPTH * 2 * short).max(DEPTH.min(short) * (m + n))
}

/// Floating-point operations of [`merge`] on an m×n matrix.
pub fn operations(work: &LowRank, (m, n): (u64, u64), wide: bool) -> f64 {
    let (shape, models) = (Shape { m: m as usize, n: n as usize }, work.weights.len() as u64);
    match work.rule {
        MatrixRule::Truncate(rank) => truncated::operations(shape, models, rank, wide),
        rule => orthogonal::operations(shape, models, rule),
    }
}

/// How [`merge`] decomposes each task vector of an m×n matrix, in a few words.
pub fn algorithm(work: &LowRank, (m, n): (u64, u64), wide: bool) -> String {
    match work.rule {
        MatrixRule::Truncate(rank) => Decomposition::of(Shape { m: m as usize, n: n as usize }, rank, wide).to_string(),
        MatrixRule::TaskSingular => "leading singular triples, polar factors, float64".into(),
        MatrixRule::Isotropic => "polar factor, float64".into(),
        MatrixRule::CommonAndSpecific { .. } => "leading singular triples, polar factors, float64".into(),
    }
}

/// Merges an m×n matrix; `emit` gets the merged values of whole rows, in order.
///
/// # Errors
/// If a source cannot be read or holds a NaN or an infinity, or `emit` fails.
#[allow(clippy::too_many_arguments)]
pub fn merge<C: Widen + RealField>(
    work: &LowRank,
    (m, n): (u64, u64),
    stages: &[(Prune, StageState)],
    source: &mut dyn ReadRuns,
    scratch: &mut Scratch<C>,
    wide_scratch: &mut Scratch<f64>,
    emit: &mut dyn FnMut(&[f64]) -> Result<()>,
) -> Result<LowRankFacts> {
    let lambdas = [work.lambda];
    let mut take = |_: usize, _: MatRef<'_, C>, _: MatRef<'_, C>| Ok(());
    let mut emit = |_: usize, rows: &[f64]| emit(rows);
    merge_many(work, &lambdas, (m, n), stages, source, scratch, wide_scratch, &mut take, &mut emit)
}

/// As [`merge`] with each of `lambdas` in place of the program's, from one decomposition: `emit` gets rows along with the λ's place.
/// `take_factors` gets the factors of each model in turn before the first row is emitted. Truncations alone have any.
///
/// # Errors
/// As [`merge`], or if `take_factors` fails.
#[allow(clippy::too_many_arguments)]
pub fn merge_many<C: Widen + RealField>(
    work: &LowRank,
    lambdas: &[f64],
    (m, n): (u64, u64),
    stages: &[(Prune, StageState)],
    source: &mut dyn ReadRuns,
    scratch: &mut Scratch<C>,
    wide_scratch: &mut Scratch<f64>,
    take_factors: &mut TakeFactors<'_, C>,
    emit: &mut dyn FnMut(usize, &[f64]) -> Result<()>,
) -> Result<LowRankFacts> {
    let shape = Shape { m: m as usize, n: n as usize };
    let mut vectors = TaskVectors::new(work, shape, stages, source, scratch, wide_scratch);
    match work.rule {
        MatrixRule::Truncate(rank) => {
            let truncated = truncated::decompose(&mut vectors, rank)?;
            truncated.each(shape, take_factors)?;
            truncated.sum(&mut vectors, work, lambdas, emit)
        }
        rule => orthogonal::merge(&mut vectors, work, rule, lambdas, emit),
    }
}
