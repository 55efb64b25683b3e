//! Runs a [`Plan`]: reads ahead, computes and writes at the same time, inside the plan's memory.
//!
//! Computing threads take units of steps from a schedule in the plan's order; results go into buffers of a
//! fixed pool and through a channel to the writing threads, which write each piece in its place, note it in the work
//! folder's journal once the tensor is whole, and give the buffer back. A thread that asks the kernel to read ahead runs a
//! bounded distance in front.

mod buffers;
pub(crate) mod choose;
mod damage;
mod devices;
mod factors;
mod groups;
#[cfg(feature = "cuda")]
mod lanes;
mod lines;
mod measure;
mod merge;
mod parted;
mod readahead;
mod runs;
mod schedule;
pub(crate) mod scores;
mod settle;
mod sink;
mod sources;
mod tensor;
mod worker;
mod writer;

pub use crate::run::{Progress, Stop};
pub use devices::{Gpus, Target, merge_on_devices, merge_part_on_devices, plan_for_devices};
pub(crate) use measure::measure;
pub(crate) use merge::merge_with;
pub use merge::{Done, Outcome, Request, merge, merge_part};
pub(crate) use sources::{sample_of, segments_of, stored_bytes, with_sources};

use std::sync::Mutex;
use std::sync::mpsc;

use crate::error::Result;
use crate::ops::Program;
use crate::output::{JournalEntry, WorkDir};
use crate::plan::devices::Place;
use crate::plan::{Plan, TensorPlan};
use buffers::{Buffer, Buffers};
use schedule::Schedule;
use tensor::TensorRun;
use worker::Worker;

/// Makes every tensor that the work folder does not hold yet, on the plan's devices if it has any.
///
/// # Errors
/// The first error of any thread; what was finished before it stays in the work folder.
pub fn run(plan: &Plan, gpus: Option<&Gpus>, work: &WorkDir, progress: &Progress, stop: &Stop) -> Result<()> {
    if plan.devices.is_some() != gpus.is_some() {
        return Err(crate::Error::internal("a plan for devices that are not open"));
    }
    crate::backend::cpu::allocator::return_freed_memory();
    let finished = work.finished();
    let is_whole = |tensor: usize| finished.contains_key(&plan.tensors[tensor].name);
    // A matrix and its factors are made together, or again together.
    let together = |t: &TensorPlan| t.factors.iter().flatten().all(|factor| is_whole(*factor));
    let mut is_done: Vec<bool> = plan.tensors.iter().enumerate().map(|(i, t)| is_whole(i) && together(t)).collect();
    for (i, tensor) in plan.tensors.iter().enumerate() {
        if let Program::Factor { of, .. } = tensor.program {
            is_done[i] = is_done[of];
        }
    }
    for (i, done) in is_done.iter_mut().enumerate() {
        let bytes = plan.pass_bytes(i) * plan.graph.passes(i) + plan.layout.placement(i).bytes;
        if work.part().is_some_and(|share| share.owners[i] != share.part) {
            *done = true;
            progress.spare(bytes);
        } else if *done {
            progress.skip(bytes);
        }
    }
    let schedule = Schedule::new(plan, &is_done, parted::order(plan, work), stop);
    let tensors: Vec<TensorRun> = plan.tensors.iter().map(TensorRun::new).collect();
    let buffers = Buffers::new(plan.memory.buffers, plan.memory.buffer_bytes as usize)?;
    let engine = Engine { plan, gpus, work: Some(work), progress, schedule, is_done, tensors, buffers };
    engine.note_places();
    let (to_writers, pieces) = mpsc::sync_channel(plan.memory.buffers);
    let pieces = Mutex::new(pieces);
    std::thread::scope(|scope| {
        for i in 0..plan.memory.writers {
            let (engine, pieces) = (&engine, &pieces);
            spawn(scope, format!("writer-{i}"), move || writer::write_all(engine, pieces))?;
        }
        let engine = &engine;
        spawn(scope, "readahead".into(), move || readahead::run(engine))?;
        for i in 0..plan.memory.threads {
            let to_writers = to_writers.clone();
            spawn(scope, format!("worker-{i}"), move || {
                // A panic is a bug, but one that must stop the others: they would wait for this thread for ever.
                let guard = schedule::StopOnPanic(&engine.schedule);
                let result = Worker::new(engine, to_writers).work();
                std::mem::forget(guard);
                if let Err(error) = result {
                    engine.fail(error);
                }
            })?;
        }
        devices::spawn_lanes(scope, engine, &to_writers)?;
        drop(to_writers);
        Ok(())
    })?;
    engine.schedule.result()
}

/// What all threads of a run share.
struct Engine<'a> {
    plan: &'a Plan,
    gpus: Option<&'a Gpus>,
    /// Where finished tensors go; none where tensors are only measured.
    work: Option<&'a WorkDir>,
    progress: &'a Progress,
    schedule: Schedule<'a>,
    /// Tensors that an earlier run has finished, or that another process makes.
    is_done: Vec<bool>,
    tensors: Vec<TensorRun>,
    buffers: Buffers,
}

impl Engine<'_> {
    fn work(&self) -> Result<&WorkDir> {
        self.work.ok_or_else(|| crate::Error::internal("nothing is written where tensors are only measured"))
    }

    /// An empty buffer for a piece of a tensor; `None` if the run is being stopped.
    fn buffer_for(&self, tensor: usize) -> Option<Buffer> {
        // Pieces are multiples of a page, so that all of a tensor's begin alike.
        self.buffers.take(self.plan.layout.placement(tensor).offset)
    }

    /// Notes a finished tensor, unless one of its sources has changed since it was opened: what was read of it then is
    /// nothing that a later run could go on from.
    fn record(&self, tensor: &TensorPlan, entry: JournalEntry) -> Result<()> {
        tensor.reads().try_for_each(|at| self.plan.stored(at).1.check_unchanged())?;
        self.work()?.record(entry)?;
        self.progress.add_tensor();
        Ok(())
    }

    /// Notes of each tensor that is made on the CPU beside devices that it is, and why.
    fn note_places(&self) {
        let Some(on) = &self.plan.devices else { return };
        for ((tensor, place), run) in self.plan.tensors.iter().zip(&on.places).zip(&self.tensors) {
            if let (Place::Host(why), Program::Blend(_) | Program::LowRank(_)) = (place, &tensor.program) {
                run.computed_on("cpu", Some(why));
            }
        }
    }

    /// Notes the first error, and lets every thread end.
    fn fail(&self, error: crate::Error) {
        self.schedule.fail(error);
        self.buffers.close();
        devices::close(self.gpus);
    }
}

fn spawn<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    name: String,
    body: impl FnOnce() + Send + 'scope,
) -> Result<()> {
    // Small stacks: everything of size is in buffers that the plan counts.
    let builder = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
    builder
        .spawn_scoped(scope, body)
        .map(drop)
        .map_err(|e| crate::Error::environment(format!("cannot start a thread: {e}")).hint("give fewer --threads"))
}

/// Stack of one thread; faer's kernels keep small temporaries there.
const STACK_BYTES: usize = 2 << 20;
