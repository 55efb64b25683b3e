//! Merges that make task vectors orthogonal to each other: TSV-M (arXiv 2412.00081), Iso-C and Iso-CTS (arXiv 2502.04959).
//!
//! In f64 on whole matrices, one decomposition or two a matrix: polar factors need every singular value, small ones too.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::panels::{Panel, Shape};
use super::task_vectors::TaskVectors;
use crate::backend::cpu::stored::Widen;
use crate::error::{Error, Result};
use crate::linalg::polar::{self, NULL_OF_COMPUTED, polar};
use crate::linalg::triples::Triples;
use crate::ops::{LowRank, LowRankFacts, MatrixRule};

/// A change as left · rightᵀ times a number, or as a whole matrix.
enum Change {
    Factors(Mat<f64>, Mat<f64>),
    Whole(Mat<f64>),
}

/// Emits θ₀ + λ·(what the rule makes of all w'_t A_t) by whole rows, for each λ in turn.
///
/// # Errors
/// If a source cannot be read or holds a NaN or an infinity, or `emit` fails.
pub fn merge<C: Widen>(
    vectors: &mut TaskVectors<'_, C>,
    work: &LowRank,
    rule: MatrixRule,
    lambdas: &[f64],
    emit: &mut dyn FnMut(usize, &[f64]) -> Result<()>,
) -> Result<LowRankFacts> {
    let weights = work.scaled_weights();
    let mut facts = LowRankFacts::default();
    let change = match rule {
        MatrixRule::TaskSingular => task_singular(vectors, &weights, &mut facts)?,
        MatrixRule::Isotropic => isotropic(vectors, &weights, &mut facts)?,
        MatrixRule::CommonAndSpecific { common } => common_and_specific(vectors, &weights, common, &mut facts)?,
        MatrixRule::Truncate(_) => return Err(Error::internal("a truncation is no orthogonal merge")),
    };
    add(vectors, lambdas, &change, emit)?;
    Ok(facts)
}

/// Σ of the tasks' leading triples with their vectors orthonormalised together: U⊥ Σ V⊥ᵀ.
fn task_singular<C: Widen>(
    vectors: &mut TaskVectors<'_, C>,
    weights: &[f64],
    facts: &mut LowRankFacts,
) -> Result<Change> {
    let (shape, models) = (vectors.shape, vectors.models());
    let k = specific_rank(shape, models);
    let mut all = Concatenated::new(shape, k * models);
    for (t, w) in weights.iter().enumerate() {
        let a = whole(vectors, t..t + 1, &[*w])?;
        let squares = a.squared_norm_l2();
        let triples = Triples::leading(a.as_ref(), k, 0.0)?;
        let kept: f64 = triples.singular.iter().map(|s| s * s).sum();
        facts.rank.push(k as u64);
        facts.energy.push(if squares == 0.0 { 1.0 } else { (kept / squares).min(1.0) });
        all.push(triples);
    }
    let (mut left, right) = all.orthonormal()?;
    for (j, s) in all.singular.iter().enumerate() {
        left.col_as_slice_mut(j).iter_mut().for_each(|x| *x *= s);
    }
    Ok(Change::Factors(left, right))
}

/// mean(σ)·U Vᵀ of the sum.
fn isotropic<C: Widen>(vectors: &mut TaskVectors<'_, C>, weights: &[f64], facts: &mut LowRankFacts) -> Result<Change> {
    let sum = whole(vectors, 0..weights.len(), weights)?;
    let polar::Polar { mut factor, singular } = polar(sum.as_ref(), 0.0)?;
    let mean = singular.iter().sum::<f64>() / singular.len().max(1) as f64;
    facts.singular_value = Some(mean);
    factor *= mean;
    Ok(Change::Whole(factor))
}

