//! How many elements of each task vector no other changed, and how many others changed too.

use super::BLOCK;
use super::blend::load_pruned;
use super::prune::{Scratch, Sources};
use super::stored::Widen;
use super::vector;
use crate::ops::{Changes, Geometry, Prune, StageState};

/// Adds the counts of a run to those of every model, of the task vectors that `stages` leave. A change is a |τ| above the threshold,
/// or NaN.
pub fn count<C: Widen>(
    threshold: f64,
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    changes: &mut [Changes],
    scratch: &mut Scratch<C>,
) {
    let none = C::of(threshold).key();
    for at in (0..sources.len).step_by(BLOCK) {
        let n = BLOCK.min(sources.len - at);
        load_pruned(geometry, stages, sources, at, n, scratch);
        let changed_by = &mut scratch.words[..n];
        changed_by.fill(0);
        for (tau, _) in scratch.tau.iter().zip(&*changes) {
            vector::count_changes(changed_by, &tau[..n], none);
        }
        for (tau, changes) in scratch.tau.iter().zip(&mut *changes) {
            let [alone, shared] = vector::overlap(changed_by, &tau[..n], none);
            changes.add(&Changes { alone: alone.into(), shared: shared.into() });
        }
    }
}
