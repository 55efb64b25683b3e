//! What the stages before leave of the task vectors, where a recipe has more than one.

use super::jobs::{Jobs, run_of, runs_of};
use super::measure::in_type_of;
use super::stage::Chain;
use super::survey::Run;
use crate::backend::cpu::stats;
use crate::engine::{choose, segments_of, with_sources};
use crate::error::{Error, Result};
use crate::ops::{Geometry, Rescale, Sums};

impl Run<'_> {
    /// Norms of what the chain leaves, by tensor of the list and model.
    pub fn sums(&self, tensors: &[usize], chain: &Chain) -> Result<Vec<Vec<Sums>>> {
        let survey = self.survey;
        let mut found = vec![vec![Sums::default(); survey.tasks.len()]; tensors.len()];
        let jobs = Jobs::new(tensors.iter().map(|at| runs_of(survey.tensor(*at).elems)));
        self.pool.in_order(
            jobs.count(),
            self.stop,
            |unit, worker| {
                let job = jobs.get(unit);
                let (tensor, stages) = (survey.tensor(tensors[job.at]), &chain[tensors[job.at]]);
                let elems = run_of(tensor.elems, job.unit);
                let mut parts = Vec::new();
                for (_, at) in segments_of(elems.start, elems.end) {
                    let raw = &mut worker.raw;
                    in_type_of!(tensor, worker, |scratch| {
                        with_sources(&survey.plan, tensor, at.start, at.end, raw, |sources| {
                            parts.extend(stats::sums(Geometry::of(&tensor.shape), stages, sources, scratch));
                        })
                    })
                    .map_err(|e: Error| e.at_tensor(&tensor.name))?;
                }
                self.note_read(tensor, elems.end - elems.start);
                Ok(parts)
            },
            |unit, parts| {
                let total = &mut found[jobs.get(unit).at];
                parts.iter().for_each(|part| total.iter_mut().zip(part).for_each(|(a, b)| a.add(b)));
                Ok(())
            },
        )?;
        Ok(found)
    }

    /// Sets the factors that give layers their norms back after a stage, the last of the chain.
    pub fn restore(&self, stage: usize, pruned: &[usize], before: &[Vec<Sums>], chain: &mut Chain) -> Result<()> {
        let survey = self.survey;
        let rescale = |at: usize| survey.tensor(at).stage(stage).map_or(Rescale::None, |(_, p)| p.rescale);
        let rescaled: Vec<usize> = pruned.iter().copied().filter(|at| rescale(*at) != Rescale::None).collect();
        let after = self.sums(&rescaled, chain)?;
        let mut layers: Vec<usize> = rescaled.iter().map(|at| survey.tensor(*at).layer).collect();
        layers.sort_unstable();
        layers.dedup();
        for layer in layers {
            let here = |at: &usize| survey.tensor(*at).layer == layer;
            let Some(rescale) = pruned.iter().find(|at| here(at)).map(|at| rescale(*at)) else { continue };
            let mut sums = vec![[0.0; 2]; survey.tasks.len()];
            for (at, after) in rescaled.iter().zip(&after).filter(|(at, _)| here(at)) {
                for ((sum, before), after) in sums.iter_mut().zip(&before[*at]).zip(after) {
                    sum[0] += choose::norm_part(rescale, before);
                    sum[1] += choose::norm_part(rescale, after);
                }
            }
            let factors: Vec<f64> = sums.iter().map(|[b, a]| choose::restoring_factor(rescale, *b, *a)).collect();
            for at in pruned.iter().filter(|at| here(at)) {
                if let Some((_, state)) = chain[*at].last_mut() {
                    state.factors.clone_from(&factors);
                }
            }
        }
        Ok(())
    }
}
