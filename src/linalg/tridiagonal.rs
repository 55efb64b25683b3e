//! The greatest eigenvalues of a symmetric tridiagonal matrix and their vectors, in f64.
//!
//! Eigenvalues by bisection on Sturm counts (Givens 1954; Barth, Martin and Wilkinson 1967), many at once; vectors by inverse
//! iteration on the whole block of them, orthonormalised by a QR decomposition after each round, and checked.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd_scratch, tridiagonal_self_adjoint_evd};
use faer::{Mat, Par};
use multiversion::multiversion;

use super::memory;
use crate::error::{Error, Result};

/// Shifts that are counted together: enough to hide a division's latency.
const LANES: usize = 16;
/// Rounds of inverse iteration. One does for values that are apart; vectors of a cluster need another, to clean what making them
/// orthonormal mixed in.
const ROUNDS: usize = 6;
/// ‖T q − λ q‖ / ‖T‖ at which nothing is left to gain.
const CONVERGED: f64 = 8.0 * f64::EPSILON;
/// ‖T q − λ q‖ / ‖T‖ above which inverse iteration has failed.
const FAILED: f64 = 1e-11;

/// A symmetric tridiagonal matrix, scaled by a power of two to norm about 1.
#[derive(Debug)]
pub struct Tridiagonal {
    diagonal: Vec<f64>,
    /// n − 1 values.
    off: Vec<f64>,
    /// What eigenvalues are multiplied by to undo the scaling.
    scale: f64,
    /// Every eigenvalue of the scaled matrix lies within ± this (Gershgorin).
    radius: f64,
    /// Its greatest eigenvalues, descending, as far as they are known.
    known: Vec<f64>,
}

impl Tridiagonal {
    /// From n diagonal and n − 1 off-diagonal entries, all finite.
    pub fn new(mut diagonal: Vec<f64>, mut off: Vec<f64>) -> Self {
        let most = diagonal.iter().chain(&off).fold(0.0f64, |most, x| most.max(x.abs()));
        let scale = if most == 0.0 { 1.0 } else { 2f64.powi(most.log2().floor().clamp(-1000.0, 1000.0) as i32) };
        diagonal.iter_mut().chain(&mut off).for_each(|x| *x /= scale);
        let at = |i: Option<usize>| i.and_then(|i| off.get(i)).map_or(0.0, |x| x.abs());
        let rows = diagonal.iter().enumerate().map(|(i, d)| d.abs() + at(i.checked_sub(1)) + at(Some(i)));
        let radius = rows.fold(0.0, f64::max) * (1.0 + 1e-12);
        Self { diagonal, off, scale, radius, known: Vec::new() }
    }

    /// n.
    pub fn size(&self) -> usize {
        self.diagonal.len()
    }

    /// The `count` greatest eigenvalues, descending, to within a few ε‖T‖.
    pub fn values(&mut self, count: usize) -> Vec<f64> {
        self.find_values(count);
        self.known[..count].iter().map(|x| x * self.scale).collect()
    }

    /// Makes this many eigenvalues known.
    fn find_values(&mut self, count: usize) {
        if self.radius == 0.0 {
            self.known.resize(count.max(self.known.len()), 0.0);
        }
        let squares: Vec<f64> = self.off.iter().map(|x| x * x).collect();
        for first in (self.known.len()..count).step_by(LANES) {
            let (mut lo, mut hi) = ([-self.radius; LANES], [self.radius; LANES]);
            while hi[0] - lo[0] > 2.0 * f64::EPSILON * self.radius {
                let mid: [f64; LANES] = std::array::from_fn(|j| lo[j] + (hi[j] - lo[j]) * 0.5);
                let above = count_not_below(&self.diagonal, &squares, &mid);
                for j in 0..LANES {
                    // The eigenvalue of place p is ≥ x where more than p eigenvalues are.
                    if above[j] > first + j { lo[j] = mid[j] } else { hi[j] = mid[j] }
                }
            }
            self.known.extend((0..LANES.min(count - first)).map(|j| lo[j] + (hi[j] - lo[j]) * 0.5));
        }
        // Neighbours that bisection cannot tell apart may come out in either order.
        self.known.sort_by(|a, b| b.total_cmp(a));
    }

    /// Orthonormal vectors (n×count) of the `count` greatest eigenvalues, descending; those of values that cannot be told
    /// apart span their eigenspace.
    ///
    /// # Errors
    /// If memory cannot be had, or no method converges.
    pub fn vectors(&mut self, count: usize) -> Result<Mat<f64>> {
        // Beyond half of them divide and conquer is cheaper.
        if 2 * count <= self.size()
            && let Some(vectors) = self.by_inverse_iteration(count)
        {
            return Ok(vectors);
        }
        self.by_divide_and_conquer(count)
    }

