//! Reduction of a symmetric matrix to tridiagonal form, Q T Qᵀ, by Householder reflections.
//!
//! Blocked (Dongarra, Hammarling and Sorensen 1989): while the reflections of a panel are found, the rest of the matrix is only read,
//! half of it a column; it is changed once a panel, by a product of matrices. faer's own reduction, taken where the processor has no
//! [`Sweep`], changes it for every column.

use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::evd::tridiag::{tridiag_in_place, tridiag_in_place_scratch};
use faer::linalg::householder::{make_householder_in_place, upgrade_householder_factor};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{BlockStructure, matmul as triangular_matmul};
use faer::traits::RealField;
use faer::{Accum, ColMut, ColRef, Mat, MatRef, Par};

use super::memory;
use super::sweep::{Sweep, Swept, WIDTH};
use crate::error::Result;

/// Householder vectors of a panel, and of a block of [`reduce`]'s factors.
pub const BLOCK: usize = 32;

/// Reduces the matrix (n×n, n ≥ 1) whose lower triangle is given: T on its diagonal and the one below, the Householder vectors below
/// that (their first elements, not stored, are 1). `factors` (BLOCK × n−1) takes their block factors. About 4/3·n³ operations.
///
/// # Errors
/// If memory cannot be had.
pub fn reduce<T: RealField + Copy + Swept>(matrix: &mut Mat<T>, factors: &mut Mat<T>) -> Result<()> {
    match T::detect() {
        Some(sweep) => blocked(sweep, matrix, factors),
        None => by_faer(matrix, factors)?,
    }
    Ok(())
}

/// [`reduce`] where the processor has no sweep.
pub(super) fn by_faer<T: RealField>(matrix: &mut Mat<T>, factors: &mut Mat<T>) -> Result<()> {
    let n = matrix.nrows();
    let request = tridiag_in_place_scratch::<T>(n, Par::Seq, Default::default());
    let mut scratch =
        MemBuffer::try_new(request).map_err(|_| memory::missing("eigen-decomposition", n, request.size_bytes()))?;
    let stack = MemStack::new(&mut scratch);
    tridiag_in_place(matrix.as_mut(), factors.as_mut(), Par::Seq, stack, Default::default());
    Ok(())
}

fn blocked<T: RealField + Copy>(sweep: Sweep<T>, matrix: &mut Mat<T>, factors: &mut Mat<T>) {
    let n = matrix.nrows();
    let (left, right) = (Mat::zeros(n, 2 * BLOCK), Mat::zeros(n, 2 * BLOCK));
    let mut panel = Panel { sweep, left, right, w: vec![T::zero_impl(); n] };
    for first in (0..n.saturating_sub(1)).step_by(BLOCK) {
        let count = BLOCK.min(n - 1 - first);
        for i in 0..count {
            factors[(i, first + i)] = panel.reflect(matrix, first, i);
        }
        panel.change(matrix, first + count, count);
        let reflectors = matrix.as_ref().submatrix(first + 1, first, n - 1 - first, count);
        let block = factors.as_mut().submatrix_mut(0, first, count, count);
        upgrade_householder_factor(block, reflectors, count, 1, Par::Seq);
    }
}

/// Bytes that [`reduce`] allocates.
pub fn bytes<T: RealField>(n: usize) -> u64 {
    let faer: StackReq = tridiag_in_place_scratch::<T>(n, Par::Seq, Default::default());
    // Columns are padded to whole vectors.
    let own = (4 * BLOCK as u64 + 1) * (n as u64 + 16) * size_of::<T>() as u64;
    own.max(faer.size_bytes() as u64)
}

/// What a panel's reflections I − v vᵀ/τ change in the matrix: A ← A − Σ (v wᵀ + w vᵀ) = A − L Rᵀ.
struct Panel<T> {
    sweep: Sweep<T>,
    /// L (n × 2·BLOCK): v, w of the first reflection, v, w of the second, … Rows above a reflection's first are not used.
    left: Mat<T>,
    /// R: w, v, w, v, …
    right: Mat<T>,
    /// w of the reflection at hand.
    w: Vec<T>,
}

