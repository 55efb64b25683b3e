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
}

for_level! {
    /// Of the first `n` elements of θ − θ₀, a multiple of [`super::STEP`]: how many keys lie beyond the range, and how many
    /// inside it. Those are written to `keys`, which must have room for `n` and [`super::STEP`] more.
    fn count_differences(range: Range, base: Source<'_>, model: Source<'_>, n: usize, keys: &mut [u32]) -> (u32, usize) =
        differences;
    /// The same of values.
    fn count_values(range: Range, values: &[f32], n: usize, keys: &mut [u32]) -> (u32, usize) = of_values;
}

#[inline(always)]
fn differences<L: Lanes>(
    l: L,
    range: Range,
    base: Source<'_>,
    model: Source<'_>,
    n: usize,
    keys: &mut [u32],
) -> (u32, usize) {
    let (mut beyond, mut inside) = (0, 0);
    for i in (0..n).step_by(L::N) {
        let x = l.sub(model.load(l, i), base.load(l, i));
        take(l, range, x, keys, &mut beyond, &mut inside);
    }
    (beyond, inside)
}

#[inline(always)]
fn of_values<L: Lanes>(l: L, range: Range, values: &[f32], n: usize, keys: &mut [u32]) -> (u32, usize) {
    let (mut beyond, mut inside) = (0, 0);
    let source = Source::values(values);
    for i in (0..n).step_by(L::N) {
        take(l, range, source.load(l, i), keys, &mut beyond, &mut inside);
    }
    (beyond, inside)
}

#[inline(always)]
fn take<L: Lanes>(l: L, range: Range, x: L::F, keys: &mut [u32], beyond: &mut u32, inside: &mut usize) {
    let (from, past) = (l.reaches(x, range.lo), l.reaches(x, range.hi));
    *beyond += if range.lowest { L::N as u32 - l.count(from) } else { l.count(past) };
    *inside += l.keys(x, l.and_not(from, past), keys, *inside);
}
