//! `merganser extract`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use serde::Serialize;

use super::document::{Document, Output, print_document};
use super::log::Log;
use super::print::{count, print};
use super::progress::{ProgressArgs, State};
use super::{JsonFlag, Threads, default_budget, setup, size};
use crate::engine::Stop;
use crate::error::{Cause, Error, Result};
use crate::factors::adapter::{self, Adaptation, Keep, Pair};
use crate::factors::extract::{self, Done};
use crate::factors::{Extraction, Store, Task};
use crate::units::format_bytes;

/// Rebuild a task's model from stored factors, or make an adapter of a fine-tune
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser extract merged --task math -o math
  merganser extract merged --task math -o strong --lambda 1.5 --json
  merganser extract --lora base math -o math-adapter
  merganser extract --lora base math -o small --rank 32 --energy 0.95

Of the output of a merge with `output: factors`, the model is centre + λ · left · right in every matrix that has factors, and the centre in all other tensors; λ = 1 is \
the task's own low-rank approximation, λ = 0 the centre.

With --lora the adapter (PEFT's layout) that makes TUNED of BASE: factors of each matrix's change, and whole what else \
changed. Status 1 if nothing did.")]
pub(super) struct Extract {
    /// The output of a merge whose recipe says `output: factors`; with --lora the base and its fine-tune
    #[arg(value_name = "FROM", required = true, num_args = 1..=2)]
    from: Vec<PathBuf>,
    /// The task to rebuild
    #[arg(long, value_name = "NAME", required_unless_present = "lora")]
    task: Option<String>,
    #[command(flatten)]
    lora: LoraArgs,
    /// Output directory; must not exist or be empty unless --overwrite or --resume
    #[arg(short = 'o', long = "out", value_name = "DIR")]
    to: PathBuf,
    /// What the task's low-rank part is multiplied by
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = lambda)]
    #[arg(conflicts_with = "lora")]
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
        crate::checkpoint::install_bus_handler()?;
        match (&self.from[..], &self.task) {
            ([base, tuned], None) => self.adapter(base, tuned, log, &stop),
            ([merged], Some(task)) => self.task(merged, task, log, &stop),
            ([_], None) => Err(usage("--lora takes two models: the base and its fine-tune")),
            _ => Err(usage("two models are given, and --task takes one output of a merge")
                .hint("`--lora BASE TUNED` makes an adapter of a fine-tune")),
        }
    }

    fn adapter(&self, base: &Path, tuned: &Path, log: &Log, stop: &Stop) -> Result<u8> {
        let pair = Pair::open(&base.to_string_lossy(), &tuned.to_string_lossy())?;
        let adaptation = Adaptation {
            pair: &pair,
            keep: self.lora.keep(),
            to: &self.to,
            threads: self.threads.get(),
            memory_budget: self.memory_budget.unwrap_or_else(default_budget),
            resume: self.resume,
            overwrite: self.overwrite,
        };
        let read = AtomicU64::new(0);
        let of = pair.base.tensor_bytes() + pair.tuned.tensor_bytes();
        let state = || State {
            bytes: read.load(Ordering::Relaxed).min(of),
            of,
            note: if stop.signal().is_some() { "stopping (^C: at once)".into() } else { String::new() },
        };
        let done = self.progress.during(log, state, || adapter::extract(&adaptation, &read, stop))?;
        for note in &done.notes {
            tracing::warn!("{note}");
        }
        if self.json.json {
            print_document(done.notes.clone(), AdapterDocument::new(&pair, &done))?;
        } else if !log.quiet {
            print(&adapter_in_words(&pair, &done))?;
        }
        Ok(0)
    }

    fn task(&self, merged: &Path, name: &str, log: &Log, stop: &Stop) -> Result<u8> {
        let store = Store::open(merged)?;
        let task = store.task(name)?;
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
        let done = self.progress.during(log, state, || extract::extract(&extraction, &written, stop))?;
        for note in &done.notes {
            tracing::warn!("{note}");
        }
        if self.json.json {
            print_document(done.notes.clone(), self.document(&store, name, &done))?;
        } else if !log.quiet {
            print(&in_words(merged, name, &done))?;
        }
        Ok(0)
    }

    fn document(&self, store: &Store, task: &str, done: &Done) -> ExtractDocument {
        ExtractDocument {
            output: Output::new(&done.path, &done.manifest, done.was_done, done.resumed),
            task: task.to_owned(),
            tasks: store.header.tasks.clone(),
            lambda: self.lambda,
            rebuilt_tensors: done.rebuilt,
        }
    }
}

