//! Every instruction set of this machine against the portable loops, bit for bit (any NaN counts as the same).
#![allow(clippy::unwrap_used)]

use super::super::blend::blend_with;
use super::super::prune::{Scratch, Sources};
use super::super::select::tests::check_count;
use super::super::stats::add_column_scores_with;
use super::super::stored::{Stored, Widen};
use super::divide::Divisor;
use super::*;
use crate::dtype::Dtype;
use crate::ops::rules::{self, RuleId};
use crate::ops::{
    Combine, Geometry, Granularity, Mask, Measured, Prune, Real, Rescale, RunFacts, Score, Sparsify, StageState,
};

/// Numbers that are not random (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A change of ordinary size, or one of the numbers on which loops differ.
    fn value(&mut self, wild: bool) -> f32 {
        const EDGES: [f32; 10] =
            [0.0, -0.0, 1e-40, -1e-40, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 65_519.996];
        let bits = self.next();
        match bits % 16 {
            0 if wild => EDGES[(bits >> 8) as usize % EDGES.len()],
            1 if wild => f32::from_bits((bits >> 16) as u32 & 0xFF7F_FFFF),
            2 | 3 => 0.0,
            _ => ((bits >> 20) as i32 as f32 / 2_f32.powi(31)) * 0.05,
        }
    }

    fn stored(&mut self, dtype: Dtype, elems: usize, wild: bool) -> Vec<u8> {
        let values: Vec<f32> = (0..elems).map(|_| self.value(wild)).collect();
        let mut bytes = vec![0; elems * dtype.bitsize() / 8];
        f32::narrow(&values, dtype, &mut bytes);
        if wild && dtype == Dtype::BF16 {
            // NaN of every payload, which rounding must not carry over into a number.
            for element in bytes.chunks_exact_mut(2).step_by(23) {
                element.copy_from_slice(&(0x7F80 | self.next() as u16 & 0x807F).to_le_bytes());
            }
        }
        bytes
    }
}

const DTYPES: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

/// A base and some models, of these types and length.
struct Family {
    dtypes: Vec<Dtype>,
    bytes: Vec<Vec<u8>>,
    elems: usize,
}

impl Family {
    fn new(numbers: &mut Numbers, dtypes: Vec<Dtype>, elems: usize, wild: bool) -> Self {
        let bytes = dtypes.iter().map(|dtype| numbers.stored(*dtype, elems, wild)).collect();
        Self { dtypes, bytes, elems }
    }