/// The sum's leading triples and each task's leading ones outside them, orthonormalised together, all σ set to their mean.
fn common_and_specific<C: Widen>(
    vectors: &mut TaskVectors<'_, C>,
    weights: &[f64],
    share: f64,
    facts: &mut LowRankFacts,
) -> Result<Change> {
    let (shape, models) = (vectors.shape, vectors.models());
    let (common, each) = subspaces(shape.short(), models, share);
    let sum = whole(vectors, 0..models, weights)?;
    let common_triples = Triples::leading(sum.as_ref(), common, 0.0)?;
    drop(sum);
    let mut all = Concatenated::new(shape, common + each * models);
    let basis = common_triples.left.as_ref();
    for (t, w) in weights.iter().enumerate() {
        let mut a = whole(vectors, t..t + 1, &[*w])?;
        let size = a.norm_l2();
        let inside = basis.transpose() * &a;
        matmul(a.as_mut(), Accum::Add, basis, inside.as_ref(), -1.0, Par::Seq);
        facts.rank.push(each as u64);
        all.push(Triples::leading(a.as_ref(), each, NULL_OF_COMPUTED * size)?);
    }
    all.push(common_triples);
    let (mut left, right) = all.orthonormal()?;
    let mean = all.singular.iter().sum::<f64>() / all.singular.len().max(1) as f64;
    facts.singular_value = Some(mean);
    left *= mean;
    Ok(Change::Factors(left, right))
}

/// ⌊min(m, n)/T⌋
pub fn specific_rank(shape: Shape, models: usize) -> usize {
    shape.short() / models.max(1)
}

/// Dimensions of the common subspace and of each task's own, as the authors' program rounds them.
pub fn subspaces(r: usize, models: usize, share: f64) -> (usize, usize) {
    let outside = r - ((r as f64 * share) as usize).min(r);
    let each = ((outside as f64 / models as f64).round_ties_even() as usize).min(r / models.max(1));
    (r - each * models, each)
}

/// Triples of several matrices side by side.
struct Concatenated {
    left: Mat<f64>,
    right: Mat<f64>,
    singular: Vec<f64>,
}

impl Concatenated {
    fn new(shape: Shape, most: usize) -> Self {
        Self { left: Mat::zeros(shape.m, most), right: Mat::zeros(shape.n, most), singular: Vec::with_capacity(most) }
    }

    fn push(&mut self, triples: Triples) {
        let (at, k) = (self.singular.len(), triples.singular.len());
        self.left.as_mut().subcols_mut(at, k).copy_from(&triples.left);
        self.right.as_mut().subcols_mut(at, k).copy_from(&triples.right);
        self.singular.extend(triples.singular);
    }

    fn orthonormal(&self) -> Result<(Mat<f64>, Mat<f64>)> {
        // Vectors that several matrices share are one direction, whatever rounding makes of their difference.
        let factor = |of: &Mat<f64>| Ok(polar(of.as_ref(), NULL_OF_COMPUTED)?.factor);
        Ok((factor(&self.left)?, factor(&self.right)?))
    }
}

/// Σ w_t A_t of some tasks, whole.
fn whole<C: Widen>(
    vectors: &mut TaskVectors<'_, C>,
    tasks: std::ops::Range<usize>,
    weights: &[f64],
) -> Result<Mat<f64>> {
    let shape = vectors.shape;
    let mut sum = Mat::<f64>::zeros(shape.m, shape.n);
    let mut parts = vec![vec![0.0; shape.height() * shape.n]; tasks.len()];
    for panel in shape.down() {
        vectors.load(panel, tasks.clone(), &mut parts, None)?;
        let mut to = sum.as_mut().subrows_mut(panel.row, panel.rows);
        for (part, w) in parts.iter().zip(weights) {
            to += panel.matrix(part) * faer::Scale(*w);
        }
    }
    // A sum of squares could overflow where the numbers do not.
    if (0..shape.n).any(|j| sum.col_as_slice(j).iter().any(|x| !x.is_finite())) {
        return Err(Error::input("a model or the base holds a NaN or an infinity"));
    }
    Ok(sum)
}

