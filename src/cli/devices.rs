//! `merganser devices`.

use clap::Args;
use serde_json::json;

use super::print::{print, print_json};
use super::{JsonFlag, default_budget, setup};
use crate::backend::cpu::{features, ram};
use crate::backend::device::{self, NO_CUDA};
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
        "cuda": {
            "usable": false,
            "reason": NO_CUDA,
            "driver": device::nvidia_driver(),
            "devices": [],
        },
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
    text += &format!("\nCUDA     none: {NO_CUDA}\n");
    text + &match device::nvidia_driver() {
        Some(driver) => format!("driver   {driver}\n"),
        None => "driver   no NVIDIA driver is loaded\n".into(),
    }
}
