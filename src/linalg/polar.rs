//! The orthogonal polar factor of a matrix: the nearest matrix with orthonormal columns (or rows).

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use super::symmetric::Symmetric;
use super::triples::{LEAST_TRACE, is_zero, svd_bytes};
use crate::error::{Error, Result};

/// Least σ_min²/σ_max² for which the factor is had from the Gram matrix: its error is about 2⁻⁵² over this.
pub const WELL_CONDITIONED: f64 = 1e-9;

/// Share of s₁ up to which a singular value of anything computed from singular vectors is rounding.
pub const NULL_OF_COMPUTED: f64 = 1.0 / (1u64 << 26) as f64;

/// P Qᵀ and the singular values of X = P S Qᵀ.
#[derive(Debug)]
pub struct Polar {
    /// P Qᵀ (m×n) over the singular values that are not numerically null.
    pub factor: Mat<f64>,
    /// min(m, n) values, in no order.
    pub singular: Vec<f64>,
}

/// The polar factor of an m×n matrix (finite), to an error of about 1e-6 or better, over the singular values above
/// max(m, n)·2⁻⁵²·s₁ and above `null`·s₁.
///
/// Where the singular values span less than four and a half decades, as X (XᵀX)^(-½) from the Gram matrix and its
/// eigen-decomposition; else from a singular value decomposition, which does not square them.
///
/// # Errors
/// If memory cannot be had, or no decomposition converges.
pub fn polar(x: MatRef<'_, f64>, null: f64) -> Result<Polar> {
    let (m, n) = x.shape();
    if m < n {
        let Polar { factor, singular } = polar(x.transpose(), null)?;
        return Ok(Polar { factor: factor.transpose().to_owned(), singular });
    }
    if n == 0 {
        return Ok(Polar { factor: Mat::zeros(m, 0), singular: Vec::new() });
    }
    if is_zero(x) {
        return Ok(Polar { factor: Mat::zeros(m, n), singular: vec![0.0; n] });
    }
    let gram = x.transpose() * x;
    let trace: f64 = (0..n).map(|i| gram[(i, i)]).sum();
    if trace.is_finite() && trace > LEAST_TRACE {
        let mut reduced = Symmetric::reduce(gram)?;
        let squares = reduced.tridiagonal.values(n);
        if squares[n - 1] > WELL_CONDITIONED * squares[0] {
            let vectors = reduced.vectors(n, |v| v)?;
            drop(reduced);
            let scaled = Mat::from_fn(n, n, |i, j| vectors[(i, j)] / squares[j].sqrt());
            let root = scaled * vectors.transpose();
            return Ok(Polar { factor: x * root, singular: squares.into_iter().map(f64::sqrt).collect() });
        }
    }
    by_svd(x, null)
}

fn by_svd(x: MatRef<'_, f64>, null: f64) -> Result<Polar> {
    let (m, n) = x.shape();
    let svd = x.thin_svd().map_err(|_| {
        Error::internal(format!("the singular value decomposition of an {m}×{n} matrix did not converge"))
    })?;
    let singular: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let null = (m.max(n) as f64 * f64::EPSILON).max(null) * singular.first().copied().unwrap_or(0.0);
    let kept = singular.iter().filter(|s| **s > null).count();
    let mut factor = Mat::zeros(m, n);
    let (left, right) = (svd.U().subcols(0, kept), svd.V().subcols(0, kept));
    matmul(factor.as_mut(), Accum::Replace, left, right.transpose(), 1.0, Par::Seq);
    Ok(Polar { factor, singular })
}

/// Bytes that [`polar`] allocates for an m×n matrix, with what it returns.
pub fn bytes(m: u64, n: u64) -> u64 {
    let (long, short) = (m.max(n), m.min(n));
    let by_gram = 8 * (2 * long * short + 3 * short * short) + Symmetric::<f64>::bytes(short, short);
    let by_svd = 8 * (3 * long * short + short * short) + svd_bytes(m, n);
    by_gram.max(by_svd)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// An m×n matrix with these singular values, and its polar factor.
    fn with_spectrum(m: usize, n: usize, values: impl Fn(usize) -> f64) -> (Mat<f64>, Mat<f64>) {
        let mut state = 7u64;
        let mut random = |m: usize, n: usize| {
            Mat::from_fn(m, n, |_, _| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as f64 / 2f64.powi(30) - 1.0
            })
        };
        let r = m.min(n);
        let (p, q) = (random(m, r).qr().compute_thin_Q(), random(n, r).qr().compute_thin_Q());
        let scaled = Mat::from_fn(m, r, |i, j| p[(i, j)] * values(j));
        (scaled * q.transpose(), p * q.transpose())
    }

    #[test]
    fn small_singular_values_do_not_cost_digits() {
        for (m, n) in [(1, 1), (1, 9), (9, 1), (30, 30), (50, 20), (20, 50)] {
            for decades in [0.0, 2.0, 4.0, 5.0, 8.0, 10.0] {
                let last = (m.min(n) - 1).max(1) as f64;
                let (x, exact) = with_spectrum(m, n, |j| 10f64.powf(-decades * j as f64 / last));
                for scale in [1.0, 1e-150, 1e150] {
                    let found = polar((&x * scale).as_ref(), 0.0).unwrap();
                    let error = (&found.factor - &exact).norm_max();
                    assert!(error < 2e-6, "{m}×{n}, {decades} decades, {scale}: {error}");
                    let most = found.singular.iter().fold(0.0f64, |m, s| m.max(*s));
                    assert!((most / scale - 1.0).abs() < 1e-9);
                }
            }
        }
    }

    #[test]
    fn null_directions_are_left_out() {
        let (x, _) = with_spectrum(24, 17, |j| if j < 5 { 3.0 } else { 0.0 });
        let found = polar(x.as_ref(), 0.0).unwrap().factor;
        assert!((&x - &found * 3.0).norm_max() < 1e-12);
        // What rounding leaves of a direction counts as one, or not, as the caller says.
        let (x, exact) = with_spectrum(24, 17, |j| if j < 5 { 3.0 } else { 1e-9 });
        assert!((polar(x.as_ref(), 0.0).unwrap().factor - &exact).norm_max() < 1e-5);
        assert!((&x - polar(x.as_ref(), NULL_OF_COMPUTED).unwrap().factor * 3.0).norm_max() < 1e-8);
        assert_eq!(polar(Mat::<f64>::zeros(4, 6).as_ref(), 0.0).unwrap().factor, Mat::<f64>::zeros(4, 6));
    }
}
