//! Merging a run of elements: each is loaded, combined and rounded without leaving the registers.

use super::divide::{Divisor, divide};
use super::lanes::{Kind, Lanes, Source};
use super::{Level, for_level};
use crate::dtype::Dtype;
use crate::ops::rules::{Numbers, Rule, RuleId, WithRule};

/// Models that a merge takes at most.
const MODELS: usize = 64;
/// Models whose values are held for several vectors at once, where a rule takes them twice.
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

/// A merge of a run of elements.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Merge<'a> {
    /// θ₀; what stands here is not read where the rule does not read it.
    pub base: Source<'a>,
    /// Whether sources of models are θ as stored, and not task vectors that have been made before.
    pub stored: bool,
    pub models: &'a [Model<'a>],
    /// The numbers of the rule.
    pub numbers: Numbers,
    /// What sums are divided by.
    pub divisor: Divisor,
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
        numbers: Numbers,
        to: Dtype,
    ) -> Option<Self> {
        let to = Kind::of(to).filter(|_| takes(models.len(), to))?;
        let (divisor, ahead) = (Divisor::of(numbers.divisor as f32), stored.unwrap_or_default());
        Some(Self { base, stored: stored.is_some(), models, numbers, divisor, to, ahead })
    }

    /// Merges the first `n` elements, a multiple of [`super::STEP`], by a rule into `out`. Whether a result is NaN or infinite.
    pub fn run(&self, level: Level, rule: RuleId, n: usize, out: &mut [u8]) -> bool {
        rule.visit(Run { level, merge: self, n, out })
    }
}

/// A merge, waiting for the type of its rule.
struct Run<'a> {
    level: Level,
    merge: &'a Merge<'a>,
    n: usize,
    out: &'a mut [u8],
}

impl WithRule for Run<'_> {
    type Out = bool;

    fn with<R: Rule>(self) -> bool {
        merge::<R>(self.level, self.merge, self.n, self.out)
    }
}

