//! `merganser merge`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::log::Log;
use super::print::{count, print, print_json};
use super::progress::{ProgressArgs, State};
use super::{DeviceArgs, JsonFlag, PlanArgs, setup};
use crate::backend::device::Device;
use crate::engine::{self, Done, Progress};
use crate::error::Result;
use crate::plan::Plan;
use crate::report::manifest::MANIFEST_NAME;
use crate::units::format_bytes;

/// Merge checkpoints as the recipe says
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser merge recipe.yaml -o merged
  merganser merge recipe.yaml -o merged --memory-budget 2GiB --threads 8
  merganser merge recipe.yaml -o merged --resume --json

OUT appears once it is complete, by one rename; until then the work is in OUT.merganser-partial beside it. \
After an interruption (Ctrl-C, a full disk, a killed job) the same command with --resume goes on.")]
pub(super) struct Merge {
    #[command(flatten)]
    plan: PlanArgs,
    /// Output directory; must not exist or be empty unless --overwrite or --resume
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
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
    pub fn run(self, log: &Log) -> Result<u8> {
        let stop = setup::signals()?;
        crate::checkpoint::install_bus_handler()?;
        let device = self.device.choose()?;
        let mut plan = self.plan.plan()?;
        let device = device.suited_to(plan.decomposes_on_devices())?;
        announce(&device, &plan);
        let progress = Progress::default();
        let total = plan.read_bytes() + plan.layout.data_bytes();
        let tensors = plan.tensors.len();
        let state = || State {
            bytes: progress.read_bytes() + progress.written_bytes(),
            of: total.saturating_sub(progress.skipped_bytes()),
            note: match stop.signal() {
                // Tensors in hand are finished first, which may take a while.
                Some(_) => "stopping (^C: at once)".into(),
                None => format!("{} of {tensors} tensors", progress.tensors()),
            },
        };
        let (out, resume, overwrite) = (self.out.as_path(), self.resume, self.overwrite);
        let merge = || {
            if device.cuda.is_empty() {
                let request = engine::Request { plan: &plan, out, resume, overwrite };
                return engine::merge(&request, &progress, &stop);
            }
            let target = engine::Target { out, resume, overwrite, device_memory: self.device.device_memory };
            engine::merge_on_devices(&mut plan, &device, target, &progress, &stop)
        };
        let done = self.progress.during(log, state, merge)?;
        for note in &done.notes {
            tracing::warn!("{note}");
        }
        if self.json.json {
            print_json(&summary(&done, &plan))?;
        } else if !log.quiet {
            print(&in_words(&done))?;
        }
        Ok(0)
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

fn summary(done: &Done, plan: &Plan) -> serde_json::Value {
    let manifest = &done.manifest;
    let warnings: Vec<&String> = plan.recipe.warnings.iter().chain(&plan.warnings).chain(&done.notes).collect();
    json!({
        "schema": 1,
        "merganser": manifest.merganser,
        "out": done.path.display().to_string(),
        "manifest": done.path.join(MANIFEST_NAME).display().to_string(),
        "already_done": done.was_done,
        "resumed_tensors": done.resumed,
        "method": manifest.recipe["merge_method"],
        "device": manifest.device,
        "threads": manifest.threads,
        "memory_budget": manifest.memory_budget,
        "seed": manifest.seed,
        "created": manifest.created,
        "timings": manifest.timings,
        "totals": manifest.totals,
        "files": manifest.files,
        "fingerprint": manifest.fingerprint,
        "warnings": warnings,
    })
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
    if totals.nonfinite.output > 0 {
        text += &format!(
            "NaN or infinite: {}, {} of them where every source is finite\n",
            count(totals.nonfinite.output, "element"),
            totals.nonfinite.introduced
        );
    }
    text
}
