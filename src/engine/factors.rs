//! A matrix's low-rank factors on their way to the output: U Σ by rows, and Vᵀ by rows.

use std::sync::mpsc::SyncSender;

use faer::MatRef;

use super::Engine;
use super::sink::Sink;
use super::writer::Written;
use crate::error::Result;
use crate::ops::Real;

/// Sends the factors of L = left rightᵀ (left m×k, right n×k, orthogonal columns) to the outputs of these two positions.
pub(super) fn store<C: Real>(
    engine: &Engine<'_>,
    to_writers: &SyncSender<Written>,
    [left_output, right_output]: [usize; 2],
    left: MatRef<'_, C>,
    right: MatRef<'_, C>,
) -> Result<()> {
    let triples = Triples::new(left, right);
    let (m, n, k) = (left.nrows(), right.nrows(), triples.order.len());
    send(engine, to_writers, left_output, m, &mut |row, out| {
        out.extend(triples.order.iter().map(|&i| left[(row, i)].f64() * triples.left_scale[i]));
    })?;
    send(engine, to_writers, right_output, k, &mut |row, out| {
        let i = triples.order[row];
        out.extend((0..n).map(|j| right[(j, i)].f64() * triples.right_scale[i]));
    })
}

/// How columns of two factors become those of U Σ and V.
#[derive(Debug)]
struct Triples {
    /// Columns by descending singular value; of equal ones the earlier comes first.
    order: Vec<usize>,
    left_scale: Vec<f64>,
    right_scale: Vec<f64>,
}

impl Triples {
    fn new<C: Real>(left: MatRef<'_, C>, right: MatRef<'_, C>) -> Self {
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
        Self { order, left_scale, right_scale }
    }
}

/// Sends an output made row by row, and notes that it is whole.
fn send(
    engine: &Engine<'_>,
    to_writers: &SyncSender<Written>,
    output: usize,
    rows: usize,
    row: &mut dyn FnMut(usize, &mut Vec<f64>),
) -> Result<()> {
    let (plan, run) = (engine.plan, &engine.tensors[output]);
    let tensor = &plan.tensors[output];
    let mut sink = Sink::new(engine, output, to_writers.clone());
    let mut values = Vec::with_capacity(tensor.shape.get(1).copied().unwrap_or_default() as usize);
    for i in 0..rows {
        values.clear();
        row(i, &mut values);
        sink.push(&values)?;
    }
    let mut found = sink.finish()?;
    // Sources were finite, or there would be no factors.
    found.introduced = found.nonfinite;
    run.merged(plan, tensor, Vec::new(), &found)?;
    if let Some(entry) = run.end(plan, tensor)? {
        engine.record(tensor, entry)?;
    }
    Ok(())
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
