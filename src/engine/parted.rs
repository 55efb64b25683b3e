//! Statistics over the whole model in a merge of several parts: each of their numbers is measured by the first that needs it, and known to all.
//!
//! A part begins with the tensors that are its own and goes on with those of the parts behind it, so that parts that run at the same
//! time meet what others have measured already.

use super::Engine;
use super::schedule::Parted;
use crate::error::Result;
use crate::ops::Sums;
use crate::output::{Share, WorkDir};
use crate::plan::Plan;
use crate::plan::graph::{Kind, Step, StepId};

/// How a part goes about the steps of its plan; `None` for a merge that is whole.
pub(super) fn order(plan: &Plan, work: &WorkDir) -> Option<Parted> {
    let Share { part, of, owners, .. } = work.part()?;
    let steps = &plan.graph.steps;
    let is_shared: Vec<bool> = steps.iter().map(|step| key(plan, step).is_some()).collect();
    let behind = |step: &Step| (owners[step.tensor] + of - part) % of;
    let rank = steps.iter().zip(&is_shared).map(|(step, shared)| if *shared { behind(step) } else { 0 }).collect();
    Some(Parted { rank, is_shared })
}

/// What parts know the result of a step by, if they share it: norms that are compared across tensors, where nothing else must
/// have been measured before them.
fn key(plan: &Plan, step: &Step) -> Option<String> {
    match step.kind {
        Kind::Norms(stage) if step.needs.is_empty() => {
            Some(format!("norms {stage} {}", plan.tensors[step.tensor].name))
        }
        _ => None,
    }
}

impl Engine<'_> {
    /// Takes what another part has measured for a step, or has the step run.
    pub(super) fn look_up(&self, id: StepId) {
        let step = &self.plan.graph.steps[id];
        let known = key(self.plan, step).and_then(|key| self.work?.statistics()?.get(&key));
        let models = self.plan.tensors[step.tensor].models.len();
        if let Some(norms) = known.and_then(|known| norms_of(&known, models)) {
            self.tensors[step.tensor].set_norms_around(norms);
            if !self.is_done[step.tensor] {
                self.progress.spare(self.plan.pass_bytes(step.tensor));
            }
            return self.schedule.end_unrun(id);
        }
        if self.is_done[step.tensor] {
            self.progress.owe(self.plan.pass_bytes(step.tensor));
        }
        self.schedule.offer(id);
    }

    /// Lets the other parts know what a step has measured.
    pub(super) fn share(&self, step: &Step) -> Result<()> {
        let (Some(statistics), Some(key)) = (self.work.and_then(WorkDir::statistics), key(self.plan, step)) else {
            return Ok(());
        };
        let norms = self.tensors[step.tensor].norms_around();
        let numbers: Vec<f64> = norms.iter().flatten().flat_map(Sums::numbers).collect();
        statistics.put(&key, &numbers)
    }
}

/// Norms before and after a stage, by model; `None` if it is not for so many models.
fn norms_of(numbers: &[f64], models: usize) -> Option<[Vec<Sums>; 2]> {
    let (sums, rest) = numbers.as_chunks::<6>();
    let of = |sums: &[[f64; 6]]| sums.iter().copied().map(Sums::of).collect();
    let (before, after) = sums.split_at_checked(models)?;
    (rest.is_empty() && after.len() == models).then(|| [of(before), of(after)])
}
