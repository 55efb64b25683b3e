//! Merging a run of elements: each is loaded, combined and rounded without leaving the registers.

use super::for_level;
use super::lanes::{Kind, Lanes, Source};
use crate::dtype::Dtype;

/// Models that a merge takes at most.
const MODELS: usize = 64;

/// Whether so many models can be merged to this type here.
pub(in super::super) fn takes(models: usize, to: Dtype) -> bool {
    models <= MODELS && Kind::of(to).is_some()
}

/// One model's part in a merge.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Model<'a> {
    /// θ, or τ itself.
    pub source: Source<'a>,
    /// Its weight.
    pub weight: f32,
    /// Elements with a 0 are dropped; a flag for each element.
    pub keep: Option<&'a [u8]>,
    /// Elements whose |τ| has a smaller key are dropped; at most 2³¹.
    pub cut: Option<u32>,
    /// What is kept is multiplied by this.
    pub factor: f32,
}

/// How models become one; see [`crate::backend::Combine`].
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Rule {
    Average { divisor: f32 },
    Sum { divisor: f32, lambda: f32 },
    Elect { normalize: bool, lambda: f32 },
    MaxMagnitude { lambda: f32 },
}

/// A merge of a run of elements.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Merge<'a> {
    /// θ₀; what stands here is not read where the rule does not read it.
    pub base: Source<'a>,
    /// Whether sources of models are θ, which θ₀ is to be taken from.
    pub differences: bool,
    pub models: &'a [Model<'a>],
    pub rule: Rule,
    /// Type of the result.
    pub to: Kind,
}

