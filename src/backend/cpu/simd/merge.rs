//! Merging a run of elements: each is loaded, combined and rounded without leaving the registers.

use super::divide::{Divisor, divide};
use super::for_level;
use super::lanes::{Kind, Lanes, Source};
use crate::dtype::Dtype;

/// Models that a merge takes at most.
const MODELS: usize = 64;
/// Models whose task vectors an election holds for several vectors at once.
const FEW: usize = 16;

/// Whether so many models can be merged to this type here.
pub(in super::super) fn takes(models: usize, to: Dtype) -> bool {
    models <= MODELS && Kind::of(to).is_some()
}

/// Which elements of a task vector are kept.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Keep<'a> {
    All,
    /// Those with a byte that is not 0.
    Bytes(&'a [u8]),
    /// Those with a bit that is 1; bit 0 of a byte is its first element.
    Bits(&'a [u8]),
}

/// One model's part in a merge.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Model<'a> {
    /// θ, or τ itself.
    pub source: Source<'a>,
    /// Its weight.
    pub weight: f32,
    /// Which elements are kept.
    pub keep: Keep<'a>,
    /// Elements whose |τ| has a smaller key are dropped; at most 2³¹.
    pub cut: Option<u32>,
    /// What is kept is multiplied by this.
    pub factor: f32,
}

/// How models become one; see [`crate::ops::Combine`].
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Rule {
    InTurn(InTurn),
    Elect { normalize: bool, lambda: f32 },
}

/// Rules that take models one after the other and look at each once.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum InTurn {
    Average { divisor: Divisor },
    Sum { divisor: Divisor, lambda: f32 },
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
    /// Stored sources are asked for so many elements ahead.
    pub ahead: usize,
}

impl<'a> Merge<'a> {
    /// Of stored sources, which are asked for so many elements ahead, or of task vectors. `None` for what the loops here do not
    /// cover.
    pub fn new(
        base: Source<'a>,
        stored: Option<usize>,
        models: &'a [Model<'a>],
        rule: Rule,
        to: Dtype,
    ) -> Option<Self> {
        let to = Kind::of(to).filter(|_| takes(models.len(), to))?;
        Some(Self { base, differences: stored.is_some(), models, rule, to, ahead: stored.unwrap_or_default() })
    }
}

