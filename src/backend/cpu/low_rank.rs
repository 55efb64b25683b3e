//! CART on one matrix (arXiv 2412.12153): `W̄ + λ Σ w'_t SVD_k(A_t)`, `A_t = W_t − W̄`, streamed in panels.
//!
//! For r = min(m, n) the r×r Gram matrix of A_t is summed over panels in f64; its leading eigenvectors Q give
//! `SVD_k(A_t) = Q Qᵀ A_t` (m ≤ n) or `A_t Q Qᵀ` (m > n), so singular values are never divided by. Held at once: one Gram
//! matrix with its decomposition, the factors of all tasks (k·(m + n) numbers each), and panels; never a whole A_t.
//!
//! Floating-point operations a task: r²·max(m, n) for the Gram matrix, about 9·r³ for its decomposition, 2·k·m·n for the
//! projection and 2·k·m·n for the sum. The sources are read twice a task and once for the sum.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::blend::load_pruned;
use super::prune::{Geometry, Scratch, Sources, StageState};
use super::stored::Widen;
use super::{BLOCK, SEGMENT};
use crate::backend::{LowRank, Prune, Rank};
use crate::error::{Error, Result};
use crate::linalg::eigen::Eigen;

/// Elements of a panel: a function of nothing but this constant and the shape, so that results depend on neither.
const PANEL_ELEMS: u64 = 1 << 20;

/// Where a matrix's elements come from.
pub trait ReadRuns {
    /// Calls `take` with the sources of elements `start..start + len` of the tensor.
    ///
    /// # Errors
    /// If a source cannot be read.
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()>;
}

/// What was done to a matrix, by model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LowRankFacts {
    /// Singular triples kept.
    pub rank: Vec<u64>,
    /// Σ_{i≤k} σ² / Σ σ².
    pub energy: Vec<f64>,
    /// ‖A_t − L_t‖_F / ‖A_t‖_F, measured on what was summed.
    pub residual: Vec<f64>,
}

/// Shape of the work on an m×n matrix.
#[derive(Debug, Clone, Copy)]
struct Shape {
    m: usize,
    n: usize,
}

impl Shape {
    fn wide(self) -> bool {
        self.m <= self.n
    }

    fn gram(self) -> usize {
        self.m.min(self.n)
    }

    /// Columns (of a wide matrix) or rows (of a tall one) of a Gram panel.
    fn gram_panel(self) -> usize {
        ((PANEL_ELEMS as usize) / self.gram().max(1)).clamp(16, 1024).min(self.m.max(self.n))
    }

    /// Rows of a panel of the sum.
    fn sum_panel(self) -> usize {
        ((PANEL_ELEMS as usize) / self.n.max(1)).clamp(16, 1024).min(self.m)
    }
}

impl Rank {
    /// Most singular triples that this can keep of an m×n matrix.
    pub fn most(self, m: u64, n: u64) -> u64 {
        let r = m.min(n);
        match self {
            Rank::Ratio(ratio) => ((ratio * r as f64) as u64).clamp(1, r.max(1)).min(r),
            Rank::Count(k) => k.min(r),
            Rank::Energy(_) => r,
        }
    }

    fn of(self, m: u64, n: u64, squares: &[f64]) -> u64 {
        let Rank::Energy(share) = self else { return self.most(m, n) };
        let total: f64 = squares.iter().sum();
        let mut sum = 0.0;
        let reached = squares.iter().position(|s| {
            sum += s;
            sum >= share * total
        });
        reached.map_or(squares.len(), |i| i + 1) as u64
    }
}

/// Bytes that [`merge`] allocates for an m×n matrix of `models` models, beside the worker's scratch.
pub fn bytes(m: u64, n: u64, models: u64, rank: Rank) -> u64 {
    let shape = Shape { m: m as usize, n: n as usize };
    let r = shape.gram() as u64;
    let factors = models * rank.most(m, n) * (m + n);
    let panel = (shape.gram_panel() as u64 * r).max(shape.sum_panel() as u64 * n * (models + 3));
    8 * (r * r + factors + panel) + Eigen::bytes(r)
}

