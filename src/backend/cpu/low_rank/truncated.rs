//! Σ w'_t SVD_k(A_t) without an SVD: for r = min(m, n), the leading eigenvectors Q of the r×r Gram matrix of A_t give
//! `SVD_k(A_t) = Q Qᵀ A_t` (m ≤ n) or `A_t Q Qᵀ` (m > n), so that singular values are never divided by.
//!
//! In f32, p > k vectors Q come from a Gram matrix in f32; the product B = Aᵀ Q, which is needed anyway, gives the best k
//! directions in their span (Rayleigh and Ritz, in f64), and A B their residuals, from which [`certificate`] tells whether
//! the result is exact enough. Where it is not, and where f32 cannot be (a share of energy, f64 sources, small matrices),
//! everything is in f64.
//!
//! Sources are read three times: for the Gram matrices, the products, and the sum.

use std::fmt;
use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::TakeFactors;
use super::certificate::{self, Measured};
use super::elementwise::{add_again, add_low_rank, squares};
use super::panels::Shape;
use super::task_vectors::TaskVectors;
use crate::backend::cpu::stored::Widen;
use crate::error::{Error, Result};
use crate::linalg::symmetric::Symmetric;
use crate::ops::{LowRank, LowRankFacts, Rank, Real};

/// Bytes of Gram matrices that are summed at the same time, about: with more tasks the sources are read again.
const GRAM_BYTES: u64 = 64 << 20;
/// How often [`exact`] reads the sources: for a Gram matrix and for a product.
const EXACT_PASSES: u64 = 2;
/// Side of a Gram matrix below which f32 gains nothing.
const LEAST_SIDE: usize = 64;
/// Rows of the products that are widened to f64 at a time.
const WIDENED: usize = 1024;

/// How each task vector of a matrix is decomposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decomposition {
    /// This many leading eigenvectors of a Gram matrix in f32, then the best directions in their span, certified.
    Certified {
        /// p: the rank and a quarter as much again.
        vectors: usize,
    },
    /// Leading eigenvectors of a Gram matrix in f64.
    Leading,
    /// Every eigenvector of a Gram matrix in f64, or as many as a share of energy asks for.
    Full,
}

impl Decomposition {
    /// Chosen by the matrix's shape, the rank and the sources' type alone.
    pub fn of(shape: Shape, rank: Rank, wide: bool) -> Self {
        let (r, k) = (shape.short(), rank.most(shape.m as u64, shape.n as u64) as usize);
        let vectors = (k + (k / 4).max(8)).min(r);
        if 2 * k > r || matches!(rank, Rank::Energy(_)) {
            Self::Full
        } else if wide || r < LEAST_SIDE || 2 * vectors > r {
            Self::Leading
        } else {
            Self::Certified { vectors }
        }
    }
}

impl fmt::Display for Decomposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certified { .. } => "leading eigenvectors, float32 certified in float64",
            Self::Leading => "leading eigenvectors, float64",
            Self::Full => "all eigenvectors, float64",
        })
    }
}

/// A truncated task vector, L_t = Q Bᵀ (m ≤ n) or B Qᵀ.
struct Truncated<P> {
    /// Q: r×k, orthonormal, by descending σ.
    basis: Mat<P>,
    /// B: max(m, n)×k, orthogonal columns of norm σ.
    product: Mat<P>,
    energy: f64,
    precision: &'static str,
}

/// All task vectors of a matrix, truncated.
pub struct Decomposed<P>(Vec<Truncated<P>>);

/// Truncates every task vector.
///
/// # Errors
/// If a source cannot be read or holds a NaN or an infinity, or memory cannot be had.
pub fn decompose<C: Widen + RealField>(vectors: &mut TaskVectors<'_, C>, rank: Rank) -> Result<Decomposed<C>> {
    let (shape, models) = (vectors.shape, vectors.models());
    let is_wide = size_of::<C>() == size_of::<f64>();
    let decomposition = Decomposition::of(shape, rank, is_wide);
    let mut all: Vec<Option<Truncated<C>>> = Vec::with_capacity(models);
    match decomposition {
        Decomposition::Certified { vectors: p } => {
            let k = rank.most(shape.m as u64, shape.n as u64) as usize;
            let group = at_once(shape, models);
            for first in (0..models).step_by(group) {
                all.extend(certified(vectors, first..models.min(first + group), k, p)?);
            }
        }
        Decomposition::Leading | Decomposition::Full => all.resize_with(models, || None),
    }
    if matches!(decomposition, Decomposition::Certified { .. }) {
        vectors.again(EXACT_PASSES * all.iter().filter(|done| done.is_none()).count() as u64);
    }
    let all = all.into_iter().enumerate().map(|(t, done)| match done {
        Some(done) => Ok(done),
        None => exact(vectors, t, rank),
    });
    Ok(Decomposed(all.collect::<Result<_>>()?))
}

