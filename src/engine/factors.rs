//! A matrix's low-rank factors on their way to the output: U Σ by rows, and Vᵀ by rows.

use std::sync::mpsc::SyncSender;

use faer::MatRef;

use super::Engine;
use super::sink::Sink;
use super::writer::Written;
use crate::error::Result;
use crate::factors::triples::Triples;
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