/// Bytes that a thread keeps for the packed operands of its matrix products, at most: both sides of a product, 512 of its
/// depth at a time. The matrix library keeps them for each thread until it ends.
pub fn packing_bytes(m: u64, n: u64) -> u64 {
    8 * 512 * (m + n)
}

/// Floating-point operations of [`merge`].
pub fn operations(m: u64, n: u64, models: u64, rank: Rank) -> f64 {
    let (r, long, k) = (m.min(n) as f64, m.max(n) as f64, rank.most(m, n) as f64);
    models as f64 * (r * r * long + 9.0 * r * r * r + 4.0 * k * m as f64 * n as f64)
}

/// Merges an m×n matrix; `emit` gets the merged values of whole rows, in order.
///
/// # Errors
/// If a source cannot be read or holds a NaN or an infinity, or `emit` fails.
#[allow(clippy::too_many_arguments)]
pub fn merge<C: Widen>(
    work: &LowRank,
    (m, n): (u64, u64),
    stages: &[(Prune, StageState)],
    source: &mut dyn ReadRuns,
    scratch: &mut Scratch<C>,
    wide_scratch: &mut Scratch<f64>,
    emit: &mut dyn FnMut(&[f64]) -> Result<()>,
) -> Result<LowRankFacts> {
    let shape = Shape { m: m as usize, n: n as usize };
    let models = work.weights.len();
    let mut centred = Centred {
        shape,
        geometry: Geometry::of(&[m, n]),
        stages,
        weights: &work.weights,
        source,
        scratch,
        wide_scratch,
    };
    let mut facts = LowRankFacts::default();
    // Factors (left m×k, right n×k) of every L_t = left rightᵀ.
    let mut factors = Vec::with_capacity(models);
    for t in 0..models {
        let eigen = Eigen::of_lower(centred.gram(t)?.as_ref())?;
        let k = work.rank.of(m, n, &eigen.values);
        let (kept, total) = (eigen.values[..k as usize].iter().sum::<f64>(), eigen.values.iter().sum::<f64>());
        facts.rank.push(k);
        facts.energy.push(if total == 0.0 { 1.0 } else { kept / total });
        let basis = eigen.leading(k as usize).to_owned();
        drop(eigen);
        let projected = centred.project(t, basis.as_ref())?;
        factors.push(if shape.wide() { (basis, projected) } else { (projected, basis) });
    }
    facts.residual = centred.sum(work.lambda, &factors, emit)?;
    Ok(facts)
}

/// The centred task vectors of a matrix, readable in panels.
struct Centred<'a, C> {
    shape: Shape,
    geometry: Geometry,
    stages: &'a [(Prune, StageState)],
    weights: &'a [f64],
    source: &'a mut dyn ReadRuns,
    scratch: &'a mut Scratch<C>,
    wide_scratch: &'a mut Scratch<f64>,
}

/// Rows and columns of a panel.
#[derive(Clone, Copy)]
struct Panel {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
}

