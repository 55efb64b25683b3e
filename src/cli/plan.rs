//! `merganser plan`.

use clap::Args;

use super::{PlanArgs, print, print_json};
use crate::error::Result;

/// Validate a recipe and show what its merge would do; reads headers only.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  merganser plan recipe.yaml --memory-budget 2GiB")]
pub(super) struct Plan {
    #[command(flatten)]
    plan: PlanArgs,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub fn run(self) -> Result<u8> {
        let plan = self.plan.plan()?;
        if self.json {
            print_json(&plan.to_json())?
        } else {
            print(&plan.to_text())?
        }
        Ok(0)
    }
}
