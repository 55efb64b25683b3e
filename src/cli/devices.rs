//! `merganser devices`.

use clap::Args;
use serde_json::json;

use super::print::{print, print_json};
use super::{JsonFlag, default_budget, setup};
use crate::backend::cpu::{features, ram};
use crate::backend::device::{self, Cuda};
use crate::error::Result;
use crate::units::format_bytes;

/// Show what this machine can compute on, and what is missing
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser devices
  merganser devices --json | jq .memory.default_budget_bytes")]
pub(super) struct Devices {
    #[command(flatten)]
    json: JsonFlag,
}

impl Devices {
    pub fn run(self) -> Result<u8> {
        if self.json.json {
            print_json(&document())?
        } else {
            print(&in_words())?
        }
        Ok(0)
    }
}

fn document() -> serde_json::Value {
    let sets = features::instruction_sets();
    let sets = sets.iter().map(|(name, present)| json!({ "name": name, "present": present }));
    json!({
        "schema": 1,
        "merganser": env!("CARGO_PKG_VERSION"),
        "cpu": {
            "name": features::name(),
            "architecture": std::env::consts::ARCH,
            "threads": setup::cores(),
            "vector_loops": features::vector_loops(),
            "instruction_sets": sets.collect::<Vec<_>>(),
        },
        "memory": {
            "ram_bytes": ram::total_bytes(),
            "control_group_limit_bytes": ram::limit_bytes(),
            "default_budget_bytes": default_budget(),
        },
        "cuda": cuda(&Cuda::find().measured()),
    })
}

fn in_words() -> String {
    let sets = features::instruction_sets();
    let those = |wanted: bool| {
        let names: Vec<&str> = sets.iter().filter(|(_, is)| *is == wanted).map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let mut text = format!(
        "CPU      {} ({})\nthreads  {}\nloops    {}\n",
        features::name(),
        std::env::consts::ARCH,
        setup::cores(),
        features::vector_loops(),
    );
    for (label, present) in [("has", true), ("lacks", false)] {
        let names = those(present);
        if !names.is_empty() {
            text += &format!("{label:<9}{names}\n");
        }
    }
    text += &format!("RAM      {}\n", format_bytes(ram::total_bytes()));
    if let Some(limit) = ram::limit_bytes() {
        text += &format!("limit    {} for this process's control group\n", format_bytes(limit));
    }
    text += &format!("budget   {} where no --memory-budget is given\n", format_bytes(default_budget()));
    text += &cuda_in_words(&Cuda::find().measured());
    text + &match device::nvidia_driver() {
        Some(driver) => format!("driver   {driver}\n"),
        None => "driver   no NVIDIA driver is loaded\n".into(),
    }
}

fn cuda(found: &Cuda) -> serde_json::Value {
    let devices = found.devices.iter().map(|d| {
        json!({
            "ordinal": d.ordinal,
            "name": d.name,
            "compute_capability": d.capability.to_string(),
            "memory_bytes": d.total_bytes,
            "free_bytes": d.free_bytes,
            "multiprocessors": d.multiprocessors,
            "usable": d.problem.is_none() && found.problem.is_none(),
            "problem": d.problem,
        })
    });
    let libraries = found.libraries.iter().map(|l| {
        json!({
            "name": l.name,
            "present": l.problem.is_none(),
            "version": l.version,
            "path": l.path.as_ref().map(|path| path.display().to_string()),
            "problem": l.problem,
            "needed_for": l.purpose,
        })
    });
    let is_usable = found.usable().next().is_some();
    json!({
        "usable": is_usable,
        "reason": (!is_usable).then(|| found.why_none()),
        "remedy": found.remedy,
        "driver": device::nvidia_driver(),
        "driver_supports": found.driver.map(|v| v.to_string()),
        "libraries": libraries.collect::<Vec<_>>(),
        "devices": devices.collect::<Vec<_>>(),
    })
}

fn cuda_in_words(found: &Cuda) -> String {
    let mut text = String::from("\n");
    for d in &found.devices {
        let (of, total) = (d.free_bytes.map(format_bytes), format_bytes(d.total_bytes));
        let memory = of.map_or_else(|| total.clone(), |free| format!("{free} of {total} free"));
        text += &format!("cuda:{:<3} {}, capability {}, {memory}", d.ordinal, d.name, d.capability);
        text += &d.problem.as_ref().map(|problem| format!("; unusable: {problem}")).unwrap_or_default();
        text.push('\n');
    }
    if found.usable().next().is_none() {
        text += &format!("CUDA     none: {}\n", found.why_none());
        text += &found.remedy.as_ref().map(|remedy| format!("         {remedy}\n")).unwrap_or_default();
    }
    if let Some(version) = found.driver {
        text += &format!("CUDA     {version} is the newest that the driver supports\n");
    }
    for l in &found.libraries {
        let state = match (&l.version, &l.problem) {
            (Some(version), _) => version.as_str(),
            (None, None) => "found",
            (None, Some(_)) => "missing",
        };
        text += &format!("{:<9}{state}: for {}\n", l.name, l.purpose);
        text += &match (&l.path, &l.problem) {
            (Some(path), _) if path.is_absolute() => format!("         {}\n", path.display()),
            (_, Some(problem)) => format!("         {problem}\n"),
            _ => String::new(),
        };
    }
    text
}
