//! Symmetric eigen-decomposition, values descending.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par};

use crate::error::{Error, Result};

/// Eigenvalues, descending, and their vectors.
#[derive(Debug)]
pub struct Eigen {
    /// n values, descending; those that rounding made negative are 0.
    pub values: Vec<f64>,
    /// n×n, ascending: column n − 1 − i belongs to `values[i]`.
    ascending: Mat<f64>,
}

impl Eigen {
    /// Of the symmetric matrix whose lower triangle is given (n×n, finite).
    ///
    /// # Errors
    /// If the iteration does not converge or memory for it cannot be had.
    pub fn of_lower(matrix: MatRef<'_, f64>) -> Result<Self> {
        let n = matrix.nrows();
        let mut vectors = Mat::zeros(n, n);
        let mut values = Diag::zeros(n);
        let request = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, Default::default());
        let mut memory = MemBuffer::try_new(request).map_err(|_| {
            Error::environment(format!(
                "out of memory for the eigen-decomposition of a {n}×{n} matrix ({} bytes)",
                request.size_bytes()
            ))
        })?;
        self_adjoint_evd(
            matrix,
            values.as_mut(),
            Some(vectors.as_mut()),
            Par::Seq,
            MemStack::new(&mut memory),
            Default::default(),
        )
        .map_err(|_| Error::internal(format!("the eigen-decomposition of a {n}×{n} matrix did not converge")))?;
        let values = (0..n).rev().map(|i| values[i].max(0.0)).collect();
        Ok(Self { values, ascending: vectors })
    }

    /// The eigenvectors of the `k` largest values, n×k, ascending by value.
    pub fn leading(&self, k: usize) -> MatRef<'_, f64> {
        let n = self.ascending.ncols();
        self.ascending.as_ref().subcols(n - k, k)
    }

    /// Bytes that [`Eigen::of_lower`] allocates for an n×n matrix, beside the matrix.
    pub fn bytes(n: u64) -> u64 {
        let request =
            self_adjoint_evd_scratch::<f64>(n as usize, ComputeEigenvectors::Yes, Par::Seq, Default::default());
        n * n * 8 + 2 * n * 8 + request.size_bytes() as u64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_descend_and_vectors_reproduce_the_matrix() {
        let n = 37;
        let b = Mat::from_fn(n, n, |i, j| ((i * 31 + j * 17) % 23) as f64 - 11.0);
        let a = &b * b.transpose();
        let eigen = Eigen::of_lower(a.as_ref()).unwrap();
        assert!(eigen.values.windows(2).all(|w| w[0] >= w[1]));
        let v = eigen.leading(n);
        let scaled = Mat::from_fn(n, n, |i, j| v[(i, j)] * eigen.values[n - 1 - j]);
        let back = &scaled * v.transpose();
        assert!((&back - &a).norm_l2() <= 1e-12 * a.norm_l2());
    }

    #[test]
    fn a_zero_matrix_has_zero_values() {
        let eigen = Eigen::of_lower(Mat::<f64>::zeros(5, 5).as_ref()).unwrap();
        assert_eq!(eigen.values, [0.0; 5]);
    }
}
