//! The rows of embeddings and heads in another vocabulary: taken, filled and averaged as they are read, never copied whole.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::backend::cpu::stored::Stored;
use crate::checkpoint::{Made, Origin, Part, Shard, Tensor};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Result};

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Row {
    /// A row of one of the stored tensors: its place among [`Rows::tensors`], and the row.
    Of(u32, u32),
    /// Zeros.
    Zero,
    /// The mean of rows.
    Mean(Vec<(u32, u32)>),
    /// The mean of all rows that are not padding.
    Padding,
}

/// A stored tensor with the file that holds it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub shard: Arc<Shard>,
    pub tensor: Tensor,
}

impl Held {
    /// As a part of another tensor.
    pub fn part(&self, what: impl Into<String>) -> Part {
        Part::of(what, &self.shard, &self.tensor)
    }
}

/// A tensor whose rows are rows of others.
#[derive(Debug)]
pub(crate) struct Rows {
    /// What rows are taken of.
    tensors: Vec<Held>,
    rows: Vec<Row>,
    /// Elements of a row.
    row_elems: u64,
    /// The element type of what is made.
    dtype: Dtype,
    /// The mean row, once it was asked for.
    padding: OnceLock<Vec<f64>>,
}

impl Rows {
    /// Rows of these tensors, whose rows have as many elements each. Stored as they are where all of one type are only
    /// taken; else in float32, or wider where one of them is.
    pub fn new(tensors: Vec<Held>, rows: Vec<Row>, row_elems: u64) -> Self {
        let used = |row: &Row| match row {
            Row::Of(tensor, _) => vec![*tensor],
            Row::Mean(of) => of.iter().map(|(tensor, _)| *tensor).collect(),
            Row::Zero | Row::Padding => Vec::new(),
        };
        let mut dtypes: Vec<Dtype> = Vec::new();
        for tensor in rows.iter().flat_map(used) {
            let dtype = tensors[tensor as usize].tensor.dtype;
            if !dtypes.contains(&dtype) {
                dtypes.push(dtype);
            }
        }
        let computes = rows.iter().any(|row| matches!(row, Row::Mean(_) | Row::Padding));
        let dtype = match dtypes[..] {
            [only] if !computes => only,
            _ if dtypes.contains(&Dtype::F64) => Dtype::F64,
            _ => Dtype::F32,
        };
        Self { tensors, rows, row_elems, dtype, padding: OnceLock::new() }
    }

