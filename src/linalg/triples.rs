//! Leading singular triples of a dense matrix, in f64.

use faer::linalg::svd::{ComputeSvdVectors, svd_scratch};
use faer::{Mat, MatRef, Par};

use super::symmetric::Symmetric;
use crate::error::{Error, Result};

/// Least σ_k²/σ_1² for which triples are had from the Gram matrix, in which σ² is off by about 2⁻⁵²·σ_1².
pub const FROM_GRAM: f64 = 1e-10;

/// Least Σ σ² whose smaller summands do not underflow.
pub const LEAST_TRACE: f64 = 1e-200;

/// The k leading singular triples of an m×n matrix, σ descending.
#[derive(Debug)]
pub struct Triples {
    /// m×k; a column of zeros where σ is numerically null.
    pub left: Mat<f64>,
    /// k values.
    pub singular: Vec<f64>,
    /// n×k; a column of zeros where σ is numerically null.
    pub right: Mat<f64>,
}

impl Triples {
    /// Of an m×n matrix (finite), k ≤ min(m, n). A σ at or below max(m, n)·2⁻⁵²·σ_1, or at or below `null`, is numerically
    /// null: of a matrix that is a difference, `null` tells what rounding leaves where nothing is left.
    ///
    /// # Errors
    /// If memory cannot be had, or no decomposition converges.
    pub fn leading(a: MatRef<'_, f64>, k: usize, null: f64) -> Result<Self> {
        let (m, n) = a.shape();
        if m > n {
            let Self { left, singular, right } = Self::leading(a.transpose(), k, null)?;
            return Ok(Self { left: right, singular, right: left });
        }
        if k == 0 {
            return Ok(Self { left: Mat::zeros(m, 0), singular: Vec::new(), right: Mat::zeros(n, 0) });
        }
        if is_zero(a) {
            return Ok(Self { left: Mat::zeros(m, k), singular: vec![0.0; k], right: Mat::zeros(n, k) });
        }
        let mut triples = match Self::from_gram(a, k)? {
            Some(triples) => triples,
            None => Self::from_svd(a, k)?,
        };
        let null = null.max(n as f64 * f64::EPSILON * triples.singular[0]);
        for (j, _) in triples.singular.iter().enumerate().filter(|(_, s)| **s <= null) {
            triples.left.col_as_slice_mut(j).fill(0.0);
            triples.right.col_as_slice_mut(j).fill(0.0);
        }
        Ok(triples)
    }

    /// `None` where the Gram matrix does not hold enough digits.
    fn from_gram(a: MatRef<'_, f64>, k: usize) -> Result<Option<Self>> {
        let gram = a * a.transpose();
        let trace: f64 = (0..a.nrows()).map(|i| gram[(i, i)]).sum();
        if !trace.is_finite() || trace <= LEAST_TRACE {
            return Ok(None);
        }
        let mut reduced = Symmetric::reduce(gram)?;
        let squares = reduced.tridiagonal.values(k);
        if squares[k - 1] <= FROM_GRAM * squares[0] {
            return Ok(None);
        }
        let left = reduced.vectors(k, |x| x)?;
        drop(reduced);
        let mut right = a.transpose() * &left;
        let singular = (0..k).map(|j| right.col(j).norm_l2()).collect::<Vec<_>>();
        for (j, s) in singular.iter().enumerate() {
            right.col_as_slice_mut(j).iter_mut().for_each(|x| *x /= s);
        }
        Ok(Some(Self { left, singular, right }))
    }

    fn from_svd(a: MatRef<'_, f64>, k: usize) -> Result<Self> {
        let (m, n) = a.shape();
        let svd = a.thin_svd().map_err(|_| {
            Error::internal(format!("the singular value decomposition of an {m}×{n} matrix did not converge"))
        })?;
        Ok(Self {
            left: svd.U().subcols(0, k).to_owned(),
            singular: svd.S().column_vector().iter().take(k).copied().collect(),
            right: svd.V().subcols(0, k).to_owned(),
        })
    }

    /// Bytes that [`Self::leading`] allocates, with what it returns: at most, as for a singular value decomposition.
    pub fn bytes(m: u64, n: u64, k: u64) -> u64 {
        let r = m.min(n);
        svd_bytes(m, n) + 8 * (r * (m + n + 1) + k * (m + n + 1))
    }
}

/// Whether nothing is in a matrix, as where a model left it as it was.
pub(super) fn is_zero(a: MatRef<'_, f64>) -> bool {
    a.norm_max() == 0.0
}

/// Bytes of the scratch of a thin singular value decomposition.
pub(super) fn svd_bytes(m: u64, n: u64) -> u64 {
    let thin = ComputeSvdVectors::Thin;
    svd_scratch::<f64>(m as usize, n as usize, thin, thin, Par::Seq, Default::default()).size_bytes() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_a_matrix_of_zeros_all_triples_are_zeros() {
        let triples = Triples::leading(Mat::zeros(7, 12).as_ref(), 3, 0.0).unwrap();
        assert_eq!(triples.singular, [0.0; 3]);
        assert_eq!((triples.left, triples.right), (Mat::zeros(7, 3), Mat::zeros(12, 3)));
        let mut tiny = Mat::zeros(7, 12);
        tiny[(2, 3)] = -1e-300;
        // To the last bits: how the decomposition scales what is tiny is its own affair.
        let singular = Triples::leading(tiny.as_ref(), 3, 0.0).unwrap().singular;
        assert!((singular[0] / 1e-300 - 1.0).abs() < 1e-14, "{singular:?}");
        assert_eq!(singular[1..], [0.0, 0.0]);
    }

    #[test]
    fn triples_are_those_of_the_whole_decomposition() {
        for (m, n) in [(1, 1), (1, 6), (6, 1), (12, 31), (31, 12), (20, 20)] {
            // The second has singular values over 18 decades, of which the Gram matrix sees nine.
            for steep in [0.0, 1.0] {
                let r = m.min(n);
                let b =
                    Mat::from_fn(m, r, |i, j| ((i * 37 + j * 11 + i * j * 5) % 19) as f64 - 9.0).qr().compute_thin_Q();
                let c =
                    Mat::from_fn(n, r, |i, j| ((i * 17 + j * 29 + i * j * 3) % 23) as f64 - 11.0).qr().compute_thin_Q();
                let sigma = |j: usize| 10f64.powf(-steep * 18.0 * j as f64 / r as f64) * (2.0 - j as f64 / r as f64);
                let scaled = Mat::from_fn(m, r, |i, j| b[(i, j)] * sigma(j));
                let a = scaled * c.transpose();
                for k in [0, 1, r / 2, r] {
                    let t = Triples::leading(a.as_ref(), k, 0.0).unwrap();
                    for j in 0..k {
                        assert!((t.singular[j] - sigma(j)).abs() < 1e-13, "{m}×{n}, {steep}: {j}");
                        let (u, v) = (t.left.col(j), t.right.col(j));
                        if sigma(j) > 1e-14 {
                            assert!((u.norm_l2() - 1.0).abs() < 1e-9 && (v.norm_l2() - 1.0).abs() < 1e-9);
                            assert!((a.transpose() * u - v * t.singular[j]).norm_l2() < 1e-13);
                        }
                    }
                }
            }
        }
        let zero = Triples::leading(Mat::<f64>::zeros(3, 5).as_ref(), 2, 0.0).unwrap();
        assert_eq!((zero.singular, zero.left), (vec![0.0, 0.0], Mat::zeros(3, 2)));
    }
}
