//! What is measured of one tensor before its merge, without the merge: for `explain`.

use std::sync::{Arc, mpsc};

use super::buffers::Buffers;
use super::schedule::Schedule;
use super::tensor::TensorRun;
use super::whole::WholeCuts;
use super::worker::Worker;
use super::{Engine, Progress, Stop};
use crate::error::Result;
use crate::ops::Measured;
use crate::plan::Plan;

/// Runs the steps that a tensor's merge waits for, in this thread and on the CPU, and gives what they found. Stages that rank
/// layers or tensors measure all of these.
///
/// # Errors
/// If a source cannot be read.
pub(crate) fn measure(plan: &Plan, tensor: usize) -> Result<Arc<Measured>> {
    let (progress, stop) = (Progress::default(), Stop::default());
    // Nothing is left to the schedule.
    let is_done = vec![true; plan.tensors.len()];
    let engine = Engine {
        plan,
        gpus: None,
        work: None,
        progress: &progress,
        schedule: Schedule::new(plan, &is_done, None, &stop),
        is_done,
        tensors: plan.tensors.iter().map(TensorRun::new).collect(),
        whole: WholeCuts::new(plan),
        buffers: Buffers::new(0, 0)?,
    };
    let (to_writers, _pieces) = mpsc::sync_channel(1);
    let mut worker = Worker::new(&engine, to_writers);
    plan.graph.before_merge(tensor).into_iter().try_for_each(|id| worker.whole(id))?;
    Ok(engine.tensors[tensor].measured())
}
