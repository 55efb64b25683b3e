//! What stages prune: their scores, masks and cuts as a merge finds them, and the energy that goes with what is dropped.

use std::sync::{Mutex, PoisonError};

use super::jobs::{Jobs, cut_columns, cut_rows, run_of, runs_of};
use super::measure::in_type_of;
use super::survey::{Query, Run};
use crate::backend::cpu::select;
use crate::backend::cpu::stats;
use crate::engine::{choose, sample_of, scores, segments_of, with_sources};
use crate::error::{Error, Result};
use crate::ops::pairs::Measures;
use crate::ops::search::{COUNTERS, Cut, Ranked, Search, Totals};
use crate::ops::{Geometry, Granularity, Mask, Prune, StageState, Sums};
use crate::plan::TensorPlan;

/// Sources of the tensors that are scored and then summed before the next are: the second pass finds them in the kernel's
/// cache, and no more masks than theirs are held.
const BATCH_BYTES: u64 = 256 << 20;

/// What a stage keeps of one task vector in one tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Kept {
    /// Elements.
    pub elements: u64,
    /// Σ τ² of the task vector that enters the stage.
    pub before: f64,
    /// Σ τ² of what the stage keeps of it, without rescaling.
    pub after: f64,
}

/// By tensor and model.
type Answer = Vec<Vec<Kept>>;
/// Masks, and the elements that they keep, by model.
type Masked = (Vec<Mask>, Vec<u64>);
/// The stages before the one that is asked, as measured, by tensor.
pub(super) type Chain = Vec<Vec<(Prune, StageState)>>;

/// The answers to the survey's questions, in their order.
pub(super) fn kept(run: &Run<'_>, measures: &[Measures]) -> Result<Vec<Answer>> {
    let survey = run.survey;
    let stages = survey.plan.recipe.stages.len();
    let mut chain: Chain = vec![Vec::new(); survey.tensors.len()];
    let mut sums: Vec<Vec<Sums>> = measures.iter().map(|m| m.tasks.iter().map(|t| t.sums).collect()).collect();
    let mut answers = Vec::new();
    for stage in 0..stages {
        let asked: Vec<Query> = survey.asked.iter().copied().filter(|a| a.stage == stage).collect();
        let prune = |at: usize| survey.tensor(at).stage(stage).map(|(_, prune)| prune);
        let pruned: Vec<usize> = (0..survey.tensors.len()).filter(|at| prune(*at).is_some()).collect();
        let is_last = stage + 1 == stages;
        // What the stages before have left.
        let changed: Vec<usize> = (0..chain.len()).filter(|at| !chain[*at].is_empty()).collect();
        for (at, new) in changed.iter().zip(run.sums(&changed, &chain)?) {
            sums[*at] = new;
        }
        let all: Answer = (0..survey.tensors.len()).map(|at| whole(survey.tensor(at), &sums[at])).collect();
        let mut found = vec![all; asked.len()];
        let ranks = pruned.iter().filter_map(|at| prune(*at)).any(|p| is_whole(p.granularity));
        let masks = if ranks {
            run.groups(&asked, &pruned, &sums, &mut found)
        } else {
            run.units(&asked, &pruned, &chain, !is_last, &mut found)?
        };
        answers.append(&mut found);
        if !is_last {
            for (at, masks) in pruned.iter().zip(masks) {
                let Some(prune) = prune(*at) else { continue };
                chain[*at].push((prune, StageState { factors: vec![1.0; masks.len()], masks }));
            }
            run.restore(stage, &pruned, &sums, &mut chain)?;
        }
    }
    Ok(answers)
}

/// A task vector of which nothing is dropped.
fn whole(tensor: &TensorPlan, sums: &[Sums]) -> Vec<Kept> {
    sums.iter().map(|s| Kept { elements: tensor.elems, before: s.squares, after: s.squares }).collect()
}

/// Whether layers or tensors are kept or dropped as one.
pub(super) fn is_whole(granularity: Granularity) -> bool {
    matches!(granularity, Granularity::Layer | Granularity::Tensor)
}