/// How often [`decompose`] and [`Decomposed::sum`] read the sources, where f32 finds its certificates.
pub fn passes(shape: Shape, models: u64, rank: Rank, wide: bool) -> u64 {
    let groups = match Decomposition::of(shape, rank, wide) {
        Decomposition::Certified { .. } => models.div_ceil(at_once(shape, models as usize) as u64),
        Decomposition::Leading | Decomposition::Full => models,
    };
    2 * groups + 1
}

/// How often sources are read beyond [`passes`] where no task has a certificate.
pub fn more_passes(shape: Shape, models: u64, rank: Rank, wide: bool) -> u64 {
    match Decomposition::of(shape, rank, wide) {
        Decomposition::Certified { .. } => EXACT_PASSES * models,
        Decomposition::Leading | Decomposition::Full => 0,
    }
}

/// Tasks whose Gram matrices, in f32, are summed in one reading of the sources.
fn at_once(shape: Shape, models: usize) -> usize {
    let bytes = (shape.short() as u64).pow(2) * 4;
    (GRAM_BYTES / bytes.max(1)).clamp(1, models as u64) as usize
}

/// The tasks' truncations from f32; `None` for those that have no certificate.
fn certified<C: Widen + RealField>(
    vectors: &mut TaskVectors<'_, C>,
    tasks: Range<usize>,
    k: usize,
    p: usize,
) -> Result<Vec<Option<Truncated<C>>>> {
    let shape = vectors.shape;
    let (r, elems) = (shape.short(), shape.m * shape.n);
    let grams = grams::<_, f32>(vectors, tasks.clone())?;
    let mut found = Vec::new();
    let mut wanted = Vec::new();
    for (i, Gram { lower, whole }) in grams.into_iter().enumerate() {
        if !certificate::fits(whole, elems) {
            continue;
        }
        let mut reduced = Symmetric::reduce(lower)?;
        let beyond = (p < r).then(|| reduced.tridiagonal.values(p + 1)[p]);
        found.push((i, whole, beyond));
        wanted.push((tasks.start + i, reduced.vectors(p, |x| x as f32)?));
    }
    let products = products(vectors, &wanted, true)?;
    let mut all: Vec<Option<Truncated<C>>> = tasks.map(|_| None).collect();
    for (((i, whole, beyond), (_, basis)), Product { product, back }) in found.into_iter().zip(wanted).zip(products) {
        // Rayleigh and Ritz: the best directions in the span are the eigenvectors of Bᵀ B.
        let (values, rotation) = ritz(product.as_ref(), k)?;
        let turned = |from: MatRef<'_, f32>| {
            let mut to = Mat::<f32>::zeros(from.nrows(), k);
            matmul(to.as_mut(), Accum::Replace, from, rotation.as_ref(), 1.0, Par::Seq);
            to
        };
        let (basis, back) = (turned(basis.as_ref()), turned(back.as_ref()));
        let residual = |j: usize| {
            let left = |i: usize| f64::from(back[(i, j)]) - values[j] * f64::from(basis[(i, j)]);
            (0..r).map(|i| left(i) * left(i)).sum::<f64>().sqrt()
        };
        let residuals: Vec<f64> = (0..k).map(residual).collect();
        if (Measured { values: &values, residuals: &residuals, beyond, whole }).holds() {
            all[i] = Some(Truncated {
                basis: rounded(basis.as_ref()),
                product: rounded(turned(product.as_ref()).as_ref()),
                energy: values.iter().sum::<f64>() / whole,
                precision: "float32",
            });
        }
    }
    Ok(all)
}

