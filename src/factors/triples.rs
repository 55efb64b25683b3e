//! Singular triples from the factors that a decomposition gives.

use faer::MatRef;

use crate::ops::Real;

/// How columns of two factors become those of U Σ and V.
#[derive(Debug)]
pub(crate) struct Triples {
    /// Columns by descending singular value; of equal ones the earlier comes first.
    pub order: Vec<usize>,
    pub left_scale: Vec<f64>,
    pub right_scale: Vec<f64>,
    /// Singular values, by column of the factors.
    pub values: Vec<f64>,
}

impl Triples {
    pub fn new<C: Real>(left: MatRef<'_, C>, right: MatRef<'_, C>) -> Self {
        let k = left.ncols();
        // Columns have no more than a matrix's norm, whose square was found to be finite.
        let norm = |matrix: MatRef<'_, C>, i: usize| {
            (0..matrix.nrows()).map(|row| matrix[(row, i)].f64().powi(2)).sum::<f64>().sqrt()
        };
        // Where a singular value is 0 its vectors are arbitrary: zeros say so, and say the same for every shape.
        let (mut left_scale, mut right_scale, mut values) = (vec![0.0; k], vec![0.0; k], vec![0.0; k]);
        for i in 0..k {
            let (l, r) = (norm(left, i), norm(right, i));
            if (l * r).min(r) >= f64::MIN_POSITIVE {
                (left_scale[i], right_scale[i], values[i]) = (r, 1.0 / r, l * r);
            }
        }
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
        Self { order, left_scale, right_scale, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;

    #[test]
    fn triples_are_ordered_and_scaled_whichever_factor_is_orthonormal() {
        // Columns of length 1 and of length σ = 2, 0, 5.
        let unit = Mat::from_fn(3, 3, |i, j| if i == j { 1.0 } else { 0.0 });
        let scaled = Mat::from_fn(4, 3, |i, j| if i == j { [2.0, 0.0, 5.0][j] } else { 0.0 });
        for (left, right) in [(&unit, &scaled), (&scaled, &unit)] {
            let triples = Triples::new(left.as_ref(), right.as_ref());
            assert_eq!(triples.order, [2, 0, 1]);
            let sigma = |i: usize| left.col(i).norm_l2() * triples.left_scale[i];
            assert_eq!([sigma(2), sigma(0), sigma(1)], [5.0, 2.0, 0.0]);
            let length = |i: usize| right.col(i).norm_l2() * triples.right_scale[i];
            assert_eq!([length(2), length(0), length(1)], [1.0, 1.0, 0.0]);
        }
    }
}
