//! The exact k-th largest (or smallest) key of a tensor without sorting it.
//!
//! A search narrows a range of keys (bits of |x|, ordered as magnitudes are) until it holds one: a pass counts the keys
//! beyond the range, and those inside it in 2^16 bins. Differences of short floats are multiples of a few powers of two, many of them
//! tied: so a bin counts its first key apart from its others, and a cut that falls on it is found however many a bin holds. So is
//! one that falls on others which are all the same. A sample of a large tensor first brackets the cut so closely that one pass
//! usually settles it; where the bracket misses, the exact counts say on which side, and the search goes on there. The sample's most
//! frequent key in the bracket, the *pivot*, is counted without a bin, which spares most of the work that is left.
//! Counting commutes, so chunks may come in any order, and the result is exact whatever the sample was.

mod totals;

pub use totals::Totals;

use multiversion::multiversion;

use super::BLOCK;
use super::blend::load_pruned;
use super::prune::{self, Geometry, Scratch, Sources, StageState};
use super::real::Real;
use super::simd::{self, Level};
use super::stored::Widen;
use crate::backend::{Prune, Score};

/// Bins of one pass.
const BINS: usize = 1 << 16;
/// Bins that are looked at together: most have counted nothing.
const GROUP: usize = 64;
/// Bits of a key below its bin's that are followed.
const LOW_BITS: u32 = 16;
/// Counters of one pass and model. For every bin: how often its first key came, and how often others. For every bin again: which
/// low bits of the others were 1 and, from bit 16 on, which were 0. Then a flag for every group of bins, whether it has
/// counted; and last the keys beyond the range, and those at the pivot.
pub const COUNTERS: usize = 3 * BINS + BINS / GROUP + 2;
const LOW: usize = 2 * BINS;
const TOUCHED: usize = 3 * BINS;
const BEYOND: usize = COUNTERS - 2;
const AT_PIVOT: usize = COUNTERS - 1;
/// The pivot of a search that has none: past all keys.
const NO_PIVOT: u64 = u64::MAX;
/// Tensors with fewer elements are not worth a sample.
const SAMPLED_ELEMS: u64 = 1 << 17;
/// How many standard deviations of the sample's rank the bracket spans on either side. Neighbouring elements are not independent, so
/// this is wider than it looks.
const MARGIN: f64 = 6.0;

/// What is ranked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranked {
    /// |τ| after all stages.
    Magnitude,
    /// The score of a stage, of the task vectors that enter it.
    Score(Score),
}