/// One task's truncation, in f64.
fn exact<C: Widen + RealField>(vectors: &mut TaskVectors<'_, C>, t: usize, rank: Rank) -> Result<Truncated<C>> {
    let shape = vectors.shape;
    let mut grams = grams::<_, f64>(vectors, t..t + 1)?;
    let Some(Gram { lower, whole }) = grams.pop() else { return Err(Error::internal("no Gram matrix")) };
    let (m, n) = (shape.m as u64, shape.n as u64);
    if whole == 0.0 {
        // A model that left the matrix as it was: nothing is decomposed.
        let k = rank.of(m, n, &vec![0.0; rank.most(m, n) as usize]) as usize;
        let (basis, product) = (Mat::zeros(shape.short(), k), Mat::zeros(shape.long(), k));
        return Ok(Truncated { basis, product, energy: 1.0, precision: "float64" });
    }
    let mut reduced = Symmetric::reduce(lower)?;
    // Rounding may leave values that are not positive where they should be 0.
    let values: Vec<f64> =
        reduced.tridiagonal.values(rank.most(m, n) as usize).into_iter().map(|x| x.max(0.0)).collect();
    let k = rank.of(m, n, &values) as usize;
    let basis = reduced.vectors(k, |x| x)?;
    drop(reduced);
    let wanted = [(t, basis)];
    let product = products(vectors, &wanted, false)?.pop().map(|p| p.product);
    let ([(_, basis)], Some(product)) = (wanted, product) else { return Err(Error::internal("no product")) };
    Ok(Truncated {
        basis: rounded(basis.as_ref()),
        product: rounded(product.as_ref()),
        energy: (values[..k].iter().sum::<f64>() / whole).min(1.0),
        precision: "float64",
    })
}

struct Gram<P> {
    /// The lower triangle of the r×r Gram matrix.
    lower: Mat<P>,
    /// ‖A_t‖_F², in f64.
    whole: f64,
}

/// Gram matrices of some tasks, from one reading of the sources.
fn grams<C: Widen, P: Real + RealField>(vectors: &mut TaskVectors<'_, C>, tasks: Range<usize>) -> Result<Vec<Gram<P>>> {
    let shape = vectors.shape;
    let r = shape.short();
    let mut grams: Vec<Gram<P>> = tasks.clone().map(|_| Gram { lower: Mat::zeros(r, r), whole: 0.0 }).collect();
    let mut parts = vec![vec![P::ZERO; r * shape.depth()]; tasks.len()];
    for (_, panel) in shape.across() {
        vectors.load(panel, tasks.clone(), &mut parts, None)?;
        for (gram, part) in grams.iter_mut().zip(&parts) {
            gram.whole += squares(&part[..panel.elems()]);
            let a = shape.view(panel, part);
            triangular::matmul(
                gram.lower.as_mut(),
                BlockStructure::TriangularLower,
                Accum::Add,
                a,
                BlockStructure::Rectangular,
                a.transpose(),
                BlockStructure::Rectangular,
                P::ONE,
                Par::Seq,
            );
        }
    }
    for (t, gram) in tasks.zip(&grams) {
        if !gram.whole.is_finite() {
            return Err(Error::input(format!("model {} or the average holds a NaN or an infinity", t + 1)));
        }
    }
    Ok(grams)
}

struct Product<P> {
    /// B = Aᵀ Q: long×p.
    product: Mat<P>,
    /// A B: r×p; zeros if not asked for.
    back: Mat<P>,
}