for_level! {
    /// Merges the first `n` elements, a multiple of [`super::STEP`], into `out`. Whether a result is NaN or infinite.
    fn merge(merge: &Merge<'_>, n: usize, out: &mut [u8]) -> bool = run;
}

#[inline(always)]
fn run<L: Lanes>(l: L, merge: &Merge<'_>, n: usize, out: &mut [u8]) -> bool {
    let is_paired = merge.to == Kind::Bf16
        && merge.models.iter().map(|model| &model.source).chain([&merge.base]).all(Source::has_pairs);
    // As many vectors at once as registers hold, so that what is the same for all is looked at once.
    match (merge.differences, is_paired, L::N == 16) {
        (true, true, true) => by_tiles::<L, 4, true, true>(l, merge, n, out),
        (true, true, false) => by_tiles::<L, 2, true, true>(l, merge, n, out),
        (true, false, true) => by_tiles::<L, 4, true, false>(l, merge, n, out),
        (true, false, false) => by_tiles::<L, 2, true, false>(l, merge, n, out),
        (false, _, true) => by_tiles::<L, 4, false, false>(l, merge, n, out),
        (false, _, false) => by_tiles::<L, 2, false, false>(l, merge, n, out),
    }
}

/// Merges `U` vectors at a time, then one. `DIFFERENCES`: sources are θ, which θ₀ is taken from. `PAIRED`: in the order of
/// [`Lanes::bf16_pairs`].
#[inline(always)]
fn by_tiles<L: Lanes, const U: usize, const DIFFERENCES: bool, const PAIRED: bool>(
    l: L,
    merge: &Merge<'_>,
    n: usize,
    out: &mut [u8],
) -> bool {
    let mut bad = l.none();
    let mut at = 0;
    match merge.rule {
        Rule::InTurn(rule) => {
            while at + U * L::N <= n {
                let sum = combine::<L, U, DIFFERENCES, PAIRED>(l, merge, rule, at);
                bad = l.or(bad, merge.to.store::<L, U, PAIRED>(l, &sum, out, at));
                at += U * L::N;
            }
            while at < n {
                let sum = combine::<L, 1, DIFFERENCES, false>(l, merge, rule, at);
                bad = l.or(bad, merge.to.store::<L, 1, false>(l, &sum, out, at));
                at += L::N;
            }
        }
        Rule::Elect { normalize, lambda } => {
            let by = (normalize, lambda);
            if merge.models.len() <= FEW {
                let mut held = [[l.splat(0.0); U]; FEW];
                while at + U * L::N <= n {
                    let sum = elect::<L, U, DIFFERENCES, PAIRED>(l, merge, by, &mut held, at);
                    bad = l.or(bad, merge.to.store::<L, U, PAIRED>(l, &sum, out, at));
                    at += U * L::N;
                }
            }
            let mut held = [[l.splat(0.0); 1]; MODELS];
            while at < n {
                let sum = elect::<L, 1, DIFFERENCES, false>(l, merge, by, &mut held, at);
                bad = l.or(bad, merge.to.store::<L, 1, false>(l, &sum, out, at));
                at += L::N;
            }
        }
    }
    l.count(bad) > 0
}

/// Asks for what is merged some time after element `at`.
#[inline(always)]
fn prefetch<L: Lanes, const U: usize, const PAIRED: bool>(l: L, merge: &Merge<'_>, at: usize) {
    if !matches!(merge.rule, Rule::InTurn(InTurn::Average { .. })) {
        merge.base.prefetch::<L, U, PAIRED>(l, at + merge.ahead);
    }
    for model in merge.models {
        model.source.prefetch::<L, U, PAIRED>(l, at + merge.ahead);
    }
}

/// Combines `U` vectors from element `at` on.
#[inline(always)]
fn combine<L: Lanes, const U: usize, const DIFFERENCES: bool, const PAIRED: bool>(
    l: L,
    merge: &Merge<'_>,
    rule: InTurn,
    at: usize,
) -> [L::F; U] {
    if DIFFERENCES {
        prefetch::<L, U, PAIRED>(l, merge, at);
    }
    let Merge { base, models, .. } = merge;
    let mut sum = [l.splat(0.0); U];
    match rule {
        InTurn::Average { divisor } => {
            for (t, model) in models.iter().enumerate() {
                let mut x = model.source.load::<L, U, PAIRED>(l, at);
                scale(l, &mut x, model.weight);
                for (sum, x) in sum.iter_mut().zip(&x) {
                    // The first is not added to 0, which would make a negative zero of all models a positive one.
                    *sum = if t == 0 { *x } else { l.add(*sum, *x) };
                }
            }
            divide(l, &mut sum, divisor);
        }
        InTurn::Sum { divisor, lambda } => {
            let b = base.load::<L, U, PAIRED>(l, at);
            for model in *models {
                let x = weighted::<L, U, DIFFERENCES, PAIRED>(l, model, &b, at);
                for (sum, x) in sum.iter_mut().zip(&x) {
                    *sum = l.add(*sum, *x);
                }
            }
            divide(l, &mut sum, divisor);
            add_change(l, &mut sum, &b, lambda);
        }
        InTurn::MaxMagnitude { lambda } => {
            let b = base.load::<L, U, PAIRED>(l, at);
            for model in *models {
                let x = change::<L, U, DIFFERENCES, PAIRED>(l, model, &b, at);
                for (best, x) in sum.iter_mut().zip(&x) {
                    *best = l.select(l.larger(*x, *best), *x, *best);
                }
            }
            add_change(l, &mut sum, &b, lambda);
        }
    }
    sum
}

/// Elects signs of `U` vectors from element `at` on, and sums what agrees. `held` has room for the task vectors of every model.
#[inline(always)]
fn elect<L: Lanes, const U: usize, const DIFFERENCES: bool, const PAIRED: bool>(
    l: L,
    merge: &Merge<'_>,
    (normalize, lambda): (bool, f32),
    held: &mut [[L::F; U]],
    at: usize,
) -> [L::F; U] {
    if DIFFERENCES {
        prefetch::<L, U, PAIRED>(l, merge, at);
    }
    let Merge { base, models, .. } = merge;
    let zero = l.splat(0.0);
    let b = base.load::<L, U, PAIRED>(l, at);
    let mut elected = [zero; U];
    for (model, held) in models.iter().zip(held.iter_mut()) {
        *held = weighted::<L, U, DIFFERENCES, PAIRED>(l, model, &b, at);
        for (elected, x) in elected.iter_mut().zip(held) {
            *elected = l.add(*elected, *x);
        }
    }
    // Where the elected sign is negative, signs are turned, so that what agrees is above zero everywhere.
    let mut turn = elected;
    for turn in &mut turn {
        *turn = l.signs(l.less(*turn, zero));
    }
    let (mut sum, mut den) = ([zero; U], [zero; U]);
    for (model, held) in models.iter().zip(held.iter()) {
        let weight = l.splat(model.weight);
        for (((sum, den), turn), x) in sum.iter_mut().zip(&mut den).zip(&turn).zip(held) {
            let agrees = l.less(zero, l.xor(*x, *turn));
            *sum = l.select(agrees, l.add(*sum, *x), *sum);
            *den = l.select(agrees, l.add(*den, weight), *den);
        }
    }
    for ((sum, den), elected) in sum.iter_mut().zip(&den).zip(&elected) {
        if normalize {
            *sum = l.select(l.equal(*den, zero), *sum, l.div(*sum, *den));
        }
        *sum = l.select(l.is_nan(*elected), *elected, *sum);
    }
    add_change(l, &mut sum, &b, lambda);
    sum
}

/// A model's task vector, pruned, times its weight.
#[inline(always)]
fn weighted<L: Lanes, const U: usize, const DIFFERENCES: bool, const PAIRED: bool>(
    l: L,
    model: &Model<'_>,
    base: &[L::F; U],
    at: usize,
) -> [L::F; U] {
    let mut x = change::<L, U, DIFFERENCES, PAIRED>(l, model, base, at);
    scale(l, &mut x, model.weight);
    x
}

/// A model's task vector, pruned.
#[inline(always)]
fn change<L: Lanes, const U: usize, const DIFFERENCES: bool, const PAIRED: bool>(
    l: L,
    model: &Model<'_>,
    base: &[L::F; U],
    at: usize,
) -> [L::F; U] {
    let zero = l.splat(0.0);
    let mut x = model.source.load::<L, U, PAIRED>(l, at);
    if DIFFERENCES {
        for (x, b) in x.iter_mut().zip(base) {
            *x = l.sub(*x, *b);
        }
    }
    match model.keep {
        Keep::All => {}
        Keep::Bytes(keep) => {
            let keep = &keep[at..at + U * L::N];
            if PAIRED {
                for (pair, x) in x.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    keep_pair(l, x, l.flag_pairs(keep, 2 * pair * L::N));
                }
            } else {
                for (u, x) in x.iter_mut().enumerate() {
                    *x = l.select(l.flags(keep, u * L::N), *x, zero);
                }
            }
        }
        Keep::Bits(keep) => {
            let keep = &keep[at / 8..(at + U * L::N) / 8];
            if PAIRED {
                for (pair, x) in x.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    keep_pair(l, x, l.bit_pairs(keep, 2 * pair * L::N));
                }
            } else {
                for (u, x) in x.iter_mut().enumerate() {
                    *x = l.select(l.bits(keep, u * L::N), *x, zero);
                }
            }
        }
    }
    if let Some(cut) = model.cut {
        for x in &mut x {
            *x = l.select(l.reaches(*x, cut), *x, zero);
        }
    }
    scale(l, &mut x, model.factor);
    x
}

#[inline(always)]
fn scale<L: Lanes, const U: usize>(l: L, x: &mut [L::F; U], factor: f32) {
    if factor != 1.0 {
        let factor = l.splat(factor);
        for x in x {
            *x = l.mul(*x, factor);
        }
    }
}

/// Drops what is not flagged of a pair of vectors.
#[inline(always)]
fn keep_pair<L: Lanes>(l: L, x: &mut [L::F; 2], flags: [L::M; 2]) {
    let zero = l.splat(0.0);
    *x = [l.select(flags[0], x[0], zero), l.select(flags[1], x[1], zero)];
}

/// b + λ·d for every d, and b itself (also a negative zero) where nothing changed.
#[inline(always)]
fn add_change<L: Lanes, const U: usize>(l: L, d: &mut [L::F; U], base: &[L::F; U], lambda: f32) {
    let (zero, lambda) = (l.splat(0.0), l.splat(lambda));
    for (d, b) in d.iter_mut().zip(base) {
        let change = l.mul(lambda, *d);
        *d = l.select(l.equal(change, zero), *b, l.add(*b, change));
    }
}