/// The search for one model's cut. Its counters are kept apart, so that workers can share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Elements that are ranked.
    elems: u64,
    /// Rank of the wanted key, from 1.
    rank: u64,
    lowest: bool,
    /// Keys that the cut may be, the last one excluded.
    lo: u64,
    hi: u64,
    /// Past the last key of the type.
    top: u64,
    /// A bin holds 2^shift keys.
    shift: u32,
    /// The first key of a bin, which is counted apart; or [`NO_PIVOT`].
    pivot: u64,
    /// Whether this pass only looks at a sample.
    samples: bool,
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
        Self { elems, rank, lowest, lo: 0, hi: top, top, shift, pivot: NO_PIVOT, samples }
    }

    /// Whether this pass only looks at a sample.
    pub fn samples(&self) -> bool {
        self.samples
    }

    /// The rank of the wanted key, from 1, and whether it counts from the smallest.
    pub fn wanted(&self) -> (u64, bool) {
        (self.rank, self.lowest)
    }

    /// Ends a pass that counted this: the cut, once the range has come down to one key.
    pub fn advance(&mut self, counts: &Totals) -> Option<Cut> {
        if self.samples {
            self.samples = false;
            self.bracket(counts);
            return None;
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
fn shift_for(range: u64) -> u32 {
    range.div_ceil(BINS as u64).next_power_of_two().trailing_zeros()
}

/// Counts a key inside the range.
#[inline(always)]
fn note(search: &Search, key: u64, counts: &mut [u32]) {
    if key == search.pivot {
        counts[AT_PIVOT] += 1;
        return;
    }
    let offset = key - search.lo;
    let bin = (offset >> search.shift) as usize;
    let is_other = offset & ((1 << search.shift) - 1) != 0;
    counts[2 * bin + usize::from(is_other)] += 1;
    if is_other {
        // All bits below the bin's; where they are more than can be followed, the others are taken to be different keys.
        let mask = ((1_u64 << search.shift.min(LOW_BITS)) - 1) as u32;
        let (ones, unknown) = (offset as u32 & mask, if search.shift > LOW_BITS { u32::MAX } else { 0 });
        counts[LOW + bin] |= ones | ((ones ^ mask) << LOW_BITS) | unknown;
    }
    counts[TOUCHED + bin / GROUP] = 1;
}

/// Counts the keys of a block.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn tally<C: Real>(search: &Search, values: &[C], counts: &mut [u32]) {
    const GROUP: usize = 64;
    let Search { lo, hi, lowest, .. } = *search;
    let mut outside = 0u32;
    let mut groups = values.chunks_exact(GROUP);
    for group in &mut groups {
        // Most elements lie outside the range: those inside are found by vector compares, then taken one by one.
        let mut inside = [0u8; GROUP];
        for (flag, value) in inside.iter_mut().zip(group) {
            let (above, below) = value.beyond(hi, lo);
            *flag = u8::from(!above & !below);
            outside += u32::from(if lowest { below } else { above });
        }
        for (word, eight) in inside.as_chunks::<8>().0.iter().enumerate() {
            let mut flags = u64::from_le_bytes(*eight);
            while flags != 0 {
                let at = word * 8 + flags.trailing_zeros() as usize / 8;
                note(search, group[at].key(), counts);
                flags &= flags - 1;
            }
        }
    }
    for value in groups.remainder() {
        let key = value.key();
        if (lo..hi).contains(&key) {
            note(search, key, counts);
        } else {
            outside += u32::from((key < lo) == lowest);
        }
    }
    counts[BEYOND] += outside;
}

/// Counts in registers what [`tally`] would count of elements `at..at + n` of a run, or of values made of them; how many
/// elements from the first on were counted.
#[allow(clippy::too_many_arguments)]
fn tally_in_registers<C: Widen>(
    level: Option<Level>,
    search: &Search,
    of: Of<'_, C>,
    n: usize,
    counts: &mut [u32],
    keys: &mut [u32],
) -> usize {
    let Some(level) = level.filter(|_| search.top == 1 << f32::KEY_BITS) else { return 0 };
    let n = n / simd::STEP * simd::STEP;
    let pivot = u32::try_from(search.pivot).unwrap_or(u32::MAX);
    let range = simd::Range { lo: search.lo as u32, hi: search.hi as u32, lowest: search.lowest, pivot };
    let counted = match of {
        Of::Differences(base, model) => simd::count_differences(level, range, base, model, n, keys),
        Of::Values(values) => match C::f32s(values) {
            Some(values) => simd::count_values(level, range, values, n, keys),
            None => return 0,
        },
    };
    counts[BEYOND] += counted.beyond;
    counts[AT_PIVOT] += counted.equal;
    keys[..counted.inside].iter().for_each(|key| note(search, u64::from(*key), counts));
    n
}

/// What is counted.
enum Of<'a, C> {
    /// θ₀ and θ.
    Differences(simd::Source<'a>, simd::Source<'a>),
    Values(&'a [C]),
}

/// Counts a run, for every model with a search, into `counts` ([`COUNTERS`] a model, zeroed by the caller).
#[allow(clippy::too_many_arguments)]
pub fn count<C: Widen>(
    ranked: Ranked,
    searches: &[Option<Search>],
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    counts: &mut [Vec<u32>],
    scratch: &mut Scratch<C>,
) {
    count_with(simd::level(), ranked, searches, geometry, stages, sources, counts, scratch);
}

/// The same on an instruction set; `None` is the portable loops.
#[allow(clippy::too_many_arguments)]
fn count_with<C: Widen>(
    level: Option<Level>,
    ranked: Ranked,
    searches: &[Option<Search>],
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    counts: &mut [Vec<u32>],
    scratch: &mut Scratch<C>,
) {
    let models = sources.models.len();
    let mut keys = [0; BLOCK + simd::STEP];
    let plain = ranked == Ranked::Magnitude && stages.is_empty() && level.is_some();
    let stored: Option<Vec<_>> = sources.models.iter().map(simd::Source::stored).collect();
    let stored =
        stored.zip(sources.base.as_ref().and_then(simd::Source::stored)).filter(|_| plain && C::KEY_BITS == 31);
    for at in (0..sources.len).step_by(BLOCK) {
        let n = BLOCK.min(sources.len - at);
        let mut done = 0;
        if let Some((models, base)) = &stored {
            for ((search, counts), model) in searches.iter().zip(counts.iter_mut()).zip(models) {
                let Some(search) = search else { continue };
                let of = Of::<C>::Differences(base.part(at, n), model.part(at, n));
                done = tally_in_registers(level, search, of, n, counts, &mut keys);
            }
            if done == n {
                continue;
            }
        }
        load_pruned(geometry, stages, sources, at, n, scratch);
        if let Ranked::Score(score) = ranked {
            prune::sum_models(score, models, n, scratch);
        }
        for (t, (search, counts)) in searches.iter().zip(counts.iter_mut()).enumerate() {
            let Some(search) = search else { continue };
            let values = match ranked {
                Ranked::Magnitude => &scratch.tau[t][done..n],
                Ranked::Score(score) => {
                    prune::score(score, t, models, n, scratch);
                    &scratch.a[done..n]
                }
            };
            let counted = tally_in_registers(level, search, Of::Values(values), values.len(), counts, &mut keys);
            tally(search, &values[counted..], counts);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
