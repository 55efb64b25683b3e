//! What follows from a whole step, whoever ran it.

use super::Engine;
use super::groups::{rank, restore};
use crate::error::{Error, Result};
use crate::ops::Prune;
use crate::plan::TensorPlan;
use crate::plan::graph::{Kind, Step};

/// Settles a step whose units are all done. Whether it has ended; if not, it must run again.
pub(super) fn settle(engine: &Engine<'_>, step: &Step, tensor: &TensorPlan) -> Result<bool> {
    let run = &engine.tensors[step.tensor];
    match step.kind {
        Kind::Select { stage } => {
            let prune = stage.map(|id| stage_of(tensor, id)).transpose()?.map(|(_, prune)| prune);
            return Ok(run.settle_select(tensor, prune));
        }
        Kind::Rows(stage) | Kind::Columns(stage) => run.settle_scores(tensor, stage_of(tensor, stage)?.1),
        Kind::Norms(_) => {
            run.settle_norms(tensor);
            engine.share(step)?;
        }
        Kind::TrimNorms => run.settle_trim_norms(tensor),
        Kind::Gram => run.settle_fit(tensor),
        Kind::Lines => run.settle_lines(tensor),
        Kind::Overlap => run.settle_overlap(tensor),
        Kind::Rank(stage) => rank(engine, stage),
        Kind::Restore { stage, layer } => restore(engine, stage, layer),
        Kind::Merge => {
            if let Some(entry) = run.end(engine.plan, tensor)? {
                engine.record(tensor, entry)?;
            }
            for at in tensor.reads() {
                let (stored, shard) = engine.plan.stored(at);
                shard.release(stored.range());
            }
        }
    }
    Ok(true)
}

/// A stage of the recipe in a tensor's program.
pub(super) fn stage_of(tensor: &TensorPlan, stage: usize) -> Result<(usize, Prune)> {
    tensor.stage(stage).ok_or_else(|| {
        Error::internal(format!("stage {stage} does not change `{}`", tensor.name)).of_tensor(&tensor.name)
    })
}
