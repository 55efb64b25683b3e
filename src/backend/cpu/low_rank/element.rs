//! One element of a merge of a matrix: what becomes of it, while the whole matrix is merged.

use faer::traits::RealField;

use super::panels::{Panel, Shape};
use super::task_vectors::TaskVectors;
use super::{ReadRuns, merge_many};
use crate::backend::cpu::prune::Scratch;
use crate::backend::cpu::stored::Widen;
use crate::error::Result;
use crate::ops::{LowRank, LowRankFacts, Prune, StageState};

/// An element of a merged matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    /// What task vectors are measured from, in f64.
    pub origin: f64,
    /// A_t, by model, in f64.
    pub task_vectors: Vec<f64>,
    /// L_t, by model; none where a rule makes one matrix of all.
    pub parts: Vec<f64>,
    /// The merged element, in f64; what is stored is this, rounded.
    pub merged: f64,
    /// What was done to the matrix.
    pub facts: LowRankFacts,
}

/// Merges an m×n matrix as [`super::merge`] does, and gives the element of a row and a column of it.
///
/// # Errors
/// As [`super::merge`].
pub fn element<C: Widen + RealField>(
    work: &LowRank,
    (m, n): (u64, u64),
    stages: &[(Prune, StageState)],
    source: &mut dyn ReadRuns,
    (row, column): (usize, usize),
) -> Result<Element> {
    let models = work.weights.len();
    let (mut scratch, mut wide) = (Scratch::<C>::new(models), Scratch::<f64>::new(models));
    let shape = Shape { m: m as usize, n: n as usize };
    let (mut origin, mut vectors) = ([0.0], vec![vec![0.0_f64]; models]);
    TaskVectors::new(work, shape, stages, source, &mut scratch, &mut wide).load(
        Panel { row, rows: 1, column, columns: 1 },
        0..models,
        &mut vectors,
        Some(&mut origin),
    )?;
    let (mut parts, mut merged, mut rows) = (Vec::new(), f64::NAN, 0);
    let facts = merge_many::<C>(
        work,
        &[work.lambda],
        (m, n),
        stages,
        source,
        &mut scratch,
        &mut wide,
        &mut |_, left, right| {
            parts.push((0..left.ncols()).map(|k| left[(row, k)].f64() * right[(column, k)].f64()).sum());
            Ok(())
        },
        &mut |_, values| {
            let here = values.len() / shape.n;
            if (rows..rows + here).contains(&row) {
                merged = values[(row - rows) * shape.n + column];
            }
            rows += here;
            Ok(())
        },
    )?;
    Ok(Element { origin: origin[0], task_vectors: vectors.concat(), parts, merged, facts })
}
