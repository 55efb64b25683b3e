//! Cuts that are one for all tensors of a model: every tensor is counted, round by round, before any is merged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::choose;
use crate::ops::search::{Cut, Search, Totals};
use crate::ops::{Program, Real, Sparsify, kept_of};
use crate::plan::{Plan, TensorPlan};

#[cfg(feature = "cuda")]
use crate::ops::search::Levels;

/// The searches of a merge, by model. Keys are those of f32, in which magnitudes are compared whatever tensors are stored as.
#[derive(Debug, Default)]
pub(super) struct WholeCuts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    searches: Arc<Vec<Option<Search>>>,
    totals: Vec<Totals>,
    /// The same searches where devices count.
    #[cfg(feature = "cuda")]
    levels: Vec<Option<Levels>>,
    #[cfg(feature = "cuda")]
    bins: Vec<Vec<u64>>,
    /// Where they ended; at first, of models that keep all or nothing.
    cuts: Vec<Option<Cut>>,
}

/// The densities of a tensor whose cuts are those of whole models.
fn densities(tensor: &TensorPlan) -> Option<&[f64]> {
    match &tensor.program {
        Program::Blend(blend) => match &blend.sparsify {
            Sparsify::TopK { density, whole_model: true, .. } => Some(density),
            _ => None,
        },
        _ => None,
    }
}

impl WholeCuts {
    /// The searches that a plan asks for.
    pub fn new(plan: &Plan) -> Self {
        let cut = || plan.tensors.iter().filter_map(|t| densities(t).map(|d| (t.elems, d)));
        let elems: u64 = cut().map(|(elems, _)| elems).sum();
        let ranks: Vec<u64> = cut().next().map_or(Vec::new(), |(_, d)| d.iter().map(|d| kept_of(*d, elems)).collect());
        let searched = |rank: &u64| *rank > 0 && *rank < elems;
        let all = |rank: &u64| (*rank == elems).then_some(Cut { key: 0, kept: elems });
        Self(Mutex::new(State {
            searches: Arc::new(
                ranks.iter().map(|r| searched(r).then(|| Search::new::<f32>(elems, *r, false))).collect(),
            ),
            totals: vec![Totals::default(); ranks.len()],
            #[cfg(feature = "cuda")]
            levels: ranks.iter().map(|r| searched(r).then(|| Levels::new(*r))).collect(),
            #[cfg(feature = "cuda")]
            bins: vec![Vec::new(); ranks.len()],
            cuts: ranks.iter().map(all).collect(),
        }))
    }

    /// The searches that have not ended.
    pub fn searches(&self) -> Arc<Vec<Option<Search>>> {
        Arc::clone(&self.lock().searches)
    }

    /// Adds a unit's counters, and clears them for the next.
    pub fn add(&self, searches: &[Option<Search>], counts: &mut [Vec<u32>]) {
        choose::add_counts(&mut self.lock().totals, searches, counts);
    }

    /// What devices look for, by model.
    #[cfg(feature = "cuda")]
    pub fn levels(&self) -> Vec<Option<Levels>> {
        self.lock().levels.clone()
    }

    /// Adds the counters of a tensor that a device counted, [`Levels::BINS`] a model.
    #[cfg(feature = "cuda")]
    pub fn add_bins(&self, counted: &[u64]) {
        let mut state = self.lock();
        for (bins, counted) in state.bins.iter_mut().zip(counted.chunks(Levels::BINS)) {
            bins.resize(Levels::BINS, 0);
            bins.iter_mut().zip(counted).for_each(|(sum, count)| *sum += count);
        }
    }

    /// Ends a round, in which the CPU has counted every tensor or devices have.
    pub fn narrow(&self) {
        let mut state = self.lock();
        #[cfg(feature = "cuda")]
        if state.bins.iter().any(|bins| !bins.is_empty()) {
            state.narrow_levels();
            return;
        }
        let State { searches, totals, cuts, .. } = &mut *state;
        for ((search, totals), cut) in Arc::make_mut(searches).iter_mut().zip(totals).zip(cuts) {
            if let Some(found) = search.as_mut().and_then(|search| search.advance(totals)) {
                (*cut, *search) = (Some(found), None);
            }
            totals.clear();
        }
    }

    /// The keys of the cuts for a tensor; of a model that keeps nothing a key beyond all.
    pub fn keys(&self, wide: bool) -> Vec<u64> {
        let key = |cut: &Option<Cut>| match cut {
            None => u64::MAX,
            Some(cut) if wide => least_f64(cut.key),
            Some(cut) => cut.key,
        };
        self.lock().cuts.iter().map(key).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(feature = "cuda")]
impl State {
    fn narrow_levels(&mut self) {
        for ((levels, bins), cut) in self.levels.iter_mut().zip(&mut self.bins).zip(&mut self.cuts) {
            if let Some(found) = levels.as_mut().and_then(|levels| levels.advance(bins)) {
                (*cut, *levels) = (Some(found), None);
            }
            bins.clear();
        }
    }
}

/// The key of the least f64 that f32 rounds to this key or beyond.
fn least_f64(key: u64) -> u64 {
    let infinity = f32::INFINITY.key();
    if key == 0 {
        return 0;
    } else if key > infinity {
        return f64::INFINITY.key() + 1;
    }
    let below = f64::from(f32::from_key(key - 1));
    // Beyond the largest number f32 would go on as before.
    let above = if key == infinity { 2.0_f64.powi(128) } else { f64::from(f32::from_key(key)) };
    // Half way between two neighbours f32 rounds to the even one.
    let middle = (below + (above - below) / 2.0).key();
    if key.is_multiple_of(2) { middle } else { middle + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_f64_is_the_first_that_rounds_to_the_key() {
        let keys = [1, 2, 3, 1.0_f32.key(), 1.5_f32.key() + 1, f32::MAX.key(), f32::MAX.key() - 1, f32::INFINITY.key()];
        for key in keys {
            let least = least_f64(key);
            let rounded = |key: u64| (f64::from_key(key) as f32).key();
            assert!(rounded(least) >= key, "{key:#x}");
            assert!(rounded(least - 1) < key, "{key:#x}");
        }
        assert_eq!(least_f64(0), 0);
        assert!(f64::from_key(least_f64(f32::NAN.key())).is_nan());
    }
}
