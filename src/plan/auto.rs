//! `--device auto`, step by step: what is merged element by element stays on the CPU, which reads and writes it as fast as a bus would
//! bring it; matrices go to devices where the whole merge is predicted to end sooner with them, or about as soon.

use serde::Serialize;

use super::devices::is_matrix;
use super::{Plan, TensorPlan};
use crate::backend::device::CudaDevice;
use crate::cost::cards::{self, Card};
use crate::cost::{Host, rates};

/// Where the two come so near, the devices compute and the processors stay free.
const ABOUT_AS_SOON: f64 = 1.1;

/// What was chosen, and from what.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Choice {
    /// Whether devices merge matrices.
    pub devices: bool,
    /// Seconds that the merge is predicted to take on the CPU alone.
    pub cpu_seconds: f64,
    /// The same with matrices on the devices; null where none are merged.
    pub device_seconds: Option<f64>,
    /// For people.
    pub why: String,
}

/// Chooses for a plan that knows what devices would do of its matrices.
pub(super) fn choose(plan: &Plan, devices: &[CudaDevice]) -> Choice {
    let cpu_seconds = on_the_cpu(plan, |_| true);
    if !plan.has_matrices_on_devices() {
        let has_matrices = plan.tensors.iter().any(is_matrix);
        let why = if has_matrices {
            "no matrix fits into the memory of a device"
        } else {
            "nothing here is merged by matrices, and the CPU merges element by element as fast as a bus brings the data"
        };
        return Choice { devices: false, cpu_seconds, device_seconds: None, why: why.into() };
    }
    let device_seconds = with_devices(plan, devices);
    let is_sooner = device_seconds <= ABOUT_AS_SOON * cpu_seconds;
    let why = format!(
        "predicted {device_seconds:.1} s with matrices on {}, {cpu_seconds:.1} s on {} threads of the CPU",
        devices.iter().map(CudaDevice::label).collect::<Vec<_>>().join(", "),
        plan.memory.threads,
    );
    Choice { devices: is_sooner, cpu_seconds, device_seconds: Some(device_seconds), why }
}

/// Seconds of the merge where the CPU makes those tensors that `here` tells, and nobody the others.
fn on_the_cpu(plan: &Plan, here: impl Fn(usize) -> bool) -> f64 {
    let threads = plan.memory.threads.max(1) as f64;
    let (mut elements, mut operations) = (0.0, 0.0);
    for (index, tensor) in plan.tensors.iter().enumerate().filter(|(index, _)| here(*index)) {
        let written = plan.layout.placement(index).bytes as f64;
        elements += plan.pass_bytes(index) as f64 * plan.graph.passes(index).max(1) as f64 + written;
        operations += super::show::operations(tensor);
    }
    let computing = elements / (rates::CPU_ELEMENTS * threads) + operations / (rates::CPU_MATRICES * threads);
    computing.max(plan.layout.data_bytes() as f64 / rates::DISK_WRITE)
}

/// Seconds of the merge with matrices on these devices, while the CPU does the rest.
fn with_devices(plan: &Plan, devices: &[CudaDevice]) -> f64 {
    let on = plan.devices.as_ref();
    let rest = on_the_cpu(plan, |index| on.is_none_or(|on| !on.has(index)));
    let Some((work, on)) = plan.work().zip(on) else { return f64::INFINITY };
    // The slowest of unlike cards: which of them a matrix goes to is not known before.
    let host = Host { lanes: on.lanes, devices: devices.len() };
    let seconds = |device: &CudaDevice| card_of(device, |card| work.on(card, host).seconds);
    devices.iter().map(seconds).fold(rest + rates::OPEN_SECONDS, f64::max)
}

/// What a card of the table is, or what one of this capability and size is at least.
fn card_of<T>(device: &CudaDevice, take: impl FnOnce(&Card) -> T) -> T {
    match cards::of_device(&device.name) {
        Some(card) => take(card),
        None => take(&cards::like(device)),
    }
}

/// What the choice comes to, for people.
pub(super) fn in_words(choice: &Choice, tensors: &[TensorPlan]) -> String {
    let matrices = tensors.iter().filter(|t| is_matrix(t)).count();
    let who = match choice.devices {
        true => format!("{matrices} matrices on devices, {} tensors on the CPU", tensors.len() - matrices),
        false => "everything on the CPU".into(),
    };
    format!("auto      {who}: {}", choice.why)
}
