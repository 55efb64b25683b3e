//! The exact k-th largest (or smallest) key of a tensor without sorting it.
//!
//! A search narrows a range of keys (bits of |x|, ordered as magnitudes are) until it holds one: a pass counts the keys
//! beyond the range, and those inside it in 2^16 bins. Differences of short floats are few: a bin that is found to hold a single
//! key settles the search, however many it could hold. A sample of a large tensor first brackets the cut so closely that
//! one pass usually settles it; where the bracket misses, the exact counts say on which side, and the search goes on there.
//! Counting commutes, so chunks may come in any order, and the result is exact whatever the sample was.

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
/// Counters of one pass and model. For every bin: the keys in it, and which of their low bits were 1 and, from bit 16 on,
/// which were 0. Then a flag for every group of bins, whether it has counted; and last the keys beyond the range.
pub const COUNTERS: usize = 2 * BINS + BINS / GROUP + 1;
const TOUCHED: usize = 2 * BINS;
const BEYOND: usize = COUNTERS - 1;
/// Tensors with fewer elements are not worth a sample.
const SAMPLED_ELEMS: u64 = 1 << 17;
/// How many standard deviations of the sample's rank the bracket spans on either side. Samples are of whole blocks,
/// whose elements are not independent, so this is wider than it looks.
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
        Self { elems, rank, lowest, lo: 0, hi: top, top, shift: shift_for(top), samples: elems >= SAMPLED_ELEMS }
    }

    /// Whether this pass only looks at a sample.
    pub fn samples(&self) -> bool {
        self.samples
    }

    /// The rank of the wanted key, from 1, and whether it counts from the smallest.
    pub fn wanted(&self) -> (u64, bool) {
        (self.rank, self.lowest)
    }

    /// Ends a pass that counted into `counts` ([`COUNTERS`]): the cut, once the range has come down to one key.
    pub fn advance(&mut self, counts: &[u64]) -> Option<Cut> {
        let (bins, beyond) = (counts[..TOUCHED].as_chunks::<2>().0, counts[BEYOND]);
        if self.samples {
            self.samples = false;
            self.bracket(bins);
            return None;
        }
        let Some((bin, before)) = self.find(bins, self.rank.saturating_sub(beyond)).filter(|_| beyond < self.rank)
        else {
            // The bracket missed: go on on the side where the cut must be.
            let is_beyond = beyond >= self.rank;
            (self.lo, self.hi) = if is_beyond != self.lowest { (self.hi, self.top) } else { (0, self.lo) };
            self.shift = shift_for(self.hi - self.lo);
            return (self.lo >= self.hi).then_some(Cut { key: self.lo, kept: 0 });
        };
        let [here, low] = bins[bin];
        let (ones, zeros) = (low & ((1 << LOW_BITS) - 1), low >> LOW_BITS);
        if ones & zeros == 0 {
            // Every key in this bin is the same.
            return Some(Cut { key: self.lo + ((bin as u64) << self.shift) + ones, kept: beyond + before + here });
        }
        self.narrow(bin, bin);
        None
    }

    /// The bin that holds the `rank`-th element of the range, and the elements in bins before it.
    fn find(&self, bins: &[[u64; 2]], rank: u64) -> Option<(usize, u64)> {
        let mut before = 0;
        let order = |i: usize| if self.lowest { i } else { BINS - 1 - i };
        (0..BINS).map(order).find_map(|bin| {
            let here = bins[bin][0];
            if before + here >= rank && here > 0 {
                return Some((bin, before));
            }
            before += here;
            None
        })
    }

    /// Brackets the cut from a sample of the whole range.
    fn bracket(&mut self, bins: &[[u64; 2]]) {
        let sampled: u64 = bins.iter().map(|bin| bin[0]).sum();
        let share = self.rank as f64 / self.elems as f64;
        let rank = share * sampled as f64;
        let margin = MARGIN * (sampled as f64 * share * (1.0 - share)).sqrt() + MARGIN;
        let near = self.find(bins, (rank - margin).max(1.0) as u64).map(|(bin, _)| bin);
        let far = self.find(bins, (rank + margin) as u64 + 1).map(|(bin, _)| bin);
        let end = if self.lowest { BINS - 1 } else { 0 };
        let (near, far) = (near.unwrap_or(BINS - 1 - end), far.unwrap_or(end));
        self.narrow(near.min(far), near.max(far));
    }

    /// Narrows the range to bins `from..=to`.
    fn narrow(&mut self, from: usize, to: usize) {
        (self.lo, self.hi) = (self.lo + ((from as u64) << self.shift), self.lo + ((to as u64 + 1) << self.shift));
        self.shift = shift_for(self.hi - self.lo);
    }
}

