//! The engine's side of the `cuda` feature: without it there are no open devices, and nothing else differs.

use std::sync::mpsc::SyncSender;
use std::thread::Scope;

use super::writer::Written;
use super::{Done, Engine, Outcome, Progress, Request, Stop};
use crate::backend::device::Device;
use crate::error::{Cause, Error, Kind, Result};
use crate::plan::Plan;

#[cfg(feature = "cuda")]
pub use super::lanes::Gpus;

/// Open devices: none without the feature `cuda`.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub enum Gpus {}

/// On out-of-memory, halve the pool and retry, at most this many times.
const POOL_HALVINGS: usize = 4;

/// What a merge on devices gets beside its plan: see [`Request`].
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// OUT.
    pub out: &'a std::path::Path,
    /// Go on with an interrupted merge.
    pub resume: bool,
    /// Replace OUT.
    pub overwrite: bool,
    /// Bound on what is taken of each device's memory, in bytes.
    pub device_memory: Option<u64>,
}

/// Tells a plan what devices will do of it, without opening them: of devices that were found and not asked for what ends the
/// merge sooner, which may be nothing.
///
/// # Errors
/// `Input` if the budget does not hold what lanes take of the host's memory.
#[allow(unused_variables)]
pub fn plan_for_devices(plan: &mut Plan, device: &Device, device_memory: Option<u64>) -> Result<()> {
    if device.cuda.is_empty() {
        return Ok(());
    }
    #[cfg(feature = "cuda")]
    {
        plan.by_step = device.may_be_left();
        super::lanes::expect(plan, &device.cuda, device_memory)?;
        if plan.by_step { plan.choose(&device.cuda) } else { Ok(()) }
    }
    #[cfg(not(feature = "cuda"))]
    Err(no_cuda())
}

/// As [`super::merge()`], on CUDA devices. Where a device runs out of memory in the midst, less of it is taken and the merge
/// goes on with what is not finished. Where devices that were found and not asked for cannot be opened, or fail in the midst, the CPU
/// goes on in their stead.
///
/// # Errors
/// Whatever stops the merge; what is finished is kept for `--resume`, unless a device computed wrongly.
pub fn merge_on_devices(
    plan: &mut Plan,
    device: &Device,
    target: Target<'_>,
    progress: &Progress,
    stop: &Stop,
) -> Result<Done> {
    merge_part_on_devices(plan, device, target, progress, stop)?.whole()
}

/// As [`super::merge_part()`], on CUDA devices.
///
/// # Errors
/// As [`merge_on_devices`]. The CPU takes no device's place in a part: others may be done by devices.
pub fn merge_part_on_devices(
    plan: &mut Plan,
    device: &Device,
    target: Target<'_>,
    progress: &Progress,
    stop: &Stop,
) -> Result<Outcome> {
    let Target { out, mut resume, overwrite, mut device_memory } = target;
    let on_the_cpu = |plan: &mut Plan, error: Error, resume| {
        if plan.strict && plan.has_matrices_on_devices() {
            return Err(error.hint(
                "without --strict the CPU goes on, with bytes of matrices that differ within the method's bound",
            ));
        }
        let note = format!("{error}; the CPU computes in its stead");
        tracing::warn!("{note}");
        // Told now, and once: documents have it among the warnings of the plan.
        plan.warnings.push(note);
        plan.leave_devices(&error.to_string())?;
        let done = super::merge(&Request { plan, out, resume, overwrite }, progress, stop)?;
        Ok(Outcome::Done(Box::new(done)))
    };
    // What went wrong with a device, which the CPU can do without.
    let may_go_on = |error: &Error| {
        device.may_be_left() && error.cause() == Cause::Device && !error.is_of_wrong_result() && stop.signal().is_none()
    };
    for round in 0.. {
        // Devices are closed again before anything goes on: their memory is given back.
        let (done, smallest) = {
            let gpus = match open(plan, device, device_memory) {
                Err(error) if device.may_be_left() && plan.part.is_none() && error.kind() == Kind::Environment => {
                    return on_the_cpu(plan, error, resume);
                }
                opened => opened?,
            };
            let request = Request { plan, out, resume, overwrite };
            (super::merge::merge_with(&request, Some(&gpus), progress, stop), smallest(&gpus))
        };
        match done {
            Err(error) if error.is_out_of_device_memory() && round < POOL_HALVINGS => {
                let smaller = smallest / 2;
                tracing::warn!("{error}; going on with {smaller} bytes of device memory");
                (device_memory, resume) = (Some(smaller), true);
            }
            Err(error) if plan.part.is_none() && may_go_on(&error) => return on_the_cpu(plan, error, true),
            done => return done,
        }
    }
    Err(Error::internal("unreachable"))
}

#[cfg(feature = "cuda")]
fn open(plan: &mut Plan, device: &Device, device_memory: Option<u64>) -> Result<Gpus> {
    Gpus::open(plan, &device.cuda, device_memory)
}

#[cfg(feature = "cuda")]
fn smallest(gpus: &Gpus) -> u64 {
    gpus.smallest()
}

/// Wakes lanes that wait for device memory.
pub(super) fn close(gpus: Option<&Gpus>) {
    #[cfg(feature = "cuda")]
    if let Some(gpus) = gpus {
        gpus.close();
    }
    #[cfg(not(feature = "cuda"))]
    let _ = gpus;
}

/// Starts a thread for every lane.
#[cfg(feature = "cuda")]
pub(super) fn spawn_lanes<'scope>(
    scope: &'scope Scope<'scope, '_>,
    engine: &'scope Engine<'scope>,
    to_writers: &SyncSender<Written>,
) -> Result<()> {
    let Some(gpus) = engine.gpus else { return Ok(()) };
    for (device, gpu) in gpus.all().iter().enumerate() {
        for (i, lane) in gpus.take_lanes(device).into_iter().enumerate() {
            let worker = super::lanes::LaneWorker::new(engine, gpu, device, lane, to_writers.clone());
            super::spawn(scope, format!("lane-{}-{i}", gpu.ordinal), move || {
                let guard = FailOnPanic(engine);
                let result = worker.work();
                std::mem::forget(guard);
                if let Err(error) = result {
                    engine.fail(error);
                }
            })?;
        }
    }
    Ok(())
}

/// A lane that panics must not leave others waiting for its memory.
#[cfg(feature = "cuda")]
struct FailOnPanic<'a, 'p>(&'a Engine<'p>);

#[cfg(feature = "cuda")]
impl Drop for FailOnPanic<'_, '_> {
    fn drop(&mut self) {
        self.0.fail(Error::internal("a thread panicked"));
    }
}

#[cfg(not(feature = "cuda"))]
mod without {
    use super::*;

    pub(super) fn no_cuda() -> Error {
        Error::device("this build of merganser has no CUDA backend").hint("use `--device cpu`")
    }

    pub(super) fn open(_: &mut Plan, _: &Device, _: Option<u64>) -> Result<Gpus> {
        Err(no_cuda())
    }

    pub(super) fn smallest(gpus: &Gpus) -> u64 {
        match *gpus {}
    }

    pub(in crate::engine) fn spawn_lanes<'scope>(
        _: &'scope Scope<'scope, '_>,
        engine: &'scope Engine<'scope>,
        _: &SyncSender<Written>,
    ) -> Result<()> {
        engine.gpus.map_or(Ok(()), |gpus| match *gpus {})
    }
}

#[cfg(not(feature = "cuda"))]
pub(super) use without::spawn_lanes;
#[cfg(not(feature = "cuda"))]
use without::{no_cuda, open, smallest};