    /// The element type of what is made.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// How many rows there are.
    pub fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Calls `take` with the stored elements `part` of a row.
    fn stored<T>(
        &self,
        (tensor, row): (u32, u32),
        part: &Range<u64>,
        take: impl FnOnce(&Stored<'_>) -> T,
    ) -> Result<T> {
        let Held { shard, tensor } = &self.tensors[tensor as usize];
        let size = tensor.dtype.size_bytes().unwrap_or(1);
        let first = tensor.begin + u64::from(row) * self.row_elems * size;
        let mut scratch = Vec::new();
        let bytes = shard.bytes(first + part.start * size..first + part.end * size, &mut scratch)?;
        Ok(take(&Stored { dtype: tensor.dtype, bytes }))
    }

    /// Adds a part of a row to sums.
    fn add(&self, at: (u32, u32), part: &Range<u64>, sums: &mut [f64]) -> Result<()> {
        let mut values = vec![0.0; sums.len()];
        self.stored(at, part, |stored| stored.widen(0, &mut values))?;
        sums.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
        Ok(())
    }

    /// A part of a row as numbers.
    fn values(&self, row: &Row, part: &Range<u64>) -> Result<Vec<f64>> {
        let mut values = vec![0.0; (part.end - part.start) as usize];
        match row {
            Row::Of(tensor, row) => self.stored((*tensor, *row), part, |stored| stored.widen(0, &mut values))?,
            Row::Zero => {}
            Row::Mean(of) => {
                of.iter().try_for_each(|at| self.add(*at, part, &mut values))?;
                values.iter_mut().for_each(|value| *value /= of.len() as f64);
            }
            Row::Padding => {
                let mean = match self.padding.get() {
                    Some(mean) => mean,
                    None => {
                        let mean = self.mean()?;
                        self.padding.get_or_init(|| mean)
                    }
                };
                values.copy_from_slice(&mean[part.start as usize..part.end as usize]);
            }
        }
        Ok(values)
    }

    /// The mean of all rows that are not padding.
    fn mean(&self) -> Result<Vec<f64>> {
        let all = 0..self.row_elems;
        let mut sums = vec![0.0; self.row_elems as usize];
        let mut count = 0_u64;
        for row in self.rows.iter().filter(|row| **row != Row::Padding) {
            match row {
                Row::Of(tensor, row) => self.add((*tensor, *row), &all, &mut sums)?,
                row => {
                    let values = self.values(row, &all)?;
                    sums.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
                }
            }
            count += 1;
        }
        sums.iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
        Ok(sums)
    }
}

impl Made for Rows {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let size = self.dtype.size_bytes().unwrap_or(1);
        let (start, end) = (range.start / size, range.end / size);
        let mut at = start;
        while at < end {
            let row = at / self.row_elems;
            let part = at - row * self.row_elems..(end - row * self.row_elems).min(self.row_elems);
            at += part.end - part.start;
            let row = &self.rows[row as usize];
            match row {
                Row::Of(tensor, of) if self.tensors[*tensor as usize].tensor.dtype == self.dtype => {
                    self.stored((*tensor, *of), &part, |stored| out.extend_from_slice(stored.bytes))?;
                }
                Row::Zero => out.resize(out.len() + ((part.end - part.start) * size) as usize, 0),
                row => {
                    let values = self.values(row, &part)?;
                    match self.dtype {
                        Dtype::F64 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
                        Dtype::F32 => values.iter().for_each(|v| out.extend((*v as f32).to_le_bytes())),
                        other => return Err(Error::internal(format!("rows are not made as {other}"))),
                    }
                }
            }
        }
        Ok(())
    }

    fn of(&self, range: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        // Vocabularies begin alike, so that most rows lie about where they are read.
        let size = self.dtype.size_bytes().unwrap_or(1);
        let row = |byte: u64| (byte / size).div_ceil(self.row_elems.max(1));
        let (first, last) = (row(range.start), row(range.end));
        let places =
            self.rows.get(first as usize..(last as usize).min(self.rows.len()))?.iter().filter_map(|row| match row {
                Row::Of(0, row) => Some(u64::from(*row)),
                _ => None,
            });
        let (least, most) = places.fold((u64::MAX, 0), |(least, most), row| (least.min(row), most.max(row + 1)));
        let Held { shard, tensor } = self.tensors.first()?;
        let bytes = self.row_elems * tensor.dtype.size_bytes().unwrap_or(1);
        (least < most).then(|| (shard.as_ref(), tensor.begin + least * bytes..tensor.begin + most * bytes))
    }

    fn origin(&self, element: Option<u64>) -> Origin {
        let number = element.map(|element| element / self.row_elems.max(1));
        let row = number.and_then(|row| Some((row, self.rows.get(usize::try_from(row).ok()?)?)));
        let of = |(tensor, row): &(u32, u32)| format!("row {row} of tensor {tensor}");
        let how = match row {
            None => format!("{} rows in the order of the merge's tokens", self.rows.len()),
            Some((n, Row::Of(tensor, row))) => format!("row {n}: {}", of(&(*tensor, *row))),
            Some((n, Row::Zero)) => format!("row {n}: zeros"),
            Some((n, Row::Mean(rows))) => {
                format!("row {n}: the mean of {}", rows.iter().map(of).collect::<Vec<_>>().join(", "))
            }
            Some((n, Row::Padding)) => format!("row {n}: padding, the mean of all rows"),
        };
        let parts = self.tensors.iter().enumerate().map(|(at, held)| held.part(format!("tensor {at}")));
        Origin { how, parts: parts.collect() }
    }
}