/// The least shift with which [`BINS`] hold a range of keys.
fn shift_for(range: u64) -> u32 {
    range.div_ceil(BINS as u64).next_power_of_two().trailing_zeros()
}

/// Adds one thread's counters of a search to the totals, and clears them for the next unit.
pub fn add_counts(totals: &mut [u64], counts: &mut [u32]) {
    for group in 0..BINS / GROUP {
        if std::mem::take(&mut counts[TOUCHED + group]) == 0 {
            continue;
        }
        let bins = 2 * group * GROUP..2 * (group + 1) * GROUP;
        let (totals, counts) = (totals[bins.clone()].as_chunks_mut::<2>().0, counts[bins].as_chunks_mut::<2>().0);
        for (total, count) in totals.iter_mut().zip(counts) {
            let [keys, low] = std::mem::take(count);
            *total = [total[0] + u64::from(keys), total[1] | u64::from(low)];
        }
    }
    totals[BEYOND] += u64::from(std::mem::take(&mut counts[BEYOND]));
}

/// Counts a key inside the range.
#[inline(always)]
fn note(search: &Search, key: u64, counts: &mut [u32]) {
    let offset = key - search.lo;
    let bin = (offset >> search.shift) as usize;
    // All bits below the bin's; where they are more than can be followed, the bin is taken to hold different keys.
    let mask = ((1_u64 << search.shift.min(LOW_BITS)) - 1) as u32;
    let (ones, unknown) = (offset as u32 & mask, if search.shift > LOW_BITS { u32::MAX } else { 0 });
    counts[2 * bin] += 1;
    counts[2 * bin + 1] |= ones | ((ones ^ mask) << LOW_BITS) | unknown;
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
    let range = simd::Range { lo: search.lo as u32, hi: search.hi as u32, lowest: search.lowest };
    let (beyond, inside) = match of {
        Of::Differences(base, model) => simd::count_differences(level, range, base, model, n, keys),
        Of::Values(values) => match C::f32s(values) {
            Some(values) => simd::count_values(level, range, values, n, keys),
            None => return 0,
        },
    };
    counts[BEYOND] += beyond;
    keys[..inside].iter().for_each(|key| note(search, u64::from(*key), counts));
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
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Counts of this machine's instruction set against those of the portable loops, for several ranges.
    pub fn check_count(sources: &Sources<'_>) {
        let models = sources.models.len();
        let geometry = Geometry::of(&[sources.len as u64]);
        for lowest in [false, true] {
            for (lo, hi) in [(0.0, 1e-30), (0.01, 0.02), (1e-40, 1.0), (0.1, f32::INFINITY)] {
                let mut search = Search::new::<f32>(1000, 10, lowest);
                (search.lo, search.hi) = (f32::key(lo), f32::key(hi) + 1);
                for shift in [shift_for(search.hi - search.lo), 20] {
                    search.shift = shift;
                    let of = |level: Option<Level>, ranked: Ranked| {
                        let mut counts = vec![vec![0; COUNTERS]; models];
                        let mut scratch = Scratch::<f32>::new(models);
                        let searches = vec![Some(search); models];
                        count_with(level, ranked, &searches, geometry, &[], sources, &mut counts, &mut scratch);
                        counts
                    };
                    for ranked in [Ranked::Magnitude, Ranked::Score(Score::Magnitude)] {
                        let expected = of(None, ranked);
                        simd::levels().for_each(|level| assert!(of(Some(level), ranked) == expected, "{level:?}"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_bin_with_one_key_ends_the_search_and_a_bin_with_two_does_not() {
        let search = |values: &[f32]| {
            let mut search = Search::new::<f32>(values.len() as u64, 2, false);
            let mut counts = vec![0; COUNTERS];
            tally(&search, values, &mut counts);
            let mut totals = vec![0; COUNTERS];
            add_counts(&mut totals, &mut counts);
            assert!(counts.iter().all(|count| *count == 0), "cleared for the next unit");
            (search.advance(&totals), search)
        };
        let odd = f32::from_key(1.5_f32.key() + 1);
        assert_eq!(search(&[0.1, odd, -odd, 3.0]).0, Some(Cut { key: odd.key(), kept: 3 }));
        let (cut, narrowed) = search(&[0.1, odd, 1.5, 3.0]);
        assert_eq!(cut, None);
        assert!((narrowed.lo..narrowed.hi).contains(&odd.key()));
    }

    fn select<C: Real>(values: &[C], rank: u64, lowest: bool) -> Cut {
        let mut search = Search::new::<C>(values.len() as u64, rank, lowest);
        // A small tensor that is sampled all the same, badly: the bracket may miss.
        search.samples = !values.len().is_multiple_of(3);
        loop {
            let mut counts = vec![0; COUNTERS];
            let step = if search.samples() { 5 } else { 1 };
            let seen: Vec<C> = values.iter().copied().step_by(step).collect();
            tally(&search, &seen, &mut counts);
            let counts: Vec<_> = counts.into_iter().map(u64::from).collect();
            if let Some(cut) = search.advance(&counts) {
                return cut;
            }
        }
    }

    fn check<C: Real>(values: &[C], rank: u64) -> Result<(), TestCaseError> {
        let mut keys: Vec<u64> = values.iter().map(|v| v.key()).collect();
        keys.sort_unstable();
        let smallest = keys[rank as usize - 1];
        let largest = keys[keys.len() - rank as usize];
        let low = select(values, rank, true);
        let high = select(values, rank, false);
        prop_assert_eq!(low.key, smallest);
        prop_assert_eq!(low.kept, keys.iter().filter(|k| **k <= smallest).count() as u64);
        prop_assert_eq!(high.key, largest);
        prop_assert_eq!(high.kept, keys.iter().filter(|k| **k >= largest).count() as u64);
        Ok(())
    }

    proptest! {
        #[test]
        fn the_cut_is_what_sorting_gives(bits in proptest::collection::vec(any::<u32>(), 1..300), rank in 0.0..1.0f64) {
            let values: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
            check(&values, (rank * values.len() as f64) as u64 + 1)?;
        }

        #[test]
        fn ties_are_all_kept(bits in proptest::collection::vec(0u64..4, 1..300), rank in 0.0..1.0f64) {
            let values: Vec<f64> = bits.iter().map(|b| f64::from_bits(*b << 40)).collect();
            check(&values, (rank * values.len() as f64) as u64 + 1)?;
        }
    }

    #[test]
    fn nan_ranks_above_infinity() {
        assert!(f32::from_key(select(&[1.0, f32::NAN, f32::INFINITY], 1, false).key).is_nan());
        assert_eq!(f32::from_key(select(&[1.0, f32::NAN, f32::INFINITY], 2, false).key), f32::INFINITY);
    }

    #[test]
    fn a_bracket_that_misses_on_either_side_is_recovered_from() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32 / 7.0).collect();
        for lowest in [false, true] {
            for (lo, hi) in [(0.0f32, 1.0f32), (140.0, 150.0), (70.0, 71.0), (1e30, 2e30)] {
                for rank in [1, 10, 500, 1000] {
                    let mut search = Search::new::<f32>(1000, rank, lowest);
                    (search.lo, search.hi) = (lo.key(), hi.key());
                    search.shift = shift_for(search.hi - search.lo);
                    let cut = loop {
                        let mut counts = vec![0; COUNTERS];
                        tally(&search, &values, &mut counts);
                        let counts: Vec<_> = counts.into_iter().map(u64::from).collect();
                        if let Some(cut) = search.advance(&counts) {
                            break cut;
                        }
                    };
                    let index = if lowest { rank - 1 } else { 1000 - rank };
                    assert_eq!(f32::from_key(cut.key), values[index as usize]);
                    assert_eq!(cut.kept, rank);
                }
            }
        }
    }
}
