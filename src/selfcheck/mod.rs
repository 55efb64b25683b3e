//! Whether a device computes what the CPU does: merges of a small family by every method and stage, and by every choice of their
//! parameters, on both, compared bit for bit where that is promised and within the bound of matrices elsewhere.
//!
//! The registry of methods is gone through, so that a new method is checked without a word here. What passed is remembered by device,
//! driver and build, and stated in the manifests of merges.

mod compare;
mod family;

use std::path::Path;
use std::time::{Instant, SystemTime};

use serde::Serialize;

use crate::backend::checked;
use crate::backend::device::{CudaDevice, Device};
use crate::engine::{self, Progress, Request, Stop, Target};
use crate::error::{Error, Kind, Result};
use crate::plan::{Options, Plan};
use crate::recipe::Recipe;
use crate::report::time::rfc3339;

/// What one merge came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Operation {
    /// The method or stage, and the parameters in which it differs from the others of its name.
    pub name: String,
    /// Tensors that came out the same to the last bit.
    pub same_bits: usize,
    /// Matrices that are within the bound.
    pub within_bound: usize,
    /// The largest distance of a matrix from the CPU's, relative to what its merge changes.
    pub furthest: f64,
    /// What differs, or why the device could not do it; null if nothing does.
    pub problem: Option<String>,
}

/// A device beside the CPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Checked {
    /// `cuda:0 (NAME)`.
    pub device: String,
    /// Whether every operation came out right.
    pub passed: bool,
    /// Seconds that it took.
    pub seconds: f64,
    /// Every operation that was tried.
    pub operations: Vec<Operation>,
    /// Methods that were not, and why.
    pub left_out: Vec<String>,
}

/// Checks one device; `tell` gets each operation as soon as it is known.
///
/// # Errors
/// `Environment` where files cannot be written or the device cannot be opened; stopped by a signal. What the device computes
/// wrongly is no error but stands in the result.
pub fn check(
    device: &CudaDevice,
    missing: &[(&'static str, String)],
    stop: &Stop,
    tell: &mut dyn FnMut(&Operation),
) -> Result<Checked> {
    let started = Instant::now();
    let folder = family::Folder::new()?;
    folder.write()?;
    let alone = Device {
        name: device.label(),
        backend: "cuda",
        why: None,
        cuda: vec![device.clone()],
        missing: missing.to_vec(),
    };
    // A context that stays open makes the next one cheap.
    let _open = hold(device)?;
    let (mut operations, mut left_out) = (Vec::new(), Vec::new());
    for recipe in family::recipes() {
        if let Some(signal) = stop.signal() {
            return Err(Error::interrupted(signal, "the check was stopped"));
        }
        let path = folder.recipe(&recipe.text)?;
        let plan = match Recipe::load(&path).and_then(|read| Plan::new(read, family::OPTIONS)) {
            Ok(plan) => plan,
            // A choice that is not built, or that asks for files which a check does not have.
            Err(error) if error.kind() == Kind::Input => {
                left_out.push(format!("{}: {error}", recipe.name));
                continue;
            }
            Err(error) => return Err(error),
        };
        let operation = match tried(plan, &path, &alone, &folder, stop) {
            Ok(found) => Operation { name: recipe.name, ..found },
            Err(error) if matches!(error.kind(), Kind::Interrupted(_)) => return Err(error),
            Err(error) => Operation {
                name: recipe.name,
                same_bits: 0,
                within_bound: 0,
                furthest: 0.0,
                problem: Some(error.to_string()),
            },
        };
        tell(&operation);
        operations.push(operation);
    }
    let passed = !operations.is_empty() && operations.iter().all(|operation| operation.problem.is_none());
    if passed {
        checked::note(device, rfc3339(SystemTime::now()));
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Checked { device: device.label(), passed, seconds, operations, left_out })
}

/// Merges on the CPU and on the device, and compares.
fn tried(cpu: Plan, recipe: &Path, device: &Device, folder: &family::Folder, stop: &Stop) -> Result<Operation> {
    let [ours, theirs] = ["cpu", "device"].map(|name| folder.path(name));
    let progress = Progress::default();
    let request = Request { plan: &cpu, out: &ours, resume: false, overwrite: true };
    engine::merge(&request, &progress, stop)?;
    let mut plan = Plan::new(Recipe::load(recipe)?, family::OPTIONS)?;
    // What is compared here need not be audited as well.
    plan.audit = None;
    let device = device.clone().suited_to(plan.decomposes_on_devices())?;
    let target = Target { out: &theirs, resume: false, overwrite: true, device_memory: Some(family::DEVICE_MEMORY) };
    engine::merge_on_devices(&mut plan, &device, target, &Progress::default(), stop)?;
    compare::outputs(&plan, &ours, &theirs)
}

/// Keeps a device's context.
#[cfg(feature = "cuda")]
fn hold(device: &CudaDevice) -> Result<impl Sized + use<>> {
    use crate::backend::cuda::gpu::Gpu;
    use crate::backend::cuda::lane::LaneSizes;
    let sizes = LaneSizes { up_bytes: 1 << 16, down_bytes: 1 << 16, solves: false };
    // Lanes go before the memory that their work touches.
    Gpu::open(device, 1, sizes, 1 << 16, 1 << 16).map(|(gpu, lanes)| (lanes, gpu))
}

#[cfg(not(feature = "cuda"))]
fn hold(_: &CudaDevice) -> Result<impl Sized + use<>> {
    Err::<[(); 0], _>(
        Error::device("this build of merganser has no CUDA backend").hint("build with the feature `cuda`"),
    )
}

/// What the options of every merge of a check are.
const fn options() -> Options {
    Options { threads: 2, memory_budget: 512 << 20, seed: 7, shard_bytes: u64::MAX }
}
