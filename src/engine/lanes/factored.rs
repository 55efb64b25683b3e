//! Singular triples and polar factors on a device, in f64: what `linalg/triples` and `linalg/polar` do on the CPU, by the same
//! thresholds.
//!
//! A Gram matrix's eigenvectors where its digits suffice, else a singular value decomposition. Numbers of columns are brought
//! back before new ones go up, so that no kernel reads what a copy is changing.

mod polar;

use super::matrices::{COLUMN_NUMBERS, Orthogonal};
use crate::backend::cuda::cublas::{Operand, Sides};
use crate::backend::cuda::cusolver::{self, SvdPlace};
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::lane::{Lane, place};
use crate::backend::cuda::ops::low_rank as kernels;
use crate::backend::cuda::pool::Span;
use crate::error::{Error, Result};
use crate::linalg::triples::{FROM_GRAM, LEAST_TRACE};

/// The spans of a step, in the order of [`Orthogonal::work`].
pub(super) struct Factored<'a> {
    pub gpu: &'a Gpu,
    pub matrix: Orthogonal,
    pub stages: Span,
    /// Task vectors of a group, row-major; later a factor on its way back.
    pub parts: Span,
    grams: Span,
    values: Span,
    infos: Span,
    solver: Span,
    /// Left and right singular vectors, m×columns and n×columns.
    lefts: Span,
    rights: Span,
    /// As large as the matrix.
    pub spare: Span,
    /// The change, row-major; before that a transposed task vector.
    pub low: Span,
    pub merged: Span,
    /// r numbers each of [`COLUMN_NUMBERS`] kinds.
    numbers: Span,
    scratch: Span,
    sums: Span,
    pub facts: Span,
    pub outs: Vec<Span>,
    /// Whether squares of numbers that are not 0 can be.
    squares_vanish: bool,
}

/// Kinds of numbers of columns, by their place in [`Factored::numbers`].
const NORM: u64 = 1;
const SCALE: u64 = 2;
const KEPT: u64 = 3;
const SINGULAR: u64 = 4;
const _: () = assert!(SINGULAR < COLUMN_NUMBERS);

impl<'a> Factored<'a> {
    pub fn new(gpu: &'a Gpu, matrix: Orthogonal, work: &[Span], squares_vanish: bool) -> Self {
        let [
            stages,
            parts,
            grams,
            values,
            infos,
            solver,
            lefts,
            rights,
            spare,
            low,
            merged,
            numbers,
            scratch,
            sums,
            facts,
        ] = std::array::from_fn(|i| work[i]);
        let outs = work[15..].to_vec();
        Self {
            gpu,
            matrix,
            stages,
            parts,
            grams,
            values,
            infos,
            solver,
            lefts,
            rights,
            spare,
            low,
            merged,
            numbers,
            scratch,
            sums,
            facts,
            outs,
            squares_vanish,
        }
    }

    /// Whether ‖A‖² tells that A is all zeros: of a model that left the matrix as it was.
    fn is_zero(&self, whole: f64) -> bool {
        whole == 0.0 && !self.squares_vanish
    }

    pub fn at(&self, span: Span, element: u64) -> Result<u64> {
        place(self.gpu, span, 8 * element, 0)
    }

    pub fn operand(&self, span: Span, element: u64, ld: usize) -> Result<Operand> {
        Ok(Operand { ptr: self.at(span, element)?, ld, stride: 0, is_transposed: false })
    }

    /// The left vectors from one on.
    pub fn left(&self, column: usize) -> Result<Operand> {
        self.operand(self.lefts, (column * self.matrix.m) as u64, self.matrix.m)
    }

    /// The right vectors from one on.
    pub fn right(&self, column: usize) -> Result<Operand> {
        self.operand(self.rights, (column * self.matrix.n) as u64, self.matrix.n)
    }

    fn number(&self, kind: u64) -> Result<u64> {
        self.at(self.numbers, kind * self.matrix.r as u64)
    }

