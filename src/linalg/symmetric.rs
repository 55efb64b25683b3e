//! The leading eigenpairs of a dense symmetric matrix: reduced to tridiagonal form, in f32 or f64, and solved there in f64.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as apply_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as apply,
};
use faer::traits::RealField;
use faer::{Conj, Mat, Par};

use super::memory;
use super::reduction::{self, BLOCK};
use super::sweep::Swept;
use super::tridiagonal::Tridiagonal;
use crate::error::Result;

/// A symmetric matrix as Q T Qᵀ.
#[derive(Debug)]
pub struct Symmetric<T> {
    /// T.
    pub tridiagonal: Tridiagonal,
    /// Householder vectors of Q, below the diagonal.
    reflectors: Mat<T>,
    /// Their block factors.
    factors: Mat<T>,
}

impl<T: RealField + Copy + Into<f64> + Swept> Symmetric<T> {
    /// Reduces the matrix (n×n, n ≥ 1, finite) whose lower triangle is given; its memory is used. About 4/3·n³ operations.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn reduce(matrix: Mat<T>) -> Result<Self> {
        Self::reduce_by(matrix, reduction::reduce)
    }

    fn reduce_by(mut matrix: Mat<T>, by: impl Fn(&mut Mat<T>, &mut Mat<T>) -> Result<()>) -> Result<Self> {
        let n = matrix.nrows();
        let mut factors = Mat::zeros(BLOCK, n.saturating_sub(1));
        by(&mut matrix, &mut factors)?;
        let diagonal = (0..n).map(|i| matrix[(i, i)].into()).collect();
        let off = (1..n).map(|i| matrix[(i, i - 1)].into()).collect();
        Ok(Self { tridiagonal: Tridiagonal::new(diagonal, off), reflectors: matrix, factors })
    }

    /// Vectors (n×count, orthonormal to T's rounding) of the `count` greatest eigenvalues, descending. About 2·n²·count
    /// operations for up to half of them, and some 9·n³ beyond.
    ///
    /// # Errors
    /// If memory cannot be had, or the iteration does not converge.
    pub fn vectors(&mut self, count: usize, of: impl Fn(f64) -> T) -> Result<Mat<T>> {
        let n = self.tridiagonal.size();
        let inner = self.tridiagonal.vectors(count)?;
        let vectors = Mat::from_fn(n, count, |i, j| of(inner[(i, j)]));
        drop(inner);
        self.apply(vectors)
    }

    /// Q times the vectors (n×count).
    fn apply(&self, mut vectors: Mat<T>) -> Result<Mat<T>> {
        let (n, count) = vectors.shape();
        if n > 1 {
            let request = apply_scratch::<T>(n - 1, BLOCK, count);
            let mut scratch =
                MemBuffer::try_new(request).map_err(|_| memory::missing("eigenvectors", n, request.size_bytes()))?;
            apply(
                self.reflectors.as_ref().submatrix(1, 0, n - 1, n - 1),
                self.factors.as_ref(),
                Conj::No,
                vectors.as_mut().subrows_mut(1, n - 1),
                Par::Seq,
                MemStack::new(&mut scratch),
            );
        }
        Ok(vectors)
    }

    /// Bytes that [`Self::reduce`] and [`Self::vectors`] allocate, beside the matrix and with what they return.
    pub fn bytes(n: u64, count: u64) -> u64 {
        let (size, n, count) = (size_of::<T>() as u64, n as usize, count as usize);
        let reduce = reduction::bytes::<T>(n);
        let applied = apply_scratch::<T>(n.saturating_sub(1), BLOCK, count).size_bytes() as u64;
        BLOCK as u64 * n as u64 * size
            + reduce.max(applied).max(Tridiagonal::bytes(n as u64, count as u64))
            + n as u64 * count as u64 * (size + 8)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn gram(n: usize, rank: usize) -> Mat<f64> {
        let b = Mat::from_fn(n, rank, |i, j| ((i * 31 + j * j * 17 + i * j) % 23) as f64 - 11.0);
        &b * b.transpose()
    }

    #[test]
    fn leading_pairs_are_pairs_of_the_matrix() {
        for (n, rank) in [(1, 1), (2, 2), (37, 40), (90, 5), (70, 0)] {
            let a = gram(n, rank);
            for count in [1, n.div_ceil(3), n] {
                let mut reduced = Symmetric::reduce(a.clone()).unwrap();
                let (values, vectors) = (reduced.tridiagonal.values(count), reduced.vectors(count, |x| x).unwrap());
                assert!(values.windows(2).all(|w| w[0] >= w[1]));
                let scaled = Mat::from_fn(n, count, |i, j| vectors[(i, j)] * values[j]);
                let error = (&a * &vectors - scaled).norm_l2();
                assert!(error <= 1e-11 * a.norm_l2(), "{n}, rank {rank}, {count}: {error}");
                let unit = vectors.transpose() * &vectors;
                assert!((unit - Mat::<f64>::identity(count, count)).norm_l2() < 1e-11);
                if count == n {
                    assert!(
                        (values.iter().sum::<f64>() - (0..n).map(|i| a[(i, i)]).sum::<f64>()).abs()
                            <= 1e-9 * a.norm_l2()
                    );
                }
            }
        }
    }

    #[test]
    fn in_f32_pairs_are_as_good_as_f32_is() {
        let a = gram(64, 80);
        let narrow = Mat::from_fn(64, 64, |i, j| a[(i, j)] as f32);
        let mut reduced = Symmetric::reduce(narrow).unwrap();
        let (values, vectors) = (reduced.tridiagonal.values(9), reduced.vectors(9, |x| x as f32).unwrap());
        let vectors = Mat::from_fn(64, 9, |i, j| f64::from(vectors[(i, j)]));
        let scaled = Mat::from_fn(64, 9, |i, j| vectors[(i, j)] * values[j]);
        assert!((&a * &vectors - scaled).norm_l2() <= 1e-5 * a.norm_l2());
    }

    fn symmetric(n: usize, scale: f64) -> Mat<f64> {
        Mat::from_fn(n, n, |i, j| (((i.max(j) * 31 + i.min(j) * 17) % 101) as f64 - 50.0) * scale)
    }

    /// ‖A − Q T Qᵀ‖ / ‖A‖, T and Q as they come back, in f32 or f64: by our reduction and by faer's.
    fn errors<T>(a: &Mat<f64>, of: impl Fn(f64) -> T) -> [f64; 2]
    where
        T: RealField + Copy + Into<f64> + Swept,
    {
        let n = a.nrows();
        [reduction::reduce, reduction::by_faer].map(|by| {
            let reduced = Symmetric::reduce_by(Mat::from_fn(n, n, |i, j| of(a[(i, j)])), by).unwrap();
            let q = reduced.apply(Mat::from_fn(n, n, |i, j| of(f64::from(u8::from(i == j))))).unwrap();
            let q = Mat::<f64>::from_fn(n, n, |i, j| q[(i, j)].into());
            let t = Mat::<f64>::from_fn(n, n, |i, j| match i.abs_diff(j) {
                0 | 1 => reduced.reflectors[(i.max(j), i.min(j))].into(),
                _ => 0.0,
            });
            (&q * t * q.transpose() - a).norm_l2() / a.norm_l2()
        })
    }

    #[test]
    fn q_t_q_is_the_matrix_at_every_size_around_panels_and_vectors_and_as_nearly_as_by_faer() {
        for n in (1..12).chain([31, 32, 33, 34, 63, 64, 65, 66, 97, 130, 200]) {
            let a = symmetric(n, 1.0);
            for ([ours, faers], epsilon) in [(errors(&a, |x| x), 2.3e-16), (errors(&a, |x| x as f32), 1.2e-7)] {
                let limit = epsilon * (2.0 + (n as f64).sqrt());
                assert!(ours <= limit && faers <= limit && ours <= 2.0 * faers + epsilon, "{n}: {ours:e} {faers:e}");
            }
        }
    }

    #[test]
    fn diagonal_and_huge_and_tiny_matrices_are_reduced_too() {
        let diagonal = Mat::from_fn(70, 70, |i, j| if i == j { i as f64 + 1.0 } else { 0.0 });
        assert_eq!((errors(&diagonal, |x| x), errors(&diagonal, |x| x as f32)), ([0.0; 2], [0.0; 2]));
        for (wide, narrow) in [(1e-140, 1e-16), (1e140, 1e15)] {
            assert!(errors(&symmetric(70, wide), |x| x).iter().all(|error| *error < 1e-14));
            assert!(errors(&symmetric(70, narrow), |x| x as f32).iter().all(|error| *error < 2e-6));
        }
    }
}
