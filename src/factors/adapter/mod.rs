//! The LoRA adapter that makes a fine-tune of its base: factors of what changed in each matrix, everything else that changed
//! whole.
//!
//! Two readings: the first finds what changed and, where ranks follow from the data, every matrix's; then the layout is known,
//! and the second decomposes and writes. Decompositions are those of `low_rank`, with its certificate in f32.

mod pair;
mod survey;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

pub use pair::Pair;

use crate::error::{Error, Kind, Result};
use crate::output::manifest::Manifest;
use crate::output::{OpenOptions, Opened, WorkDir};
use crate::run::Stop;
use crate::run::together;
use survey::Survey;
use write::Writer;

/// Which singular triples are kept of each matrix's change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keep {
    /// At most so many.
    pub rank: u64,
    /// The fewest whose squares are this share of the sum of all.
    pub energy: Option<f64>,
    /// Those whose singular value is greater.
    pub epsilon: Option<f64>,
}

impl Keep {
    /// How many of the singular values, descending, whose squares sum up to `whole` with those that were not computed.
    fn count(&self, values: &[f64], whole: f64) -> usize {
        let mut count = values.len().min(usize::try_from(self.rank).unwrap_or(usize::MAX));
        if let Some(epsilon) = self.epsilon {
            count = count.min(values.iter().take_while(|value| **value > epsilon).count());
        }
        if let Some(energy) = self.energy {
            let mut sum = 0.0;
            let reached = values.iter().position(|value| {
                sum += value * value;
                sum >= energy * whole
            });
            count = count.min(reached.map_or(values.len(), |at| at + 1));
        }
        count
    }

    /// Whether ranks follow from shapes alone.
    fn is_fixed(&self) -> bool {
        self.energy.is_none() && self.epsilon.is_none()
    }
}

/// What to make, and what that may use.
#[derive(Debug)]
pub struct Adaptation<'a> {
    /// Base and fine-tune.
    pub pair: &'a Pair,
    /// Ranks.
    pub keep: Keep,
    /// The folder to be made.
    pub to: &'a Path,
    /// Threads that compute.
    pub threads: usize,
    /// Bound on what is allocated, in bytes.
    pub memory_budget: u64,
    /// Go on with an interrupted extraction.
    pub resume: bool,
    /// Replace the folder.
    pub overwrite: bool,
}

/// A finished adapter.
#[derive(Debug)]
pub struct Done {
    /// The folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Matrices with factors.
    pub matrices: usize,
    /// Tensors that are stored whole.
    pub whole: usize,
    /// The greatest rank.
    pub rank: u64,
    /// Tensors that an earlier run had finished.
    pub resumed: usize,
    /// Whether the folder was finished before this call.
    pub was_done: bool,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Makes the adapter; returns once it is complete and on the disk. `moved` counts bytes read.
///
/// # Errors
/// Input, where nothing changed, or what changed cannot be held, or the memory budget is too small; else whatever stops it: the
/// folder is as it was, and the work folder beside it is kept.
pub fn extract(adaptation: &Adaptation<'_>, moved: &AtomicU64, stop: &Stop) -> Result<Done> {
    let started = Instant::now();
    let survey = Survey::take(adaptation, moved, stop)?;
    let writer = Writer::new(adaptation, &survey, moved, stop)?;
    let pair = adaptation.pair;
    let options = OpenOptions {
        out: adaptation.to.to_owned(),
        resume: adaptation.resume,
        overwrite: adaptation.overwrite,
        fingerprint: writer.fingerprint(),
        sources: vec![pair.base.path().to_owned(), pair.tuned.path().to_owned()],
        part: None,
    };
    let path = || std::path::absolute(adaptation.to).unwrap_or_else(|_| adaptation.to.to_owned());
    let done = |path: PathBuf, manifest: Manifest, resumed: usize, was_done: bool, notes: Vec<String>| Done {
        path,
        manifest,
        matrices: survey.modules.factors.len(),
        whole: survey.whole(),
        rank: survey.modules.factors.iter().map(|(_, rank)| *rank).max().unwrap_or_default(),
        resumed,
        was_done,
        notes,
    };
    let work = match WorkDir::open(options, &writer.layout)? {
        Opened::Work(work) => work,
        Opened::AlreadyDone(manifest) => {
            let resumed = manifest.tensors.len();
            return Ok(done(path(), *manifest, resumed, true, survey.notes.clone()));
        }
        Opened::PartDone(_) => return Err(Error::internal("an extraction has no parts")),
    };
    for tensor in work.unverified() {
        work.confirm(&tensor)?;
    }
    let resumed = work.finished().len();
    let checked = writer.run(&work).and_then(|()| {
        pair.base.check_unchanged()?;
        pair.tuned.check_unchanged()?;
        work.sync()
    });
    if let Err(error) = checked {
        let hint =
            format!("what is finished is kept in `{}`; go on with {}", work.folder().display(), work.resume_hint());
        work.abandon();
        return Err(if error.kind() == Kind::Input { error } else { error.hint(hint) });
    }
    let manifest = writer.manifest(&work.finished(), started.elapsed().as_secs_f64())?;
    let card = writer.card();
    let finished = work.finish(manifest, &card, &[writer.config()])?;
    let notes = survey.notes.iter().cloned().chain(finished.warnings).collect();
    Ok(done(finished.path, finished.manifest, resumed, false, notes))
}

/// Gives items by their position to so many threads, until one fails.
///
/// # Errors
/// The first error.
fn in_parallel<W: Default>(
    threads: usize,
    count: usize,
    stop: &Stop,
    work: impl Fn(usize, &mut W) -> Result<()> + Sync,
) -> Result<()> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let next = AtomicUsize::new(0);
    let thread = || -> Result<()> {
        let mut worker = W::default();
        loop {
            if let Some(error) = stop.error() {
                return Err(error);
            }
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= count {
                return Ok(());
            }
            if let Err(error) = work(item, &mut worker) {
                next.store(count, Ordering::Relaxed);
                return Err(error);
            }
        }
    };
    let failed = Mutex::new(None);
    together(threads.clamp(1, count.max(1)), || {
        if let Err(error) = thread() {
            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_the_least_that_every_bound_leaves() {
        let values = [4.0, 2.0, 1.0, 0.0];
        let whole = 21.0;
        let count = |rank, energy, epsilon| Keep { rank, energy, epsilon }.count(&values, whole);
        assert_eq!(count(128, None, None), 4);
        assert_eq!(count(2, None, None), 2);
        assert_eq!([0.7, 0.77, 0.96, 1.0].map(|share| count(128, Some(share), None)), [1, 2, 3, 3]);
        assert_eq!([5.0, 4.0, 1.5, 0.0].map(|least| count(128, None, Some(least))), [0, 0, 2, 3]);
        assert_eq!(count(3, Some(1.0), Some(1.5)), 2);
        // Of what was not computed nothing is known: all that there is.
        assert_eq!(Keep { rank: 3, energy: Some(0.99), epsilon: None }.count(&values[..3], 100.0), 3);
    }

    #[test]
    fn every_item_is_done_once_and_an_error_ends_the_rest() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let done: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        let stop = Stop::default();
        let each = |item: usize, _: &mut ()| {
            done[item].fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        assert!(in_parallel(3, done.len(), &stop, each).is_ok());
        assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        let failed = in_parallel(2, 1000, &stop, |item, _: &mut ()| match item {
            7 => Err(Error::input("seven")),
            _ => Ok(()),
        });
        assert_eq!(failed.map_err(|e| e.to_string()), Err("seven".into()));
    }
}
