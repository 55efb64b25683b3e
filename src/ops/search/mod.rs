//! The exact k-th largest (or smallest) key of a tensor without sorting it.
//!
//! A search narrows a range of keys (bits of |x|, ordered as magnitudes are) until it holds one: a pass counts the keys
//! beyond the range, and those inside it in 2^16 bins. Differences of short floats are multiples of a few powers of two, many of them
//! tied: so a bin counts its first key apart from its others, and a cut that falls on it is found however many a bin holds. So is
//! one that falls on others which are all the same. A sample of a large tensor first brackets the cut so closely that one pass
//! usually settles it; where the bracket misses, the exact counts say on which side, and the search goes on there. The sample's most
//! frequent key in the bracket, the *pivot*, is counted without a bin, which spares most of the work that is left.
//! Counting commutes, so chunks may come in any order, and the result is exact whatever the sample was.

mod levels;
mod totals;

pub use levels::Levels;
pub use totals::Totals;

use super::{Real, Score};

/// Bins of one pass.
pub(crate) const BINS: usize = 1 << 16;
/// Bins that are looked at together: most have counted nothing.
pub(crate) const GROUP: usize = 64;
/// Bits of a key below its bin's that are followed.
pub(crate) const LOW_BITS: u32 = 16;
/// Counters of one pass and model. For every bin: how often its first key came, and how often others. For every bin again: which
/// low bits of the others were 1 and, from bit 16 on, which were 0. Then a flag for every group of bins, whether it has
/// counted; and last the keys beyond the range, and those at the pivot.
pub const COUNTERS: usize = 3 * BINS + BINS / GROUP + 2;
pub(crate) const LOW: usize = 2 * BINS;
pub(crate) const TOUCHED: usize = 3 * BINS;
pub(crate) const BEYOND: usize = COUNTERS - 2;
pub(crate) const AT_PIVOT: usize = COUNTERS - 1;
/// The pivot of a search that has none: past all keys.
pub(crate) const NO_PIVOT: u64 = u64::MAX;
/// Tensors with fewer elements are not worth a sample.
pub(crate) const SAMPLED_ELEMS: u64 = 1 << 17;
/// How many standard deviations of the sample's rank the bracket spans on either side. Neighbouring elements are not independent, so
/// this is wider than it looks.
pub(crate) const MARGIN: f64 = 6.0;

/// What is ranked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranked<'a> {
    /// |τ| after all stages.
    Magnitude,
    /// The score of a stage, of the task vectors that enter it.
    Score(Score),
    /// The standard deviation of the models' τ at an element, after all stages: one search for all models. Where they are equal it is 0,
    /// whatever their number.
    Spread,
    /// |τ| after all stages, times the number of its row along the last dimension, in f64, rounded once.
    Importance(&'a [f64]),
}

/// The search for one model's cut. Its counters are kept apart, so that workers can share it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Search {
    /// Elements that are ranked.
    elems: u64,
    /// Rank of the wanted key, from 1.
    rank: u64,
    /// The rank as a share of the keys that are not 0, until the first pass has counted them.
    share: Option<f64>,
    pub(crate) lowest: bool,
    /// Keys that the cut may be, the last one excluded.
    pub(crate) lo: u64,
    pub(crate) hi: u64,
    /// Past the last key of the type.
    pub(crate) top: u64,
    /// A bin holds 2^shift keys.
    pub(crate) shift: u32,
    /// The first key of a bin, which is counted apart; or [`NO_PIVOT`].
    pub(crate) pivot: u64,
    /// Whether this pass only looks at a sample.
    pub(crate) samples: bool,
}

/// Where a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The k-th key.
    pub key: u64,
    /// Elements at or beyond it: k, and those tied with the k-th.
    pub kept: u64,
}

impl Search {
    /// For the `rank`-th largest (from 1), or smallest where `lowest`, of `elems` keys of type `C`.
    pub fn new<C: Real>(elems: u64, rank: u64, lowest: bool) -> Self {
        let top = 1 << C::KEY_BITS;
        let (shift, samples) = (shift_for(top), elems >= SAMPLED_ELEMS);
        Self { elems, rank, share: None, lowest, lo: 0, hi: top, top, shift, pivot: NO_PIVOT, samples }
    }

    /// For the last of the `share` largest of those keys of type `C` that are not 0; where that is none, a key beyond all is found.
    pub fn of_nonzero<C: Real>(elems: u64, share: f64) -> Self {
        // No sample: the first pass counts zeros, the first key of its first bin.
        Self { share: Some(share), samples: false, ..Self::new::<C>(elems, 1, false) }
    }

    /// Whether this pass only looks at a sample.
    pub fn samples(&self) -> bool {
        self.samples
    }

    /// Whether keys are those of `C`.
    pub fn is_of<C: Real>(&self) -> bool {
        self.top == 1 << C::KEY_BITS
    }

    /// The rank of the wanted key, from 1, and whether it counts from the smallest.
    pub fn wanted(&self) -> (u64, bool) {
        (self.rank, self.lowest)
    }

    /// How the rank of the wanted key follows from the count of those that are not 0, where it is not known.
    pub fn wanted_share(&self) -> Option<(f64, u64)> {
        self.share.map(|share| (share, self.elems))
    }

