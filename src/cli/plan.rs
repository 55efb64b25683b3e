//! `merganser plan`.

use clap::Args;

use super::document::{Document, print_document};
use super::print::print;
use super::{DeviceArgs, JsonFlag, PlanArgs};
use crate::backend::device::{Device, Request};
use crate::checkpoint::quoted;
use crate::cost::cards;
use crate::error::{Cause, Error, Result};
use crate::plan::PlanDocument;
use crate::suggest::nearest;

/// Validate a recipe and show what its merge would do, from headers alone
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser plan recipe.yaml
  merganser plan recipe.yaml --memory-budget 2GiB --json
  merganser plan recipe.yaml --card h100-sxm     what that card would do, and how long it is predicted to take

`--card` needs no device: it plans for one card of the named kind and predicts the merge's seconds from its published rates. \
Cards: h100-sxm, h200, b200, gh200, gb200, a100-80g, l40s, rtx-4090, rtx-3090, rtx-5090, t4.")]
pub(super) struct Plan {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Plan for a card of this kind, whatever this machine has, and predict its seconds
    #[arg(long, value_name = "NAME")]
    card: Option<String>,
    #[command(flatten)]
    json: JsonFlag,
}

impl Document for PlanDocument {
    const COMMAND: &'static str = "plan";
}

impl Plan {
    pub fn run(self) -> Result<u8> {
        let device = match &self.card {
            Some(name) => of_card(name, self.device.device)?,
            None => self.device.choose()?,
        };
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

/// A device that this machine need not have.
fn of_card(name: &str, request: Request) -> Result<Device> {
    let Some(card) = cards::named(name) else {
        let all: Vec<&str> = cards::CARDS.iter().map(|card| card.name).collect();
        let error = Error::input(format!("no card that can be predicted for is called {}", quoted(name)));
        return Err(match nearest(name, all.iter().copied()) {
            Some(near) => error.hint(format!("perhaps `{near}`")),
            None => error,
        }
        .because(Cause::Usage)
        .hint(format!("there are {}", all.join(", "))));
    };
    if matches!(request, Request::Cpu) {
        return Err(Error::input("--card names a graphics card, and --device cpu has none compute")
            .because(Cause::Usage)
            .hint("leave one of them out"));
    }
    Ok(cards::device_of(card))
}
