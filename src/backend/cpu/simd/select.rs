//! Counting for the search of a cut: how many keys lie beyond a range, and which lie inside it.

use super::for_level;
use super::lanes::{Lanes, Source};

/// Keys that a cut may be.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Range {
    pub lo: u32,
    /// Past the last key; at most 2³¹.
    pub hi: u32,
    /// Whether what lies below the range counts as beyond it, instead of what lies above.
    pub lowest: bool,
    /// A key in the range that is only counted; past all keys for none.
    pub pivot: u32,
}

/// How many keys there were of each kind.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Counted {
    /// Beyond the range.
    pub beyond: u32,
    /// At the pivot.
    pub equal: u32,
    /// Others inside the range.
    pub inside: usize,
}

for_level! {
    /// Of the first `n` elements of θ − θ₀, a multiple of [`super::STEP`]: how many keys there are of each kind. Those inside the
    /// range and not at the pivot are written to `keys`, which must have room for `n` and [`super::STEP`] more. The elements that
    /// follow are asked for meanwhile.
    fn count_differences(range: Range, base: Source<'_>, model: Source<'_>, n: usize, keys: &mut [u32]) -> Counted =
        differences;
    /// The same of values.
    fn count_values(range: Range, values: &[f32], n: usize, keys: &mut [u32]) -> Counted = of_values;
}

#[inline(always)]
fn differences<L: Lanes>(
    l: L,
    range: Range,
    base: Source<'_>,
    model: Source<'_>,
    n: usize,
    keys: &mut [u32],
) -> Counted {
    let mut counts = Counts::new(l, range);
    // In which order they are counted does not matter.
    let mut at = if base.has_pairs() && model.has_pairs() {
        four_by_four::<L, true>(l, base, model, n, &mut counts, keys)
    } else {
        four_by_four::<L, false>(l, base, model, n, &mut counts, keys)
    };
    while at < n {
        let ([b], [x]) = (base.load::<L, 1, false>(l, at), model.load::<L, 1, false>(l, at));
        counts.take(l, &[l.sub(x, b)], keys);
        at += L::N;
    }
    counts.counted(l, n)
}

/// Counts four vectors at a time; up to which element.
#[inline(always)]
fn four_by_four<L: Lanes, const PAIRED: bool>(
    l: L,
    base: Source<'_>,
    model: Source<'_>,
    n: usize,
    counts: &mut Counts<L>,
    keys: &mut [u32],
) -> usize {
    let mut at = 0;
    while at + 4 * L::N <= n {
        base.prefetch::<L, 4, PAIRED>(l, at + n);
        model.prefetch::<L, 4, PAIRED>(l, at + n);
        let (b, mut x) = (base.load::<L, 4, PAIRED>(l, at), model.load::<L, 4, PAIRED>(l, at));
        for (x, b) in x.iter_mut().zip(&b) {
            *x = l.sub(*x, *b);
        }
        counts.take(l, &x, keys);
        at += 4 * L::N;
    }
    at
}

#[inline(always)]
fn of_values<L: Lanes>(l: L, range: Range, values: &[f32], n: usize, keys: &mut [u32]) -> Counted {
    let mut counts = Counts::new(l, range);
    let source = Source::values(values);
    for at in (0..n).step_by(L::N) {
        counts.take(l, &source.load::<L, 1, false>(l, at), keys);
    }
    counts.counted(l, n)
}

struct Counts<L: Lanes> {
    range: Range,
    /// Of keys at or past the range's first.
    from: L::C,
    /// Of keys in the range.
    within: L::C,
    /// Of keys in the range and not at the pivot.
    inside: usize,
}

impl<L: Lanes> Counts<L> {
    #[inline(always)]
    fn new(l: L, range: Range) -> Self {
        Self { range, from: l.counters(), within: l.counters(), inside: 0 }
    }

    #[inline(always)]
    fn take<const U: usize>(&mut self, l: L, x: &[L::F; U], keys: &mut [u32]) {
        let Range { lo, hi, pivot, .. } = self.range;
        let (mut from, mut within) = ([l.none(); U], [l.none(); U]);
        for (u, x) in x.iter().enumerate() {
            let inside;
            [from[u], within[u], inside] = l.sift(*x, lo, hi, pivot);
            self.inside += l.keys(*x, inside, keys, self.inside);
        }
        self.from = l.tally(self.from, from);
        self.within = l.tally(self.within, within);
    }

    #[inline(always)]
    fn counted(&self, l: L, n: usize) -> Counted {
        let (from, within) = (l.total(self.from), l.total(self.within));
        let beyond = if self.range.lowest { n as u32 - from } else { from - within };
        Counted { beyond, equal: within - self.inside as u32, inside: self.inside }
    }
}