    /// Ends a pass that counted this: the cut, once the range has come down to one key.
    pub fn advance(&mut self, counts: &Totals) -> Option<Cut> {
        if self.samples {
            self.samples = false;
            self.bracket(counts);
            return None;
        }
        if let Some(share) = self.share.take() {
            self.rank = (share * (self.elems - counts.bin(0)[0].min(self.elems)) as f64) as u64;
            if self.rank == 0 {
                return Some(Cut { key: u64::MAX, kept: 0 });
            }
        }
        let beyond = counts.beyond;
        let found = self.find(counts, self.rank.saturating_sub(beyond)).filter(|_| beyond < self.rank);
        let Some(Found { bin, is_first, kept }) = found else {
            // The bracket missed: go on on the side where the cut must be.
            let is_beyond = beyond >= self.rank;
            (self.lo, self.hi) = if is_beyond != self.lowest { (self.hi, self.top) } else { (0, self.lo) };
            (self.shift, self.pivot) = (shift_for(self.hi - self.lo), NO_PIVOT);
            return (self.lo >= self.hi).then_some(Cut { key: self.lo, kept: 0 });
        };
        let (key, kept) = (self.first_of(bin), beyond + kept);
        let low = counts.low(bin);
        let (ones, zeros) = (low & ((1 << LOW_BITS) - 1), low >> LOW_BITS);
        if is_first {
            return Some(Cut { key, kept });
        } else if ones & zeros == 0 {
            // All others in this bin are the same.
            return Some(Cut { key: key + u64::from(ones), kept });
        }
        self.narrow(bin, bin);
        self.pivot = NO_PIVOT;
        None
    }

    /// The first key of a bin.
    fn first_of(&self, bin: usize) -> u64 {
        self.lo + ((bin as u64) << self.shift)
    }

    /// Where the `rank`-th element of the range is.
    fn find(&self, counts: &Totals, rank: u64) -> Option<Found> {
        // A pivot is the first key of its bin, which may have counted nothing else.
        let pivot = (self.pivot != NO_PIVOT).then(|| ((self.pivot - self.lo) >> self.shift) as usize);
        let mut kept = 0;
        let mut look = |bin: usize| {
            let [first, others] = counts.bin(bin);
            let first = first + if pivot == Some(bin) { counts.at_pivot } else { 0 };
            let parts = [(true, first), (false, others)];
            for (is_first, here) in if self.lowest { parts } else { [parts[1], parts[0]] } {
                kept += here;
                if kept >= rank && here > 0 {
                    return Some(Found { bin, is_first, kept });
                }
            }
            None
        };
        let mut alone = pivot.filter(|pivot| counts.counted().all(|bins| !bins.contains(pivot)));
        let ranges = counts.counted();
        if self.lowest {
            for bins in ranges {
                let before = alone.take_if(|pivot| *pivot < bins.start);
                if let Some(found) = before.into_iter().chain(bins).find_map(&mut look) {
                    return Some(found);
                }
            }
        } else {
            for bins in ranges.rev() {
                let before = alone.take_if(|pivot| *pivot >= bins.end);
                if let Some(found) = before.into_iter().chain(bins.rev()).find_map(&mut look) {
                    return Some(found);
                }
            }
        }
        alone.and_then(look)
    }

    /// Brackets the cut from a sample of the whole range, and takes the most frequent first key in the bracket as pivot.
    fn bracket(&mut self, counts: &Totals) {
        let sampled: u64 = counts.counted().flatten().map(|bin| counts.bin(bin).iter().sum::<u64>()).sum();
        let share = self.rank as f64 / self.elems as f64;
        let rank = share * sampled as f64;
        let margin = MARGIN * (sampled as f64 * share * (1.0 - share)).sqrt() + MARGIN;
        let bin_of = |rank: f64| self.find(counts, rank.max(1.0) as u64).map(|found| found.bin);
        let end = if self.lowest { BINS - 1 } else { 0 };
        let near = bin_of(rank - margin).unwrap_or(BINS - 1 - end);
        let far = bin_of(rank + margin + 1.0).unwrap_or(end);
        let (from, to) = (near.min(far), near.max(far));
        let bracketed = counts.counted().flatten().filter(|bin| (from..=to).contains(bin));
        let most = bracketed.max_by_key(|bin| counts.bin(*bin)[0]).filter(|bin| counts.bin(*bin)[0] > 0);
        let pivot = most.map_or(NO_PIVOT, |bin| self.first_of(bin));
        self.narrow(from, to);
        self.pivot = pivot;
    }

    /// Narrows the range to bins `from..=to`.
    fn narrow(&mut self, from: usize, to: usize) {
        (self.lo, self.hi) = (self.first_of(from), self.first_of(to + 1));
        self.shift = shift_for(self.hi - self.lo);
    }
}

/// An element's place among the counted.
struct Found {
    bin: usize,
    /// Whether it is its bin's first key.
    is_first: bool,
    /// Elements of the range that come before, and those with which it is counted.
    kept: u64,
}

/// The least shift with which [`BINS`] hold a range of keys.
pub(crate) fn shift_for(range: u64) -> u32 {
    range.div_ceil(BINS as u64).next_power_of_two().trailing_zeros()
}
