//! Which merges and sums the loops of [`super::simd`] take, and how; they leave the rest to the portable loops.

use super::blend::{count_nonfinite, load_pruned, trim_bands};
use super::prune::{Scratch, Sources};
use super::simd::{self, Columns, Keep, Level, Merge, Model, STEP, Source};
use super::stored::{Stored, Widen};
use super::{BLOCK, vector};
use crate::dtype::Dtype;
use crate::ops::{Geometry, Mask, Measured, Prune, Real, RunFacts, Score, Sparsify, StageState, philox};

/// Words that hold a bit for each element of a block.
const MASK: usize = simd::mask_bytes(BLOCK) / 4;

/// Merges the elements of a run from the first on, and returns how many; the others are not touched.
pub(super) fn blend<C: Widen>(
    level: Level,
    m: &Measured,
    sources: &Sources<'_>,
    dtype: Dtype,
    out: &mut [u8],
    scratch: &mut Scratch<C>,
    facts: &mut RunFacts,
) -> usize {
    let n = sources.len / STEP * STEP;
    let merged = if C::KEY_BITS != f32::KEY_BITS || !simd::takes(sources.models.len(), dtype) || m.lines.is_some() {
        None
    } else if let (Sparsify::Random { .. }, []) = (&m.sparsify, m.stages.as_slice())
        && sources.start.is_multiple_of(4)
        && sources.models.len() * MASK <= scratch.words.len()
    {
        at_random(level, m, sources, n, dtype, out, &mut scratch.words, facts)
    } else if matches!(m.sparsify, Sparsify::Random { .. } | Sparsify::Band { .. })
        || !m.stages.iter().all(|(_, s)| is_columns(s, m.geometry))
    {
        by_blocks(level, m, sources, n, dtype, out, scratch, facts)
    } else {
        at_once(level, m, sources, n, dtype, out)
    };
    let Some(is_bad) = merged else { return 0 };
    if is_bad {
        let size = dtype.bitsize() / 8;
        for at in (0..n).step_by(BLOCK) {
            let len = BLOCK.min(n - at);
            let bytes = &out[at * size..(at + len) * size];
            count_nonfinite(sources, at, len, Stored { dtype, bytes }, facts);
        }
    }
    n
}

/// Whether a stage's masks are at most of columns, which whole vectors of flags can be taken of.
fn is_columns(state: &StageState, geometry: Geometry) -> bool {
    let fits = |mask: &Mask| match mask {
        Mask::All => true,
        Mask::Columns(_) => geometry.inner == 1 && geometry.row_elems.is_multiple_of(STEP as u64),
        _ => false,
    };
    state.masks.iter().all(fits) && state.factors.iter().all(|f| *f == 1.0)
}

/// Merges whole runs from the stored bytes. Whether a result is NaN or infinite; `None` if it is not to be done here.
fn at_once(level: Level, m: &Measured, sources: &Sources<'_>, n: usize, dtype: Dtype, out: &mut [u8]) -> Option<bool> {
    let stored: Vec<Source<'_>> = sources.models.iter().map(Source::stored).collect::<Option<_>>()?;
    let base = match &sources.base {
        Some(base) if m.combine.rule.reads_base() => Source::stored(base)?,
        None if m.combine.rule.reads_base() => return None,
        _ => *stored.first()?,
    };
    // Masks that keep everything cut nothing, whatever the length of a row.
    let has_columns = |masks: &&Vec<Mask>| masks.iter().any(|mask| matches!(mask, Mask::Columns(_)));
    let masks = match m.stages.as_slice() {
        [] => None,
        [(_, state)] => Some(&state.masks).filter(has_columns),
        _ => return None,
    };
    let size = dtype.bitsize() / 8;
    let row = if masks.is_some() { m.geometry.row_elems } else { u64::MAX };
    let mut is_bad = false;
    let mut at = 0;
    let mut models = Vec::with_capacity(stored.len());
    while at < n {
        // Up to the end of a row where there are masks.
        let column = ((sources.start + at as u64) % row) as usize;
        let len = (n - at).min((row - column as u64).try_into().unwrap_or(usize::MAX));
        models.clear();
        for (t, source) in stored.iter().enumerate() {
            models.push(Model {
                source: source.part(at, len),
                keep: match masks.map(|masks| &masks[t]) {
                    Some(Mask::Columns(keep)) => Keep::Bytes(&keep[column..column + len]),
                    _ => Keep::All,
                },
                ..model_of(m, t)
            });
        }
        let merge = Merge::new(base.part(at, len), Some(sources.len), &models, m.combine.numbers, dtype)?;
        is_bad |= merge.run(level, m.combine.rule, len, &mut out[at * size..(at + len) * size]);
        at += len;
    }
    Some(is_bad)
}

