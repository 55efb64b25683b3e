//! Elements whose sum left the range of f32 although every source is finite: they are merged again in f64.
//!
//! What a stage or a cut drops was measured in f32 and stays so; sums, weights and factors are f64 here. An element's result is a
//! function of its sources and of what has been measured of the tensor, so that it does not matter who finds it or in which run.

use super::portable::Block;
use super::prune::{self, Scratch, Sources};
use super::stored::{Stored, Widen};
use super::{blend, vector};
use crate::dtype::Dtype;
use crate::ops::{Combine, Measured, RunFacts, Sparsify, philox};

/// Elements that are merged again at a time: few, as what is allocated for them is not in the plan.
const PART: usize = 64;

/// Counts the NaNs and infinities of a run of stored results that is merged in f32, after those that no source had have been merged
/// again and stored anew.
#[cold]
pub fn mend(
    m: &Measured,
    sources: &Sources<'_>,
    at: usize,
    n: usize,
    dtype: Dtype,
    out: &mut [u8],
    facts: &mut RunFacts,
) {
    let size = dtype.bitsize() / 8;
    let models = sources.models.len();
    let (mut narrow, mut wide) = (Scratch::<f32>::of(models, PART), Scratch::<f64>::of(models, PART));
    let mut again = vec![0; PART * size];
    for from in (0..n).step_by(PART) {
        let len = PART.min(n - from);
        let bytes = &mut out[from * size..(from + len) * size];
        let mut found = [false; PART];
        if !introduced(sources, at + from, Stored { dtype, bytes }, &mut found[..len]) {
            blend::count_nonfinite(sources, at + from, len, Stored { dtype, bytes }, facts);
            continue;
        }
        merge(m, sources, at + from, len, &mut narrow, &mut wide);
        f64::narrow(&wide.c[..len], dtype, &mut again[..len * size]);
        for (i, _) in found.iter().enumerate().filter(|(_, is_new)| **is_new) {
            bytes[i * size..(i + 1) * size].copy_from_slice(&again[i * size..(i + 1) * size]);
        }
        blend::count_nonfinite(sources, at + from, len, Stored { dtype, bytes }, facts);
    }
}

/// Which results are NaN or infinite where every source is finite, and whether any is.
fn introduced(sources: &Sources<'_>, at: usize, out: Stored<'_>, found: &mut [bool]) -> bool {
    let mut values = [0_f64; PART];
    let values = &mut values[..found.len()];
    out.widen(0, values);
    found.iter_mut().zip(&*values).for_each(|(f, v)| *f = !v.is_finite());
    for stored in sources.models.iter().copied().chain(sources.base) {
        stored.widen(at, values);
        found.iter_mut().zip(&*values).for_each(|(f, v)| *f &= v.is_finite());
    }
    found.contains(&true)
}