impl<C: Widen> Centred<'_, C> {
    /// Loads a panel row-major: A_t of the tasks in `wanted` into `parts` (one each), and W̄ into `mean` if asked for.
    fn load(
        &mut self,
        panel: Panel,
        wanted: std::ops::Range<usize>,
        parts: &mut [Vec<f64>],
        mut mean: Option<&mut [f64]>,
    ) -> Result<()> {
        let Self { shape, geometry, stages, weights, source, scratch, wide_scratch } = self;
        let total: f64 = weights.iter().sum();
        // Whole rows are one run; else each row of the panel is one.
        let (runs, run) =
            if panel.columns == shape.n { (1, panel.rows * shape.n) } else { (panel.rows, panel.columns) };
        for i in 0..runs {
            let start = (panel.row + i) * shape.n + panel.column;
            // Runs of bounded length: a source that cannot be mapped is read into memory run by run.
            for piece in (0..run).step_by(SEGMENT) {
                let len = SEGMENT.min(run - piece);
                source.run((start + piece) as u64, len, &mut |sources| {
                    for at in (0..len).step_by(BLOCK) {
                        let n = BLOCK.min(len - at);
                        centre_block(*geometry, stages, weights, total, sources, at, n, scratch, wide_scratch);
                        let Scratch { base, tau, sum, .. } = &**wide_scratch;
                        let to = i * run + piece + at;
                        for (part, t) in parts.iter_mut().zip(wanted.clone()) {
                            for ((p, x), s) in part[to..to + n].iter_mut().zip(&tau[t]).zip(sum) {
                                *p = x - s;
                            }
                        }
                        if let Some(mean) = mean.as_deref_mut() {
                            for ((m, b), s) in mean[to..to + n].iter_mut().zip(base).zip(sum) {
                                *m = if *s == 0.0 { *b } else { b + s };
                            }
                        }
                    }
                })?;
            }
        }
        Ok(())
    }

    /// The panels that a Gram matrix is summed over.
    fn gram_panels(&self) -> impl Iterator<Item = Panel> + use<C> {
        let Shape { m, n } = self.shape;
        let (long, step, wide) = (m.max(n), self.shape.gram_panel(), self.shape.wide());
        (0..long).step_by(step.max(1)).map(move |at| {
            let len = step.min(long - at);
            if wide {
                Panel { row: 0, rows: m, column: at, columns: len }
            } else {
                Panel { row: at, rows: len, column: 0, columns: n }
            }
        })
    }

    /// Lower triangle of A_t A_tᵀ (m ≤ n) or A_tᵀ A_t.
    fn gram(&mut self, t: usize) -> Result<Mat<f64>> {
        let r = self.shape.gram();
        let mut gram = Mat::zeros(r, r);
        let mut part = [vec![0.0; r * self.shape.gram_panel()]];
        for panel in self.gram_panels() {
            self.load(panel, t..t + 1, &mut part, None)?;
            let a = row_major(&part[0], panel);
            let a = if self.shape.wide() { a } else { a.transpose() };
            triangular::matmul(
                gram.as_mut(),
                BlockStructure::TriangularLower,
                Accum::Add,
                a,
                BlockStructure::Rectangular,
                a.transpose(),
                BlockStructure::Rectangular,
                1.0,
                Par::Seq,
            );
        }
        let trace: f64 = (0..r).map(|i| gram[(i, i)]).sum();
        if !trace.is_finite() {
            return Err(Error::input(format!("model {} or the average holds a NaN or an infinity", t + 1)));
        }
        Ok(gram)
    }

    /// A_tᵀ Q (n×k, m ≤ n) or A_t Q (m×k).
    fn project(&mut self, t: usize, basis: MatRef<'_, f64>) -> Result<Mat<f64>> {
        let Shape { m, n } = self.shape;
        let mut projected = Mat::zeros(m.max(n), basis.ncols());
        let mut part = [vec![0.0; self.shape.gram() * self.shape.gram_panel()]];
        for panel in self.gram_panels() {
            self.load(panel, t..t + 1, &mut part, None)?;
            let a = row_major(&part[0], panel);
            let (a, at, len) = if self.shape.wide() {
                (a.transpose(), panel.column, panel.columns)
            } else {
                (a, panel.row, panel.rows)
            };
            matmul(projected.as_mut().subrows_mut(at, len), Accum::Replace, a, basis, 1.0, Par::Seq);
        }
        Ok(projected)
    }

    /// Emits W̄ + λ Σ w'_t L_t by rows; returns ‖A_t − L_t‖_F / ‖A_t‖_F.
    fn sum(
        &mut self,
        lambda: f64,
        factors: &[(Mat<f64>, Mat<f64>)],
        emit: &mut dyn FnMut(&[f64]) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let Shape { m, n } = self.shape;
        let models = self.weights.len();
        let scale = models as f64 / self.weights.iter().sum::<f64>();
        let step = self.shape.sum_panel();
        let mut parts = vec![vec![0.0; step * n]; models];
        let (mut merged, mut low) = (vec![0.0; step * n], vec![0.0; step * n]);
        let (mut left_over, mut whole) = (vec![0.0; models], vec![0.0; models]);
        for row in (0..m).step_by(step.max(1)) {
            let panel = Panel { row, rows: step.min(m - row), column: 0, columns: n };
            let elems = panel.rows * n;
            self.load(panel, 0..models, &mut parts, Some(&mut merged))?;
            for (t, (left, right)) in factors.iter().enumerate() {
                let rows = left.as_ref().subrows(panel.row, panel.rows);
                let l = MatMut::from_row_major_slice_mut(&mut low[..elems], panel.rows, n);
                matmul(l, Accum::Replace, rows, right.transpose(), 1.0, Par::Seq);
                let factor = lambda * scale * self.weights[t];
                for ((to, l), a) in merged[..elems].iter_mut().zip(&low).zip(&parts[t]) {
                    // Adding 0 would turn a negative zero of the average into a positive one.
                    if *l != 0.0 {
                        *to += factor * l;
                    }
                    left_over[t] += (a - l) * (a - l);
                    whole[t] += a * a;
                }
            }
            emit(&merged[..elems])?;
        }
        let ratio = |(l, w): (f64, f64)| if w == 0.0 { 0.0 } else { (l / w).sqrt() };
        Ok(left_over.into_iter().zip(whole).map(ratio).collect())
    }
}

