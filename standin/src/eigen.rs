//! Eigenvalues and eigenvectors of a symmetric matrix: Householder's reduction to three diagonals, then QL steps with implicit
//! shifts (Wilkinson and Reinsch, Handbook for Automatic Computation II, 1971). In f64 throughout.

/// A decomposition: eigenvalues, ascending, and the eigenvectors as columns one after another.
pub struct Eigen {
    /// Ascending.
    pub values: Vec<f64>,
    /// n · n numbers; column j belongs to value j.
    pub vectors: Vec<f64>,
    /// Whether every value converged.
    pub converged: bool,
}

/// Steps that one eigenvalue may take; three are usual.
const MOST_STEPS: usize = 60;

/// Decomposes a symmetric matrix of n columns, all of it stored.
pub fn decompose(mut matrix: Vec<f64>, n: usize) -> Eigen {
    if n == 0 {
        return Eigen { values: vec![], vectors: vec![], converged: true };
    }
    let (mut diagonal, mut beside, mut vectors) = tridiagonal(&mut matrix, n);
    let converged = ql(&mut diagonal, &mut beside, &mut vectors, n);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| diagonal[*a].total_cmp(&diagonal[*b]));
    Eigen {
        values: order.iter().map(|column| diagonal[*column]).collect(),
        vectors: order.iter().flat_map(|column| vectors[column * n..(column + 1) * n].iter().copied()).collect(),
        converged,
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// The diagonal, what stands beside it (entry i between i and i + 1), and the orthogonal matrix that leads there.
fn tridiagonal(matrix: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; n];
    let mut reflectors: Vec<(Vec<f64>, f64)> = Vec::with_capacity(n);
    for k in 0..n.saturating_sub(1) {
        let mut v = matrix[k * n + k + 1..(k + 1) * n].to_vec();
        let norm = dot(&v, &v).sqrt();
        let image = if v[0] > 0.0 { -norm } else { norm };
        beside[k] = image;
        v[0] -= image;
        let square = dot(&v, &v);
        let beta = if square > 0.0 { 2.0 / square } else { 0.0 };
        // A ← H A H on what is left, with H = 1 − β v vᵀ: a change of rank two.
        let mut w = vec![0.0; n - k - 1];
        for (j, factor) in v.iter().enumerate() {
            add_scaled(&mut w, beta * factor, &matrix[(k + 1 + j) * n + k + 1..(k + 2 + j) * n]);
        }
        let half = 0.5 * beta * dot(&v, &w);
        add_scaled(&mut w, -half, &v);
        for j in 0..v.len() {
            let column = &mut matrix[(k + 1 + j) * n + k + 1..(k + 2 + j) * n];
            add_scaled(column, -w[j], &v);
            add_scaled(column, -v[j], &w);
        }
        reflectors.push((v, beta));
    }
    let mut vectors = vec![0.0; n * n];
    for i in 0..n {
        vectors[i * n + i] = 1.0;
    }
    for (k, (v, beta)) in reflectors.iter().enumerate().rev() {
        for column in vectors.chunks_exact_mut(n).skip(k + 1) {
            let along = dot(v, &column[k + 1..]);
            add_scaled(&mut column[k + 1..], -beta * along, v);
        }
    }
    ((0..n).map(|i| matrix[i * n + i]).collect(), beside, vectors)
}

/// Makes what stands beside the diagonal vanish beside the whole, turning the vectors along; whether it did.
fn ql(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64], n: usize) -> bool {
    // Neighbours alone are no measure: where the matrix is numerically of low rank they are roundings of what is large elsewhere,
    // and never become small beside each other. What is dropped is within what the reduction to three diagonals has lost already.
    let size = |i: usize| diagonal[i].abs() + beside[i].abs();
    let dropped = f64::EPSILON * (0..n).map(size).fold(0.0, f64::max);
    for first in 0..n {
        let mut steps = 0;
        loop {
            let negligible = |i: usize| i + 1 == n || beside[i].abs() <= dropped;
            let Some(last) = (first..n).find(|i| negligible(*i)) else { return false };
            if last == first {
                break;
            }
            steps += 1;
            if steps > MOST_STEPS {
                return false;
            }
            sweep(diagonal, beside, vectors, n, first, last);
        }
    }
    true
}