    fn with<R>(&self, start: u64, take: impl FnOnce(&Sources<'_>) -> R) -> R {
        let stored: Vec<Stored<'_>> =
            self.dtypes.iter().zip(&self.bytes).map(|(dtype, bytes)| Stored { dtype: *dtype, bytes }).collect();
        take(&Sources { base: Some(stored[0]), models: &stored[1..], start, len: self.elems })
    }

    fn models(&self) -> usize {
        self.dtypes.len() - 1
    }
}

fn measured(sparsify: Sparsify, combine: Combine, models: usize) -> Measured {
    let (trims, bands) = (sparsify.cuts() > 0, sparsify.cuts() > 1);
    Measured {
        geometry: Geometry::of(&[100, 48]),
        stages: Vec::new(),
        sparsify,
        // One of ordinary size, one that keeps all, one that keeps nothing.
        cuts: (0..models).map(|t| [0.02_f32.key(), 0, u64::MAX][t % 3]).collect(),
        tops: (0..models).map(|t| [0.05_f32.key(), 0.03_f32.key(), u64::MAX][t % 3]).filter(|_| bands).collect(),
        factors: (0..models).map(|t| if trims && t % 2 == 1 { 1.7 } else { 1.0 }).collect(),
        lines: None,
        combine,
    }
}

/// Results with every NaN made the same.
fn values(bytes: &[u8], dtype: Dtype) -> Vec<u32> {
    let mut values = vec![0_f32; bytes.len() * 8 / dtype.bitsize()];
    f32::widen(dtype, bytes, &mut values);
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

fn check(m: &Measured, family: &Family, to: Dtype, what: &str) {
    let of = |level: Option<Level>| -> (Vec<u32>, RunFacts) {
        let mut scratch = Scratch::<f32>::new(family.models());
        let mut out = vec![0; family.elems * to.bitsize() / 8];
        let facts = family.with(4096, |sources| blend_with(level, m, sources, to, &mut out, &mut scratch));
        (values(&out, to), facts)
    };
    let (expected, facts) = of(None);
    for level in levels() {
        let (found, found_facts) = of(Some(level));
        let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}, {to}, {:?}, {level:?}", family.dtypes);
        assert_eq!(found_facts, facts, "{what}, {to}, {level:?}");
    }
}

fn methods(models: usize) -> Vec<(&'static str, Sparsify, Combine)> {
    let weights: Vec<f64> = (0..models).map(|t| [1.0, 0.3, -0.5][t % 3]).collect();
    let top = || Sparsify::TopK { density: vec![0.2; models], rescale: true };
    let band = || Sparsify::Band { density: vec![0.2; models], gamma: vec![0.1; models], rescale: true };
    let random = |rescale| Sparsify::Random {
        density: (0..models).map(|t| [0.2, 1.0, 0.0][t % 3]).collect(),
        rescale,
        keys: (0..models).map(|t| [t as u32, 7]).collect(),
    };
    let sum = |divisor| Combine::sum(weights.clone(), divisor, 0.7);
    let numbers = rules::Numbers { lambda: 1.1, base: 0.3, threshold: 0.02, ..rules::Numbers::default() };
    let elect = |normalize| Combine::weighted(RuleId::Elect, weights.clone(), rules::Numbers { normalize, ..numbers });
    vec![
        ("average", Sparsify::None, Combine::average(weights.clone(), 3.0)),
        ("average by 1", Sparsify::None, Combine::average(weights.clone(), 1.0)),
        ("sum", Sparsify::None, sum(1.0)),
        ("mean", Sparsify::None, sum(0.8)),
        ("trimmed sum", top(), sum(1.0)),
        ("sum of bands", band(), sum(1.0)),
        ("elected of bands", band(), elect(true)),
        ("near", Sparsify::None, Combine::new(RuleId::Near, numbers)),
        ("mean of what changed", Sparsify::None, Combine::weighted(RuleId::Reinforced, weights.clone(), numbers)),
        ("elected", Sparsify::None, elect(true)),
        ("trimmed and elected", top(), elect(true)),
        ("elected sum", top(), elect(false)),
        ("largest", Sparsify::None, Combine::new(RuleId::MaxMagnitude, numbers)),
        ("random sum", random(true), sum(1.0)),
        ("random, elected", random(false), elect(true)),
        ("mix", Sparsify::None, Combine::weighted(RuleId::Mix, weights.clone(), numbers)),
    ]
}

#[test]
fn merges_have_the_bits_of_the_portable_loops() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for models in [1, 2, 3, 5, 16] {
        for (i, elems) in [1, 15, 16, 17, 2048, 4133].into_iter().enumerate() {
            for (k, base) in DTYPES.into_iter().enumerate() {
                // All alike, or of every type.
                let of = |t: usize| if i % 2 == 0 { base } else { DTYPES[(t + k) % 3] };
                for wild in [false, true] {
                    let family = Family::new(&mut numbers, (0..=models).map(of).collect(), elems, wild);
                    for (name, sparsify, combine) in methods(models) {
                        check(&measured(sparsify, combine, models), &family, base, name);
                    }
                }
            }
        }
    }
}

