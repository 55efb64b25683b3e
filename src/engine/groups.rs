//! What follows from the norms of several tensors together: which layers or tensors a stage keeps, and what restores a layer's norm.

use super::{Engine, choose};
use crate::ops::{Prune, Sums};

/// Ranks all layers or tensors by their score, for every model, and keeps the best.
pub(super) fn rank(engine: &Engine<'_>, stage: usize) {
    let plan = engine.plan;
    let prune = |t: usize| plan.tensors[t].stage(stage).map(|(_, prune)| prune);
    let ranked: Vec<usize> = (0..plan.tensors.len()).filter(|t| prune(*t).is_some()).collect();
    let Some(prune) = ranked.first().and_then(|t| prune(*t)) else { return };
    let groups = choose::groups(&plan.tensors, &ranked, prune.granularity);
    let models = plan.tensors[groups[0][0]].models.len();
    let measured: Vec<(u64, Vec<Sums>)> = groups
        .iter()
        .map(|members| {
            let mut sums = vec![Sums::default(); models];
            for t in members {
                sums.iter_mut().zip(engine.tensors[*t].norms()).for_each(|(a, b)| a.add(&b));
            }
            (members.iter().map(|t| plan.tensors[*t].elems).sum(), sums)
        })
        .collect();
    for (members, keep) in groups.iter().zip(choose::group_masks(prune, &measured)) {
        for t in members {
            engine.tensors[*t].keep_whole(prune, plan.tensors[*t].elems, &keep);
        }
    }
}

/// Factors that give a layer's task vectors the norms that they had before a stage.
pub(super) fn restore(engine: &Engine<'_>, stage: usize, layer: usize) {
    let plan = engine.plan;
    let found = |t: usize| plan.tensors[t].stage(stage).filter(|_| plan.tensors[t].layer == layer);
    let members: Vec<usize> = (0..plan.tensors.len()).filter(|t| found(*t).is_some()).collect();
    let Some((first, (_, Prune { rescale, .. }))) = members.first().and_then(|t| Some((t, found(*t)?))) else { return };
    let norm = |s: &Sums| choose::norm_part(rescale, s);
    let mut sums = vec![[0.0; 2]; plan.tensors[*first].models.len()];
    for t in &members {
        let [before, after] = engine.tensors[*t].norms_around();
        for ((sum, before), after) in sums.iter_mut().zip(&before).zip(&after) {
            sum[0] += norm(before);
            sum[1] += norm(after);
        }
    }
    let factors: Vec<f64> =
        sums.iter().map(|[before, after]| choose::restoring_factor(rescale, *before, *after)).collect();
    for t in members {
        if let Some((place, _)) = found(t) {
            engine.tensors[t].set_factors(place, &factors);
        }
    }
}