impl<'a> Merge<'a> {
    /// `None` for what the loops here do not cover.
    pub fn new(base: Source<'a>, differences: bool, models: &'a [Model<'a>], rule: Rule, to: Dtype) -> Option<Self> {
        let to = Kind::of(to).filter(|_| takes(models.len(), to))?;
        Some(Self { base, differences, models, rule, to })
    }
}

for_level! {
    /// Merges the first `n` elements, a multiple of [`super::STEP`], into `out`. Whether a result is NaN or infinite.
    fn merge(merge: &Merge<'_>, n: usize, out: &mut [u8]) -> bool = run;
    /// Task vector of the first `n` elements, a multiple of [`super::STEP`], of one model into `out`: 0 where the word is not
    /// below the threshold, the others times the factor. How many were kept.
    fn drop_random(base: Source<'_>, model: Source<'_>, words: (&[u32], u64), factor: f32, n: usize, out: &mut [f32]) -> u64 =
        drop_kernel;
}

#[inline(always)]
fn run<L: Lanes>(l: L, merge: &Merge<'_>, n: usize, out: &mut [u8]) -> bool {
    if merge.differences { by_rule::<L, true>(l, merge, n, out) } else { by_rule::<L, false>(l, merge, n, out) }
}

#[inline(always)]
fn by_rule<L: Lanes, const DIFFERENCES: bool>(l: L, merge: &Merge<'_>, n: usize, out: &mut [u8]) -> bool {
    let Merge { base, models, to, .. } = merge;
    let mut bad = l.none();
    match merge.rule {
        Rule::Average { divisor } => {
            for i in (0..n).step_by(L::N) {
                let mut sum = l.splat(0.0);
                for (t, model) in models.iter().enumerate() {
                    let x = model.source.load(l, i);
                    // The first is not added to 0, which would make a negative zero of all models a positive one.
                    sum = if t == 0 {
                        l.mul(x, l.splat(model.weight))
                    } else {
                        l.add(sum, l.mul(l.splat(model.weight), x))
                    };
                }
                if divisor != 1.0 {
                    sum = l.div(sum, l.splat(divisor));
                }
                bad = l.or(bad, to.store(l, sum, out, i));
            }
        }
        Rule::Sum { divisor, lambda } => {
            for i in (0..n).step_by(L::N) {
                let b = base.load(l, i);
                let mut sum = l.splat(0.0);
                for model in *models {
                    let x = change::<L, DIFFERENCES>(l, model, b, i);
                    sum = l.add(sum, l.mul(l.splat(model.weight), x));
                }
                if divisor != 1.0 {
                    sum = l.div(sum, l.splat(divisor));
                }
                bad = l.or(bad, to.store(l, changed(l, b, sum, lambda), out, i));
            }
        }
        Rule::Elect { normalize, lambda } => {
            let zero = l.splat(0.0);
            let mut weighted = [zero; MODELS];
            for i in (0..n).step_by(L::N) {
                let b = base.load(l, i);
                let (mut elected, mut num, mut den) = (zero, zero, zero);
                for (model, weighted) in models.iter().zip(&mut weighted) {
                    *weighted = l.mul(l.splat(model.weight), change::<L, DIFFERENCES>(l, model, b, i));
                    elected = l.add(elected, *weighted);
                }
                let is_positive = l.at_least(elected, zero);
                for (model, x) in models.iter().zip(&weighted) {
                    let above = l.and(l.less(zero, *x), is_positive);
                    let agrees = l.or(above, l.and_not(l.less(*x, zero), is_positive));
                    num = l.select(agrees, l.add(num, *x), num);
                    den = l.select(agrees, l.add(den, l.splat(model.weight)), den);
                }
                let mut mean = num;
                if normalize {
                    mean = l.select(l.equal(den, zero), num, l.div(num, den));
                }
                mean = l.select(l.is_nan(elected), elected, mean);
                bad = l.or(bad, to.store(l, changed(l, b, mean, lambda), out, i));
            }
        }
        Rule::MaxMagnitude { lambda } => {
            for i in (0..n).step_by(L::N) {
                let b = base.load(l, i);
                let mut best = l.splat(0.0);
                for model in *models {
                    let x = change::<L, DIFFERENCES>(l, model, b, i);
                    best = l.select(l.larger(x, best), x, best);
                }
                bad = l.or(bad, to.store(l, changed(l, b, best, lambda), out, i));
            }
        }
    }
    l.count(bad) > 0
}

/// A model's task vector, pruned.
#[inline(always)]
fn change<L: Lanes, const DIFFERENCES: bool>(l: L, model: &Model<'_>, base: L::F, i: usize) -> L::F {
    let mut x = model.source.load(l, i);
    if DIFFERENCES {
        x = l.sub(x, base);
    }
    if let Some(keep) = model.keep {
        x = l.select(l.flags(keep, i), x, l.splat(0.0));
    }
    if let Some(cut) = model.cut {
        x = l.select(l.reaches(x, cut), x, l.splat(0.0));
    }
    if model.factor != 1.0 {
        x = l.mul(x, l.splat(model.factor));
    }
    x
}

/// b + λ·d, and b itself (also a negative zero) where nothing changed.
#[inline(always)]
fn changed<L: Lanes>(l: L, b: L::F, d: L::F, lambda: f32) -> L::F {
    let change = l.mul(l.splat(lambda), d);
    l.select(l.equal(change, l.splat(0.0)), b, l.add(b, change))
}

#[inline(always)]
fn drop_kernel<L: Lanes>(
    l: L,
    base: Source<'_>,
    model: Source<'_>,
    (words, threshold): (&[u32], u64),
    factor: f32,
    n: usize,
    out: &mut [f32],
) -> u64 {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
    let mut kept = 0;
    for i in (0..n).step_by(L::N) {
        let keep = l.words_below(words, i, threshold);
        kept += u64::from(l.count(keep));
        let x = l.select(keep, l.sub(model.load(l, i), base.load(l, i)), l.splat(0.0));
        let x = if factor != 1.0 { l.mul(x, l.splat(factor)) } else { x };
        l.to_f32(x, bytes, i);
    }
    kept
}