impl<T: RealField + Copy> Panel<T> {
    /// Makes reflection `i` of the panel that begins at column `first`; returns its τ.
    fn reflect(&mut self, matrix: &mut Mat<T>, first: usize, i: usize) -> T {
        let n = matrix.nrows();
        let (column, from, before) = (first + i, first + i + 1, 2 * i);
        let mut few = [T::zero_impl(); 2 * BLOCK];
        let few = &mut few[..before];

        // The column as earlier reflections of this panel leave it.
        few.iter_mut().enumerate().for_each(|(k, x)| *x = self.right[(column, k)]);
        let target = &mut matrix.col_as_slice_mut(column)[column..];
        subtract(target, self.left.get(column..n, ..before), few);

        let (head, tail) = target[1..].split_at_mut(1);
        let tau = make_householder_in_place(&mut head[0], ColMut::from_slice_mut(tail)).tau;
        let v = &mut self.left.col_as_slice_mut(before)[from..];
        v[0] = T::one_impl();
        v[1..].copy_from_slice(tail);
        self.right.col_as_slice_mut(before + 1)[from..].copy_from_slice(v);

        // w = (A − L Rᵀ) v / τ, less the half of v wᵀ v that the other side subtracts too.
        let v = &self.left.col_as_slice(before)[from..];
        let w = &mut self.w[from..];
        multiply(self.sweep, matrix, from, v, w);
        let right = self.right.get(from..n, ..before).transpose();
        matmul(ColMut::from_slice_mut(few), Accum::Replace, right, ColRef::from_slice(v), T::one_impl(), Par::Seq);
        subtract(w, self.left.get(from..n, ..before), few);
        let inner = v.iter().zip(&*w).fold(T::zero_impl(), |sum, (v, w)| sum + *v * *w);
        let along = T::from_f64_impl(0.5) * (inner / tau) / tau;
        w.iter_mut().zip(v).for_each(|(w, v)| *w = *w / tau - along * *v);
        self.left.col_as_slice_mut(before + 1)[from..].copy_from_slice(w);
        self.right.col_as_slice_mut(before)[from..].copy_from_slice(w);
        tau
    }

    /// Changes rows and columns from `from` by the panel's `count` reflections.
    fn change(&self, matrix: &mut Mat<T>, from: usize, count: usize) {
        let n = matrix.nrows();
        triangular_matmul(
            matrix.as_mut().get_mut(from.., from..),
            BlockStructure::TriangularLower,
            Accum::Add,
            self.left.get(from..n, ..2 * count),
            BlockStructure::Rectangular,
            self.right.get(from..n, ..2 * count).transpose(),
            BlockStructure::Rectangular,
            T::zero_impl() - T::one_impl(),
            Par::Seq,
        );
    }
}

/// y ← y − A x
fn subtract<T: RealField + Copy>(y: &mut [T], a: MatRef<'_, T>, x: &[T]) {
    let minus_one = T::zero_impl() - T::one_impl();
    matmul(ColMut::from_slice_mut(y), Accum::Add, a, ColRef::from_slice(x), minus_one, Par::Seq);
}

/// y = S x, of the symmetric matrix S whose lower triangle is `matrix` from row and column `from`.
fn multiply<T: RealField + Copy>(sweep: Sweep<T>, matrix: &Mat<T>, from: usize, x: &[T], y: &mut [T]) {
    y.fill(T::zero_impl());
    let len = y.len();
    for at in (0..len).step_by(WIDTH) {
        let width = WIDTH.min(len - at);
        // The square on the diagonal, element by element.
        for k in at..at + width {
            y[k] += matrix[(from + k, from + k)] * x[k];
            for row in k + 1..at + width {
                let a = matrix[(from + row, from + k)];
                y[row] += a * x[k];
                y[k] += a * x[row];
            }
        }
        if width < WIDTH {
            break;
        }
        let below = at + WIDTH;
        let column = |k: usize| &matrix.col_as_slice(from + at + k)[from + below..];
        let columns = [column(0), column(1), column(2), column(3)];
        let (top, rest) = y.split_at_mut(below);
        let sums = sweep.run(columns, &x[below..], rest, [x[at], x[at + 1], x[at + 2], x[at + 3]]);
        top[at..].iter_mut().zip(sums).for_each(|(y, sum)| *y += sum);
    }
}
