//! The exact k-th largest (or smallest) key of a tensor without sorting it: radix select over the float's bits.
//!
//! Level by level, sixteen bits at a time from the top, elements that share the bits found so far are counted by their
//! next bits; two levels settle an f32, four an f64. Counting is exact and commutes, so chunks may come in any order.

use super::blend::load_pruned;
use super::prune::{self, Geometry, Scratch, Sources, StageState};
use super::real::Real;
use super::stored::Widen;
use super::BLOCK;
use crate::backend::{Prune, Score};

/// Bits settled by one level.
pub const LEVEL_BITS: u32 = 16;

/// What is ranked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranked {
    /// |τ| after all stages.
    Magnitude,
    /// The score of a stage, of the task vectors that enter it.
    Score(Score),
}

/// The search for one model's cut. The counters of its current level are kept apart, so that workers can share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    key_bits: u32,
    /// Bits settled so far, right-aligned.
    prefix: u64,
    /// How many bits are settled.
    settled: u32,
    /// Rank of the wanted key among those that share the prefix, from 1.
    rank: u64,
    /// Elements strictly beyond the prefix.
    beyond: u64,
    lowest: bool,
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
    /// For the `rank`-th largest (from 1), or smallest where `lowest`, key of type `C`.
    pub fn new<C: Real>(rank: u64, lowest: bool) -> Self {
        Self { key_bits: C::KEY_BITS, prefix: 0, settled: 0, rank, beyond: 0, lowest }
    }

    /// Levels that a key of `C` takes.
    pub fn levels<C: Real>() -> u32 {
        C::KEY_BITS.div_ceil(LEVEL_BITS)
    }

    fn level_bits(&self) -> u32 {
        LEVEL_BITS.min(self.key_bits - self.settled)
    }

    /// Ends a level whose elements have been counted into `counts` (2^16); the cut once the last one has ended.
    ///
    /// Returns `None` also where fewer than `rank` elements were counted, which only an empty tensor does.
    pub fn advance(&mut self, counts: &[u64]) -> Option<Cut> {
        let bits = self.level_bits();
        let bins = 1usize << bits;
        let mut left = self.rank;
        let at = |i: usize| if self.lowest { i } else { bins - 1 - i };
        let found = (0..bins).map(at).find(|bin| {
            let here = counts[*bin];
            let hit = here >= left;
            if !hit {
                left -= here;
            }
            hit
        })?;
        let here = counts[found];
        self.beyond += self.rank - left;
        self.rank = left;
        self.prefix = (self.prefix << bits) | found as u64;
        self.settled += bits;
        if self.settled == self.key_bits {
            return Some(Cut { key: self.prefix, kept: self.beyond + here });
        }
        None
    }

    /// Counts the keys of a block that share the prefix.
    fn count(&self, keys: impl Iterator<Item = u64>, counts: &mut [u32]) {
        let shift = self.key_bits - self.settled - self.level_bits();
        if self.settled == 0 {
            keys.for_each(|key| counts[(key >> shift) as usize] += 1);
        } else {
            let mask = (1u64 << self.level_bits()) - 1;
            for key in keys {
                if key >> (shift + self.level_bits()) == self.prefix {
                    counts[(key >> shift & mask) as usize] += 1;
                }
            }
        }
    }
}

/// Counts a run, for every model with a search, into `counts` (one slice of 2^16 a model, zeroed by the caller).
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
    let models = sources.models.len();
    let mut at = 0;
    while at < sources.len {
        let n = BLOCK.min(sources.len - at);
        load_pruned(geometry, stages, sources, at, n, scratch);
        if let Ranked::Score(score) = ranked {
            prune::sum_models(score, models, n, scratch);
        }
        for (t, (search, counts)) in searches.iter().zip(counts.iter_mut()).enumerate() {
            let Some(search) = search else { continue };
            let values = match ranked {
                Ranked::Magnitude => &scratch.tau[t][..n],
                Ranked::Score(score) => {
                    prune::score(score, t, models, n, scratch);
                    &scratch.a[..n]
                }
            };
            search.count(values.iter().map(|v| v.key()), counts);
        }
        at += n;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select<C: Real>(values: &[C], rank: u64, lowest: bool) -> Cut {
        let mut search = Search::new::<C>(rank, lowest);
        loop {
            let mut counts = vec![0; 1 << LEVEL_BITS];
            search.count(values.iter().map(|v| v.key()), &mut counts);
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
    fn nan_ranks_above_infinity_and_an_empty_tensor_has_no_cut() {
        assert!(f32::from_key(select(&[1.0, f32::NAN, f32::INFINITY], 1, false).key).is_nan());
        assert_eq!(f32::from_key(select(&[1.0, f32::NAN, f32::INFINITY], 2, false).key), f32::INFINITY);
        assert_eq!(Search::new::<f32>(1, false).advance(&[0; 1 << LEVEL_BITS]), None);
    }
}