    fn put(&self, lane: &mut Lane, kind: u64, numbers: &[f64]) -> Result<()> {
        lane.put(self.gpu, self.numbers, 8 * kind * self.matrix.r as u64, bytemuck::cast_slice(numbers))
    }

    fn get(&self, lane: &mut Lane, span: Span, element: u64, count: usize) -> Result<Vec<f64>> {
        let mut numbers = vec![0f64; count];
        lane.get(self.gpu, span, 8 * element, bytemuck::cast_slice_mut(&mut numbers))?;
        Ok(numbers)
    }

    fn scale(&self, lane: &Lane, x: Operand, rows: usize, columns: usize, kind: u64) -> Result<()> {
        let (stream, by) = (lane.stream(), self.number(kind)?);
        kernels::scale_columns(self.gpu.kernels(), stream, x.ptr, true, by, rows as u64, columns as u64)
    }

    fn copy(&self, lane: &Lane, from: u64, to: u64, elems: u64) -> Result<()> {
        kernels::convert(self.gpu.kernels(), lane.stream(), from, true, to, true, elems)
    }

    /// Sets to zero what is added to or read as it is.
    pub fn clear(&self, lane: &mut Lane) -> Result<()> {
        // Of columns that are not there no lengths are asked.
        let zeros = if self.matrix.columns > 0 { 8 * self.matrix.r as u64 } else { 0 };
        let zeros = Span { bytes: zeros, ..self.numbers };
        [self.facts, zeros, self.bad()].into_iter().try_for_each(|span| lane.clear(self.gpu, span))
    }

    /// The count of NaN and infinities, before the sums of squares.
    fn bad(&self) -> Span {
        Span { bytes: 8, ..self.sums }
    }

    /// Counts NaN and infinities of part `i` of a group, for [`Self::squares`].
    pub fn check(&self, lane: &Lane, i: usize) -> Result<()> {
        let elems = self.matrix.elems();
        let (x, count) = (self.at(self.parts, i as u64 * elems)?, self.at(self.bad(), 0)?);
        kernels::count_nonfinite(self.gpu.kernels(), lane.stream(), x, true, elems, count)
    }

    /// ‖A‖² of the parts of a group, which may be infinite: a sum of squares can overflow where the numbers do not.
    ///
    /// # Errors
    /// `Input` if one of the parts that have been checked so far holds a NaN or an infinity.
    pub fn squares(&self, lane: &mut Lane, count: usize) -> Result<Vec<f64>> {
        for i in 0..count as u64 {
            let elems = self.matrix.elems();
            let (x, to) = (self.at(self.parts, i * elems)?, self.at(self.sums, 1 + i)?);
            kernels::squares(self.gpu.kernels(), lane.stream(), x, true, elems, self.at(self.scratch, 0)?, to)?;
        }
        let mut wholes = self.get(lane, self.sums, 0, 1 + count)?;
        if wholes.remove(0).to_bits() > 0 {
            return Err(Error::input("a model or the base holds a NaN or an infinity"));
        }
        match wholes.iter().any(|whole| whole.is_nan()) {
            true => Err(Error::internal(format!("a sum of squares that is no number on {}", self.gpu.label))),
            false => Ok(wholes),
        }
    }