#[test]
fn pruned_merges_have_the_bits_of_the_portable_loops() {
    let mut numbers = Numbers(0x0123_4567_89ab_cdef);
    let prune = Prune {
        stage: 0,
        score: Score::Deviation,
        granularity: Granularity::Column,
        keep: 0.5,
        keep_redundant: false,
        rescale: Rescale::None,
    };
    for columns in [16_u64, 48, 1040, 37] {
        let flags = |len: u64, numbers: &mut Numbers| (0..len).map(|_| (numbers.next() >> 40) as u8 & 1).collect();
        for (masks, factor) in [(["columns", "all"], 1.0), (["columns", "rows"], 1.0), (["elements", "none"], 1.3)] {
            let mut mask = |name: &str| match name {
                "columns" => Mask::Columns(flags(columns, &mut numbers)),
                "rows" => Mask::Rows(flags(100, &mut numbers)),
                "elements" => Mask::Elements { cut: 0.01_f32.key(), lowest: false },
                "none" => Mask::None,
                _ => Mask::All,
            };
            let masks: Vec<Mask> = masks.into_iter().map(&mut mask).collect();
            let state = StageState { masks, factors: vec![factor; 2] };
            let family = Family::new(&mut numbers, vec![Dtype::BF16; 3], 6000, true);
            for (name, sparsify, combine) in methods(2) {
                if !combine.rule.takes_task_vectors() {
                    continue;
                }
                let mut m = measured(sparsify, combine, 2);
                m.geometry = Geometry::of(&[1000, columns]);
                m.stages = vec![(prune, state.clone())];
                check(&m, &family, Dtype::BF16, name);
            }
        }
    }
}

#[test]
fn counts_for_a_cut_are_those_of_the_portable_loops() {
    let mut numbers = Numbers(77);
    for dtype in DTYPES {
        for elems in [5, 16, 2048, 5000] {
            let family = Family::new(&mut numbers, vec![dtype; 3], elems, true);
            family.with(0, check_count);
        }
    }
}

#[test]
fn random_masks_are_the_portable_words_below_the_threshold() {
    use crate::ops::philox::{fill, threshold};
    for level in levels() {
        for elems in [16, 128, 400, 2048] {
            // Counters that carry into their second word too.
            for counter in [0, 5, u64::from(u32::MAX) - 3, u64::MAX / 8] {
                for density in [0.0, 0.2, 0.999, 1.0] {
                    let mut words = vec![0; elems];
                    fill(&mut words, counter * 4, [7, u32::MAX]);
                    let expected: Vec<bool> = words.iter().map(|w| u64::from(*w) < threshold(density)).collect();
                    let mut bits = vec![0; mask_bytes(elems)];
                    let kept = keep_random(level, counter, [7, u32::MAX], threshold(density), elems, &mut bits);
                    assert_eq!(kept, expected.iter().filter(|keep| **keep).count() as u64);
                    let found: Vec<bool> = (0..elems).map(|i| bits[i / 8] >> (i % 8) & 1 == 1).collect();
                    assert!(found == expected, "{level:?}, {elems} elements from counter {counter}, {density}");
                }
            }
        }
    }
}

