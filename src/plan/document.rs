//! A plan for programs: what `plan --json` prints.

use serde::Serialize;
use serde_json::Value;

use super::devices::{OnDevices, Place};
use super::show::{decomposition, describe, operations};
use super::{Choice, Plan};
use crate::cost::Prediction;
use crate::ops::Program;
use crate::report::manifest::Coverage;

/// What a merge would do.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlanDocument {
    /// The recipe as resolved; its keys are the recipe's.
    pub recipe: serde_json::Map<String, Value>,
    /// What comes out: its `kind` is `merged`, `factors` or `lora`, and factors say more of themselves.
    pub output: serde_json::Map<String, Value>,
    /// What is read, the base first.
    pub sources: Vec<PlannedSource>,
    /// What is written.
    pub tensors: Vec<PlannedTensor>,
    /// The files that they go to.
    pub files: Vec<PlannedFile>,
    /// Sums over the tensors.
    pub totals: PlannedTotals,
    /// Bound on the memory allocated, in bytes.
    pub memory_budget: u64,
    /// CPU threads.
    pub threads: usize,
    /// What of the budget is taken for what.
    pub memory: PlannedMemory,
    /// Seed of random masks.
    pub seed: u64,
    /// How much is merged as matrices; null for methods that take none.
    pub matrices: Option<Coverage>,
    /// What CUDA devices do of it; null where the CPU does everything.
    pub devices: Option<PlannedDevices>,
    /// What `--device auto` chose, and why; null where there was nothing to choose.
    pub auto: Option<Choice>,
    /// What the merge is predicted to take on them, from published rates; null without devices, or for a card that is not known.
    pub prediction: Option<Prediction>,
}

/// A checkpoint that is read.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedSource {
    /// As the recipe writes it.
    pub path: String,
    /// `base` or `model`.
    pub role: &'static str,
    /// How many tensors it has.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How many files it has.
    pub files: usize,
}

/// An output tensor.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its stored element type.
    pub dtype: String,
    /// What is done, for people.
    pub work: String,
    /// `f32` or `f64`; null where nothing is computed.
    pub compute: Option<&'static str>,
    /// Its layer.
    pub layer: String,
    /// How often its sources are read.
    pub passes: u64,
    /// Bytes read of its sources, in all passes.
    pub bytes_read: u64,
    /// Bytes written of it.
    pub bytes: u64,
    /// Floating-point operations of its decomposition, about.
    pub operations: f64,
    /// How it is decomposed, for people; null where it is not.
    pub decomposition: Option<String>,
    /// Memory that its largest step takes.
    pub memory_bytes: u64,
    /// The file that it goes to.
    pub file: String,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// `cpu` or `cuda`; null where no device takes part.
    pub computed_on: Option<&'static str>,
    /// Why the CPU computes it beside devices.
    pub why_there: Option<String>,
    /// The batch of matrices that it is decomposed in.
    pub batch: Option<usize>,
}

/// An output file.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// How many tensors it holds.
    pub tensors: usize,
}

/// Sums over the tensors.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedTotals {
    /// How many.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Bytes read, in all passes.
    pub bytes_read: u64,
    /// Bytes read at most: more than `bytes_read` where float32 is not exact enough for a matrix.
    pub bytes_read_most: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Floating-point operations of decompositions.
    pub operations: f64,
    /// Steps of the merge.
    pub steps: usize,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedMemory {
    /// All of it.
    pub total_bytes: u64,
    /// Tables of tensors.
    pub tables_bytes: u64,
    /// What a thread takes.
    pub per_thread_bytes: u64,
    /// How many buffers there are.
    pub buffers: usize,
    /// What one takes.
    pub buffer_bytes: u64,
    /// The largest step.
    pub largest_step_bytes: u64,
}

/// CUDA devices.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedDevices {
    /// Each, with the memory taken of it.
    pub devices: Vec<PlannedDevice>,
    /// Lanes of each.
    pub lanes: usize,
    /// Page-locked bytes of a slot.
    pub slot_bytes: u64,
    /// Bytes on the host.
    pub host_bytes: u64,
    /// Batches of matrices.
    pub batches: usize,
}

