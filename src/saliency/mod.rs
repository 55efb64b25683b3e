//! What a recipe's task vectors look like before they are merged: where each has its energy, which layers and tensors are
//! salient by which score, how the tasks agree, and what a pruning stage would drop.
//!
//! A [`Survey`] is planned from headers, as a merge is; [`Survey::run`] reads every task vector once for norms, products and
//! signs, and again where a stage needs it, and gives a [`Report`], which is JSON or a page of heat maps.
//!
//! **Invariant:** a report is a function of the recipe, the sources and the options' shares: the same bytes on any number of
//! threads and any memory budget. What it says of a stage is what a merge does: both call the same code.

mod chain;
mod html;
mod jobs;
mod measure;
mod memory;
mod ordered;
mod report;
mod stage;
mod survey;
mod write;

pub use report::{Choice, Group, LayerReport, Pruned, Report, Scores, StageReport, TaskReport, TensorReport};
pub use survey::{Options, Survey};
pub use write::{Format, Target};
