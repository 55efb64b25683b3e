//! `merganser explain`.

use clap::Args;

use super::document::{Document, print_document};
use super::print::print;
use super::{DeviceArgs, JsonFlag, PlanArgs};
use crate::error::Result;
use crate::explain::{Explanation, Index, element, find};

/// Show where a tensor of the output comes from and how it is made, and what becomes of one of its elements
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser explain recipe.yaml model.norm.weight
  merganser explain recipe.yaml model.layers.0.mlp.up_proj.weight 3,5
  merganser explain recipe.yaml lm_head.weight 1000 --json | jq .element

Without INDEX headers alone are read. With it, the tensor's statistics are measured as a merge does, on the CPU, and a matrix \
is merged whole.")]
pub(super) struct Explain {
    #[command(flatten)]
    plan: PlanArgs,
    /// The tensor's name in the output
    tensor: String,
    /// An element: its number in the order in which elements are stored, or its place along each dimension, as 3,5; from 0
    #[arg(allow_hyphen_values = true)]
    index: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonFlag,
}

impl Document for Explanation {
    const COMMAND: &'static str = "explain";
}

impl Explain {
    pub fn run(self) -> Result<u8> {
        let device = self.device.choose()?;
        let mut plan = self.plan.plan()?;
        let tensor = find(&plan, &self.tensor)?;
        let of = &plan.tensors[tensor];
        let index = self.index.map(|text| Index::parse(&text, &of.name, &of.shape)).transpose()?;
        super::setup::bus_errors()?;
        // Before devices are planned for: an element is traced on the CPU.
        let element = index.map(|index| element(&plan, tensor, &index)).transpose()?;
        let device = device.suited_to(plan.decomposes_on_devices())?;
        crate::engine::plan_for_devices(&mut plan, &device, self.device.device_memory)?;
        let explanation = Explanation::of(&plan, tensor, element);
        if self.json.json {
            let warnings = plan.recipe.warnings.iter().chain(&plan.warnings);
            print_document(warnings.cloned().collect(), explanation)?
        } else {
            print(&explanation.to_text())?
        }
        Ok(0)
    }
}
