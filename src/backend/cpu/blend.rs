//! The element-wise merge of a run of elements: widen, prune, sparsify, combine, narrow; block by block in cache.

use super::portable::Block;
use super::prune::{self, Scratch, Sources};
use super::simd::{self, Level};
use super::stored::{Stored, Widen};
use super::{BLOCK, in_registers, lines, vector};
use crate::dtype::Dtype;
use crate::ops::{Combine, Geometry, Measured, Prune, Real, RunFacts, Sparsify, StageState, philox};

/// Merges a run and stores it in `out` as `dtype`.
pub fn blend<C: Widen>(
    m: &Measured,
    sources: &Sources<'_>,
    dtype: Dtype,
    out: &mut [u8],
    scratch: &mut Scratch<C>,
) -> RunFacts {
    blend_with(simd::level(), m, sources, dtype, out, scratch)
}

/// The same on an instruction set; `None` is the portable loops.
pub(super) fn blend_with<C: Widen>(
    level: Option<Level>,
    m: &Measured,
    sources: &Sources<'_>,
    dtype: Dtype,
    out: &mut [u8],
    scratch: &mut Scratch<C>,
) -> RunFacts {
    let size = dtype.bitsize() / 8;
    let mut facts = RunFacts { kept: vec![0; sources.models.len()], ..RunFacts::default() };
    let mut at = level.map_or(0, |level| in_registers::blend(level, m, sources, dtype, out, scratch, &mut facts));
    while at < sources.len {
        let n = BLOCK.min(sources.len - at);
        merge_block(m, sources, at, n, scratch, &mut facts.kept);
        let bytes = &mut out[at * size..(at + n) * size];
        if C::narrow(&scratch.c[..n], dtype, bytes) {
            count_nonfinite(sources, at, n, Stored { dtype, bytes }, &mut facts);
        }
        at += n;
    }
    facts
}

/// Merges elements `at..at + n` of the run into `scratch.c`.
fn merge_block<C: Widen>(
    m: &Measured,
    sources: &Sources<'_>,
    at: usize,
    n: usize,
    scratch: &mut Scratch<C>,
    kept: &mut [u64],
) {
    if !m.combine.rule.takes_task_vectors() {
        prune::load_parameters(sources, at, n, scratch);
        if let Some(by) = &m.lines {
            lines::weigh(by, sources.start + at as u64, n, scratch);
        }
        combine(m, sources.models.len(), n, scratch);
        return;
    }
    let first = sources.start + at as u64;
    load_pruned(m.geometry, &m.stages, sources, at, n, scratch);
    sparsify(m, first, n, scratch, kept);
    if let Some(by) = &m.lines {
        lines::weigh(by, first, n, scratch);
    }
    combine(m, sources.models.len(), n, scratch);
}

/// Drops what the method drops of the task vectors of `n` elements from element `first` of the tensor.
pub(super) fn sparsify<C: Real>(m: &Measured, first: u64, n: usize, scratch: &mut Scratch<C>, kept: &mut [u64]) {
    match &m.sparsify {
        Sparsify::None => {}
        Sparsify::TopK { .. } => {
            for (t, (cut, factor)) in m.cuts.iter().zip(&m.factors).enumerate() {
                let tau = &mut scratch.tau[t][..n];
                vector::trim(tau, *cut);
                if *factor != 1.0 {
                    vector::scale(tau, C::of(*factor));
                }
            }
        }
        Sparsify::Band { .. } => trim_bands(m, n, scratch),
        Sparsify::Random { density, rescale, keys } => {
            for (t, (density, key)) in density.iter().zip(keys).enumerate() {
                let (tau, words) = (&mut scratch.tau[t][..n], &mut scratch.words[..n]);
                philox::fill(words, first, *key);
                kept[t] += vector::drop_random(tau, words, philox::threshold(*density));
                if *rescale && *density > 0.0 && *density < 1.0 {
                    vector::scale(tau, C::of(1.0 / *density));
                }
            }
        }
    }
}

/// Drops what lies outside the measured bands of a block's task vectors, and scales what is kept.
pub(super) fn trim_bands<C: Real>(m: &Measured, n: usize, scratch: &mut Scratch<C>) {
    let bands = m.cuts.iter().zip(&m.tops).zip(&m.factors);
    for (tau, ((cut, top), factor)) in scratch.tau.iter_mut().zip(bands) {
        let tau = &mut tau[..n];
        vector::trim_band(tau, *cut, *top);
        if *factor != 1.0 {
            vector::scale(tau, C::of(*factor));
        }
    }
}

/// Combines a block by the rule, from `scratch.base` and `scratch.tau` into `scratch.c`.
pub(super) fn combine<C: Real>(m: &Measured, models: usize, n: usize, scratch: &mut Scratch<C>) {
    let Scratch { base, tau, c, .. } = scratch;
    let Combine { rule, weights, numbers, .. } = &m.combine;
    Block { base: &base[..n], models: &tau[..models], weights, numbers, out: &mut c[..n] }.merge(*rule);
}

/// θ₀ into `scratch.base` and the pruned task vectors of elements `at..at + n` of the run into `scratch.tau`.
pub fn load_pruned<C: Widen>(
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    at: usize,
    n: usize,
    scratch: &mut Scratch<C>,
) {
    prune::load(sources, at, n, scratch);
    prune::apply(stages, geometry, sources.models.len(), sources.start + at as u64, n, scratch);
}

/// Slow path of a block with a NaN or an infinity: which of them did no source have?
#[cold]
pub(super) fn count_nonfinite(sources: &Sources<'_>, at: usize, n: usize, out: Stored<'_>, facts: &mut RunFacts) {
    let mut finite = vec![true; n];
    let mut wide = vec![0f64; n];
    for stored in sources.models.iter().copied().chain(sources.base) {
        stored.widen(at, &mut wide);
        finite.iter_mut().zip(&wide).for_each(|(f, v)| *f &= v.is_finite());
    }
    out.widen(0, &mut wide);
    for (v, sources_finite) in wide.iter().zip(finite) {
        facts.nonfinite += u64::from(!v.is_finite());
        facts.introduced += u64::from(!v.is_finite() && sources_finite);
    }
}