/// Merges `n` elements in f64 into `wide.c`.
fn merge(m: &Measured, sources: &Sources<'_>, at: usize, n: usize, narrow: &mut Scratch<f32>, wide: &mut Scratch<f64>) {
    let models = sources.models.len();
    if m.combine.rule.takes_task_vectors() {
        // Which elements are kept, f32 says; a kept zero adds nothing either.
        blend::load_pruned(m.geometry, &m.stages, sources, at, n, narrow);
        prune::load(sources, at, n, wide);
        for t in 0..models {
            let mut factor: f64 = m.stages.iter().map(|(_, state)| state.factors[t]).product();
            let tau = &mut narrow.tau[t][..n];
            match &m.sparsify {
                Sparsify::None => {}
                Sparsify::TopK { .. } => {
                    vector::trim(tau, m.cuts[t]);
                    factor *= m.factors[t];
                }
                Sparsify::Band { .. } => {
                    vector::trim_band(tau, m.cuts[t], m.tops[t]);
                    factor *= m.factors[t];
                }
                Sparsify::Random { density, rescale, keys } => {
                    philox::fill(&mut narrow.words[..n], sources.start + at as u64, keys[t]);
                    vector::drop_random(tau, &narrow.words[..n], philox::threshold(density[t]));
                    if *rescale && density[t] > 0.0 && density[t] < 1.0 {
                        factor /= density[t];
                    }
                }
            }
            for (x, kept) in wide.tau[t][..n].iter_mut().zip(&*tau) {
                *x = if *kept == 0.0 { 0.0 } else { *x * factor };
            }
        }
    } else {
        prune::load_parameters(sources, at, n, wide);
    }
    let Combine { rule, weights, numbers, .. } = &m.combine;
    let Scratch { base, tau, c, .. } = wide;
    Block { base: &base[..n], models: &tau[..models], weights, numbers, out: &mut c[..n] }.merge(*rule);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::Level;
    use crate::ops::Geometry;
    use crate::ops::rules::{Numbers, RuleId};

    fn measured(rule: RuleId, models: usize, numbers: Numbers) -> Measured {
        let combine = Combine { rule, weights: vec![1.0; models], numbers, fit: None, overlap: None };
        Measured {
            geometry: Geometry::of(&[1]),
            stages: Vec::new(),
            sparsify: Sparsify::None,
            cuts: Vec::new(),
            tops: Vec::new(),
            factors: Vec::new(),
            combine,
        }
    }

    /// Merges f32 values on every instruction set that this processor has, in runs of two lengths.
    fn merged(m: &Measured, base: &[f32], models: &[&[f32]]) -> (Vec<f32>, RunFacts) {
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let (base, models): (Vec<u8>, Vec<Vec<u8>>) = (bytes(base), models.iter().map(|v| bytes(v)).collect());
        let run = |level: Option<Level>, step: usize| -> (Vec<u8>, RunFacts) {
            let mut out = vec![0; base.len()];
            let mut total = RunFacts::default();
            let mut scratch = Scratch::<f32>::new(models.len());
            for from in (0..base.len()).step_by(step * 4) {
                let end = (from + step * 4).min(base.len());
                let stored = |bytes| Stored { dtype: Dtype::F32, bytes };
                let of: Vec<Stored<'_>> = models.iter().map(|b| stored(&b[from..end])).collect();
                let base = Some(stored(&base[from..end]));
                let sources = Sources { base, models: &of, start: from as u64 / 4, len: (end - from) / 4 };
                let facts = blend::blend_with(level, m, &sources, Dtype::F32, &mut out[from..end], &mut scratch);
                total.nonfinite += facts.nonfinite;
                total.introduced += facts.introduced;
            }
            (out, total)
        };
        let first = run(None, 1);
        for level in [None, crate::backend::cpu::simd::level()] {
            for step in [7, 64, 300] {
                assert_eq!(run(level, step), first, "{level:?}, {step}");
            }
        }
        (first.0.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(), first.1)
    }

    #[test]
    fn averages_do_not_overflow_on_the_way() {
        let n = 300;
        let mut a = vec![1.0_f32; n];
        let mut b = vec![2.0_f32; n];
        for (i, (x, y)) in [(3, (3e38, 3e38)), (70, (-3e38, -2e38)), (299, (3.4e38, f32::INFINITY))] {
            (a[i], b[i]) = (x, y);
        }
        let average = measured(RuleId::Average, 2, Numbers { divisor: 2.0, ..Numbers::default() });
        let (merged, facts) = merged(&average, &vec![0.0; n], &[&a, &b]);
        assert_eq!((merged[2], merged[3], merged[70], merged[298]), (1.5, 3e38, -2.5e38, 1.5));
        assert_eq!(merged[299], f32::INFINITY);
        assert_eq!((facts.nonfinite, facts.introduced), (1, 0));
    }

    #[test]
    fn task_vectors_whose_difference_overflows_are_merged() {
        let sum = measured(RuleId::Sum, 2, Numbers { divisor: 2.0, ..Numbers::default() });
        // θ₀ + (τ₁ + τ₂)/2 = −2e38 + 4e38/2 + …
        let (found, facts) = merged(&sum, &[-2e38, 1.0], &[&[2e38, 3.0], &[-2e38, 1.0]]);
        assert_eq!((found, facts.nonfinite), (vec![0.0, 2.0], 0));
        // What is too large for the type is infinite still, and counted.
        let (found, facts) = merged(&sum, &[3e38], &[&[-3e38], &[3.4e38]]);
        assert_eq!(facts.nonfinite, 0);
        assert!((f64::from(found[0]) - 2e37).abs() < 1e32, "{found:?}");
        let twice = measured(RuleId::Sum, 1, Numbers { lambda: 3.0, ..Numbers::default() });
        let (found, facts) = merged(&twice, &[0.0], &[&[3e38]]);
        assert_eq!((found[0], facts.nonfinite, facts.introduced), (f32::INFINITY, 1, 1));
        let magmax = measured(RuleId::MaxMagnitude, 2, Numbers { lambda: 0.5, ..Numbers::default() });
        let (found, _) = merged(&magmax, &[-3e38], &[&[3e38], &[1.0]]);
        assert_eq!(found, [0.0]);
        let elect = measured(RuleId::Elect, 2, Numbers { normalize: true, ..Numbers::default() });
        let (found, facts) = merged(&elect, &[-2e38], &[&[3e38], &[1e38]]);
        assert_eq!((found, facts.nonfinite), (vec![2e38], 0));
    }
}
