//! Polar factors on a device: of what the columns of all tasks are together, and of a whole matrix.

use super::{Factored, SCALE};
use crate::backend::cuda::cublas::{Operand, Sides};
use crate::backend::cuda::lane::Lane;
use crate::backend::cuda::pool::Span;
use crate::error::Result;
use crate::linalg::polar::{NULL_OF_COMPUTED, WELL_CONDITIONED};

impl Factored<'_> {
    /// Replaces all left and all right vectors by the nearest orthonormal ones.
    pub fn orthonormalise(&self, lane: &mut Lane) -> Result<()> {
        self.polar(lane, self.left(0)?, self.matrix.m)?;
        self.polar(lane, self.right(0)?, self.matrix.n)
    }

    fn polar(&self, lane: &mut Lane, z: Operand, rows: usize) -> Result<()> {
        let (gpu, k) = (self.gpu, self.matrix.columns);
        let elems = (rows * k) as u64;
        let to = self.operand(self.parts, 0, rows)?;
        // Columns are of length 1 or 0: their squares are in range.
        let gram = self.operand(self.grams, 0, k)?;
        lane.multiply(gpu, Sides { m: k, n: k, k: rows, batch: 1 }, z.t(), z, gram, false)?;
        let squares = self.decompose(lane, k, 1)?;
        if let Some(root) = self.root(lane, k, &squares)? {
            lane.multiply(gpu, Sides { m: rows, n: k, k, batch: 1 }, z, root, to, false)?;
        } else {
            let singular = self.svd(lane, z, rows, k, 0)?;
            // Vectors that several matrices share are one direction, whatever rounding makes of their difference.
            let kept = kept(&singular, rows, NULL_OF_COMPUTED);
            let (u, vt) = (self.operand(self.spare, 0, rows)?, self.operand(self.grams, 0, k)?);
            if kept > 0 {
                lane.multiply(gpu, Sides { m: rows, n: k, k: kept, batch: 1 }, u, vt, to, false)?;
            } else {
                lane.clear(gpu, Span { bytes: 8 * elems, ..self.parts })?;
            }
        }
        self.copy(lane, to.ptr, z.ptr, elems)
    }

    /// (V λ^(-½) Vᵀ) of the first Gram matrix, whose eigenvectors V lie in its place, in the spare span; `None` where its values
    /// span too much.
    fn root(&self, lane: &mut Lane, k: usize, squares: &[f64]) -> Result<Option<Operand>> {
        let (least, most) = (squares[0], squares[k - 1]);
        let is_well = least > WELL_CONDITIONED * most;
        if !is_well {
            return Ok(None);
        }
        let by: Vec<f64> = squares.iter().map(|s| 1.0 / s.sqrt().sqrt()).collect();
        self.put(lane, SCALE, &by)?;
        let (v, root) = (self.operand(self.grams, 0, k)?, self.operand(self.spare, 0, k)?);
        self.scale(lane, v, k, k, SCALE)?;
        lane.multiply(self.gpu, Sides { m: k, n: k, k, batch: 1 }, v, v.t(), root, false)?;
        Ok(Some(root))
    }

    /// The polar factor of the first part, row-major in the span for the change; returns the singular values.
    pub fn polar_of_whole(&self, lane: &mut Lane) -> Result<Vec<f64>> {
        let (gpu, m, n, r, long) = (self.gpu, self.matrix.m, self.matrix.n, self.matrix.r, self.matrix.long);
        let wholes = self.squares(lane, 1)?;
        if self.is_zero(wholes[0]) {
            lane.clear(gpu, self.low)?;
            return Ok(vec![0.0; r]);
        }
        let squares = self.vectors(lane, &wholes)?;
        let (x, to) = (self.operand(self.parts, 0, n)?, self.operand(self.low, 0, n)?);
        if let Some(root) = self.root(lane, r, &squares)? {
            let (left, right) = if m <= n { (x, root) } else { (root, x) };
            lane.multiply(gpu, Sides { m: n, n: m, k: r, batch: 1 }, left, right, to, false)?;
            return Ok(squares.into_iter().map(f64::sqrt).collect());
        }
        let z = self.tall(lane, 0)?;
        let singular = self.svd(lane, z, long, r, 0)?;
        let kept = kept(&singular, long, 0.0);
        let (u, vt) = (self.operand(self.spare, 0, long)?, self.operand(self.grams, 0, r)?);
        if kept > 0 {
            let (left, right) = if m <= n { (u, vt) } else { (vt.t(), u.t()) };
            lane.multiply(gpu, Sides { m: n, n: m, k: kept, batch: 1 }, left, right, to, false)?;
        } else {
            lane.clear(gpu, self.low)?;
        }
        Ok(singular)
    }
}

/// How many singular values, descending, are not numerically null.
fn kept(singular: &[f64], long: usize, null: f64) -> usize {
    let null = (long as f64 * f64::EPSILON).max(null) * singular.first().copied().unwrap_or_default();
    singular.iter().filter(|s| **s > null).count()
}
