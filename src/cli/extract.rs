//! `merganser extract`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use serde::Serialize;

use super::document::{Document, Output, print_document};
use super::log::Log;
use super::patience::Patience;
use super::print::{count, print};
use super::progress::{ProgressArgs, State};
use super::{JsonFlag, Threads, default_budget, setup, size};
use crate::error::Result;
use crate::factors::extract::{self, Done};
use crate::factors::{Extraction, Store, Task};
use crate::units::format_bytes;

/// Rebuild a task's model from the factors that a merge with `output: factors` stored
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser extract merged --task math -o math
  merganser extract merged --task math -o strong --lambda 1.5 --json

The model is centre + λ · left · right in every matrix that has factors, and the centre in all other tensors; λ = 1 is \
the task's own low-rank approximation, λ = 0 the centre.")]
pub(super) struct Extract {
    /// The output of a merge whose recipe says `output: factors`
    out: PathBuf,
    /// The task to rebuild
    #[arg(long, value_name = "NAME")]
    task: String,
    /// Output directory; must not exist or be empty unless --overwrite or --resume
    #[arg(short = 'o', long = "out", value_name = "DIR")]
    to: PathBuf,
    /// What the task's low-rank part is multiplied by
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = lambda)]
    lambda: f64,
    #[command(flatten)]
    threads: Threads,
    /// Bound on the memory that merganser allocates itself, such as 512MiB [default: a quarter of RAM, or of the limit of
    /// this job's control group]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    memory_budget: Option<u64>,
    /// Split the output above this size
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size, allow_negative_numbers = true)]
    shard_size: u64,
    /// Go on with an interrupted extraction into DIR; start where there is none
    #[arg(long)]
    resume: bool,
    /// Replace DIR, an earlier output, once the new one is complete; a file in it that merganser did not write refuses it
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    json: JsonFlag,
}

impl Extract {
    pub fn run(self, log: &Log) -> Result<u8> {
        let stop = setup::signals()?;
        let patience = Patience::with(&stop)?;
        setup::bus_errors()?;
        let store = Store::open(&self.out)?;
        let task = store.task(&self.task)?;
        let extraction = Extraction {
            store: &store,
            task,
            lambda: self.lambda,
            to: &self.to,
            threads: self.threads.get(),
            memory_budget: self.memory_budget.unwrap_or_else(default_budget),
            shard_bytes: self.shard_size,
            resume: self.resume,
            overwrite: self.overwrite,
        };
        let written = AtomicU64::new(0);
        let of = extraction.bytes();
        let state = || State {
            bytes: written.load(Ordering::Relaxed),
            of,
            note: if stop.signal().is_some() { "stopping (^C: at once)".into() } else { String::new() },
        };
        let done = self.progress.during(log, state, || extract::extract(&extraction, &written, &stop))?;
        drop(patience);
        for note in &done.notes {
            tracing::warn!("{note}");
        }
        if self.json.json {
            print_document(done.notes.clone(), self.document(&store, &done))?;
        } else if !log.quiet {
            print(&self.in_words(&done))?;
        }
        Ok(0)
    }

    fn document(&self, store: &Store, done: &Done) -> ExtractDocument {
        ExtractDocument {
            output: Output::new(&done.path, &done.manifest, done.was_done, done.resumed),
            task: self.task.clone(),
            tasks: store.header.tasks.clone(),
            lambda: self.lambda,
            rebuilt_tensors: done.rebuilt,
        }
    }

    fn in_words(&self, done: &Done) -> String {
        let totals = &done.manifest.totals;
        let (path, tensors) = (done.path.display(), count(totals.tensors as u64, "tensor"));
        if done.was_done {
            return format!("{path} is finished already: {tensors}, {}\n", format_bytes(totals.bytes));
        }
        let mut text = format!(
            "rebuilt `{}` of {} into {path}: {tensors} ({}), {} of them from factors, in {:.2} s, {:.2} GB/s read and written\n",
            self.task,
            self.out.display(),
            format_bytes(totals.bytes),
            done.rebuilt,
            done.manifest.timings.seconds,
            done.manifest.timings.gb_per_s,
        );
        if totals.nonfinite.output > 0 {
            text += &format!(
                "NaN or infinite: {}, {} of them where every source is finite\n",
                count(totals.nonfinite.output, "element"),
                totals.nonfinite.introduced
            );
        }
        text
    }
}

/// The document of an extraction.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct ExtractDocument {
    #[serde(flatten)]
    output: Output,
    /// The task that was rebuilt.
    task: String,
    /// All tasks that there are.
    tasks: Vec<Task>,
    lambda: f64,
    /// Tensors that were rebuilt from factors.
    rebuilt_tensors: usize,
}

impl Document for ExtractDocument {
    const COMMAND: &'static str = "extract";
}

fn lambda(text: &str) -> Result<f64, String> {
    const MOST: f64 = 1e6;
    match text.parse::<f64>() {
        Ok(value) if value.abs() <= MOST => Ok(value),
        Ok(_) => Err(format!("expected a number from -{MOST} to {MOST}")),
        Err(_) => Err("expected a number".into()),
    }
}