fn in_words(merged: &Path, task: &str, done: &Done) -> String {
    let totals = &done.manifest.totals;
    let (path, tensors) = (done.path.display(), count(totals.tensors as u64, "tensor"));
    if done.was_done {
        return format!("{path} is finished already: {tensors}, {}\n", format_bytes(totals.bytes));
    }
    let mut text = format!(
        "rebuilt `{}` of {} into {path}: {tensors} ({}), {} of them from factors, in {:.2} s, {:.2} GB/s read and written\n",
        task,
        merged.display(),
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

fn adapter_in_words(pair: &Pair, done: &adapter::Done) -> String {
    let totals = &done.manifest.totals;
    let (path, tensors) = (done.path.display(), count(totals.tensors as u64, "tensor"));
    if done.was_done {
        return format!("{path} is finished already: {tensors}, {}\n", format_bytes(totals.bytes));
    }
    format!(
        "an adapter that makes {} of {} in {path}: factors of {}, rank {} at most, and {} whole ({}), in {:.2} s\n",
        pair.tuned_name,
        pair.base_name,
        count(done.matrices as u64, "matrix").replace("matrixs", "matrices"),
        done.rank,
        count(done.whole as u64, "tensor"),
        format_bytes(totals.bytes),
        done.manifest.timings.seconds,
    )
}

fn usage(message: &str) -> Error {
    Error::input(message).because(Cause::Usage)
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

/// The document of an adapter.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct AdapterDocument {
    #[serde(flatten)]
    output: Output,
    /// The base, as it was given.
    base: String,
    /// The fine-tune, as it was given.
    model: String,
    /// Matrices with factors.
    matrices: usize,
    /// Their greatest rank.
    rank: u64,
    /// Tensors that are stored whole.
    whole_tensors: usize,
}

impl AdapterDocument {
    fn new(pair: &Pair, done: &adapter::Done) -> Self {
        Self {
            output: Output::new(&done.path, &done.manifest, done.was_done, done.resumed),
            base: pair.base_name.clone(),
            model: pair.tuned_name.clone(),
            matrices: done.matrices,
            rank: done.rank,
            whole_tensors: done.whole,
        }
    }
}

impl Document for AdapterDocument {
    const COMMAND: &'static str = "extract";
}

/// What `--lora` takes.
#[derive(Debug, Args)]
struct LoraArgs {
    /// Make the LoRA adapter that makes the fine-tune of the base
    #[arg(long, conflicts_with = "task")]
    lora: bool,
    /// Greatest rank of a matrix's factors
    #[arg(long, value_name = "N", default_value_t = 128, requires = "lora", value_parser = clap::value_parser!(u64).range(1..=65536))]
    rank: u64,
    /// Of each matrix keep the lowest rank whose factors hold this share of its change (of the sum of squares)
    #[arg(long, value_name = "X", requires = "lora", value_parser = share)]
    energy: Option<f64>,
    /// Of each matrix keep the singular values greater than this
    #[arg(long, value_name = "X", requires = "lora", value_parser = least)]
    epsilon: Option<f64>,
}

impl LoraArgs {
    fn keep(&self) -> Keep {
        Keep { rank: self.rank, energy: self.energy, epsilon: self.epsilon }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("expected a number above 0, at most 1".into()),
    }
}

fn least(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number, 0 or greater".into()),
    }
}

fn lambda(text: &str) -> Result<f64, String> {
    const MOST: f64 = 1e6;
    match text.parse::<f64>() {
        Ok(value) if value.abs() <= MOST => Ok(value),
        Ok(_) => Err(format!("expected a number from -{MOST} to {MOST}")),
        Err(_) => Err("expected a number".into()),
    }
}
