//! What a stage keeps, once its scores are known: the same choice for a merge and for whoever asks what it would be.

use crate::ops::search::{Cut, Search, Totals};
use crate::ops::{Blend, Geometry, Granularity, Mask, Program, Prune, Real, Rescale, Sparsify, Sums, band_of, kept_of};
use crate::plan::TensorPlan;

/// 1 for the `k` highest (or lowest) scores, 0 for the rest; of equal scores the lower index comes first, and NaN ranks
/// with infinity.
pub(crate) fn best(scores: &[f64], k: u64, lowest: bool) -> Vec<u8> {
    let value = |i: usize| if scores[i].is_nan() { f64::INFINITY } else { scores[i] };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| {
        let by_score = value(*a).total_cmp(&value(*b));
        if lowest { by_score } else { by_score.reverse() }.then(a.cmp(b))
    });
    let mut keep = vec![0; scores.len()];
    order.into_iter().take(k as usize).for_each(|i| keep[i] = 1);
    keep
}

/// Masks of rows or columns with these scores, and the elements that they keep, by model. `elems`: of the tensor.
pub(crate) fn unit_masks(scores: &[Vec<f64>], prune: Prune, geometry: Geometry, elems: u64) -> (Vec<Mask>, Vec<u64>) {
    scores
        .iter()
        .map(|scores| {
            let keep = best(scores, kept_of(prune.keep, scores.len() as u64), prune.keep_redundant);
            let units: u64 = keep.iter().map(|k| u64::from(*k)).sum();
            match prune.granularity {
                Granularity::Row => (Mask::Rows(keep), units * geometry.row_elems),
                _ => (Mask::Columns(keep), units * geometry.column_elems()),
            }
        })
        // A tensor without elements has no rows to mask.
        .map(|(mask, kept)| if elems == 0 { (Mask::All, 0) } else { (mask, kept) })
        .unzip()
}

/// The search for the cut that keeps this share of a tensor's elements; `None` where it keeps all or nothing.
pub(crate) fn search(tensor: &TensorPlan, share: f64, lowest: bool) -> Option<Search> {
    search_rank(tensor, kept_of(share, tensor.elems), lowest)
}

/// The search for the `rank`-th largest or smallest; `None` where it would keep all or nothing.
fn search_rank(tensor: &TensorPlan, rank: u64, lowest: bool) -> Option<Search> {
    let new = if tensor.wide { Search::new::<f64> } else { Search::new::<f32> };
    (rank > 0 && rank < tensor.elems).then(|| new(tensor.elems, rank, lowest))
}

/// The searches for what the method itself cuts: for the least magnitude that each model keeps, then, where there is such a cut,
/// for the largest of each.
pub(crate) fn cut_searches(tensor: &TensorPlan) -> Vec<Option<Search>> {
    let n = tensor.elems;
    match &tensor.program {
        Program::Blend(Blend { sparsify: Sparsify::TopK { density, .. }, .. }) => {
            density.iter().map(|share| search(tensor, *share, false)).collect()
        }
        Program::Blend(Blend { sparsify: Sparsify::Band { density, gamma, .. }, .. }) => {
            let bands = || density.iter().zip(gamma).map(|(d, g)| band_of(*d, *g, n)).enumerate();
            let held = |(below, held): (u64, u64)| (held > 0).then_some((below, below + held));
            let least = bands().map(|(_, b)| held(b).and_then(|(below, _)| search_rank(tensor, n - below, false)));
            let largest = bands().map(|(_, b)| held(b).and_then(|(_, upto)| search_rank(tensor, upto, true)));
            least.chain(largest).collect()
        }
        Program::Blend(Blend { sparsify: Sparsify::Spread { share }, .. }) => {
            let new = if tensor.wide { Search::of_nonzero::<f64> } else { Search::of_nonzero::<f32> };
            vec![(*share > 0.0 && n > 0).then(|| new(n, *share))]
        }
        Program::Blend(Blend { sparsify: Sparsify::Importance, .. }) => {
            let new = if tensor.wide { Search::new::<f64> } else { Search::new::<f32> };
            let at = |quantile: f64| (quantile * (n - 1) as f64) as u64 + 1;
            QUARTILES.iter().map(|quantile| (n > 0).then(|| new(n, at(*quantile), true))).collect()
        }
        _ => Vec::new(),
    }
}

