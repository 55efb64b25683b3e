//! What of a merge CUDA devices do: which tensors, and how much memory of the host and of the devices that takes.

use super::batches::Batch;
use super::graph::{Graph, Kind, StepId};
use super::memory::{Lanes, Memory};
use super::{Plan, TensorPlan};
use crate::backend::contract::{Device, Job, Support};
use crate::backend::device::{AnyCuda, CudaDevice};
use crate::error::Result;
use crate::ops::Program;

/// Segments of a merge that are audited where nothing else is asked for.
pub const AUDITED: u64 = 256;

/// Devices that failed, and what the plan had them do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// What failed.
    pub why: String,
    /// Whether each tensor was to be made on a device.
    pub was_there: Vec<bool>,
}

/// Why a tensor without matrices stays on the CPU under `--device auto`.
const BY_STEP: &str = "`auto` leaves to the CPU what is merged element by element";

/// Where a tensor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On a device.
    Device,
    /// On the CPU, and why.
    Host(&'static str),
}

/// The devices of a merge, and what they do.
#[derive(Debug, Clone, PartialEq)]
pub struct OnDevices {
    /// The devices.
    pub devices: Vec<CudaDevice>,
    /// Bytes that are taken on each, as far as it is known.
    pub pool_bytes: Vec<u64>,
    /// Lanes of each device: threads that stage, launch and fetch. None where the devices make nothing.
    pub lanes: usize,
    /// Bytes of a page-locked slot on the way to a device.
    pub slot_bytes: u64,
    /// Bytes of a page-locked slot on the way back.
    pub fetch_bytes: u64,
    /// Where each tensor is made.
    pub places: Vec<Place>,
    /// Matrices that are decomposed together.
    pub batches: Vec<Batch>,
    /// The batch of each tensor, if it is in one.
    pub batch_of: Vec<Option<usize>>,
}

impl OnDevices {
    /// The tensors that are merged together with this one, itself among them; none if it is merged alone.
    pub fn batch(&self, tensor: usize) -> Option<&Batch> {
        self.batch_of[tensor].map(|batch| &self.batches[batch])
    }

    /// Whether a tensor is made on a device.
    pub fn has(&self, tensor: usize) -> bool {
        self.places[tensor] == Place::Device
    }
}

/// Where a tensor can be made, whatever the memory.
pub fn place(tensor: &TensorPlan) -> Place {
    let job = Job {
        program: &tensor.program,
        elems: tensor.elems,
        matrix: tensor.matrix(),
        models: tensor.models.len(),
        wide: tensor.wide,
    };
    match AnyCuda.supports(&job) {
        Support::Yes { .. } => Place::Device,
        Support::No(why) => Place::Host(why),
    }
}

/// Whether a tensor is merged by its matrix.
pub(super) fn is_matrix(tensor: &TensorPlan) -> bool {
    matches!(tensor.program, Program::LowRank(_))
}

/// Page-locked slots are whole multiples of this many bytes.
const SLOT_UNIT: u64 = 64 << 10;

/// Lanes of a device and bytes of a slot, in the order in which they are tried: the widest first.
const LANES: [(usize, u64); 6] =
    [(8, 4 << 20), (8, 1 << 20), (4, 1 << 20), (4, 512 << 10), (2, 512 << 10), (1, 512 << 10)];

impl Plan {
    /// Whether devices would decompose matrices, whatever the memory.
    pub fn decomposes_on_devices(&self) -> bool {
        self.tensors.iter().any(|t| matches!(t.program, Program::LowRank(_)) && place(t) == Place::Device)
    }

    /// Whether devices would merge matrices, as the plan stands.
    pub fn has_matrices_on_devices(&self) -> bool {
        let on = self.devices.as_ref();
        self.tensors.iter().enumerate().any(|(i, t)| is_matrix(t) && on.is_some_and(|on| on.has(i)))
    }

    /// Bytes and operations that a matrix would take the CPU.
    pub fn on_the_cpu(&self, tensor: usize) -> (u64, f64) {
        let of = &self.tensors[tensor];
        (super::memory::low_rank_bytes(of), super::show::operations(of))
    }

    /// Chooses what `--device auto` has these devices do of a plan that was made for them by step; leaves all to the CPU where
    /// that ends sooner.
    ///
    /// # Errors
    /// As [`Plan::leave_devices`].
    pub fn choose(&mut self, devices: &[CudaDevice]) -> Result<()> {
        let choice = super::auto::choose(self, devices);
        let stays = !choice.devices;
        self.choice = Some(choice);
        if stays { self.without_devices() } else { Ok(()) }
    }