#[test]
fn quotients_by_counts_are_correctly_rounded() {
    let mut numbers = Numbers(5);
    let mut sums: Vec<f64> = (0..4096).map(|_| f64::from_bits(numbers.next() & !(1 << 62) | 0x3000 << 48)).collect();
    let edges =
        [0.0, f64::from(f32::MAX) * 64.0, f64::from(f32::from_bits(1)), f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    sums[..edges.len()].copy_from_slice(&edges);
    for level in levels() {
        for n in 1..=64 {
            let quotients = divide(level, &sums, f64::from(n));
            for (sum, quotient) in sums.iter().zip(quotients) {
                let expected = sum / f64::from(n);
                assert!(
                    quotient.to_bits() == expected.to_bits() || quotient.is_nan() && expected.is_nan(),
                    "{sum}/{n}"
                );
            }
        }
    }
}

for_level! {
    fn divide(sums: &[f64], n: f64) -> Vec<f64> = quotients;
}

#[inline(always)]
fn quotients<L: lanes::Lanes>(l: L, sums: &[f64], n: f64) -> Vec<f64> {
    let mut out = vec![0.0; sums.len()];
    for at in (0..sums.len()).step_by(L::N) {
        l.wide_store(l.wide_div(l.wide_load(sums, at), n), &mut out, at);
    }
    out
}

#[test]
fn quotients_by_one_divisor_are_correctly_rounded() {
    let mut numbers = Numbers(9);
    let mut values: Vec<f32> = (0..8192).map(|_| f32::from_bits(numbers.next() as u32)).collect();
    // Around every edge of the magnitudes for which a residue is exact, and of f32 itself.
    for edge in [2_f32.powi(-100), 2_f32.powi(100), f32::MIN_POSITIVE, 0.0, f32::MAX] {
        values.extend((0..16).map(|i| f32::from_bits(edge.to_bits().saturating_add(i))));
        values.extend((0..16).map(|i| -f32::from_bits(edge.to_bits().saturating_sub(i))));
    }
    // Mantissas of ordinary numbers, which are what the quick way takes.
    values.extend((0..1 << 23).step_by(97).map(|mantissa| f32::from_bits(0x3F80_0000 | mantissa)));
    values.resize(values.len().next_multiple_of(64), 1.0);
    let divisors =
        [1.0, 3.0, -3.0, 5.0, 7.0, 16.0, 0.75, 1.25, 0.9, 2.1, 1_048_575.0, 1_048_577.0, 2_097_151.0, 1e-30, 1e30];
    for level in levels() {
        for by in divisors {
            let mut out = vec![0.0; values.len()];
            divide_by(level, &values, Divisor::of(by), &mut out);
            for (x, quotient) in values.iter().zip(out) {
                let expected = x / by;
                let is_same = quotient.to_bits() == expected.to_bits() || quotient.is_nan() && expected.is_nan();
                assert!(is_same, "{x:e} / {by} gives {quotient:e}, not {expected:e}, {level:?}");
            }
        }
    }
}

for_level! {
    fn divide_by(values: &[f32], by: Divisor, out: &mut [f32]) -> () = all_divided;
}

#[inline(always)]
fn all_divided<L: lanes::Lanes>(l: L, values: &[f32], by: Divisor, out: &mut [f32]) {
    let (values, out): (&[u8], &mut [u8]) = (bytemuck::cast_slice(values), bytemuck::cast_slice_mut(out));
    for at in (0..values.len() / 4).step_by(4 * L::N) {
        let mut x = [0, 1, 2, 3].map(|u| l.f32(values, at + u * L::N));
        divide::divide(l, &mut x, by);
        for (u, x) in x.iter().enumerate() {
            l.to_f32(*x, out, at + u * L::N);
        }
    }
}

#[test]
fn column_sums_have_the_bits_of_the_portable_loops() {
    let mut numbers = Numbers(31);
    for models in [1, 2, 3, 7] {
        for elems in [3, 16, 100, 2500] {
            for wild in [false, true] {
                let family = Family::new(&mut numbers, vec![Dtype::BF16; models + 1], elems, wild);
                let of = |level: Option<Level>| {
                    let mut totals = vec![vec![0.5; elems + 7]; models];
                    let geometry = Geometry::of(&[3, elems as u64 + 10]);
                    let mut scratch = Scratch::<f32>::new(models);
                    // A second row, from its fourth column on; totals begin at the third.
                    family.with(elems as u64 + 13, |sources| {
                        let score = Score::Deviation;
                        add_column_scores_with(level, score, geometry, &[], sources, 2, &mut totals, &mut scratch);
                    });
                    let bits = |t: &f64| if t.is_nan() { f64::NAN.to_bits() } else { t.to_bits() };
                    totals.iter().flatten().map(bits).collect::<Vec<_>>()
                };
                let expected = of(None);
                levels().for_each(|level| assert_eq!(of(Some(level)), expected, "{level:?}"));
            }
        }
    }
}