    /// Eigenvectors of the Gram matrices of the parts of a group, in the Gram matrices' place; returns all eigenvalues,
    /// ascending, of each. `wholes`: ‖A‖² of each; where squares are out of range the values are 0. Where all are zeros nothing
    /// is decomposed.
    pub fn vectors(&self, lane: &mut Lane, wholes: &[f64]) -> Result<Vec<f64>> {
        if wholes.iter().all(|whole| self.is_zero(*whole)) {
            return Ok(vec![0.0; self.matrix.r * wholes.len()]);
        }
        let (m, n, r, count) = (self.matrix.m, self.matrix.n, self.matrix.r, wholes.len());
        let x = Operand { stride: self.matrix.elems(), ..self.operand(self.parts, 0, n)? };
        let grams = Operand { stride: (r * r) as u64, ..self.operand(self.grams, 0, r)? };
        let (left, right, k) = if m <= n { (x.t(), x, n) } else { (x, x.t(), m) };
        lane.multiply(self.gpu, Sides { m: r, n: r, k, batch: count }, left, right, grams, false)?;
        for (i, _) in wholes.iter().enumerate().filter(|(_, whole)| !in_range(**whole)) {
            let bytes = 8 * (r * r) as u64;
            lane.clear(self.gpu, Span { offset: self.grams.offset + i as u64 * bytes, bytes })?;
        }
        self.decompose(lane, r, count)
    }

    /// Eigenvectors and eigenvalues of the first Gram matrices, n×n.
    fn decompose(&self, lane: &mut Lane, n: usize, count: usize) -> Result<Vec<f64>> {
        let (gpu, side) = (self.gpu, (n * n) as u64);
        let batch = lane.solver()?.eigen.batch(n, count);
        for first in (0..count).step_by(batch) {
            let at = cusolver::Place {
                matrices: self.at(self.grams, first as u64 * side)?,
                values: self.at(self.values, (first * n) as u64)?,
                info: place(gpu, self.infos, 4 * first as u64, 0)?,
                workspace: self.at(self.solver, 0)?,
                workspace_bytes: self.solver.bytes,
            };
            lane.decompose(gpu, n, batch.min(count - first), at)?;
        }
        self.converged(lane, count, (self.values, 0, n * count), &format!("the eigenvectors of a {n}×{n} matrix"))
    }

    /// The values that so many decompositions gave, if they converged.
    fn converged(
        &self,
        lane: &mut Lane,
        count: usize,
        (span, element, values): (Span, u64, usize),
        what: &str,
    ) -> Result<Vec<f64>> {
        let values = self.get(lane, span, element, values)?;
        let mut infos = vec![0i32; count];
        lane.get(self.gpu, self.infos, 0, bytemuck::cast_slice_mut(&mut infos))?;
        if infos.iter().all(|info| *info == 0) && !values.iter().any(|value| value.is_nan()) {
            return Ok(values);
        }
        let text = format!("{what} did not converge on {}", self.gpu.label);
        Err(Error::device(text).hint("use `--device cpu` for this recipe"))
    }

    /// U S Vᵀ of a tall matrix, which is destroyed: U in the spare span, Vᵀ in Gram matrix `i`; returns S, descending.
    fn svd(&self, lane: &mut Lane, z: Operand, rows: usize, columns: usize, i: usize) -> Result<Vec<f64>> {
        let gram = (i * self.matrix.r * self.matrix.r) as u64;
        let at = SvdPlace {
            matrix: z.ptr,
            values: self.number(NORM)?,
            left: self.at(self.spare, 0)?,
            right: self.at(self.grams, gram)?,
            info: self.at(self.infos, 0)?,
            workspace: self.at(self.solver, 0)?,
            workspace_bytes: self.solver.bytes,
        };
        lane.svd(self.gpu, (rows, columns), at)?;
        let values = (self.numbers, NORM * self.matrix.r as u64, columns);
        self.converged(lane, 1, values, &format!("the singular values of a {rows}×{columns} matrix"))
    }

    /// Part `i` of a group as a tall matrix: Aᵀ where it lies, or A as a copy.
    fn tall(&self, lane: &mut Lane, i: usize) -> Result<Operand> {
        let (m, n) = (self.matrix.m, self.matrix.n);
        let x = self.operand(self.parts, i as u64 * self.matrix.elems(), n)?;
        if m <= n {
            return Ok(x);
        }
        let a = self.operand(self.low, 0, m)?;
        lane.transpose(self.gpu, (n, m), x, a)?;
        Ok(a)
    }

