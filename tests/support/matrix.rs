//! Small dense matrices, and their singular value decomposition by one-sided Jacobi rotations: independent of the crate's.

use super::tensor::Tensor;

/// A matrix by rows.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub m: usize,
    pub n: usize,
    pub v: Vec<f64>,
}

impl Matrix {
    pub fn of(tensor: &Tensor) -> Self {
        Self { m: tensor.shape[0] as usize, n: tensor.shape[1] as usize, v: tensor.values() }
    }

    pub fn zip(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        assert_eq!((self.m, self.n), (other.m, other.n));
        Self { v: self.v.iter().zip(&other.v).map(|(a, b)| f(*a, *b)).collect(), ..*self }
    }

    pub fn times(&self, other: &Self) -> Self {
        assert_eq!(self.n, other.m);
        let sum = |i: usize, j: usize| (0..self.n).map(|k| self.v[i * self.n + k] * other.v[k * other.n + j]).sum();
        Self { m: self.m, n: other.n, v: (0..self.m * other.n).map(|at| sum(at / other.n, at % other.n)).collect() }
    }

    pub fn transposed(&self) -> Self {
        let v = (0..self.v.len()).map(|at| self.v[(at % self.m) * self.n + at / self.m]).collect();
        Self { m: self.n, n: self.m, v }
    }

    pub fn norm(&self) -> f64 {
        self.v.iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    pub fn column(&self, j: usize) -> Vec<f64> {
        (0..self.m).map(|i| self.v[i * self.n + j]).collect()
    }

    /// The sum of the k leading singular triples, and the singular values: columns are rotated until they are orthogonal.
    pub fn truncated(&self, k: usize) -> (Self, Vec<f64>) {
        if self.m < self.n {
            let (low, values) = self.transposed().truncated(k);
            return (low.transposed(), values);
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut columns: Vec<Vec<f64>> = (0..self.n).map(|j| self.column(j)).collect();
        let mut rotations: Vec<Vec<f64>> =
            (0..self.n).map(|j| (0..self.n).map(|i| f64::from(u8::from(i == j))).collect()).collect();
        for _ in 0..60 {
            let mut is_done = true;
            for p in 0..self.n {
                for q in p + 1..self.n {
                    let (a, b, c) =
                        (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]), dot(&columns[p], &columns[q]));
                    if c.abs() <= 1e-15 * (a * b).sqrt() {
                        continue;
                    }
                    is_done = false;
                    let z = (b - a) / (2.0 * c);
                    let t = z.signum() / (z.abs() + (1.0 + z * z).sqrt());
                    let t = if z == 0.0 { 1.0 } else { t };
                    let cos = 1.0 / (1.0 + t * t).sqrt();
                    for all in [&mut columns, &mut rotations] {
                        let (left, right) = all.split_at_mut(q);
                        for (x, y) in left[p].iter_mut().zip(&mut right[0]) {
                            (*x, *y) = (cos * (*x - t * *y), cos * (t * *x + *y));
                        }
                    }
                }
            }
            if is_done {
                break;
            }
        }
        let norms: Vec<f64> = columns.iter().map(|c| dot(c, c).sqrt()).collect();
        let mut order: Vec<usize> = (0..self.n).collect();
        order.sort_by(|a, b| norms[*b].total_cmp(&norms[*a]));
        let mut low = Self { v: vec![0.0; self.v.len()], ..*self };
        for j in order.iter().take(k) {
            for (row, x) in low.v.chunks_exact_mut(self.n).zip(&columns[*j]) {
                row.iter_mut().zip(&rotations[*j]).for_each(|(to, r)| *to += x * r);
            }
        }
        (low, order.iter().map(|j| norms[*j]).collect())
    }
}