/// The quantiles that a threshold of importance follows from.
const QUARTILES: [f64; 3] = [0.25, 0.5, 0.75];

/// The least key of values at or above median + 1.5·(third − first quartile), of keys of the three; a NaN where one of them is.
fn threshold_of<C: Real>(keys: [u64; 3]) -> u64 {
    let [first, median, third] = keys.map(|key| C::from_key(key).f64());
    let threshold = median + 1.5 * (third - first);
    let key = C::of(threshold).key();
    if C::from_key(key).f64() < threshold { key + 1 } else { key }
}

/// What a method's cuts keep, by model.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Keys of the least magnitudes kept.
    pub cuts: Vec<u64>,
    /// Keys of the largest magnitudes kept; empty where the largest of all is kept.
    pub tops: Vec<u64>,
    /// Elements kept.
    pub elems: Vec<u64>,
}

/// What follows from the cuts that [`cut_searches`] ended with; `None` stands where nothing was searched for.
pub(crate) fn cut_elements(tensor: &TensorPlan, found: &[Option<Cut>]) -> Kept {
    let n = tensor.elems;
    let cut = |i: usize| found.get(i).copied().flatten();
    let mut kept = Kept::default();
    match &tensor.program {
        Program::Blend(Blend { sparsify: Sparsify::TopK { density, .. }, .. }) => {
            for (t, share) in density.iter().enumerate() {
                let (key, elems) = match cut(t) {
                    Some(cut) => (cut.key, cut.kept),
                    None if kept_of(*share, n) == n => (0, n),
                    None => (u64::MAX, 0),
                };
                kept.cuts.push(key);
                kept.elems.push(elems);
            }
        }
        Program::Blend(Blend { sparsify: Sparsify::Band { density, gamma, .. }, .. }) => {
            for (t, (d, g)) in density.iter().zip(gamma).enumerate() {
                let (least, largest) = (cut(t), cut(density.len() + t));
                let is_empty = band_of(*d, *g, n).1 == 0;
                let all = Cut { key: 0, kept: n };
                let (least, largest) = (least.unwrap_or(all), largest.unwrap_or(Cut { key: u64::MAX, ..all }));
                kept.cuts.push(if is_empty { u64::MAX } else { least.key });
                kept.tops.push(largest.key);
                // Every element lies at or beyond one of the two.
                kept.elems.push(if is_empty { 0 } else { (least.kept + largest.kept).saturating_sub(n) });
            }
        }
        Program::Blend(Blend { sparsify: Sparsify::Spread { .. }, .. }) => {
            let Cut { key, kept: elems } = cut(0).unwrap_or(Cut { key: u64::MAX, kept: 0 });
            (kept.cuts, kept.elems) = (vec![key], vec![elems; tensor.models.len()]);
        }
        Program::Blend(Blend { sparsify: Sparsify::Importance, .. }) => {
            let keys = [0, 1, 2].map(|i| cut(i).map_or(0, |cut| cut.key));
            kept.cuts = vec![if tensor.wide { threshold_of::<f64>(keys) } else { threshold_of::<f32>(keys) }];
        }
        _ => {}
    }
    kept
}

/// Adds counters of searches ([`COUNTERS`](crate::ops::search::COUNTERS) a model) to the totals, and clears them
/// for the next unit.
pub(crate) fn add_counts(totals: &mut [Totals], searches: &[Option<Search>], counts: &mut [Vec<u32>]) {
    for ((totals, counts), search) in totals.iter_mut().zip(counts).zip(searches) {
        if search.is_some() {
            totals.add(counts);
        }
    }
}