/// Merges block by block, each with random masks made before. As [`at_once`].
#[allow(clippy::too_many_arguments)]
fn at_random(
    level: Level,
    m: &Measured,
    sources: &Sources<'_>,
    n: usize,
    dtype: Dtype,
    out: &mut [u8],
    masks: &mut [u32],
    facts: &mut RunFacts,
) -> Option<bool> {
    let Sparsify::Random { density, rescale, keys } = &m.sparsify else { return None };
    let stored: Vec<Source<'_>> = sources.models.iter().map(Source::stored).collect::<Option<_>>()?;
    let base = Source::stored(sources.base.as_ref()?)?;
    let size = dtype.bitsize() / 8;
    let mut is_bad = false;
    for at in (0..n).step_by(BLOCK) {
        let len = BLOCK.min(n - at);
        let counter = (sources.start + at as u64) / 4;
        let mut models = Vec::with_capacity(stored.len());
        for (t, (source, mask)) in stored.iter().zip(masks.chunks_exact_mut(MASK)).enumerate() {
            let mask: &mut [u8] = bytemuck::cast_slice_mut(mask);
            let threshold = philox::threshold(density[t]);
            facts.kept[t] +=
                simd::keep_random(level, counter, keys[t], threshold, len, &mut mask[..simd::mask_bytes(len)]);
            let mask = &mask[..len / 8];
            models.push(Model {
                source: source.part(at, len),
                keep: Keep::Bits(mask),
                factor: factor_of(density[t], *rescale) as f32,
                ..model_of(m, t)
            });
        }
        let merge = Merge::new(base.part(at, len), Some(sources.len), &models, m.combine.numbers, dtype)?;
        is_bad |= merge.run(level, m.combine.rule, len, &mut out[at * size..(at + len) * size]);
    }
    Some(is_bad)
}

/// What elements that are kept at random are multiplied by.
fn factor_of(density: f64, rescale: bool) -> f64 {
    if rescale && density > 0.0 && density < 1.0 { 1.0 / density } else { 1.0 }
}

/// Merges block by block, from task vectors that are made before. As [`at_once`].
#[allow(clippy::too_many_arguments)]
fn by_blocks<C: Widen>(
    level: Level,
    m: &Measured,
    sources: &Sources<'_>,
    n: usize,
    dtype: Dtype,
    out: &mut [u8],
    scratch: &mut Scratch<C>,
    facts: &mut RunFacts,
) -> Option<bool> {
    let stored: Vec<Source<'_>> = sources.models.iter().map(Source::stored).collect::<Option<_>>()?;
    let base = Source::stored(sources.base.as_ref()?)?;
    let size = dtype.bitsize() / 8;
    let mut is_bad = false;
    for at in (0..n).step_by(BLOCK) {
        let len = BLOCK.min(n - at);
        let first = sources.start + at as u64;
        load_pruned(m.geometry, &m.stages, sources, at, len, scratch);
        if let Sparsify::Band { .. } = &m.sparsify {
            trim_bands(m, len, scratch);
        } else if let Sparsify::Random { density, rescale, keys } = &m.sparsify {
            for (t, (density, key)) in density.iter().zip(keys).enumerate() {
                let (tau, words) = (&mut scratch.tau[t][..len], &mut scratch.words[..len]);
                philox::fill(words, first, *key);
                facts.kept[t] += vector::drop_random(tau, words, philox::threshold(*density));
                let factor = factor_of(*density, *rescale);
                if factor != 1.0 {
                    vector::scale(tau, C::of(factor));
                }
            }
        }
        let tau = scratch.tau.iter().take(stored.len());
        let models: Vec<Model<'_>> = tau
            .enumerate()
            .map(|(t, tau)| Some(Model { source: Source::values(C::f32s(&tau[..len])?), ..model_of(m, t) }))
            .collect::<Option<_>>()?;
        let merge = Merge::new(base.part(at, len), None, &models, m.combine.numbers, dtype)?;
        is_bad |= merge.run(level, m.combine.rule, len, &mut out[at * size..(at + len) * size]);
    }
    Some(is_bad)
}

/// A model's weight and, where it is trimmed, its cut and factor.
fn model_of(m: &Measured, t: usize) -> Model<'static> {
    let trims = matches!(m.sparsify, Sparsify::TopK { .. });
    Model {
        source: Source::values(&[]),
        weight: m.combine.weights.get(t).map_or(1.0, |w| *w as f32),
        keep: Keep::All,
        cut: trims.then(|| m.cuts[t].min(1 << f32::KEY_BITS) as u32),
        factor: if trims { m.factors[t] as f32 } else { 1.0 },
    }
}

/// Adds the scores of the first elements of a run to the totals of their columns, and returns of how many; see
/// [`super::stats::add_column_scores`].
pub(super) fn add_column_scores<C: Widen>(
    level: Level,
    score: Score,
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    first_column: u64,
    totals: &mut [Vec<f64>],
) -> usize {
    let n = sources.len / STEP * STEP;
    let is_plain = score == Score::Deviation && stages.is_empty() && geometry.inner == 1;
    if !is_plain || C::KEY_BITS != f32::KEY_BITS || geometry.columns == 0 {
        return 0;
    }
    let models: Option<Vec<Source<'_>>> = sources.models.iter().map(Source::stored).collect();
    let (Some(models), Some(base)) = (models, sources.base.as_ref().and_then(Source::stored)) else { return 0 };
    let Some(columns) = Columns::new(base, &models, geometry.columns) else { return 0 };
    let first = (sources.start % geometry.columns - first_column) as usize;
    simd::add_column_deviations(level, &columns, 0, n, totals, first);
    n
}
