//! `merganser merge`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::document::{Document, Output};
use super::log::Log;
use super::mergekit::Mergekit;
use super::part::{self, PartArg};
use super::print::count;
use super::progress::{ProgressArgs, State};
use super::{DeviceArgs, JsonFlag, PlanArgs, before, setup};
use crate::backend::device::Device;
use crate::engine::{self, Done, Outcome, Progress};
use crate::error::{Cause, Error, Result};
use crate::output::Share;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::units::format_bytes;

/// Merge checkpoints as the recipe says
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser merge recipe.yaml -o merged
  merganser merge recipe.yaml -o merged --memory-budget 2GiB --threads 8
  merganser merge recipe.yaml -o merged --resume --json
  merganser merge recipe.yaml -o merged --part auto/8     in each task of an array of eight

OUT appears once it is complete, by one rename; until then the work is in OUT.merganser-partial beside it. \
After an interruption (Ctrl-C, a full disk, a killed job) the same command with --resume goes on.

mergekit's options and its OUT as a second argument are taken too: docs/mergekit.md.")]
pub(super) struct Merge {
    #[command(flatten)]
    plan: PlanArgs,
    /// Output directory; must not exist or be empty unless --overwrite or --resume
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    mergekit: Mergekit,
    #[command(flatten)]
    device: DeviceArgs,
    /// Do the I-th of N parts of the merge, beside other processes that do the others, into the same OUT on a file system that
    /// all see; the last one finishes OUT. auto/N takes I from a batch system's array index. Implies --resume
    #[arg(long, value_name = "I/N")]
    part: Option<PartArg>,
    /// Go on with an interrupted merge into OUT; start where there is none
    #[arg(long)]
    resume: bool,
    /// Replace OUT, an earlier output, once the new one is complete; a file in it that merganser did not write refuses it
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    json: JsonFlag,
}

impl Merge {
    pub fn run(mut self, log: &Log) -> Result<u8> {
        for note in self.mergekit.apply(&mut self.plan, &mut self.device) {
            tracing::warn!("{note}");
        }
        // clap asks for one of the two.
        let out = self.out.or(self.mergekit.out).unwrap_or_default();
        let stop = setup::signals()?;
        crate::checkpoint::install_bus_handler()?;
        let part = self.part.map(PartArg::resolve).transpose()?;
        let device = self.device.choose()?;
        let mut recipe = self.plan.recipe(&stop)?;
        if part.is_some() && !recipe.before.is_empty() {
            return Err(no_parts_of(&recipe));
        }
        let documents = recipe.before.iter_mut().map(|(_, document)| &mut document.cuts_embeddings);
        documents.chain([&mut recipe.cuts_embeddings]).for_each(|cuts| *cuts = self.mergekit.cuts_embeddings);
        if !recipe.before.is_empty() {
            // Every mistake of any document is found before the first is merged.
            crate::plan::Plan::new(recipe.clone(), self.plan.options())?;
        }
        let documents = before::merge(&self.plan, &mut recipe, &out, self.resume, &stop)?;
        let mut plan = self.plan.plan_of(recipe)?;
        plan.files.without_tokenizer = !self.mergekit.copies_tokenizer && plan.recipe.tokenizer.is_none();
        let device = device.suited_to(plan.decomposes_on_devices())?;
        announce(&device, &plan);
        detail(&plan);
        if let Some((part, of)) = part {
            plan.take_part(part, of, labels(&device));
        }
        let progress = Progress::default();
        let total = plan.read_bytes() + plan.layout.data_bytes();
        let tensors = plan.part.as_ref().map_or(plan.tensors.len(), Share::tensors);
        let state = || State {
            bytes: progress.read_bytes() + progress.written_bytes(),
            of: total.saturating_sub(progress.skipped_bytes()),
            note: match stop.signal() {
                // Tensors in hand are finished first, which may take a while.
                Some(_) => "stopping (^C: at once)".into(),
                None => format!("{} of {tensors} tensors", progress.tensors()),
            },
        };
        let (out, resume, overwrite) = (out.as_path(), self.resume, self.overwrite);
        let merge = || {
            // Core matrices are small, and what they make is written by the CPU.
            if device.cuda.is_empty() || plan.core.is_some() {
                let request = engine::Request { plan: &plan, out, resume, overwrite };
                return engine::merge_part(&request, &progress, &stop);
            }
            let target = engine::Target { out, resume, overwrite, device_memory: self.device.device_memory };
            engine::merge_part_on_devices(&mut plan, &device, target, &progress, &stop)
        };
        let done = match self.progress.during(log, state, merge)? {
            Outcome::Done(done) => done,
            Outcome::Part(done) => {
                let warnings = plan.recipe.warnings.iter().chain(&plan.warnings).cloned().collect();
                return self.json.tell(log, warnings, part::document(&done), &part::in_words(&done));
            }
        };
        documents.remove();
        for note in &done.notes {
            tracing::warn!("{note}");
        }
        for phase in &done.manifest.timings.phases {
            tracing::debug!("{} took {:.3} s", phase.name, phase.seconds);
        }
        let warnings = plan.recipe.warnings.iter().chain(&plan.warnings).chain(&done.notes).cloned().collect();
        self.json.tell(log, warnings, document(&done), &in_words(&done))
    }
}

