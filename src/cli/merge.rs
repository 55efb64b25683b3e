//! `merganser merge`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::progress::with_bar;
use super::{Log, PlanArgs, print, print_json, setup};
use crate::backend::device;
use crate::engine::{self, Done, Progress};
use crate::error::Result;
use crate::units::format_bytes;

/// Merge checkpoints as the recipe says.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  merganser merge recipe.yaml -o merged\n  merganser merge recipe.yaml -o merged \
                        --memory-budget 2GiB --threads 8 --resume")]
pub(super) struct Merge {
    #[command(flatten)]
    plan: PlanArgs,
    /// Output directory; must not exist or be empty unless --overwrite or --resume
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = clap::value_parser!(device::Request))]
    device: device::Request,
    /// Go on with an interrupted merge into OUT; start where there is none
    #[arg(long)]
    resume: bool,
    /// Replace OUT, once the new output is complete
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON document at the end
    #[arg(long)]
    json: bool,
}

impl Merge {
    pub fn run(self, log: &Log) -> Result<u8> {
        let stop = setup::signals()?;
        crate::checkpoint::install_bus_handler()?;
        let device = device::choose(self.device)?;
        match device.why {
            Some(why) => tracing::info!("computing on the CPU ({}): {why}", device.name),
            None => tracing::info!("computing on the CPU ({})", device.name),
        }
        let plan = self.plan.plan()?;
        let progress = Progress::default();
        let request = engine::Request { plan: &plan, out: &self.out, resume: self.resume, overwrite: self.overwrite };
        let done = with_bar(&plan, &progress, log.quiet, || engine::merge(&request, &progress, &stop))?;
        for note in &done.notes {
            tracing::warn!("{note}");
        }
        if self.json {
            print_json(&summary(&done))?;
        } else {
            print(&in_words(&done))?;
        }
        Ok(0)
    }
}

fn summary(done: &Done) -> serde_json::Value {
    let manifest = &done.manifest;
    json!({
        "schema": 1,
        "out": done.path.display().to_string(),
        "already_done": done.was_done,
        "resumed_tensors": done.resumed,
        "method": manifest.recipe["merge_method"],
        "device": manifest.device,
        "threads": manifest.threads,
        "memory_budget": manifest.memory_budget,
        "seed": manifest.seed,
        "timings": manifest.timings,
        "totals": manifest.totals,
        "files": manifest.files,
        "fingerprint": manifest.fingerprint,
    })
}

fn in_words(done: &Done) -> String {
    let (totals, timings) = (&done.manifest.totals, &done.manifest.timings);
    let path = done.path.display();
    if done.was_done {
        return format!("{path} is finished already: {} tensors\n", totals.tensors);
    }
    let mut text = format!(
        "merged {} tensors ({}) into {path} in {:.2} s, {:.2} GB/s\n",
        totals.tensors,
        format_bytes(totals.bytes),
        timings.seconds,
        timings.gb_per_s,
    );
    if done.resumed > 0 {
        text += &format!("{} of them had been merged before the interruption\n", done.resumed);
    }
    if totals.nonfinite.output > 0 {
        text += &format!(
            "{} elements are NaN or infinite, {} of them where every source is finite\n",
            totals.nonfinite.output, totals.nonfinite.introduced
        );
    }
    text
}