/// Products with the bases Q (r×p) of some tasks, from one reading of the sources.
fn products<C: Widen, P: Real + RealField>(
    vectors: &mut TaskVectors<'_, C>,
    bases: &[(usize, Mat<P>)],
    and_back: bool,
) -> Result<Vec<Product<P>>> {
    let (Some((first, _)), Some((last, _))) = (bases.first(), bases.last()) else { return Ok(Vec::new()) };
    let shape = vectors.shape;
    let r = shape.short();
    let mut products: Vec<Product<P>> = bases
        .iter()
        .map(|(_, q)| Product {
            product: Mat::zeros(shape.long(), q.ncols()),
            back: Mat::zeros(r, if and_back { q.ncols() } else { 0 }),
        })
        .collect();
    let mut parts = vec![vec![P::ZERO; r * shape.depth()]; last + 1 - first];
    for (at, panel) in shape.across() {
        vectors.load(panel, *first..last + 1, &mut parts, None)?;
        for ((t, basis), Product { product, back }) in bases.iter().zip(&mut products) {
            let a = shape.view(panel, &parts[t - first]);
            let here = product.as_mut().subrows_mut(at, a.ncols());
            matmul(here, Accum::Replace, a.transpose(), basis.as_ref(), P::ONE, Par::Seq);
            if and_back {
                let here = product.as_ref().subrows(at, a.ncols());
                matmul(back.as_mut(), Accum::Add, a, here, P::ONE, Par::Seq);
            }
        }
    }
    Ok(products)
}

/// The k greatest eigenvalues of Bᵀ B, descending, and their vectors (p×k), from B in f32 by sums in f64.
fn ritz(product: MatRef<'_, f32>, k: usize) -> Result<(Vec<f64>, Mat<f32>)> {
    let p = product.ncols();
    let mut gram = Mat::<f64>::zeros(p, p);
    for at in (0..product.nrows()).step_by(WIDENED) {
        let rows = widened(product.subrows(at, WIDENED.min(product.nrows() - at)));
        matmul(gram.as_mut(), Accum::Add, rows.transpose(), rows.as_ref(), 1.0, Par::Seq);
    }
    let mut reduced = Symmetric::reduce(gram)?;
    let rotation = reduced.vectors(k, |x| x)?;
    Ok((reduced.tridiagonal.values(k), Mat::from_fn(p, k, |i, j| rotation[(i, j)] as f32)))
}

fn widened(from: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(from.nrows(), from.ncols(), |i, j| f64::from(from[(i, j)]))
}

fn rounded<P: Real, C: Real>(from: MatRef<'_, P>) -> Mat<C> {
    Mat::from_fn(from.nrows(), from.ncols(), |i, j| C::of(from[(i, j)].f64()))
}

impl<C: Widen + RealField> Decomposed<C> {
    /// Hands out the factors of every task, in order.
    ///
    /// # Errors
    /// If `take` fails.
    pub fn each(&self, shape: Shape, take: &mut TakeFactors<'_, C>) -> Result<()> {
        self.0.iter().enumerate().try_for_each(|(t, truncated)| {
            let (left, right) = truncated.sides(shape);
            take(t, left, right)
        })
    }

    /// Emits the origin plus λ Σ w'_t L_t by whole rows, for each λ in turn, and measures what is left of each task vector.
    ///
    /// # Errors
    /// If a source cannot be read, or `emit` fails.
    pub fn sum(
        self,
        vectors: &mut TaskVectors<'_, C>,
        work: &LowRank,
        lambdas: &[f64],
        emit: &mut dyn FnMut(usize, &[f64]) -> Result<()>,
    ) -> Result<LowRankFacts> {
        let (shape, models, weights) = (vectors.shape, vectors.models(), work.scaled_weights());
        let most = shape.height() * shape.n;
        let mut parts = vec![vec![C::ZERO; most]; models];
        // With one λ no product is kept, and the sum is made in place.
        let is_one = lambdas.len() == 1;
        let mut lows = vec![vec![C::ZERO; most]; if is_one { 1 } else { models }];
        let mut origin = vec![0.0; most];
        let mut merged = vec![0.0; if is_one { 0 } else { most }];
        let mut norms = vec![[0.0; 2]; models];
        for panel in shape.down() {
            let elems = panel.elems();
            vectors.load(panel, 0..models, &mut parts, Some(&mut origin))?;
            if !is_one {
                merged[..elems].copy_from_slice(&origin[..elems]);
            }
            let first = if is_one { &mut origin } else { &mut merged };
            for (t, truncated) in self.0.iter().enumerate() {
                let (left, right) = truncated.sides(shape);
                let rows = left.subrows(panel.row, panel.rows);
                let low = &mut lows[if is_one { 0 } else { t }][..elems];
                let to = MatMut::from_row_major_slice_mut(low, panel.rows, shape.n);
                matmul(to, Accum::Replace, rows, right.transpose(), C::ONE, Par::Seq);
                let [left, whole] = add_low_rank(&mut first[..elems], low, &parts[t][..elems], lambdas[0] * weights[t]);
                norms[t][0] += left;
                norms[t][1] += whole;
            }
            emit(0, &first[..elems])?;
            for (i, lambda) in lambdas.iter().enumerate().skip(1) {
                merged[..elems].copy_from_slice(&origin[..elems]);
                for (low, weight) in lows.iter().zip(&weights) {
                    add_again(&mut merged[..elems], &low[..elems], lambda * weight);
                }
                emit(i, &merged[..elems])?;
            }
        }
        let residual = |[left, whole]: [f64; 2]| if whole == 0.0 { 0.0 } else { (left / whole).sqrt() };
        Ok(LowRankFacts {
            rank: self.0.iter().map(|t| t.basis.ncols() as u64).collect(),
            energy: self.0.iter().map(|t| t.energy).collect(),
            residual: norms.into_iter().map(residual).collect(),
            precision: self.0.iter().map(|t| t.precision).collect(),
            singular_value: None,
        })
    }
}