/// The error for a part of a merge that has others before it.
fn no_parts_of(recipe: &Recipe) -> Error {
    let name = recipe.before.first().map(|(name, _)| name.as_str()).unwrap_or_default();
    Error::input(format!("`--part` takes a recipe of one document; this one has `{name}` merged first"))
        .because(Cause::Recipe)
        .hint(format!("merge `{name}` by itself, and name its folder in the recipe"))
}

/// What computes, as all parts of a merge must have it.
fn labels(device: &Device) -> Vec<String> {
    match &device.cuda[..] {
        [] => vec!["cpu".into()],
        devices => devices.iter().map(|device| device.name.clone()).collect(),
    }
}

/// Says what computes, and what it may take.
fn announce(device: &Device, plan: &Plan) {
    let why = device.why.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
    let memory = plan.memory;
    if !device.cuda.is_empty() {
        tracing::info!("computing on {}{why}", device.name);
        return;
    }
    tracing::info!(
        "computing on the CPU ({}) with {}, in at most {} of a budget of {}{why}",
        device.name,
        count(memory.threads as u64, "thread"),
        format_bytes(memory.total),
        format_bytes(plan.options.memory_budget),
    );
}

/// With `-v`: what the plan comes to, and where the bounds on it are from.
fn detail(plan: &Plan) {
    tracing::debug!("without options this job may use {}", setup::bounds_in_words());
    for source in &plan.sources {
        let (role, checkpoint) = (if source.is_base { "base" } else { "model" }, &source.checkpoint);
        tracing::debug!(
            "{role} {}: {}, {} in {}",
            checkpoint.path().display(),
            count(checkpoint.tensors().len(), "tensor"),
            format_bytes(checkpoint.tensor_bytes()),
            count(checkpoint.shards().len(), "file"),
        );
    }
    let memory = plan.memory;
    tracing::debug!(
        "{} of output, {} to read, in {} of {} to {}: {} a thread, {} of {}, {} at most for a step",
        format_bytes(plan.layout.data_bytes()),
        format_bytes(plan.read_bytes()),
        count(plan.graph.steps.len(), "step"),
        count(plan.tensors.len(), "tensor"),
        count(plan.layout.files().len(), "file"),
        format_bytes(memory.per_thread),
        count(memory.buffers, "buffer"),
        format_bytes(memory.buffer_bytes),
        format_bytes(memory.largest_step),
    );
}

/// The document of a merge.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct MergeDocument {
    #[serde(flatten)]
    output: Output,
    /// The recipe's method.
    method: String,
    seed: u64,
}

impl Document for MergeDocument {
    const COMMAND: &'static str = "merge";
}

fn document(done: &Done) -> MergeDocument {
    let manifest = &done.manifest;
    MergeDocument {
        output: Output::new(&done.path, manifest, done.was_done, done.resumed),
        method: manifest.recipe["merge_method"].as_str().unwrap_or_default().to_owned(),
        seed: manifest.seed,
    }
}

fn in_words(done: &Done) -> String {
    let (totals, timings) = (&done.manifest.totals, &done.manifest.timings);
    let path = done.path.display();
    let tensors = count(totals.tensors as u64, "tensor");
    if done.was_done {
        return format!("{path} is finished already: {tensors}, {}\n", format_bytes(totals.bytes));
    }
    let mut text = format!(
        "merged {tensors} ({}) into {path} in {:.2} s, {:.2} GB/s read and written\n",
        format_bytes(totals.bytes),
        timings.seconds,
        timings.gb_per_s,
    );
    if done.resumed > 0 {
        text += &format!("{} of them had been merged before the interruption\n", done.resumed);
    }
    text
}
