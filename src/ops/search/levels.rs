//! A search in passes of a fixed number: each counts the keys that agree with the bits known so far into a bin for each value of
//! their next bits. What a device counts; [`super::Search`] is for passes that adapt.

use super::Cut;

/// The search for the `rank`-th largest of keys of 31 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Levels {
    /// The bits of the key that are known, from above.
    pub lo: u64,
    /// Its rank among the keys that agree with them, from 1.
    pub rank: u64,
    /// Keys beyond those.
    pub beyond: u64,
    /// Bits below this pass's.
    pub shift: u32,
    /// Bits of this pass.
    pub bits: u32,
}

impl Levels {
    /// Bits of a pass, at most.
    pub const BITS: u32 = 11;
    /// Counters of a pass.
    pub const BINS: usize = 1 << Self::BITS;
    /// Passes that a search takes.
    pub const PASSES: u32 = KEY_BITS.div_ceil(Self::BITS);

    /// For the `rank`-th largest (from 1).
    pub fn new(rank: u64) -> Self {
        Self { lo: 0, rank, beyond: 0, shift: KEY_BITS - Self::BITS, bits: Self::BITS }
    }

    /// Ends a pass that counted this ([`Levels::BINS`]): the cut after the last.
    pub fn advance(&mut self, bins: &[u64]) -> Option<Cut> {
        let mut passed = 0;
        let (bin, here) = bins.iter().copied().enumerate().rev().find(|(_, here)| {
            let holds = passed + here >= self.rank;
            passed += if holds { 0 } else { *here };
            holds
        })?;
        self.rank -= passed;
        self.beyond += passed;
        self.lo |= (bin as u64) << self.shift;
        if self.shift == 0 {
            return Some(Cut { key: self.lo, kept: self.beyond + here });
        }
        self.bits = self.shift.min(Self::BITS);
        self.shift -= self.bits;
        None
    }
}

/// Bits of a key of f32.
const KEY_BITS: u32 = 31;

#[cfg(test)]
mod tests {
    use super::*;

    /// The cut among keys, found as a device would.
    fn find(keys: &[u64], rank: u64) -> Option<Cut> {
        let mut levels = Levels::new(rank);
        for _ in 0..Levels::PASSES {
            let mut bins = vec![0; Levels::BINS];
            for key in keys
                .iter()
                .filter(|key| *key >> (levels.shift + levels.bits) == levels.lo >> (levels.shift + levels.bits))
            {
                bins[(key >> levels.shift) as usize & ((1 << levels.bits) - 1)] += 1;
            }
            if let Some(cut) = levels.advance(&bins) {
                return Some(cut);
            }
        }
        None
    }

    #[test]
    fn the_cut_is_the_kth_largest_with_all_that_equal_it() {
        let keys: Vec<u64> = (0..500u64).map(|i| i * 2_654_435_761 % (1 << 31) / 7 * 7).chain([5; 40]).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        for rank in [1, 2, 40, 499, 500, 501, 539, 540] {
            let key = sorted[rank as usize - 1];
            let kept = keys.iter().filter(|k| **k >= key).count() as u64;
            assert_eq!(find(&keys, rank), Some(Cut { key, kept }), "{rank}");
        }
        assert_eq!(find(&keys, 541), None);
    }
}