    /// The k leading singular triples of part `i` of a group, their vectors as columns from `column` on; zeros where σ is
    /// numerically null, or at most `null`. `whole`: ‖A‖². `values`: the eigenvalues of its Gram matrix, whose place has the
    /// vectors.
    pub fn triples(
        &self,
        lane: &mut Lane,
        (i, whole): (usize, f64),
        k: usize,
        null: f64,
        values: &[f64],
        column: usize,
    ) -> Result<Vec<f64>> {
        if k == 0 {
            return Ok(Vec::new());
        }
        let (gpu, m, n, r, long) = (self.gpu, self.matrix.m, self.matrix.n, self.matrix.r, self.matrix.long);
        if self.is_zero(whole) {
            for (span, rows) in [(self.lefts, m), (self.rights, n)] {
                let (offset, bytes) = (span.offset + 8 * (column * rows) as u64, 8 * (k * rows) as u64);
                lane.clear(gpu, Span { offset, bytes })?;
            }
            return Ok(vec![0.0; k]);
        }
        let (left, right) = (self.left(column)?, self.right(column)?);
        let (short_side, long_side) = if m <= n { (left, right) } else { (right, left) };
        let most = values[r - 1];
        let (singular, mut by) = if values[r - k] > FROM_GRAM * most && most > 0.0 {
            // The last k columns are those of the greatest values.
            let from = ((i * r + r - k) * r) as u64;
            self.copy(lane, self.at(self.grams, from)?, short_side.ptr, (k * r) as u64)?;
            let x = self.operand(self.parts, i as u64 * self.matrix.elems(), n)?;
            let sides = Sides { m: long, n: k, k: r, batch: 1 };
            lane.multiply(gpu, sides, if m <= n { x } else { x.t() }, short_side, long_side, false)?;
            let (rows, zeros, norms) = (long as u64, self.at(self.numbers, 0)?, self.number(NORM)?);
            let (stream, b) = (lane.stream(), long_side.ptr);
            kernels::residuals(gpu.kernels(), stream, b, b, true, zeros, rows, k as u64, norms)?;
            let norms = self.get(lane, self.numbers, NORM * r as u64, k)?;
            let by: Vec<f64> = norms.iter().map(|s| if *s > 0.0 { 1.0 / s } else { 0.0 }).collect();
            (norms, by)
        } else {
            let z = self.tall(lane, i)?;
            let mut singular = self.svd(lane, z, long, r, i)?;
            singular.truncate(k);
            let vt = self.operand(self.grams, (i * r * r) as u64, r)?;
            lane.transpose(gpu, (k, r), vt, short_side)?;
            self.copy(lane, self.at(self.spare, 0)?, long_side.ptr, (k * long) as u64)?;
            (singular, vec![1.0; k])
        };
        let greatest = singular.iter().fold(0.0f64, |most, s| s.max(most));
        let null = null.max(long as f64 * f64::EPSILON * greatest);
        let kept: Vec<f64> = singular.iter().map(|s| if *s <= null { 0.0 } else { 1.0 }).collect();
        by.iter_mut().zip(&kept).for_each(|(by, kept)| *by *= kept);
        self.put(lane, SCALE, &by)?;
        self.scale(lane, long_side, long, k, SCALE)?;
        if kept.contains(&0.0) {
            self.put(lane, KEPT, &kept)?;
            self.scale(lane, short_side, r, k, KEPT)?;
        }
        Ok(singular)
    }

    /// Left vectors times their singular values.
    pub fn scale_left(&self, lane: &mut Lane, singular: &[f64]) -> Result<()> {
        self.put(lane, SINGULAR, singular)?;
        self.scale(lane, self.left(0)?, self.matrix.m, self.matrix.columns, SINGULAR)
    }
}

/// Whether the Gram matrix of a matrix with this sum of squares neither overflows nor underflows.
fn in_range(whole: f64) -> bool {
    whole.is_finite() && whole > LEAST_TRACE
}