for_level! {
    /// As [`Merge::run`], by the rule `R`.
    fn merge<R: Rule>(merge: &Merge<'_>, n: usize, out: &mut [u8]) -> bool = run;
}

#[inline(always)]
fn run<L: Lanes, R: Rule>(l: L, merge: &Merge<'_>, n: usize, out: &mut [u8]) -> bool {
    let is_paired = merge.to == Kind::Bf16
        && merge.models.iter().map(|model| &model.source).chain([&merge.base]).all(Source::has_pairs);
    // As many vectors at once as registers hold, so that what is the same for all is looked at once.
    match (merge.stored, is_paired, L::N == 16) {
        (true, true, true) => by_tiles::<L, R, 4, true, true>(l, merge, n, out),
        (true, true, false) => by_tiles::<L, R, 2, true, true>(l, merge, n, out),
        (true, false, true) => by_tiles::<L, R, 4, true, false>(l, merge, n, out),
        (true, false, false) => by_tiles::<L, R, 2, true, false>(l, merge, n, out),
        (false, _, true) => by_tiles::<L, R, 4, false, false>(l, merge, n, out),
        (false, _, false) => by_tiles::<L, R, 2, false, false>(l, merge, n, out),
    }
}

/// Merges `U` vectors at a time, then one. `STORED`: sources are θ. `PAIRED`: in the order of [`Lanes::bf16_pairs`].
#[inline(always)]
fn by_tiles<L: Lanes, R: Rule, const U: usize, const STORED: bool, const PAIRED: bool>(
    l: L,
    merge: &Merge<'_>,
    n: usize,
    out: &mut [u8],
) -> bool {
    let rule = R::of(&merge.numbers);
    let zero = l.number(0.0);
    let mut bad = l.none();
    let mut at = 0;
    if !R::TWICE || merge.models.len() <= FEW {
        let mut held = [[zero; U]; FEW];
        while at + U * L::N <= n {
            let merged = combine::<L, R, U, STORED, PAIRED>(l, rule, merge, &mut held, at);
            bad = l.or(bad, merge.to.store::<L, U, PAIRED>(l, &merged, out, at));
            at += U * L::N;
        }
    }
    let mut held = [[zero; 1]; MODELS];
    while at < n {
        let merged = combine::<L, R, 1, STORED, false>(l, rule, merge, &mut held, at);
        bad = l.or(bad, merge.to.store::<L, 1, false>(l, &merged, out, at));
        at += L::N;
    }
    l.count(bad) > 0
}

/// Asks for what is merged some time after element `at`.
#[inline(always)]
fn prefetch<L: Lanes, R: Rule, const U: usize, const PAIRED: bool>(l: L, merge: &Merge<'_>, at: usize) {
    if R::READS_BASE {
        merge.base.prefetch::<L, U, PAIRED>(l, at + merge.ahead);
    }
    for model in merge.models {
        model.source.prefetch::<L, U, PAIRED>(l, at + merge.ahead);
    }
}

/// Combines `U` vectors from element `at` on. `held` has room for the values of every model, where the rule takes them twice.
#[inline(always)]
fn combine<L: Lanes, R: Rule, const U: usize, const STORED: bool, const PAIRED: bool>(
    l: L,
    rule: R,
    merge: &Merge<'_>,
    held: &mut [[L::F; U]],
    at: usize,
) -> [L::F; U] {
    if STORED {
        prefetch::<L, R, U, PAIRED>(l, merge, at);
    }
    let zero = l.number(0.0);
    let base = if R::READS_BASE { merge.base.load::<L, U, PAIRED>(l, at) } else { [zero; U] };
    let mut accs = [rule.start(l, zero); U];
    for (acc, base) in accs.iter_mut().zip(&base) {
        *acc = rule.start(l, *base);
    }
    for (t, model) in merge.models.iter().enumerate() {
        let x = value::<L, R, U, STORED, PAIRED>(l, model, &base, at);
        for (acc, x) in accs.iter_mut().zip(&x) {
            rule.take(l, acc, *x);
        }
        if R::TWICE {
            held[t] = x;
        }
    }
    if R::TWICE {
        for acc in &mut accs {
            rule.turn(l, acc);
        }
        for (model, held) in merge.models.iter().zip(held.iter()) {
            let weight = l.splat(model.weight);
            for (acc, x) in accs.iter_mut().zip(held) {
                rule.take_again(l, acc, *x, weight);
            }
        }
    }
    let mut merged = [zero; U];
    for (merged, acc) in merged.iter_mut().zip(&accs) {
        *merged = rule.sum(l, *acc);
    }
    divide(l, &mut merged, merge.divisor);
    for (merged, base) in merged.iter_mut().zip(&base) {
        *merged = rule.finish(l, *merged, *base);
    }
    merged
}

/// A model's part as the rule takes it: its parameters, or its task vector, pruned; times its weight.
#[inline(always)]
fn value<L: Lanes, R: Rule, const U: usize, const STORED: bool, const PAIRED: bool>(
    l: L,
    model: &Model<'_>,
    base: &[L::F; U],
    at: usize,
) -> [L::F; U] {
    let mut x = model.source.load::<L, U, PAIRED>(l, at);
    if R::TASK_VECTORS {
        if STORED {
            for (x, b) in x.iter_mut().zip(base) {
                *x = l.sub(*x, *b);
            }
        }
        drop::<L, U, PAIRED>(l, model, &mut x, at);
    }
    if R::WEIGHTED {
        scale(l, &mut x, model.weight);
    }
    x
}

/// Drops what is not kept of a task vector, and scales what is.
#[inline(always)]
fn drop<L: Lanes, const U: usize, const PAIRED: bool>(l: L, model: &Model<'_>, x: &mut [L::F; U], at: usize) {
    let zero = l.splat(0.0);
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
        for x in x.iter_mut() {
            *x = l.select(l.reaches(*x, cut), *x, zero);
        }
    }
    scale(l, x, model.factor);
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