/// One CUDA device.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlannedDevice {
    /// Its number.
    pub ordinal: u32,
    /// Its own name.
    pub name: String,
    /// Device memory taken.
    pub memory_bytes: u64,
}

impl PlanDocument {
    pub(super) fn of(plan: &Plan) -> Self {
        let memory = plan.memory;
        let source = |s: &super::Source| PlannedSource {
            path: s.written.clone(),
            role: if s.is_base { "base" } else { "model" },
            tensors: s.checkpoint.tensors().len(),
            bytes: s.checkpoint.tensor_bytes(),
            files: s.checkpoint.shards().len(),
        };
        let files = plan.layout.files().iter();
        let files = files.map(|f| PlannedFile { name: f.name.clone(), bytes: f.bytes, tensors: f.tensors.len() });
        Self {
            recipe: object(plan.recipe.to_json()),
            output: plan.factors.as_ref().map_or_else(
                || object(serde_json::json!({ "kind": "merged" })),
                |factors| object(factors.to_json(&plan.tensors)),
            ),
            sources: plan.sources.iter().map(source).collect(),
            tensors: (0..plan.tensors.len()).map(|i| PlannedTensor::of(plan, i)).collect(),
            files: files.collect(),
            totals: PlannedTotals {
                tensors: plan.tensors.len(),
                elements: plan.tensors.iter().map(|t| t.elems).sum(),
                bytes_read: plan.read_bytes(),
                bytes_read_most: plan.most_read_bytes(),
                bytes: plan.layout.data_bytes(),
                operations: plan.tensors.iter().map(operations).sum(),
                steps: plan.graph.steps.len(),
            },
            memory_budget: plan.options.memory_budget,
            threads: memory.threads,
            memory: PlannedMemory {
                total_bytes: memory.total,
                tables_bytes: memory.tables,
                per_thread_bytes: memory.per_thread,
                buffers: memory.buffers,
                buffer_bytes: memory.buffer_bytes,
                largest_step_bytes: memory.largest_step,
            },
            seed: plan.options.seed,
            matrices: plan.coverage(),
            devices: plan.devices.as_ref().map(|on| PlannedDevices::of(on, memory.lanes)),
            auto: plan.choice.clone(),
            prediction: plan.prediction(),
        }
    }
}

impl PlannedTensor {
    /// What is planned for a tensor.
    pub fn of(plan: &Plan, index: usize) -> Self {
        let (tensor, place) = (&plan.tensors[index], plan.layout.placement(index));
        let on = plan.devices.as_ref();
        let (computed_on, why_there) = match on.and_then(|on| on.places.get(index)) {
            None => (None, None),
            Some(Place::Device) => (Some("cuda"), None),
            Some(Place::Host(why)) => (Some("cpu"), Some((*why).to_owned())),
        };
        Self {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype.to_string(),
            work: describe(tensor),
            compute: match tensor.program {
                Program::Copy | Program::Factor { .. } => None,
                _ => Some(if tensor.wide { "f64" } else { "f32" }),
            },
            layer: plan.layers.groups()[tensor.layer].label.clone(),
            passes: plan.graph.passes(index),
            bytes_read: plan.pass_bytes(index) * plan.graph.passes(index),
            bytes: place.bytes,
            operations: operations(tensor),
            decomposition: decomposition(tensor),
            memory_bytes: super::memory::step_bytes(tensor),
            file: plan.layout.files()[place.file].name.clone(),
            offset: place.offset,
            computed_on,
            why_there,
            batch: on.and_then(|on| on.batch_of.get(index).copied().flatten()),
        }
    }
}

impl PlannedDevices {
    fn of(on: &OnDevices, host_bytes: u64) -> Self {
        let each = on.devices.iter().zip(&on.pool_bytes);
        let each = each.map(|(device, bytes)| PlannedDevice {
            ordinal: device.ordinal,
            name: device.name.clone(),
            memory_bytes: *bytes,
        });
        Self {
            devices: each.collect(),
            lanes: on.lanes,
            slot_bytes: on.slot_bytes,
            host_bytes,
            batches: on.batches.len(),
        }
    }
}

/// The entries of a JSON object.
fn object(value: Value) -> serde_json::Map<String, Value> {
    match value {
        Value::Object(entries) => entries,
        _ => serde_json::Map::new(),
    }
}
