//! Counting the keys of a run for [`crate::ops::search`], in registers where they can be.

use crate::ops::search::{AT_PIVOT, BEYOND, GROUP, LOW, LOW_BITS, Ranked, Search, TOUCHED};
use multiversion::multiversion;

use super::BLOCK;
use super::blend::load_pruned;
use super::prune::{self, Scratch, Sources};
use super::simd::{self, Level};
use super::sparsify;
use super::stored::Widen;
use crate::ops::{Geometry, Prune, Real, StageState};

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

/// Counts a run, for every model with a search, into `counts` ([`COUNTERS`](crate::ops::search::COUNTERS) a model, zeroed by the caller).
#[allow(clippy::too_many_arguments)]
pub fn count<C: Widen>(
    ranked: Ranked<'_>,
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
pub(super) fn count_with<C: Widen>(
    level: Option<Level>,
    ranked: Ranked<'_>,
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
        match ranked {
            Ranked::Spread => sparsify::spread(models, n, scratch),
            Ranked::Importance(rows) => {
                sparsify::importance(rows, geometry.last, sources.start + at as u64, n, scratch);
            }
            Ranked::Magnitude | Ranked::Score(_) => {}
        }
        for (t, (search, counts)) in searches.iter().zip(counts.iter_mut()).enumerate() {
            let Some(search) = search else { continue };
            let values = match ranked {
                Ranked::Magnitude => &scratch.tau[t][done..n],
                Ranked::Spread | Ranked::Importance(_) => &scratch.a[done..n],
                Ranked::Score(score) => {
                    prune::score(score, t, models, n, scratch);
                    &scratch.a[done..n]
                }
            };
            if C::KEY_BITS != f32::KEY_BITS && search.is_of::<f32>() {
                // A search over tensors of several types compares all of them as f32.
                let narrow: Vec<f32> = values.iter().map(|x| x.f64() as f32).collect();
                tally(search, &narrow, counts);
                continue;
            }
            let counted = tally_in_registers(level, search, Of::Values(values), values.len(), counts, &mut keys);
            tally(search, &values[counted..], counts);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