    /// Rounds of inverse iteration until all vectors have converged; `None` if some do not.
    fn by_inverse_iteration(&mut self, count: usize) -> Option<Mat<f64>> {
        let n = self.size();
        if self.radius == 0.0 {
            return Some(Mat::identity(n, count));
        }
        self.find_values(count);
        let values = &self.known[..count];
        let mut random = 0x9E37_79B9_7F4A_7C15u64;
        let mut vectors = Mat::from_fn(n, count, |_, _| {
            // A fixed sequence without structure (Knuth's multiplier).
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 11) as f64 / 2f64.powi(52) - 1.0
        });
        let mut solver = Solver::new(n);
        for round in 1..=ROUNDS {
            for (j, value) in values.iter().enumerate() {
                solver.solve(self, *value, vectors.col_as_slice_mut(j));
            }
            vectors = vectors.qr().compute_thin_Q();
            let enough = if round == 1 { CONVERGED } else { FAILED } * self.radius;
            // NaN has not converged.
            let has_converged = |(j, value): (usize, &f64)| self.residual(*value, vectors.col_as_slice(j)) <= enough;
            if values.iter().enumerate().all(has_converged) {
                return Some(vectors);
            }
        }
        None
    }

    /// ‖T q − λ q‖
    fn residual(&self, value: f64, q: &[f64]) -> f64 {
        let n = self.size();
        let row = |i: usize| {
            let below = if i > 0 { self.off[i - 1] * q[i - 1] } else { 0.0 };
            let above = if i + 1 < n { self.off[i] * q[i + 1] } else { 0.0 };
            below + (self.diagonal[i] - value) * q[i] + above
        };
        (0..n).map(row).map(|x| x * x).sum::<f64>().sqrt()
    }

    fn by_divide_and_conquer(&self, count: usize) -> Result<Mat<f64>> {
        let n = self.size();
        let (mut diagonal, mut off) = (Diag::<f64>::zeros(n), Diag::<f64>::zeros(n));
        (0..n).for_each(|i| diagonal[i] = self.diagonal[i]);
        (0..n.saturating_sub(1)).for_each(|i| off[i] = self.off[i]);
        let (mut values, mut vectors) = (Diag::<f64>::zeros(n), Mat::<f64>::zeros(n, n));
        let request = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
        let mut scratch =
            MemBuffer::try_new(request).map_err(|_| memory::missing("eigenvectors", n, request.size_bytes()))?;
        tridiagonal_self_adjoint_evd(
            diagonal.as_ref(),
            off.as_ref(),
            values.as_mut(),
            Some(vectors.as_mut()),
            Par::Seq,
            MemStack::new(&mut scratch),
            Default::default(),
        )
        .map_err(|_| Error::internal(format!("the eigenvectors of a {n}×{n} matrix did not converge")))?;
        Ok(Mat::from_fn(n, count, |i, j| vectors[(i, n - 1 - j)]))
    }

    /// Bytes that [`Self::vectors`] allocates for `count` of `n` vectors, with what it returns. (Where inverse iteration does
    /// not converge, which no test has brought about, divide and conquer takes some 4·n² numbers more.)
    pub fn bytes(n: u64, count: u64) -> u64 {
        if 2 * count <= n {
            // The vectors, their QR decomposition, the orthonormal ones.
            return 8 * (4 * n * count + 8 * n);
        }
        let request =
            self_adjoint_evd_scratch::<f64>(n as usize, ComputeEigenvectors::Yes, Par::Seq, Default::default());
        8 * (n * n + 4 * n + n * count) + request.size_bytes() as u64
    }
}

/// For each shift, how many eigenvalues are not below it.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn count_not_below(diagonal: &[f64], squares: &[f64], shifts: &[f64; LANES]) -> [usize; LANES] {
    let (mut pivots, mut counts) = ([1.0; LANES], [0u64; LANES]);
    let previous = std::iter::once(&0.0).chain(squares);
    for (d, square) in diagonal.iter().zip(previous) {
        for ((pivot, count), shift) in pivots.iter_mut().zip(&mut counts).zip(shifts) {
            let next = (d - shift) - square / *pivot;
            // A pivot of zero would be a division by zero next.
            *pivot = if next.abs() < f64::MIN_POSITIVE { -f64::MIN_POSITIVE } else { next };
            *count += u64::from(*pivot >= 0.0);
        }
    }
    counts.map(|count| count as usize)
}

/// Solves (T − λ) x = b by elimination with partial pivoting.
struct Solver {
    /// Rows of U: the diagonal and the two bands above it.
    upper: Vec<[f64; 3]>,
}

impl Solver {
    fn new(n: usize) -> Self {
        Self { upper: vec![[0.0; 3]; n] }
    }