/// Into `wide_scratch`: parameters (or, with stages, pruned task vectors) of all models, their weighted mean in `sum`, and
/// what to add to the mean to get W̄ in `base`: θ₀ with stages, else 0.
#[allow(clippy::too_many_arguments)]
fn centre_block<C: Widen>(
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    weights: &[f64],
    total: f64,
    sources: &Sources<'_>,
    at: usize,
    n: usize,
    scratch: &mut Scratch<C>,
    wide_scratch: &mut Scratch<f64>,
) {
    let Scratch { base, tau, sum, .. } = wide_scratch;
    let (base, sum) = (&mut base[..n], &mut sum[..n]);
    if stages.is_empty() {
        // Without stages θ₀ drops out, and parameters are centred as they are.
        base.fill(0.0);
        for (stored, x) in sources.models.iter().zip(tau.iter_mut()) {
            stored.widen(at, &mut x[..n]);
        }
    } else {
        load_pruned(geometry, stages, sources, at, n, scratch);
        base.iter_mut().zip(&scratch.base).for_each(|(to, from)| *to = from.f64());
        for (to, from) in tau.iter_mut().zip(&scratch.tau) {
            to.iter_mut().zip(&from[..n]).for_each(|(to, from)| *to = from.f64());
        }
    }
    sum.fill(0.0);
    for (x, w) in tau.iter().zip(weights) {
        sum.iter_mut().zip(x).for_each(|(s, x)| *s += w * x);
    }
    sum.iter_mut().for_each(|s| *s /= total);
}

