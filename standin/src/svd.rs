//! Singular value decompositions of tall matrices: cuSOLVER's `Xgesvd`, by one-sided rotations (Hestenes 1958; Demmel and
//! Veselić 1992), which keep small singular values to their last digits. In f64 throughout.

use std::ffi::{c_char, c_int, c_void};

use crate::failures::Kind;
use crate::gemm::Matrix;
use crate::libraries::{self, operand};
use crate::memory;
use crate::put;
use crate::rules::{self, Rule};
use crate::solver::{HOST_BYTES, HostWorkspace, INTERNAL_ERROR, NOT_INITIALIZED, REAL_64, call, invalid};
use crate::world::World;

/// Rounds over all pairs of columns; six are usual.
const MOST_ROUNDS: usize = 60;

/// The square of a column's norm, that of the largest element being 1, at which nothing of the matrix is left in it: without
/// an end a null column would be turned until its square has no digits, and never be orthogonal.
const NULL: f64 = 1e-40;

/// Columns of U S of an m×n matrix, m ≥ n, and of V; S is not ordered.
struct Rotated {
    scaled: Vec<Vec<f64>>,
    right: Vec<Vec<f64>>,
    converged: bool,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn turn(columns: &mut [Vec<f64>], (p, q): (usize, usize), cosine: f64, sine: f64) {
    let (left, right) = columns.split_at_mut(q);
    for (a, b) in left[p].iter_mut().zip(&mut right[0]) {
        (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    }
}

/// Turns pairs of columns until all are orthogonal.
fn rotate(mut scaled: Vec<Vec<f64>>) -> Rotated {
    let n = scaled.len();
    let mut right: Vec<Vec<f64>> = (0..n).map(|j| (0..n).map(|i| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..MOST_ROUNDS {
        let mut turned = false;
        for p in 0..n {
            for q in p + 1..n {
                let (a, b) = (dot(&scaled[p], &scaled[p]), dot(&scaled[q], &scaled[q]));
                let c = dot(&scaled[p], &scaled[q]);
                if c == 0.0 || a.min(b) <= NULL || c.abs() <= 1e-15 * a.sqrt() * b.sqrt() {
                    continue;
                }
                turned = true;
                let half = (b - a) / (2.0 * c);
                let tangent = half.signum() / (half.abs() + half.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                turn(&mut scaled, (p, q), cosine, cosine * tangent);
                turn(&mut right, (p, q), cosine, cosine * tangent);
            }
        }
        if !turned {
            return Rotated { scaled, right, converged: true };
        }
    }
    Rotated { scaled, right, converged: false }
}

/// Left vectors (m×n, orthonormal), singular values, descending, and right vectors, as columns.
struct Svd {
    left: Vec<Vec<f64>>,
    values: Vec<f64>,
    right: Vec<Vec<f64>>,
    converged: bool,
}

/// Of the columns of an m×n matrix, m ≥ n.
fn decompose(mut columns: Vec<Vec<f64>>, m: usize) -> Svd {
    // Squares of huge and tiny numbers must neither overflow nor underflow.
    let largest = columns.iter().flatten().fold(0.0f64, |most, x| most.max(x.abs()));
    let scale = if largest > 0.0 && largest.is_finite() { largest } else { 1.0 };
    columns.iter_mut().flatten().for_each(|x| *x /= scale);
    let Rotated { scaled, right, converged } = rotate(columns);
    let norms: Vec<f64> = scaled.iter().map(|column| dot(column, column).sqrt()).collect();
    let mut order: Vec<usize> = (0..norms.len()).collect();
    order.sort_by(|a, b| norms[*b].total_cmp(&norms[*a]));
    let mut left: Vec<Vec<f64>> = Vec::with_capacity(order.len());
    for j in &order {
        left.push(match norms[*j] {
            norm if norm > 0.0 => scaled[*j].iter().map(|x| x / norm).collect(),
            _ => beside(&left, m),
        });
    }
    Svd {
        left,
        values: order.iter().map(|j| norms[*j] * scale).collect(),
        right: order.iter().map(|j| right[*j].clone()).collect(),
        converged,
    }
}

/// A unit vector orthogonal to fewer than m others.
fn beside(others: &[Vec<f64>], m: usize) -> Vec<f64> {
    let mut best = (0.0, vec![0.0; m]);
    for i in 0..m {
        let mut vector = vec![0.0; m];
        vector[i] = 1.0;
        for _ in 0..2 {
            for other in others {
                let along = dot(other, &vector);
                vector.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
            }
        }
        let norm = dot(&vector, &vector).sqrt();
        if norm > best.0 {
            vector.iter_mut().for_each(|x| *x /= norm);
            best = (norm, vector);
        }
        if best.0 > 0.5 {
            break;
        }
    }
    best.1
}

/// A call's shape, if it is one that is answered: thin, tall, in f64.
fn shape(jobs: [c_char; 2], m: i64, n: i64, leading: [i64; 3], types: [c_int; 5]) -> Result<(usize, usize), Rule> {
    let is_thin = jobs.iter().all(|job| *job as u8 == b'S');
    let is_plain = leading == [m.max(1), m.max(1), n.max(1)] && types.iter().all(|t| *t == REAL_64);
    // The library has no way for wide matrices.
    match (usize::try_from(m), usize::try_from(n)) {
        (Ok(m), Ok(n)) if is_thin && is_plain && m >= n => Ok((m, n)),
        _ => Err(rules::SVD_SHAPE),
    }
}

/// A shape that can be asked for.
fn asked(world: &mut World, shape: Result<(usize, usize), Rule>) -> Result<(usize, usize), c_int> {
    shape.map_err(|rule| world.breaks(rule, "a singular value decomposition that there is not").0)
}

fn device_bytes((m, n): (usize, usize)) -> usize {
    8 * (n * n + m + 4 * n + 64)
}

#[derive(Clone, Copy)]
struct Places {
    matrix: usize,
    values: usize,
    left: usize,
    right: usize,
    device: (usize, usize),
    host: (usize, usize),
    info: usize,
}

fn solve(world: &mut World, handle: usize, (m, n): (usize, usize), at: Places) -> Result<(), c_int> {
    let handle = libraries::find(world, handle).map_err(|_| NOT_INITIALIZED)?;
    let workspace = device_bytes((m, n));
    for (what, at, len) in [
        ("matrix to decompose", at.matrix, 8 * m * n),
        ("left singular vectors", at.left, 8 * m * n),
        ("right singular vectors", at.right, 8 * n * n),
        ("singular values", at.values, 8 * n),
        ("workspace of cuSOLVER", at.device.0, workspace),
        ("info of cuSOLVER", at.info, 4),
    ] {
        operand(world, what, handle.device, at, len).map_err(invalid)?;
    }
    if at.device.1 < workspace || at.host.1 < HOST_BYTES || at.host.0 == 0 {
        return Err(world.breaks(rules::EIGEN_WORKSPACE, "a decomposition with less workspace than was asked for").0);
    }
    if world.config.failures.strike(Kind::Solver) {
        return Err(INTERNAL_ERROR);
    }
    let diverges = world.config.failures.strike(Kind::Converge);
    let seed = world.config.seed;
    let stream = world.stream(handle.stream).map_err(|_| INTERNAL_ERROR)?;
    let workspace_of_host = HostWorkspace::take(world, at.host.0);
    let run = move || {
        workspace_of_host.check()?;
        libraries::scribble(at.device.0, workspace);
        let from = Matrix { at: at.matrix, leading: m };
        let Svd { left, values, right, converged } = decompose((0..n).map(|j| from.column(j, m)).collect(), m);
        // The matrix is destroyed, and a pair of vectors has any sign.
        let (u, vt) = (Matrix { at: at.left, leading: m }, Matrix { at: at.right, leading: n });
        let flips = |j: usize| seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(j as u32) & 1 == 1;
        let sign = |j: usize| if flips(j) { -1.0 } else { 1.0 };
        for j in 0..n {
            from.set_column(j, &vec![f64::NAN; m]);
            u.set_column(j, &left[j].iter().map(|x| sign(j) * x).collect::<Vec<f64>>());
            vt.set_column(j, &(0..n).map(|row| sign(row) * right[row][j]).collect::<Vec<f64>>());
        }
        Matrix { at: at.values, leading: n.max(1) }.set_column(0, &values);
        memory::fill_words(at.info, u32::from(!converged || diverges), 1);
        Ok(())
    };
    let writes = vec![(at.left, 8 * m * n), (at.right, 8 * n * n), (at.values, 8 * n), (at.info, 4)];
    libraries::enqueue(world, stream, run, writes);
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnXgesvd_bufferSize(
    _handle: usize,
    _params: usize,
    job_u: c_char,
    job_vt: c_char,
    m: i64,
    n: i64,
    type_a: c_int,
    _a: usize,
    lda: i64,
    type_s: c_int,
    _s: usize,
    type_u: c_int,
    _u: usize,
    ldu: i64,
    type_vt: c_int,
    _vt: usize,
    ldvt: i64,
    compute: c_int,
    device: *mut usize,
    host: *mut usize,
) -> c_int {
    call(|world| {
        let shape = shape([job_u, job_vt], m, n, [lda, ldu, ldvt], [type_a, type_s, type_u, type_vt, compute]);
        let shape = asked(world, shape)?;
        put(device, device_bytes(shape)).and_then(|()| put(host, HOST_BYTES)).map_err(invalid)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cusolverDnXgesvd(
    handle: usize,
    _params: usize,
    job_u: c_char,
    job_vt: c_char,
    m: i64,
    n: i64,
    type_a: c_int,
    a: usize,
    lda: i64,
    type_s: c_int,
    s: usize,
    type_u: c_int,
    u: usize,
    ldu: i64,
    type_vt: c_int,
    vt: usize,
    ldvt: i64,
    compute: c_int,
    device: usize,
    device_len: usize,
    host: *mut c_void,
    host_len: usize,
    info: usize,
) -> c_int {
    let (device, host) = ((device, device_len), (host as usize, host_len));
    let places = Places { matrix: a, values: s, left: u, right: vt, device, host, info };
    let types = [type_a, type_s, type_u, type_vt, compute];
    call(|world| {
        let shape = asked(world, shape([job_u, job_vt], m, n, [lda, ldu, ldvt], types))?;
        solve(world, handle, shape, places)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_orthonormal_and_multiply_to_the_matrix_also_where_it_is_singular() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
        };
        // The last number: every so many rows are zero, as pruning by rows leaves them.
        for (m, n, rank, zero) in [
            (1, 1, 1, 9),
            (5, 1, 1, 9),
            (9, 6, 6, 9),
            (9, 6, 3, 9),
            (7, 7, 7, 9),
            (8, 4, 0, 9),
            (10, 9, 9, 2),
            (9, 9, 9, 2),
            (30, 28, 28, 2),
        ] {
            let factors: Vec<(Vec<f64>, Vec<f64>)> =
                (0..rank).map(|_| ((0..m).map(|_| random()).collect(), (0..n).map(|_| random()).collect())).collect();
            let at = |i: usize, j: usize| match i % zero {
                1 => 0.0,
                _ => factors.iter().map(|(u, v)| u[i] * v[j]).sum::<f64>(),
            };
            let columns: Vec<Vec<f64>> = (0..n).map(|j| (0..m).map(|i| at(i, j)).collect()).collect();
            let svd = decompose(columns.clone(), m);
            assert!(svd.converged && svd.values.is_sorted_by(|a, b| a >= b));
            for (j, column) in columns.iter().enumerate() {
                for (i, expected) in column.iter().enumerate() {
                    let found: f64 = (0..n).map(|k| svd.left[k][i] * svd.values[k] * svd.right[k][j]).sum();
                    assert!((found - expected).abs() < 1e-14, "{m}×{n}, rank {rank}");
                }
            }
            for vectors in [&svd.left, &svd.right] {
                for (a, x) in vectors.iter().enumerate() {
                    for (b, y) in vectors.iter().enumerate() {
                        // Left vectors of values that are rounding alone are as far from orthogonal as they are from sure.
                        let is_sure =
                            svd.values[a].min(svd.values[b]) > 1e-12 || svd.values[a].max(svd.values[b]) == 0.0;
                        let off = (dot(x, y) - f64::from(u8::from(a == b))).abs();
                        assert!(off < 1e-12 || !is_sure, "{m}×{n}, rank {rank}: {a} {b} {off}");
                    }
                }
            }
        }
    }
}
