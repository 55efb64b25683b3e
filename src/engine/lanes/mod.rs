//! The lanes of CUDA devices: threads that take whole steps from the schedule, stage a tensor's sources, launch kernels, and
//! hand results to the same runs, writers and journal as the CPU's threads.

mod blend;
mod factored;
mod gpus;
mod low_rank;
mod matrices;
mod members;
mod needs;
mod orthogonal;
mod output;
mod sources;
mod stats;

use std::sync::mpsc::SyncSender;

use super::Engine;
use super::schedule::{Taker, Task};
use super::settle::{settle, stage_of};
use super::writer::Written;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::lane::Lane;
use crate::backend::cuda::ops::StageBlob;
use crate::backend::cuda::{error, pool};
use crate::error::{Error, Result};
use crate::ops::{MatrixRule, Program, SEGMENT};
use crate::plan::graph::{Kind, Step, StepId};
use crate::plan::{Plan, TensorPlan};

pub use gpus::{Gpus, expect};
use needs::Needs;
use sources::{Loaded, Stage};

// What devices are said to take, their kernels take.
const _: () = assert!(crate::backend::device::MOST_MODELS == crate::backend::cuda::ops::MAX_MODELS);

/// The tensors that are merged together with one: itself, where there are no others.
fn together<'a>(plan: &'a Plan, tensor: &'a usize) -> &'a [usize] {
    let batch = plan.devices.as_ref().and_then(|on| on.batch(*tensor));
    batch.map_or(std::slice::from_ref(tensor), |batch| &batch.tensors)
}

/// A lane's thread.
pub(super) struct LaneWorker<'a, 'p> {
    engine: &'a Engine<'p>,
    gpu: &'a Gpu,
    /// The device's place among the plan's.
    device: usize,
    // Dropped first: it waits for what it has enqueued.
    lane: Lane,
    to_writers: SyncSender<Written>,
    raw: Vec<Vec<u8>>,
}

impl<'a, 'p> LaneWorker<'a, 'p> {
    pub fn new(
        engine: &'a Engine<'p>,
        gpu: &'a Gpu,
        device: usize,
        lane: Lane,
        to_writers: SyncSender<Written>,
    ) -> Self {
        let models = engine.plan.tensors.iter().map(|t| t.models.len()).max().unwrap_or_default();
        Self { engine, gpu, device, lane, to_writers, raw: vec![Vec::new(); models + 1] }
    }

    /// Works until nothing is left, or the run is being stopped.
    pub fn work(mut self) -> Result<()> {
        self.lane.bind()?;
        while let Some(task) = self.engine.schedule.take(Taker::Device(self.device)) {
            let id = match task {
                Task::Unit(id, _) => id,
                Task::LookUp(id) => {
                    self.engine.look_up(id);
                    continue;
                }
            };
            let step = &self.engine.plan.graph.steps[id];
            let tensor = &self.engine.plan.tensors[step.tensor];
            // An error in a batch may be of another of its tensors: then it says so.
            self.step(id, step, tensor).map_err(|e| e.at_tensor(&tensor.name))?;
            if !self.engine.schedule.done(id) || !settle(self.engine, step, tensor)? {
                return Err(Error::internal(format!("a device left a step of `{}` undone", tensor.name))
                    .of_tensor(&tensor.name));
            }
            self.engine.schedule.end(id);
        }
        Ok(())
    }

    fn step(&mut self, id: StepId, step: &Step, tensor: &'a TensorPlan) -> Result<()> {
        let (plan, index) = (self.engine.plan, step.tensor);
        let is_blend = matches!(tensor.program, Program::Blend(_));
        let stage = Stage {
            engine: self.engine,
            gpu: self.gpu,
            tensor,
            is_first: plan.graph.first(index) == id,
            is_merge: step.kind == Kind::Merge,
            hashes_chunks: step.kind == Kind::Merge && is_blend,
        };
        match step.kind {
            Kind::Rank(_) | Kind::Restore { .. } => Err(Error::internal("a device has nothing to rank")),
            Kind::Select { stage: of } => {
                let of = of.map(|id| stage_of(tensor, id)).transpose()?;
                self.select(&stage, index, step.kind, of)
            }
            Kind::Norms(of) => self.norms(&stage, index, step.kind, stage_of(tensor, of)?),
            Kind::TrimNorms => self.trim_norms(&stage, index, step.kind),
            Kind::Gram => self.gram(&stage, index, step.kind),
            Kind::Lines => self.lines(&stage, index, step.kind),
            Kind::Overlap => self.overlap(&stage, index, step.kind),
            Kind::Rows(of) | Kind::Columns(of) => self.scores(&stage, index, step.kind, stage_of(tensor, of)?),
            Kind::Merge => match &tensor.program {
                Program::Blend(_) => {
                    self.engine.tensors[index].computed_on(&format!("cuda:{}", self.gpu.ordinal), None);
                    self.blend(&stage, index)
                }
                Program::LowRank(work) => match work.rule {
                    MatrixRule::Truncate(_) => self.low_rank(index),
                    _ => self.orthogonal(index),
                },
                Program::Copy | Program::Factor { .. } => Err(Error::internal("a device copies nothing")),
            },
        }
    }

    /// Elements of a launch: what a slot on the way back holds, a power of two.
    fn chunk_elems(&self, tensor: &TensorPlan) -> u64 {
        let mut chunk = self.engine.plan.memory.chunk_elems;
        while chunk > SEGMENT as u64 && chunk * tensor.elem_bytes > self.lane.down_bytes() as u64 {
            chunk /= 2;
        }
        chunk
    }

    /// Leases what a step takes, and tells the elements of a launch; `None` if the run is being stopped.
    fn load(
        &mut self,
        stage: &Stage<'_, '_>,
        index: usize,
        kind: Kind,
        blob: &StageBlob,
    ) -> Result<Option<(Loaded, u64)>> {
        let (plan, tensor, pool) = (self.engine.plan, stage.tensor, self.gpu.pool());
        let bytes = blob.bytes.len() as u64;
        let work = |chunk| stats::work(kind, tensor, bytes, chunk);
        let run = |chunk| stats::run_of(kind, tensor, chunk);
        let Some(needs) = Needs::fit(plan, tensor, pool.bytes(), self.chunk_elems(tensor), &work, &run) else {
            let chunk = run(SEGMENT as u64);
            let sources = needs::source_bytes(plan, tensor, chunk);
            let least = pool::Pool::taken_by(sources.into_iter().chain(work(SEGMENT as u64)));
            return Err(error::pool_too_small(&self.gpu.label, &tensor.name, least, pool.bytes()));
        };
        let loaded = Loaded::lease(stage, &mut self.lane, index, &needs)?;
        Ok(loaded.map(|loaded| (loaded, needs.chunk)))
    }
}