/// Emits θ₀ + λ·change by whole rows, for each λ in turn.
fn add<C: Widen>(
    vectors: &mut TaskVectors<'_, C>,
    lambdas: &[f64],
    change: &Change,
    emit: &mut dyn FnMut(usize, &[f64]) -> Result<()>,
) -> Result<()> {
    let shape = vectors.shape;
    let most = shape.height() * shape.n;
    let (mut merged, mut change_here) = (vec![0.0; most], vec![0.0; most]);
    for panel in shape.down() {
        let elems = panel.elems();
        let to = MatMut::from_row_major_slice_mut(&mut change_here[..elems], panel.rows, shape.n);
        rows_of(change, panel, to);
        for (i, lambda) in lambdas.iter().enumerate() {
            vectors.load::<f64>(panel, 0..0, &mut [], Some(&mut merged))?;
            for (to, change) in merged[..elems].iter_mut().zip(&change_here) {
                // Adding 0 would turn a negative zero of θ₀ into a positive one.
                let change = lambda * change;
                if change != 0.0 {
                    *to += change;
                }
            }
            emit(i, &merged[..elems])?;
        }
    }
    Ok(())
}

fn rows_of(change: &Change, panel: Panel, mut to: MatMut<'_, f64>) {
    fn rows(of: &Mat<f64>, panel: Panel) -> MatRef<'_, f64> {
        of.as_ref().subrows(panel.row, panel.rows)
    }
    match change {
        Change::Whole(matrix) => to.copy_from(rows(matrix, panel)),
        Change::Factors(left, right) => {
            matmul(to, Accum::Replace, rows(left, panel), right.transpose(), 1.0, Par::Seq);
        }
    }
}

/// How often [`merge`] reads the sources.
pub fn passes(models: u64, rule: MatrixRule) -> u64 {
    match rule {
        MatrixRule::Truncate(_) => 0,
        MatrixRule::Isotropic => 2,
        MatrixRule::TaskSingular => models + 1,
        MatrixRule::CommonAndSpecific { .. } => models + 2,
    }
}

/// Bytes that [`merge`] allocates.
pub fn bytes(shape: Shape, models: u64, rule: MatrixRule) -> u64 {
    let (m, n) = (shape.m as u64, shape.n as u64);
    let panels = 8 * shape.height() as u64 * n;
    let whole = 8 * m * n;
    match rule {
        MatrixRule::Truncate(_) => 0,
        MatrixRule::Isotropic => whole + polar::bytes(m, n) + panels * (models + 2),
        MatrixRule::TaskSingular | MatrixRule::CommonAndSpecific { .. } => {
            let r = m.min(n);
            let (side, product) = (8 * r * (m + n), 8 * r * n);
            let decomposed = whole + product + Triples::bytes(m, n, r);
            let orthonormal = polar::bytes(m, r).max(polar::bytes(n, r)) + side;
            2 * side + decomposed.max(orthonormal) + panels * (models + 2)
        }
    }
}

/// Floating-point operations of [`merge`], where Gram matrices hold enough digits.
pub fn operations(shape: Shape, models: u64, rule: MatrixRule) -> f64 {
    let (r, long, t) = (shape.short() as f64, shape.long() as f64, models as f64);
    let pairs = |k: f64| 2.0 * r * r * long + 4.0 / 3.0 * r * r * r + 9.0 * r * r * k.min(r) + 2.0 * k * r * long;
    let factor = |m: f64, n: f64| 4.0 * m * n * n + 13.0 * n * n * n;
    match rule {
        MatrixRule::Truncate(_) => 0.0,
        MatrixRule::Isotropic => factor(long, r),
        MatrixRule::TaskSingular => t * pairs((r / t).floor()) + factor(long, r) + factor(r, r) + 2.0 * r * r * long,
        MatrixRule::CommonAndSpecific { common } => {
            let (common, each) = subspaces(shape.short(), models as usize, common);
            let (common, each) = (common as f64, each as f64);
            pairs(common)
                + t * (pairs(each) + 4.0 * common * r * long)
                + factor(long, r)
                + factor(r, r)
                + 2.0 * r * r * long
        }
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn subspaces_fill_the_short_side() {
        for (r, models, share) in [(10, 4, 0.0), (11, 4, 0.0), (384, 6, 0.8), (5, 8, 0.5), (7, 1, 1.0), (1, 1, 0.3)] {
            let (common, each) = subspaces(r, models, share);
            assert_eq!(common + each * models, r, "{r} {models} {share}");
        }
        assert_eq!(subspaces(384, 6, 0.8), (306, 13));
    }
}