/// Masks of elements at or beyond the cuts that searches found, and how many they keep, by model; a model without a
/// search keeps all or nothing.
pub(crate) fn cut_masks(cuts: &[Option<Cut>], prune: Prune, elems: u64) -> (Vec<Mask>, Vec<u64>) {
    let all = kept_of(prune.keep, elems) == elems;
    let mask = |cut: &Option<Cut>| match cut {
        Some(cut) => (Mask::Elements { cut: cut.key, lowest: prune.keep_redundant }, cut.kept),
        None if all => (Mask::All, elems),
        None => (Mask::None, 0),
    };
    cuts.iter().map(mask).unzip()
}

/// The tensors that a stage keeps or drops as one, of those that it changes; both in the order of the base's files.
pub(crate) fn groups(tensors: &[TensorPlan], ranked: &[usize], granularity: Granularity) -> Vec<Vec<usize>> {
    let mut groups: Vec<(usize, Vec<usize>)> = Vec::new();
    for t in ranked {
        let key = if granularity == Granularity::Layer { tensors[*t].layer } else { *t };
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, members)) => members.push(*t),
            None => groups.push((key, vec![*t])),
        }
    }
    groups.into_iter().map(|(_, members)| members).collect()
}

/// Whether each group is kept, by group and model. A group is its elements and its sums by model.
pub(crate) fn group_masks(prune: Prune, groups: &[(u64, Vec<Sums>)]) -> Vec<Vec<bool>> {
    let kept = kept_of(prune.keep, groups.len() as u64);
    let models = groups.first().map_or(0, |(_, sums)| sums.len());
    let masks: Vec<Vec<u8>> = (0..models)
        .map(|model| {
            let scores: Vec<f64> = groups.iter().map(|(elems, sums)| sums[model].score(prune.score, *elems)).collect();
            best(&scores, kept, prune.keep_redundant)
        })
        .collect();
    (0..groups.len()).map(|group| masks.iter().map(|m| m[group] == 1).collect()).collect()
}

/// What a norm is summed from, for [`restoring_factor`].
pub(crate) fn norm_part(rescale: Rescale, sums: &Sums) -> f64 {
    if rescale == Rescale::L1 { sums.l1 } else { sums.squares }
}

/// The factor that gives a task vector the norm back that it had in a layer before a stage; 1 where nothing is left.
/// `before` and `after` are sums of [`norm_part`] over the layer.
pub(crate) fn restoring_factor(rescale: Rescale, before: f64, after: f64) -> f64 {
    match (rescale, after == 0.0) {
        (_, true) => 1.0,
        (Rescale::L2, false) => (before / after).sqrt(),
        (_, false) => before / after,
    }
}

#[cfg(test)]
mod tests {
    use super::best;

    #[test]
    fn equal_scores_go_by_index_and_nan_ranks_first() {
        assert_eq!(best(&[1.0, 3.0, 3.0, 2.0], 2, false), [0, 1, 1, 0]);
        assert_eq!(best(&[1.0, 1.0, 1.0], 2, false), [1, 1, 0]);
        assert_eq!(best(&[1.0, 1.0, 0.5], 2, true), [1, 0, 1]);
        assert_eq!(best(&[1.0, f64::NAN, -f64::NAN, 2.0], 2, false), [0, 1, 1, 0]);
        assert_eq!(best(&[], 0, false), [0u8; 0]);
    }

    #[test]
    fn masks_are_nested_in_the_number_kept() {
        let scores = [0.3, 0.1, 0.3, 0.9, 0.0, 0.1];
        for lowest in [false, true] {
            for k in 0..6 {
                let (less, more) = (best(&scores, k, lowest), best(&scores, k + 1, lowest));
                assert!(less.iter().zip(&more).all(|(a, b)| a <= b));
            }
        }
    }
}
