//! The stored bytes of a tensor's sources, run by run.

use crate::backend::cpu::prune::Sources;
use crate::backend::cpu::stored::Stored;
use crate::error::{Cause, Error, Result};
use crate::ops::SEGMENT;
use crate::plan::{Plan, TensorPlan};

/// The segments of a run that starts at one: their numbers and elements.
pub(crate) fn segments_of(start: u64, end: u64) -> impl Iterator<Item = (usize, std::ops::Range<u64>)> {
    (start..end).step_by(SEGMENT).map(move |at| (at as usize / SEGMENT, at..(at + SEGMENT as u64).min(end)))
}

/// Elements of one piece of a sample.
const PIECE: u64 = 128;
/// A sample has one piece in so many elements.
const STRIDE: u64 = 32 * PIECE;

/// The parts of a segment that stand for it in a sample: small pieces throughout it, since the rows of a matrix differ in scale, and
/// at changing places of their strides, so that no columns are favoured.
pub(crate) fn sample_of(segment: usize, at: std::ops::Range<u64>) -> impl Iterator<Item = std::ops::Range<u64>> {
    let places = STRIDE / PIECE;
    let starts = at
        .clone()
        .step_by(STRIDE as usize)
        .enumerate()
        .map(move |(piece, stride)| stride + (segment as u64 * 7 + piece as u64 * 11) % places * PIECE);
    starts.filter(move |start| *start < at.end).map(move |start| start..(start + PIECE).min(at.end))
}

/// Calls `take` with the sources of every segment of a run.
pub(super) fn for_segments(
    plan: &Plan,
    tensor: &TensorPlan,
    start: u64,
    end: u64,
    raw: &mut [Vec<u8>],
    mut take: impl FnMut(&Sources<'_>),
) -> Result<()> {
    segments_of(start, end).try_for_each(|(_, at)| with_sources(plan, tensor, at.start, at.end, raw, &mut take))
}

/// Calls `take` with the stored bytes of elements `start..end` of every source.
pub(crate) fn with_sources(
    plan: &Plan,
    tensor: &TensorPlan,
    start: u64,
    end: u64,
    raw: &mut [Vec<u8>],
    take: impl FnOnce(&Sources<'_>),
) -> Result<()> {
    let mut runs = Vec::with_capacity(raw.len());
    for (at, raw) in tensor.reads().zip(raw) {
        let (stored, shard) = plan.stored(at);
        let size = stored.dtype.bitsize() as u64 / 8;
        let bytes = shard.bytes(stored.begin + start * size..stored.begin + end * size, raw)?;
        runs.push(Stored { dtype: stored.dtype, bytes });
    }
    let (base, models) = runs.split_at(usize::from(tensor.base.is_some()));
    take(&Sources { base: base.first().copied(), models, start, len: (end - start) as usize });
    Ok(())
}

/// Calls `take` with `len` elements of a run from its `from`th on.
pub(super) fn in_part(sources: &Sources<'_>, from: usize, len: usize, take: impl FnOnce(&Sources<'_>)) {
    fn part<'a>(stored: &Stored<'a>, from: usize, len: usize) -> Stored<'a> {
        let size = stored.dtype.bitsize() / 8;
        Stored { dtype: stored.dtype, bytes: &stored.bytes[from * size..(from + len) * size] }
    }
    let models: Vec<Stored<'_>> = sources.models.iter().map(|stored| part(stored, from, len)).collect();
    let base = sources.base.as_ref().map(|stored| part(stored, from, len));
    take(&Sources { base, models: &models, start: sources.start + from as u64, len });
}

/// The error that names the first source of a matrix with a NaN or an infinity; `None` if there is none.
pub(super) fn nonfinite_source(plan: &Plan, tensor: &TensorPlan, raw: &mut [Vec<u8>]) -> Option<Error> {
    let mut values = vec![0_f64; SEGMENT];
    for (_, at) in segments_of(0, tensor.elems) {
        let mut found = None;
        let look = |sources: &Sources<'_>| {
            let all = sources.base.iter().chain(sources.models);
            found = all.enumerate().find_map(|(source, stored)| {
                stored.widen(0, &mut values[..sources.len]);
                let place = values[..sources.len].iter().position(|v| !v.is_finite())?;
                Some((source, place as u64 + at.start))
            });
        };
        with_sources(plan, tensor, at.start, at.end, raw, look).ok()?;
        if let Some((source, element)) = found {
            let label = &plan.sources[tensor.reads().nth(source)?.source].written;
            let message = format!(
                "`{}` of `{label}` holds a NaN or an infinity (element {element}), so it has no low-rank part",
                tensor.name
            );
            let hint = "to keep the base's tensor there, list it under `copy:` in the recipe";
            return Some(Error::input(message).of_tensor(&tensor.name).because(Cause::Checkpoint).hint(hint));
        }
    }
    None
}

/// Bytes that so many elements of a source take, about: elements may be smaller than a byte.
pub(crate) fn stored_bytes(plan: &Plan, tensor: &TensorPlan, at: crate::plan::SourceTensor, elems: u64) -> u64 {
    let stored = plan.stored(at).0;
    if tensor.elems == 0 { 0 } else { (stored.bytes as f64 / tensor.elems as f64 * elems as f64) as u64 }
}
