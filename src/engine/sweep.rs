//! Several merges at the same time, of plans that differ in numbers of their last step alone: sources are read once, matrices
//! decomposed once.

use std::path::PathBuf;
use std::time::Instant;

use super::merge::{Begun, complete, open, phases, with_resume_hint};
use super::{Done, Outcome, Progress, Request, Stop, run_all};
use crate::error::Result;
use crate::output::WorkDir;
use crate::plan::Plan;
use crate::report::manifest::{Audit, Timings};

/// A merge among others.
#[derive(Debug)]
pub struct Candidate {
    /// What is merged.
    pub plan: Plan,
    /// Where to.
    pub out: PathBuf,
}

/// Makes the outputs of plans that are all [made with](Plan::is_made_with) the first, in their order. Each is as a merge by itself would
/// make it, and resumable by itself.
///
/// # Errors
/// Whatever stops one of them stops all; work folders are kept for `--resume`.
pub fn merge_together(
    candidates: &mut [Candidate],
    resume: bool,
    overwrite: bool,
    progress: &Progress,
    stop: &Stop,
) -> Result<Vec<Done>> {
    let Some((leader, others)) = candidates.split_first_mut() else { return Ok(Vec::new()) };
    let read_before = progress.read_bytes();
    leader.plan.lead(&mut others.iter_mut().map(|other| &mut other.plan).collect::<Vec<_>>())?;
    let started = Instant::now();
    let request = |of: usize| {
        let Candidate { plan, out } = &candidates[of];
        Request { plan, out, resume, overwrite }
    };
    let mut done: Vec<Option<Done>> = Vec::new();
    let mut open_work: Vec<(usize, Box<WorkDir>, usize)> = Vec::new();
    for of in 0..candidates.len() {
        match open(&request(of))? {
            Begun::Work(work, resumed) => {
                open_work.push((of, work, resumed));
                done.push(None);
            }
            Begun::Ended(Outcome::Done(ended)) => done.push(Some(*ended)),
            Begun::Ended(Outcome::Part(_)) => return Err(crate::Error::internal("a sweep has no parts")),
        }
    }
    let prepared = started.elapsed();
    let result = match open_work.split_first() {
        None => Ok(Audit::default()),
        Some(((of, work, _), others)) => {
            let others: Vec<(&Plan, &WorkDir)> =
                others.iter().map(|(of, work, _)| (&candidates[*of].plan, &**work)).collect();
            run_all(&candidates[*of].plan, None, work, &others, progress, stop)
        }
    };
    let sources = &candidates[0].plan.sources;
    let result = result.and_then(|audit| {
        sources.iter().try_for_each(|source| source.checkpoint.check_unchanged())?;
        Ok(audit)
    });
    let merged = started.elapsed();
    let result = result.and_then(|audit| {
        open_work.iter().try_for_each(|(_, work, _)| work.sync().map_err(|error| with_resume_hint(error, work)))?;
        Ok(audit)
    });
    let audit = match result {
        Ok(audit) => audit,
        Err(error) => {
            open_work.into_iter().for_each(|(_, work, _)| work.abandon());
            return Err(error);
        }
    };
    let synced = started.elapsed();
    let bytes_read = progress.read_bytes() - read_before;
    for (of, work, resumed) in open_work {
        let request = request(of);
        let written = request.plan.layout.data_bytes();
        let timings = Timings::new(synced.as_secs_f64(), bytes_read, written, phases(prepared, merged, synced));
        done[of] = Some(complete(&request, *work, timings, audit, resumed)?);
    }
    Ok(done.into_iter().flatten().collect())
}