/// One step on the rows from `first` to `last`, shifted by the eigenvalue of the upper corner's 2 × 2 that is nearer.
fn sweep(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64], n: usize, first: usize, last: usize) {
    let half = (diagonal[first + 1] - diagonal[first]) / (2.0 * beside[first]);
    let root = half.hypot(1.0).copysign(half);
    let mut bulge = diagonal[last] - diagonal[first] + beside[first] / (half + root);
    let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
    for i in (first..last).rev() {
        let (across, along) = (sine * beside[i], cosine * beside[i]);
        let length = across.hypot(bulge);
        beside[i + 1] = length;
        if length == 0.0 {
            // Falls apart here; the next step takes the parts on their own.
            diagonal[i + 1] -= shift;
            beside[last] = 0.0;
            return;
        }
        (sine, cosine) = (across / length, bulge / length);
        let rest = diagonal[i + 1] - shift;
        let mixed = (diagonal[i] - rest) * sine + 2.0 * cosine * along;
        shift = sine * mixed;
        diagonal[i + 1] = rest + shift;
        bulge = cosine * mixed - along;
        let (left, right) = vectors[i * n..(i + 2) * n].split_at_mut(n);
        for (a, b) in left.iter_mut().zip(right) {
            (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
        }
    }
    diagonal[first] -= shift;
    beside[first] = bulge;
    beside[last] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn residual(matrix: &[f64], eigen: &Eigen, n: usize) -> f64 {
        let mut worst = 0.0f64;
        for (value, vector) in eigen.values.iter().zip(eigen.vectors.chunks_exact(n)) {
            for row in 0..n {
                let image: f64 = (0..n).map(|column| matrix[column * n + row] * vector[column]).sum();
                worst = worst.max((image - value * vector[row]).abs());
            }
        }
        for a in eigen.vectors.chunks_exact(n).enumerate() {
            for b in eigen.vectors.chunks_exact(n).enumerate() {
                worst = worst.max((dot(a.1, b.1) - f64::from(a.0 == b.0)).abs());
            }
        }
        worst
    }

    #[test]
    fn vectors_are_orthonormal_and_belong_to_ascending_values() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
        };
        for n in [1, 2, 3, 17, 64] {
            let mut matrix = vec![0.0; n * n];
            for i in 0..n {
                for j in 0..=i {
                    let value = random();
                    (matrix[i * n + j], matrix[j * n + i]) = (value, value);
                }
            }
            let eigen = decompose(matrix.clone(), n);
            assert!(eigen.converged);
            assert!(eigen.values.is_sorted());
            // n² roundings of numbers below 1.
            assert!(residual(&matrix, &eigen, n) < 1e-13 * n as f64, "n = {n}");
        }
    }

    #[test]
    fn equal_and_zero_eigenvalues_are_no_trouble() {
        for (matrix, values) in [(vec![0.0; 9], [0.0, 0.0, 0.0]), (vec![1.0; 9], [0.0, 0.0, 3.0])] {
            let eigen = decompose(matrix.clone(), 3);
            assert!(eigen.converged);
            assert!(residual(&matrix, &eigen, 3) < 1e-14);
            assert!(eigen.values.iter().zip(values).all(|(a, b)| (a - b).abs() < 1e-14));
        }
    }

    #[test]
    fn a_gram_matrix_of_low_rank_whose_other_eigenvalues_are_roundings_converges() {
        let mut state = 7u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
        };
        // Some of the directions dwarf others, as in task vectors, and most are not there at all.
        for (n, rank) in [(96, 96), (96, 5), (96, 40), (64, 1), (128, 33)] {
            let factors: Vec<Vec<f64>> =
                (0..rank).map(|k| (0..n).map(|_| random() * 0.5f64.powi(k)).collect()).collect();
            let mut gram = vec![0.0; n * n];
            for factor in &factors {
                for j in 0..n {
                    add_scaled(&mut gram[j * n..(j + 1) * n], factor[j], factor);
                }
            }
            let eigen = decompose(gram.clone(), n);
            assert!(eigen.converged, "{n} of rank {rank}");
            let norm = eigen.values[n - 1];
            assert!(residual(&gram, &eigen, n) < 1e-13 * n as f64 * norm.max(1.0), "{n} of rank {rank}");
        }
    }

    #[test]
    fn a_matrix_of_nan_is_said_not_to_converge() {
        assert!(!decompose(vec![f64::NAN; 16], 4).converged);
    }
}