    /// Overwrites b with a multiple of x of norm about 1.
    fn solve(&mut self, t: &Tridiagonal, shift: f64, b: &mut [f64]) {
        let n = t.size();
        let smallest = f64::EPSILON * t.radius;
        let guarded = |pivot: f64| if pivot.abs() < smallest { smallest.copysign(pivot) } else { pivot };
        let off = |i: usize| t.off.get(i).copied().unwrap_or(0.0);
        let mut row = [t.diagonal[0] - shift, off(0), 0.0];
        for i in 0..n {
            if i + 1 == n {
                row[0] = guarded(row[0]);
                self.upper[i] = row;
                break;
            }
            let below = [t.off[i], t.diagonal[i + 1] - shift, off(i + 1)];
            let (pivot, other) = if row[0].abs() >= below[0].abs() {
                ([guarded(row[0]), row[1], row[2]], below)
            } else {
                b.swap(i, i + 1);
                (below, row)
            };
            let factor = other[0] / pivot[0];
            row = [other[1] - factor * pivot[1], other[2] - factor * pivot[2], 0.0];
            b[i + 1] -= factor * b[i];
            self.upper[i] = pivot;
        }
        let mut most = 0.0f64;
        for i in (0..n).rev() {
            let [pivot, first, second] = self.upper[i];
            let after = |j: usize| b.get(j).copied().unwrap_or(0.0);
            b[i] = (b[i] - first * after(i + 1) - second * after(i + 2)) / pivot;
            most = most.max(b[i].abs());
        }
        let scale = if most > 0.0 && most.is_finite() { 1.0 / most } else { 1.0 };
        b.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn dense(t: &Tridiagonal) -> Mat<f64> {
        Mat::from_fn(t.size(), t.size(), |i, j| match i.abs_diff(j) {
            0 => t.diagonal[i] * t.scale,
            1 => t.off[i.min(j)] * t.scale,
            _ => 0.0,
        })
    }

    /// Against faer's decomposition of the dense matrix.
    fn check(mut t: Tridiagonal, count: usize) {
        let n = t.size();
        let a = dense(&t);
        let exact = a.self_adjoint_eigenvalues(faer::Side::Lower).unwrap();
        let norm = exact.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let values = t.values(count);
        for (j, value) in values.iter().enumerate() {
            assert!((value - exact[n - 1 - j]).abs() <= 1e-13 * norm, "{n}: value {j}: {value} {}", exact[n - 1 - j]);
        }
        let mut ways = vec![t.vectors(count).unwrap(), t.by_divide_and_conquer(count).unwrap()];
        if 2 * count <= n {
            ways.push(t.by_inverse_iteration(count).expect("inverse iteration converges"));
        }
        for vectors in ways {
            assert_eq!(vectors.shape(), (n, count));
            let unit = vectors.transpose() * &vectors;
            let moved = &a * &vectors;
            for j in 0..count {
                for i in 0..count {
                    assert!((unit[(i, j)] - f64::from(u8::from(i == j))).abs() < 1e-12, "{n}: {i} {j}");
                }
                for i in 0..n {
                    let left = moved[(i, j)] - values[j] * vectors[(i, j)];
                    assert!(left.abs() <= 2e-11 * norm, "{n}: vector {j} of {count}: {left} of {norm}");
                }
            }
        }
    }

    fn pseudo(n: usize, seed: u64) -> Vec<f64> {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as f64 / 2f64.powi(30) - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn random_matrices_of_every_small_size_and_some_larger() {
        for n in (1..40).chain([64, 65, 130, 257]) {
            for count in [1, n / 3, n / 2, n].into_iter().filter(|c| (1..=n).contains(c)) {
                check(Tridiagonal::new(pseudo(n, 3), pseudo(n - 1, 5)), count);
            }
        }
    }

    #[test]
    fn clusters_multiple_values_and_splits_keep_vectors_orthonormal() {
        let n = 60;
        // Zero; a multiple of the identity; pairs that are equal; Wilkinson's matrix; two copies of one block; blocks of zeros.
        check(Tridiagonal::new(vec![0.0; n], vec![0.0; n - 1]), 20);
        check(Tridiagonal::new(vec![3.0; n], vec![0.0; n - 1]), 20);
        check(Tridiagonal::new((0..n).map(|i| (i / 2) as f64).collect(), vec![0.0; n - 1]), 21);
        check(Tridiagonal::new((0..61).map(|i| (i as f64 - 30.0).abs()).collect(), vec![1.0; 60]), 30);
        let twice: Vec<f64> = pseudo(30, 9).into_iter().chain(pseudo(30, 9)).collect();
        let mut off: Vec<f64> = pseudo(30, 11).into_iter().chain(pseudo(29, 11)).collect();
        off[29] = 0.0;
        check(Tridiagonal::new(twice, off), 30);
        let rank = |i: usize| if i < 7 { 1.0 } else { 0.0 };
        check(Tridiagonal::new((0..n).map(rank).collect(), (0..n - 1).map(|i| rank(i) * 0.5).collect()), 25);
    }

    #[test]
    fn scales_do_not_matter() {
        for scale in [1e-290, 1e-70, 1e70, 1e290] {
            let by = |values: Vec<f64>| values.into_iter().map(|x| x * scale).collect();
            check(Tridiagonal::new(by(pseudo(50, 1)), by(pseudo(49, 2))), 20);
        }
    }
}