impl<P> Truncated<P> {
    /// Left (m×k) and right (n×k) factor.
    fn sides(&self, shape: Shape) -> (MatRef<'_, P>, MatRef<'_, P>) {
        let (basis, product) = (self.basis.as_ref(), self.product.as_ref());
        if shape.is_wide() { (basis, product) } else { (product, basis) }
    }
}

/// Bytes that [`decompose`] and [`Decomposed::sum`] allocate.
pub fn bytes(shape: Shape, models: u64, rank: Rank, wide: bool) -> u64 {
    let (r, long) = (shape.short() as u64, shape.long() as u64);
    let k = rank.most(shape.m as u64, shape.n as u64);
    let (side, panel) = (r * r, r * shape.depth() as u64);
    // In f64, which may have to follow f32: one Gram matrix, its vectors, their product.
    let exact = 8 * (side + panel + k * (r + long)) + Symmetric::<f64>::bytes(r, k);
    let certified = match Decomposition::of(shape, rank, wide) {
        Decomposition::Certified { vectors } => {
            let (p, group) = (vectors as u64, at_once(shape, models as usize) as u64);
            let each = side + panel + p * (2 * r + long);
            4 * group * each + Symmetric::<f32>::bytes(r, p) + 8 * (3 * r * p + 2 * p * p + WIDENED as u64 * p)
        }
        Decomposition::Leading | Decomposition::Full => 0,
    };
    let size = if wide { 8 } else { 4 };
    let row_panel = shape.height() as u64 * shape.n as u64;
    let sum = row_panel * (size * (models + 1) + 8);
    size * models * k * (r + long) + exact.max(certified).max(sum)
}

/// Bytes that [`Decomposed::sum`] takes more for several λ than for one.
pub fn bytes_of_more(shape: Shape, models: u64, wide: bool) -> u64 {
    let size = if wide { 8 } else { 4 };
    shape.height() as u64 * shape.n as u64 * (size * models + 8)
}

/// Floating-point operations, where f32 finds its certificates.
pub fn operations(shape: Shape, models: u64, rank: Rank, wide: bool) -> f64 {
    let (r, long) = (shape.short() as f64, shape.long() as f64);
    let k = rank.most(shape.m as u64, shape.n as u64) as f64;
    let gram = r * r * long;
    let reduction = 4.0 / 3.0 * r * r * r;
    let sum = 2.0 * k * r * long;
    let rest = match Decomposition::of(shape, rank, wide) {
        Decomposition::Certified { vectors } => {
            let p = vectors as f64;
            // Eigenvectors and their QR; B and A B; Bᵀ B; the turned B.
            2.0 * r * r * p + 8.0 * r * p * p + 4.0 * p * r * long + 2.0 * p * p * long + 2.0 * p * k * long
        }
        Decomposition::Leading => 2.0 * r * r * k + 8.0 * r * k * k + 2.0 * k * r * long,
        Decomposition::Full => 9.0 * r * r * r + 2.0 * k * r * long,
    };
    models as f64 * (gram + reduction + rest + sum)
}
