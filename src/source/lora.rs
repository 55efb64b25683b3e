//! A weight with a LoRA adapter on it: W + s·B·A, made tile by tile as it is read, in float32.

use std::ops::Range;
use std::sync::OnceLock;

use super::Held;
use crate::backend::cpu::stored::Stored;
use crate::checkpoint::{Made, Origin, Shard};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::Result;

/// Bytes of a float32.
const F32_BYTES: u64 = 4;

/// W of [m, n] with its adapter: A of [r, n] and B of [m, r], or, where W is stored transposed, A of [r, m] and B of [n, r].
#[derive(Debug)]
pub(super) struct Adapted {
    pub base: Held,
    pub a: Held,
    pub b: Held,
    pub rank: u64,
    /// alpha/r, or alpha/√r.
    pub scale: f32,
    /// Whether the change is (B·A)ᵀ.
    pub is_transposed: bool,
    /// DoRA's magnitudes, one for each output of the layer.
    pub magnitudes: Option<Held>,
    /// The norms that they divide, once they were asked for.
    pub norms: OnceLock<Vec<f32>>,
}

impl Adapted {
    fn columns(&self) -> u64 {
        self.base.tensor.shape[1]
    }

    /// Elements of a held tensor as numbers.
    fn read(held: &Held, elems: Range<u64>) -> Result<Vec<f32>> {
        let size = held.tensor.dtype.size_bytes().unwrap_or(1);
        let mut values = vec![0.0_f32; (elems.end - elems.start) as usize];
        let mut scratch = Vec::new();
        let begin = held.tensor.begin;
        let bytes = held.shard.bytes(begin + elems.start * size..begin + elems.end * size, &mut scratch)?;
        Stored { dtype: held.tensor.dtype, bytes }.widen(0, &mut values);
        Ok(values)
    }

    /// The factor whose rows go along W's rows, as [rows, r] for a range of rows; and the other one as [r, columns].
    fn factors(&self, rows: &Range<u64>) -> Result<(Vec<f32>, Vec<f32>)> {
        let (r, n) = (self.rank, self.columns());
        if !self.is_transposed {
            return Ok((Self::read(&self.b, rows.start * r..rows.end * r)?, Self::read(&self.a, 0..r * n)?));
        }
        // A is [r, m] and B is [n, r]: both the other way round.
        let m = self.base.tensor.shape[0];
        let count = (rows.end - rows.start) as usize;
        let mut left = vec![0.0; count * r as usize];
        for k in 0..r {
            let part = Self::read(&self.a, k * m + rows.start..k * m + rows.end)?;
            part.iter().enumerate().for_each(|(i, v)| left[i * r as usize + k as usize] = *v);
        }
        let all = Self::read(&self.b, 0..n * r)?;
        let mut right = vec![0.0; all.len()];
        for j in 0..n as usize {
            for k in 0..r as usize {
                right[k * n as usize + j] = all[j * r as usize + k];
            }
        }
        Ok((left, right))
    }

    /// W + s·B·A of whole rows.
    fn rows(&self, rows: Range<u64>) -> Result<Vec<f32>> {
        let (r, n) = (self.rank as usize, self.columns() as usize);
        let mut values = Self::read(&self.base, rows.start * n as u64..rows.end * n as u64)?;
        let (left, right) = self.factors(&rows)?;
        let mut change = vec![0.0_f32; n];
        for (row, left) in values.chunks_exact_mut(n).zip(left.chunks_exact(r)) {
            change.fill(0.0);
            for (factor, right) in left.iter().zip(right.chunks_exact(n)) {
                change.iter_mut().zip(right).for_each(|(sum, v)| *sum += factor * v);
            }
            row.iter_mut().zip(&change).for_each(|(v, change)| *v += self.scale * change);
        }
        Ok(values)
    }

    /// What each output's weights are multiplied by: DoRA's magnitude over the norm of W + s·B·A.
    fn norms(&self, magnitudes: &Held) -> Result<&[f32]> {
        if let Some(norms) = self.norms.get() {
            return Ok(norms);
        }
        let (m, n) = (self.base.tensor.shape[0], self.columns());
        let outputs = if self.is_transposed { n } else { m };
        let mut squares = vec![0.0_f64; outputs as usize];
        let at_once = (1 << 20) / n.max(1) + 1;
        let mut from = 0;
        while from < m {
            let to = (from + at_once).min(m);
            for (i, row) in self.rows(from..to)?.chunks_exact(n as usize).enumerate() {
                let row = row.iter().map(|v| f64::from(*v) * f64::from(*v));
                if self.is_transposed {
                    squares.iter_mut().zip(row).for_each(|(sum, square)| *sum += square);
                } else {
                    squares[from as usize + i] = row.sum();
                }
            }
            from = to;
        }
        let magnitudes = Self::read(magnitudes, 0..outputs)?;
        let factors =
            magnitudes.iter().zip(&squares).map(|(m, square)| (f64::from(*m) / square.sqrt()) as f32).collect();
        Ok(self.norms.get_or_init(|| factors))
    }
}

impl Made for Adapted {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let n = self.columns();
        let (start, end) = (range.start / F32_BYTES, range.end / F32_BYTES);
        let rows = start / n..end.div_ceil(n);
        let mut values = self.rows(rows.clone())?;
        if let Some(magnitudes) = &self.magnitudes {
            let norms = self.norms(magnitudes)?;
            for (row, values) in rows.clone().zip(values.chunks_exact_mut(n as usize)) {
                if self.is_transposed {
                    values.iter_mut().zip(norms).for_each(|(v, factor)| *v *= factor);
                } else {
                    values.iter_mut().for_each(|v| *v *= norms[row as usize]);
                }
            }
        }
        let first = (start - rows.start * n) as usize;
        let part = &values[first..first + (end - start) as usize];
        out.extend_from_slice(bytemuck::cast_slice(part));
        Ok(())
    }

    fn of(&self, range: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        let tensor = &self.base.tensor;
        let size = tensor.dtype.size_bytes().unwrap_or(1);
        let place = |byte: u64| tensor.begin + (byte / F32_BYTES * size).min(tensor.bytes);
        Some((&self.base.shard, place(range.start)..place(range.end)))
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        let change = if self.is_transposed { "(B·A)ᵀ" } else { "B·A" };
        let (rank, scale) = (self.rank, self.scale);
        let how = match self.magnitudes {
            None => format!("W + {scale}·{change}, of rank {rank}"),
            Some(_) => format!("m·(W + {scale}·{change})/‖W + {scale}·{change}‖ by outputs, of rank {rank}"),
        };
        let parts =
            [("W", Some(&self.base)), ("A", Some(&self.a)), ("B", Some(&self.b)), ("m", self.magnitudes.as_ref())];
        Origin { how, parts: parts.into_iter().filter_map(|(what, held)| Some(held?.part(what))).collect() }
    }
}

/// A tensor of an adapter that takes the place of the base's.
#[derive(Debug)]
pub(super) struct Instead(pub Held);

impl Made for Instead {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let begin = self.0.tensor.begin;
        let mut scratch = Vec::new();
        out.extend_from_slice(self.0.shard.bytes(begin + range.start..begin + range.end, &mut scratch)?);
        Ok(())
    }

    fn of(&self, range: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        let begin = self.0.tensor.begin;
        Some((&self.0.shard, begin + range.start..begin + range.end))
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        Origin { how: "the adapter's own, in the base's place".into(), parts: vec![self.0.part("tensor")] }
    }
}

/// What a weight with an adapter is made as.
pub(super) const DTYPE: Dtype = Dtype::F32;