/// The places of tensors, in runs whose sources are small enough to be read twice from memory.
pub(super) fn batches(pruned: &[usize], bytes: impl Fn(usize) -> u64) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut size = 0;
    for at in pruned {
        let next = bytes(*at);
        match batches.last_mut() {
            Some(batch) if size + next <= BATCH_BYTES => batch.push(*at),
            _ => {
                batches.push(vec![*at]);
                size = 0;
            }
        }
        size += next;
    }
    batches
}

impl Run<'_> {
    /// Ranks layers or tensors for every question; gives the first question's masks, by pruned tensor.
    fn groups(&self, asked: &[Query], pruned: &[usize], sums: &[Vec<Sums>], found: &mut [Answer]) -> Vec<Vec<Mask>> {
        let survey = self.survey;
        let places: Vec<usize> = pruned.iter().map(|at| survey.tensors[*at]).collect();
        // The survey's tensors are in the plan's order.
        let at_of = |place: &usize| survey.tensors.binary_search(place).unwrap_or_default();
        let mut masks = vec![Vec::new(); pruned.len()];
        for (question, (asked, answer)) in asked.iter().zip(found).enumerate() {
            let Some(prune) = pruned.first().and_then(|at| asked.prune(survey.tensor(*at))) else { continue };
            let groups = choose::groups(&survey.plan.tensors, &places, prune.granularity);
            let measured: Vec<(u64, Vec<Sums>)> = groups
                .iter()
                .map(|members| {
                    let mut total = vec![Sums::default(); survey.tasks.len()];
                    for place in members {
                        total.iter_mut().zip(&sums[at_of(place)]).for_each(|(a, b)| a.add(b));
                    }
                    (members.iter().map(|place| survey.plan.tensors[*place].elems).sum(), total)
                })
                .collect();
            for (members, keep) in groups.iter().zip(choose::group_masks(prune, &measured)) {
                for at in members.iter().map(at_of) {
                    for (kept, _) in answer[at].iter_mut().zip(&keep).filter(|(_, keep)| !**keep) {
                        (kept.elements, kept.after) = (0, 0.0);
                    }
                    if let (0, Ok(i)) = (question, pruned.binary_search(&at)) {
                        masks[i] = keep.iter().map(|k| if *k { Mask::All } else { Mask::None }).collect();
                    }
                }
            }
        }
        masks
    }

    /// Finds masks of rows, columns or elements for every question, and the energy that they keep; gives the first
    /// question's masks, by pruned tensor, if they are wanted.
    fn units(
        &self,
        asked: &[Query],
        pruned: &[usize],
        chain: &Chain,
        wanted: bool,
        found: &mut [Answer],
    ) -> Result<Vec<Vec<Mask>>> {
        let survey = self.survey;
        let mut all = Vec::new();
        for batch in batches(pruned, |at| survey.plan.pass_bytes(survey.tensors[at])) {
            let masks = self.masks(asked, &batch, chain)?;
            let energies = self.energies(asked, &batch, chain, &masks)?;
            for ((at, masks), energies) in batch.iter().zip(masks).zip(energies) {
                for (question, ((_, kept), after)) in masks.iter().zip(energies).enumerate() {
                    for ((answer, elements), after) in found[question][*at].iter_mut().zip(kept).zip(after) {
                        (answer.elements, answer.after) = (*elements, after);
                    }
                }
                if wanted && let Some((masks, _)) = masks.into_iter().next() {
                    all.push(masks);
                }
            }
        }
        Ok(all)
    }

    /// Masks and kept elements by model, for every tensor of a batch and every question.
    fn masks(&self, asked: &[Query], batch: &[usize], chain: &Chain) -> Result<Vec<Vec<Masked>>> {
        let survey = self.survey;
        let models = survey.tasks.len();
        // A tensor without elements keeps all of none.
        let mut found = vec![vec![(vec![Mask::All; models], vec![0; models]); asked.len()]; batch.len()];
        let own = |i: usize| {
            let tensor = survey.tensor(batch[i]);
            asked.first().and_then(|a| a.prune(tensor)).map(|prune| (tensor, prune, Geometry::of(&tensor.shape)))
        };
        let cut = |i: usize| match own(i) {
            Some((tensor, ..)) if tensor.elems == 0 => (0, 1),
            Some((_, Prune { granularity: Granularity::Row, .. }, geometry)) => cut_rows(geometry),
            Some((_, Prune { granularity: Granularity::Column, .. }, geometry)) => cut_columns(geometry),
            _ => (0, 1),
        };
        let jobs = Jobs::new((0..batch.len()).map(|i| cut(i).0));
        let mut scores = vec![Vec::new(); models];
        self.pool.in_order(
            jobs.count(),
            self.stop,
            |unit, worker| {
                let job = jobs.get(unit);
                let Some((tensor, prune, geometry)) = own(job.at) else {
                    return Err(Error::internal("a stage without a tensor"));
                };
                let (per_unit, stages, raw) = (cut(job.at).1, &chain[batch[job.at]], &mut worker.raw);
                let part = |of: u64| job.unit * per_unit..((job.unit + 1) * per_unit).min(of);
                let place = (&survey.plan, tensor);
                let (units, elems, scores) = if prune.granularity == Granularity::Row {
                    let rows = part(geometry.rows);
                    let scores = in_type_of!(tensor, worker, |scratch| {
                        scores::of_rows(place, prune, stages, rows.clone(), raw, scratch)
                    });
                    (rows, geometry.row_elems, scores)
                } else {
                    let columns = part(geometry.columns);
                    let scores = in_type_of!(tensor, worker, |scratch| {
                        scores::of_columns(place, prune, stages, columns.clone(), raw, scratch)
                    });
                    (columns, geometry.column_elems(), scores)
                };
                self.note_read(tensor, (units.end - units.start) * elems);
                scores.map_err(|e| e.at_tensor(&tensor.name))
            },
            |unit, part| {
                let job = jobs.get(unit);
                scores.iter_mut().zip(part).for_each(|(all, part)| all.extend(part));
                let Some((tensor, _, geometry)) = own(job.at).filter(|_| job.is_last) else { return Ok(()) };
                for (found, asked) in found[job.at].iter_mut().zip(asked) {
                    if let Some(prune) = asked.prune(tensor) {
                        *found = choose::unit_masks(&scores, prune, geometry, tensor.elems);
                    }
                }
                scores.iter_mut().for_each(Vec::clear);
                Ok(())
            },
        )?;
        for (at, found) in batch.iter().zip(&mut found) {
            let tensor = survey.tensor(*at);
            for (found, asked) in found.iter_mut().zip(asked) {
                let element = |p: &Prune| p.granularity == Granularity::Element && tensor.elems > 0;
                if let Some(prune) = asked.prune(tensor).filter(element) {
                    let cuts = self.cuts(tensor, prune, &chain[*at])?;
                    *found = choose::cut_masks(&cuts, prune, tensor.elems);
                }
            }
        }
        Ok(found)
    }

    /// The cuts of a tensor's elements, by model.
    fn cuts(&self, tensor: &TensorPlan, prune: Prune, chain: &[(Prune, StageState)]) -> Result<Vec<Option<Cut>>> {
        let (survey, models) = (self.survey, self.survey.tasks.len());
        let geometry = Geometry::of(&tensor.shape);
        let mut searches: Vec<Option<Search>> = vec![choose::search(tensor, prune.keep, prune.keep_redundant); models];
        let mut cuts = vec![None; models];
        while searches.iter().any(Option::is_some) {
            let samples = searches.iter().flatten().all(Search::samples);
            // Counting commutes, so that units may add as they end.
            let totals = Mutex::new(vec![Totals::default(); models]);
            let searching = &searches;
            self.pool.in_order(
                runs_of(tensor.elems) as usize,
                self.stop,
                |unit, worker| {
                    let elems = run_of(tensor.elems, unit as u64);
                    worker.counts.resize_with(models.max(worker.counts.len()), || vec![0; COUNTERS]);
                    let (raw, counts) = (&mut worker.raw, &mut worker.counts[..models]);
                    for (segment, at) in segments_of(elems.start, elems.end) {
                        let parts: Vec<_> = if samples { sample_of(segment, at).collect() } else { vec![at] };
                        for at in parts {
                            in_type_of!(tensor, worker, |scratch| {
                                with_sources(&survey.plan, tensor, at.start, at.end, raw, |sources| {
                                    let ranked = Ranked::Score(prune.score);
                                    select::count(ranked, searching, geometry, chain, sources, counts, scratch);
                                })
                            })
                            .map_err(|e: Error| e.at_tensor(&tensor.name))?;
                        }
                    }
                    if !samples {
                        self.note_read(tensor, elems.end - elems.start);
                    }
                    choose::add_counts(&mut totals.lock().unwrap_or_else(PoisonError::into_inner), searching, counts);
                    Ok(())
                },
                |_, ()| Ok(()),
            )?;
            let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
            for ((search, totals), cut) in searches.iter_mut().zip(&totals).zip(&mut cuts) {
                // A search that has ended waits for the others.
                if let Some(searching) = search {
                    *cut = searching.advance(totals);
                    if cut.is_some() {
                        *search = None;
                    }
                }
            }
        }
        Ok(cuts)
    }

    /// Σ τ² of what masks keep, for every tensor of a batch, by question and model.
    fn energies(
        &self,
        asked: &[Query],
        batch: &[usize],
        chain: &Chain,
        masks: &[Vec<Masked>],
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let (survey, models) = (self.survey, self.survey.tasks.len());
        let mut found = vec![vec![vec![0.0; models]; asked.len()]; batch.len()];
        // The chain with the masks that are asked about at its end, by question.
        let end = |i: usize| -> Vec<Vec<(Prune, StageState)>> {
            let tensor = survey.tensor(batch[i]);
            let masked = asked.iter().zip(&masks[i]).filter_map(|(asked, (masks, _))| {
                let state = StageState { masks: masks.clone(), factors: vec![1.0; models] };
                Some([&chain[batch[i]][..], &[(asked.prune(tensor)?, state)]].concat())
            });
            masked.collect()
        };
        let ends: Vec<_> = (0..batch.len()).map(end).collect();
        let jobs = Jobs::new(batch.iter().map(|at| runs_of(survey.tensor(*at).elems)));
        self.pool.in_order(
            jobs.count(),
            self.stop,
            |unit, worker| {
                let job = jobs.get(unit);
                let tensor = survey.tensor(batch[job.at]);
                let (geometry, stages) = (Geometry::of(&tensor.shape), &ends[job.at]);
                let elems = run_of(tensor.elems, job.unit);
                let mut parts = Vec::new();
                for (_, at) in segments_of(elems.start, elems.end) {
                    let raw = &mut worker.raw;
                    in_type_of!(tensor, worker, |scratch| {
                        with_sources(&survey.plan, tensor, at.start, at.end, raw, |sources| {
                            let of = stages.iter().map(|stages| stats::squares(geometry, stages, sources, scratch));
                            parts.push(of.flatten().collect::<Vec<_>>());
                        })
                    })
                    .map_err(|e: Error| e.at_tensor(&tensor.name))?;
                }
                self.note_read(tensor, elems.end - elems.start);
                Ok(parts)
            },
            |unit, parts| {
                let job = jobs.get(unit);
                for part in parts {
                    for (sums, part) in found[job.at].iter_mut().zip(part) {
                        sums.iter_mut().zip(part).for_each(|(a, b)| *a += b);
                    }
                }
                if job.is_last {
                    self.release(survey.tensor(batch[job.at]));
                }
                Ok(())
            },
        )?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_what_fits_and_at_least_one_tensor() {
        let sizes = [BATCH_BYTES / 2, BATCH_BYTES / 2, 1, BATCH_BYTES * 3, 5, BATCH_BYTES];
        let found = batches(&[0, 1, 2, 3, 4, 5], |at| sizes[at]);
        assert_eq!(found, [vec![0, 1], vec![2], vec![3], vec![4], vec![5]]);
        assert!(batches(&[], |_| 0).is_empty());
    }
}
