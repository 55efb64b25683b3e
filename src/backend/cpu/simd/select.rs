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
    let mut at = 0;
    while at + 4 * L::N <= n {
        base.prefetch::<L, 4>(l, at + n);
        model.prefetch::<L, 4>(l, at + n);
        let (b, mut x) = (base.load::<L, 4>(l, at), model.load::<L, 4>(l, at));
        for (x, b) in x.iter_mut().zip(&b) {
            *x = l.sub(*x, *b);
        }
        counts.take(l, &x, keys);
        at += 4 * L::N;
    }
    while at < n {
        let ([b], [x]) = (base.load::<L, 1>(l, at), model.load::<L, 1>(l, at));
        counts.take(l, &[l.sub(x, b)], keys);
        at += L::N;
    }
    counts.counted(l, n)
}

#[inline(always)]
fn of_values<L: Lanes>(l: L, range: Range, values: &[f32], n: usize, keys: &mut [u32]) -> Counted {
    let mut counts = Counts::new(l, range);
    let source = Source::values(values);
    for at in (0..n).step_by(L::N) {
        counts.take(l, &source.load::<L, 1>(l, at), keys);
    }
    counts.counted(l, n)
}

struct Counts<L: Lanes> {
    range: Range,
    /// Of keys that reach the end at which what is beyond begins.
    reaching: L::C,
    equal: L::C,
    inside: usize,
}

impl<L: Lanes> Counts<L> {
    #[inline(always)]
    fn new(l: L, range: Range) -> Self {
        Self { range, reaching: l.counters(), equal: l.counters(), inside: 0 }
    }

    #[inline(always)]
    fn take<const U: usize>(&mut self, l: L, x: &[L::F; U], keys: &mut [u32]) {
        let Range { lo, hi, lowest, pivot } = self.range;
        for x in x {
            let (from, past, equal) = (l.reaches(*x, lo), l.reaches(*x, hi), l.is_key(*x, pivot));
            self.reaching = l.tally(self.reaching, if lowest { from } else { past });
            self.equal = l.tally(self.equal, equal);
            self.inside += l.keys(*x, l.and_not(l.and_not(from, past), equal), keys, self.inside);
        }
    }

    #[inline(always)]
    fn counted(&self, l: L, n: usize) -> Counted {
        let reaching = l.total(self.reaching);
        let beyond = if self.range.lowest { n as u32 - reaching } else { reaching };
        Counted { beyond, equal: l.total(self.equal), inside: self.inside }
    }
}
