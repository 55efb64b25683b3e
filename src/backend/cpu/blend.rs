//! The element-wise merge of a run of elements: widen, prune, sparsify, combine, narrow; block by block in cache.

use super::prune::{self, Scratch, Sources};
use super::simd::{self, Level};
use super::stored::{Stored, Widen};
use super::{BLOCK, in_registers, vector};
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
    if m.stages.is_empty() && m.sparsify == Sparsify::None && !matches!(m.combine, Combine::Elect { .. }) {
        merge_streamed(m, sources, at, n, scratch);
        return;
    }
    let first = sources.start + at as u64;
    load_pruned(m.geometry, &m.stages, sources, at, n, scratch);
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
    let Scratch { base, tau, c, .. } = scratch;
    let (base, out) = (&base[..n], &mut c[..n]);
    out.fill(C::ZERO);
    match &m.combine {
        Combine::Sum { weights, divisor, lambda } => {
            for (tau, w) in tau.iter().zip(weights) {
                vector::add_scaled(out, &tau[..n], C::of(*w));
            }
            finish_sum(out, base, *divisor, *lambda);
        }
        Combine::Elect { weights, normalize, lambda } => {
            let weights: Vec<C> = weights.iter().map(|w| C::of(*w)).collect();
            vector::elect(out, tau, &weights, *normalize);
            vector::apply_change(out, base, C::of(*lambda));
        }
        Combine::MaxMagnitude { lambda } => {
            for tau in &tau[..sources.models.len()] {
                vector::larger(out, &tau[..n]);
            }
            vector::apply_change(out, base, C::of(*lambda));
        }
        Combine::Average { .. } | Combine::Slerp { .. } | Combine::Scale { .. } => {
            unreachable!("this rule takes neither stages nor sparsification")
        }
    }
}

/// Rules that need one model at a time: nothing is kept of a model but its part of the result.
fn merge_streamed<C: Widen>(m: &Measured, sources: &Sources<'_>, at: usize, n: usize, scratch: &mut Scratch<C>) {
    let Scratch { base, a, c, .. } = scratch;
    let (base, model, out) = (&mut base[..n], &mut a[..n], &mut c[..n]);
    if let Some(stored) = sources.base.filter(|_| m.combine.reads_base()) {
        stored.widen(at, base);
    }
    out.fill(C::ZERO);
    match &m.combine {
        Combine::Average { weights, divisor } => {
            for (i, (stored, w)) in sources.models.iter().zip(weights).enumerate() {
                if i == 0 {
                    // Not added to 0, which would make a negative zero of all models a positive one.
                    stored.widen(at, out);
                    vector::scale(out, C::of(*w));
                    continue;
                }
                stored.widen(at, model);
                vector::add_scaled(out, model, C::of(*w));
            }
            if *divisor != 1.0 {
                vector::divide(out, C::of(*divisor));
            }
        }
        Combine::Sum { weights, divisor, lambda } => {
            for (stored, w) in sources.models.iter().zip(weights) {
                stored.widen(at, model);
                vector::add_scaled_difference(out, model, base, C::of(*w));
            }
            finish_sum(out, base, *divisor, *lambda);
        }
        Combine::MaxMagnitude { lambda } => {
            for stored in sources.models {
                stored.widen(at, model);
                vector::subtract(model, base);
                vector::larger(out, model);
            }
            vector::apply_change(out, base, C::of(*lambda));
        }
        Combine::Slerp { .. } => {
            out.copy_from_slice(base);
            sources.models[0].widen(at, model);
            vector::interpolate(out, model, C::of(m.slerp.0), C::of(m.slerp.1));
        }
        Combine::Scale { factor } => {
            sources.models[0].widen(at, out);
            if *factor != 1.0 {
                vector::scale(out, C::of(*factor));
            }
        }
        Combine::Elect { .. } => unreachable!("election needs every model at once"),
    }
}

fn finish_sum<C: Real>(change: &mut [C], base: &[C], divisor: f64, lambda: f64) {
    if divisor != 1.0 {
        vector::divide(change, C::of(divisor));
    }
    vector::apply_change(change, base, C::of(lambda));
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
