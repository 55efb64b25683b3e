//! Searches against sorting, and instruction sets against the portable loops.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ops::Score;
use crate::ops::search::{COUNTERS, Cut, NO_PIVOT, Ranked, Search, Totals, shift_for};
use proptest::prelude::*;

/// Counts of this machine's instruction set against those of the portable loops, for several ranges.
pub fn check_count(sources: &Sources<'_>) {
    let models = sources.models.len();
    let geometry = Geometry::of(&[sources.len as u64]);
    for lowest in [false, true] {
        for (lo, hi) in [(0.0, 1e-30), (0.01, 0.02), (1e-40, 1.0), (0.1, f32::INFINITY)] {
            let mut search = Search::new::<f32>(1000, 10, lowest);
            (search.lo, search.hi) = (f32::key(lo), f32::key(hi) + 1);
            let mut scratch = Scratch::<f32>::new(models);
            prune::load(sources, 0, sources.len.min(BLOCK), &mut scratch);
            let inside = scratch.tau[0].iter().map(|x| x.key()).find(|key| (search.lo..search.hi).contains(key));
            let pivots = [NO_PIVOT, search.lo, inside.unwrap_or(search.hi - 1)];
            let shifts = [shift_for(search.hi - search.lo), 20];
            for (shift, pivot) in shifts.into_iter().flat_map(|shift| pivots.map(|pivot| (shift, pivot))) {
                (search.shift, search.pivot) = (shift, pivot);
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
        let mut totals = Totals::default();
        totals.add(&mut counts);
        assert!(counts.iter().all(|count| *count == 0), "cleared for the next unit");
        (search.advance(&totals), search)
    };
    let odd = f32::from_key(1.5_f32.key() + 1);
    assert_eq!(search(&[0.1, odd, -odd, 3.0]).0, Some(Cut { key: odd.key(), kept: 3 }));
    // Of the first key of a bin it is known how often it comes, of two others not.
    assert_eq!(search(&[0.1, odd, 1.5, 3.0]).0, Some(Cut { key: odd.key(), kept: 2 }));
    assert_eq!(search(&[0.1, 1.5, 1.5, 3.0]).0, Some(Cut { key: 1.5_f32.key(), kept: 3 }));
    let (cut, narrowed) = search(&[0.1, odd, f32::from_key(odd.key() + 1), 3.0]);
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
        let mut totals = Totals::default();
        totals.add(&mut counts);
        if let Some(cut) = search.advance(&totals) {
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
fn whatever_the_pivot_the_cut_is_what_sorting_gives() {
    // Tied keys with others just beside them, in bins of their own or shared.
    let heavy = [0.5_f32, 0.75, 0.75 + 1e-6, 2.0, f32::INFINITY, f32::NAN];
    let mut values: Vec<f32> = heavy.iter().flat_map(|x| vec![*x; 5]).collect();
    values.extend((0..20).map(|i| f32::from_key(0.75_f32.key() - 10 + i)));
    values.extend([0.0, -0.0, 1e-40, -0.75, 1.0]);
    let mut keys: Vec<u64> = values.iter().map(|x| x.key()).collect();
    keys.sort_unstable();
    let n = keys.len() as u64;
    let ranges = [(0, 1 << 31), (0.75_f32.key(), 0.75_f32.key() + 1), (0.5_f32.key(), 2.0_f32.key() + 1)];
    for (lowest, (lo, hi)) in [false, true].into_iter().flat_map(|lowest| ranges.map(|range| (lowest, range))) {
        // A pivot is the first key of a bin.
        let is_first = |key: &u64| (lo..hi).contains(key) && (key - lo).is_multiple_of(1 << shift_for(hi - lo));
        let pivots = keys.iter().copied().chain([lo, hi - 1, lo + 1]).filter(is_first);
        for pivot in pivots.chain([NO_PIVOT]) {
            for rank in 1..=n {
                let mut search = Search::new::<f32>(n, rank, lowest);
                (search.lo, search.hi, search.pivot, search.shift) = (lo, hi, pivot, shift_for(hi - lo));
                let cut = searched(search, &values);
                let key = keys[if lowest { rank - 1 } else { n - rank } as usize];
                let kept = keys.iter().filter(|k| if lowest { **k <= key } else { **k >= key }).count() as u64;
                assert_eq!(cut, Cut { key, kept }, "pivot {pivot:#x}, rank {rank}, lowest {lowest}");
            }
        }
    }
}

#[test]
fn after_a_sample_one_pass_finds_a_cut_among_tied_keys() {
    // Of 1024 elements every fourth is tied, and the others differ in their last bits.
    let other = |i: u32| f32::from_key(0.25_f32.key() + u64::from(i * 77_773) % (1 << 25));
    let values: Vec<f32> = (0..1024).map(|i| if i % 4 == 0 { 0.5 } else { other(i) }).collect();
    let beyond = values.iter().filter(|x| x.key() > 0.5_f32.key()).count() as u64;
    let mut search = Search::new::<f32>(1024, beyond + 100, false);
    search.samples = true;
    let mut passes = 0;
    let cut = loop {
        let mut counts = vec![0; COUNTERS];
        tally(&search, &values, &mut counts);
        let mut totals = Totals::default();
        totals.add(&mut counts);
        passes += 1;
        if let Some(cut) = search.advance(&totals) {
            break cut;
        }
    };
    assert_eq!((cut.key, cut.kept, passes), (0.5_f32.key(), beyond + 256, 2));
}

#[test]
fn a_pivot_is_found_where_nothing_else_is_near_it() {
    // Each far from the others: whole groups of bins lie between them.
    let values = [1e-20, 1.0, 1.0, 1.0, 1e20_f32];
    for (pivot, rank, lowest, kept) in [(1.0, 3, false, 4), (1.0, 2, true, 4), (1e20, 1, false, 1), (1e-20, 1, true, 1)]
    {
        let mut search = Search::new::<f32>(5, rank, lowest);
        search.pivot = f32::key(pivot);
        // A pivot is the first key of its bin.
        search.lo = search.pivot & 0x7FFF;
        assert_eq!(searched(search, &values), Cut { key: search.pivot, kept }, "{pivot}");
    }
}

/// Runs a search to its end on all values.
fn searched(mut search: Search, values: &[f32]) -> Cut {
    let (mut counts, mut totals) = (vec![0; COUNTERS], Totals::default());
    loop {
        tally(&search, values, &mut counts);
        totals.add(&mut counts);
        if let Some(cut) = search.advance(&totals) {
            return cut;
        }
        totals.clear();
    }
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
                    let mut totals = Totals::default();
                    totals.add(&mut counts);
                    if let Some(cut) = search.advance(&totals) {
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
