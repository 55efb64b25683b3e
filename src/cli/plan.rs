//! `merganser plan`.

use clap::Args;

use super::document::{Document, print_document};
use super::print::print;
use super::{DeviceArgs, JsonFlag, PlanArgs};
use crate::error::Result;
use crate::plan::PlanDocument;

/// Validate a recipe and show what its merge would do, from headers alone
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser plan recipe.yaml
  merganser plan recipe.yaml --memory-budget 2GiB --json")]
pub(super) struct Plan {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonFlag,
}

impl Document for PlanDocument {
    const COMMAND: &'static str = "plan";
}

impl Plan {
    pub fn run(self) -> Result<u8> {
        let device = self.device.choose()?;
        let mut plan = self.plan.plan()?;
        let device = device.suited_to(plan.decomposes_on_devices())?;
        crate::engine::plan_for_devices(&mut plan, &device, self.device.device_memory)?;
        if self.json.json {
            let warnings = plan.recipe.warnings.iter().chain(&plan.warnings);
            print_document(warnings.cloned().collect(), plan.document())?
        } else {
            print(&plan.to_text())?
        }
        Ok(0)
    }
}