    /// Has the CPU make everything, whatever was planned for devices, since they failed so.
    ///
    /// # Errors
    /// `Input` if the budget does not hold it, as [`Plan::new`] would have said.
    pub fn leave_devices(&mut self, why: &str) -> Result<()> {
        let was_there = match &self.devices {
            Some(on) => (0..self.tensors.len()).map(|i| on.has(i)).collect(),
            None => vec![false; self.tensors.len()],
        };
        self.left = Some(Left { why: why.into(), was_there });
        self.without_devices()
    }

    /// Has the CPU make everything.
    ///
    /// # Errors
    /// As [`Plan::leave_devices`].
    fn without_devices(&mut self) -> Result<()> {
        self.memory = Memory::fit(&self.tensors, self.options, Lanes::default())?;
        self.graph = Graph::new(&self.tensors, &self.layers, self.memory.chunk_elems);
        self.devices = None;
        Ok(())
    }

    /// Lets CUDA devices make what they can, in pools of so many bytes each, and fits what that takes of the host's memory
    /// into the budget. `fits` tells of each tensor whether the smallest pool holds what its matrices take, `together` which are
    /// decomposed together.
    ///
    /// # Errors
    /// `Input` if the budget does not hold a lane's page-locked memory beside the rest.
    pub fn use_devices(
        &mut self,
        devices: Vec<CudaDevice>,
        pool_bytes: Vec<u64>,
        fits: &[bool],
        together: Vec<Vec<usize>>,
    ) -> Result<()> {
        let places: Vec<Place> = self
            .tensors
            .iter()
            .zip(fits)
            .map(|(t, fits)| match place(t) {
                Place::Device if self.by_step && !is_matrix(t) => Place::Host(BY_STEP),
                Place::Device if matches!(t.program, Program::LowRank(_)) && !fits => {
                    Place::Host("its matrices do not fit into the device's memory")
                }
                place => place,
            })
            .collect();
        let wanted = places.iter().filter(|p| **p == Place::Device).count().div_ceil(devices.len().max(1));
        let on_device: Vec<bool> = places.iter().map(|p| *p == Place::Device).collect();
        // Locking pages takes its time: slots are no larger than what may go through them, whatever fits.
        let (mut largest_source, mut largest_result) = (0, 0);
        for tensor in self.tensors.iter().zip(&on_device).filter_map(|(t, on_device)| on_device.then_some(t)) {
            let sources = tensor.reads().map(|at| self.stored(at).0.bytes).max().unwrap_or_default();
            largest_source = sources.max(largest_source);
            largest_result = (tensor.elems * tensor.elem_bytes).max(largest_result);
        }
        let slot = |most: u64, preferred: u64| preferred.min(most.max(1).div_ceil(SLOT_UNIT) * SLOT_UNIT);
        let try_lanes = |(lanes, slot_bytes): (usize, u64)| {
            let (lanes, slot_bytes) = (lanes.min(wanted), slot(largest_source, slot_bytes));
            let all = Lanes { count: lanes * devices.len(), slot_bytes, on_device: &on_device };
            Memory::fit(&self.tensors, self.options, all).map(|memory| (memory, lanes, slot_bytes))
        };
        let mut fitted = try_lanes(LANES[0]);
        for preferred in &LANES[1..] {
            if fitted.is_err() {
                fitted = try_lanes(*preferred);
            }
        }
        let (memory, lanes, slot_bytes) = fitted?;
        self.graph = Graph::new(&self.tensors, &self.layers, memory.chunk_elems);
        let mut merges: Vec<StepId> = vec![0; self.tensors.len()];
        for (id, step) in self.graph.steps.iter_mut().enumerate().filter(|(_, step)| step.kind == Kind::Merge) {
            merges[step.tensor] = id;
            if on_device[step.tensor] {
                step.reserve = super::memory::device_step_bytes(&self.tensors[step.tensor]);
            }
        }
        let mut batch_of = vec![None; self.tensors.len()];
        let mut batches = Vec::new();
        for tensors in together.into_iter().filter(|tensors| tensors.iter().all(|t| on_device[*t])) {
            tensors.iter().for_each(|t| batch_of[*t] = Some(batches.len()));
            let steps: Vec<StepId> = tensors.iter().map(|t| merges[*t]).collect();
            self.graph.join(&steps);
            let most = steps.iter().map(|id| self.graph.steps[*id].reserve).max().unwrap_or_default();
            for (i, id) in steps.iter().enumerate() {
                self.graph.steps[*id].reserve = if i == 0 { most } else { 0 };
            }
            batches.push(Batch { tensors, steps });
        }
        let fetch_bytes = slot(largest_result, memory.buffer_bytes);
        self.memory = memory;
        self.devices =
            Some(OnDevices { devices, pool_bytes, lanes, slot_bytes, fetch_bytes, places, batches, batch_of });
        Ok(())
    }
}