fn row_major(values: &[f64], panel: Panel) -> MatRef<'_, f64> {
    MatRef::from_row_major_slice(&values[..panel.rows * panel.columns], panel.rows, panel.columns)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::stored::Stored;
    use super::*;
    use crate::dtype::Dtype;

    struct Bytes {
        models: Vec<Vec<u8>>,
    }

    impl ReadRuns for Bytes {
        fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()> {
            let (a, b) = (start as usize * 8, (start as usize + len) * 8);
            let models: Vec<_> = self.models.iter().map(|m| Stored { dtype: Dtype::F64, bytes: &m[a..b] }).collect();
            take(&Sources { base: None, models: &models, start, len });
            Ok(())
        }
    }

    fn run(matrices: &[Mat<f64>], rank: Rank, lambda: f64) -> (Mat<f64>, LowRankFacts) {
        let (m, n) = matrices[0].shape();
        let models =
            matrices.iter().map(|w| (0..m * n).flat_map(|i| w[(i / n, i % n)].to_le_bytes()).collect()).collect();
        let work = LowRank { stages: vec![], weights: vec![1.0; matrices.len()], rank, lambda };
        let mut out = Vec::new();
        let facts = merge(
            &work,
            (m as u64, n as u64),
            &[],
            &mut Bytes { models },
            &mut Scratch::<f64>::new(matrices.len()),
            &mut Scratch::new(matrices.len()),
            &mut |values| {
                out.extend_from_slice(values);
                Ok(())
            },
        )
        .unwrap();
        (Mat::from_fn(m, n, |i, j| out[i * n + j]), facts)
    }

    fn family(m: usize, n: usize, models: usize) -> Vec<Mat<f64>> {
        let mut state = 1u64;
        (0..models)
            .map(|_| {
                Mat::from_fn(m, n, |_, _| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) as f64 / 2f64.powi(30) - 1.0
                })
            })
            .collect()
    }

    #[test]
    fn the_sum_of_truncated_svds_is_what_faers_svd_gives() {
        for (m, n) in [(1, 1), (1, 9), (9, 1), (12, 30), (30, 12), (25, 25)] {
            for models in [1, 2, 5] {
                let w = family(m, n, models);
                let k = 1.max(m.min(n) / 3);
                let (merged, facts) = run(&w, Rank::Count(k as u64), 1.7);
                let mut mean = Mat::<f64>::zeros(m, n);
                w.iter().for_each(|w| mean += w);
                mean *= 1.0 / models as f64;
                let mut expected = mean.clone();
                for (t, w) in w.iter().enumerate() {
                    let a = w - &mean;
                    let svd = a.thin_svd().unwrap();
                    let mut l = Mat::<f64>::zeros(m, n);
                    for i in 0..k {
                        l += svd.U().col(i) * svd.V().col(i).transpose() * svd.S()[i];
                    }
                    let norm = a.norm_l2();
                    let residual = if norm == 0.0 { 0.0 } else { (&a - &l).norm_l2() / norm };
                    assert!((facts.residual[t] - residual).abs() < 1e-7, "{m}×{n}: {facts:?} against {residual}");
                    expected += &l * 1.7;
                }
                let error = (&merged - &expected).norm_l2() / expected.norm_l2();
                assert!(error < 1e-7, "{m}×{n}, {models} models: {error}");
            }
        }
    }

    #[test]
    fn full_rank_gives_the_average_for_every_lambda() {
        let w = family(17, 23, 3);
        let (merged, facts) = run(&w, Rank::Ratio(1.0), 5.0);
        let mean = (&w[0] + &w[1] + &w[2]) * (1.0 / 3.0);
        assert!((&merged - &mean).norm_l2() < 1e-12 * mean.norm_l2());
        assert_eq!(facts.rank, [17, 17, 17]);
    }

    #[test]
    fn energy_keeps_the_least_rank_that_reaches_it() {
        let squares = [4.0, 3.0, 2.0, 1.0];
        for (energy, rank) in [(1e-9, 1), (0.4, 1), (0.41, 2), (0.7, 2), (0.9, 3), (0.91, 4), (1.0, 4)] {
            assert_eq!(Rank::Energy(energy).of(4, 4, &squares), rank, "{energy}");
        }
        assert_eq!(Rank::Energy(0.5).of(4, 4, &[0.0; 4]), 1);
    }

    #[test]
    fn a_nan_is_an_error() {
        let mut w = family(4, 4, 2);
        w[1][(2, 2)] = f64::NAN;
        let models = w.iter().map(|w| (0..16).flat_map(|i| w[(i / 4, i % 4)].to_le_bytes()).collect()).collect();
        let work = LowRank { stages: vec![], weights: vec![1.0; 2], rank: Rank::Count(1), lambda: 1.0 };
        let result = merge(
            &work,
            (4, 4),
            &[],
            &mut Bytes { models },
            &mut Scratch::<f64>::new(2),
            &mut Scratch::new(2),
            &mut |_| Ok(()),
        );
        assert!(result.is_err());
    }
}
