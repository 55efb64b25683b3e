//! The one pass over all task vectors that every survey makes: norms, products and signs of each tensor.

use std::ops::Range;

use super::jobs::{Jobs, run_of, runs_of};
use super::survey::Run;
use crate::backend::cpu::pairs;
use crate::engine::{segments_of, stored_bytes, with_sources};
use crate::error::{Error, Result};
use crate::ops::pairs::Measures;
use crate::plan::TensorPlan;

/// Runs `$body` with the worker's buffers for the type that a tensor is computed in.
macro_rules! in_type_of {
    ($tensor:expr, $worker:expr, |$scratch:ident| $body:expr) => {
        if $tensor.wide {
            let $scratch = &mut $worker.wide;
            $body
        } else {
            let $scratch = &mut $worker.narrow;
            $body
        }
    };
}
pub(super) use in_type_of;

/// Measures of every tensor, by its place among the survey's.
pub(super) fn measures(run: &Run<'_>) -> Result<Vec<Measures>> {
    let survey = run.survey;
    let mut found = vec![Measures::new(survey.tasks.len()); survey.tensors.len()];
    let jobs = Jobs::new((0..survey.tensors.len()).map(|at| runs_of(survey.tensor(at).elems)));
    run.pool.in_order(
        jobs.count(),
        run.stop,
        |unit, worker| {
            let job = jobs.get(unit);
            let tensor = survey.tensor(job.at);
            let elems = run_of(tensor.elems, job.unit);
            run.will_need(tensor, &elems);
            let mut parts = Vec::new();
            for (_, at) in segments_of(elems.start, elems.end) {
                let (raw, bits) = (&mut worker.raw, &mut worker.bits);
                in_type_of!(tensor, worker, |scratch| {
                    with_sources(&survey.plan, tensor, at.start, at.end, raw, |sources| {
                        parts.push(pairs::measure(sources, scratch, bits));
                    })
                })
                .map_err(|e: Error| e.at_tensor(&tensor.name))?;
            }
            run.note_read(tensor, elems.end - elems.start);
            Ok(parts)
        },
        |unit, parts| {
            let job = jobs.get(unit);
            parts.iter().for_each(|part| found[job.at].add(part));
            if job.is_last {
                run.release(survey.tensor(job.at));
            }
            Ok(())
        },
    )?;
    Ok(found)
}

impl Run<'_> {
    /// Asks the kernel for the sources of a run of elements.
    pub fn will_need(&self, tensor: &TensorPlan, elems: &Range<u64>) {
        for at in tensor.reads() {
            let (stored, shard) = self.survey.plan.stored(at);
            let size = stored.dtype.bitsize() as u64 / 8;
            shard.will_need(stored.begin + elems.start * size..stored.begin + elems.end * size);
        }
    }

    /// Tells the progress that so many elements of every source have been read.
    pub fn note_read(&self, tensor: &TensorPlan, elems: u64) {
        (self.progress)(tensor.reads().map(|at| stored_bytes(&self.survey.plan, tensor, at, elems)).sum());
    }

    /// Gives back the pages of a tensor's sources; they stay in the kernel's cache.
    pub fn release(&self, tensor: &TensorPlan) {
        for at in tensor.reads() {
            let (stored, shard) = self.survey.plan.stored(at);
            shard.release(stored.range());
        }
    }
}
