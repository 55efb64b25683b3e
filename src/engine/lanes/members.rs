//! The tensors that a lane merges by their matrices: one, or several of one shape together.

use std::collections::VecDeque;

use super::output::Pieces;
use super::sources::Stage;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::lane::{Lane, place};
use crate::backend::cuda::ops::low_rank as kernels;
use crate::backend::cuda::ops::{Place, StageBlob};
use crate::backend::cuda::pool::Span;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ops::{Geometry, LowRank, Program};
use crate::plan::TensorPlan;
use crate::plan::graph::Kind;

/// One of the tensors that are merged together.
pub(super) struct Member<'a> {
    pub index: usize,
    pub tensor: &'a TensorPlan,
    pub work: &'a LowRank,
    /// λ w'_t.
    pub scale: Vec<f64>,
    /// Whether an earlier run has merged it: it is decomposed again, so that the libraries are called as they were, and not
    /// written again.
    pub is_done: bool,
}

impl<'a> Member<'a> {
    pub fn of(engine: &'a Engine<'_>, index: usize) -> Result<Self> {
        let tensor = &engine.plan.tensors[index];
        let Program::LowRank(work) = &tensor.program else { return Err(Error::internal("no merge of a matrix")) };
        let scale = work.scaled_weights().iter().map(|w| work.lambda * w).collect();
        Ok(Self { index, tensor, work, scale, is_done: engine.is_done[index] })
    }

    pub fn stage<'p>(&self, engine: &'a Engine<'p>, gpu: &'a Gpu) -> Stage<'a, 'p> {
        let graph = &engine.plan.graph;
        let is_first = graph.steps[graph.first(self.index)].kind == Kind::Merge && !self.is_done;
        Stage { engine, gpu, tensor: self.tensor, is_first, is_merge: true, hashes_chunks: true }
    }

    /// What its run has measured for its stages, as kernels take it: the rest of a [`Centring`] is where it lies.
    pub fn measured(&self, engine: &Engine<'_>) -> (Geometry, StageBlob) {
        let measured = engine.tensors[self.index].measured();
        (measured.geometry, StageBlob::new(&measured.stages, self.tensor.models.len()))
    }
}

/// Rounds a tensor's sum, f64, to what is stored, and brings it back: the sum is number `l` of those in a span. What is no number is
/// counted at the address beside the buffers.
pub(super) fn round(
    gpu: &Gpu,
    lane: &mut Lane,
    tensor: &TensorPlan,
    (merged, l): (Span, u64),
    (outs, facts): (&[Span], u64),
    chunk: u64,
    pieces: &mut Pieces<'_, '_>,
) -> Result<()> {
    let mut under_way = VecDeque::new();
    for (i, start) in (0..tensor.elems).step_by(chunk as usize).enumerate() {
        let (len, turn) = (chunk.min(tensor.elems - start), i % outs.len());
        if under_way.len() == lane.fetches() {
            pieces.take_oldest(lane, &mut under_way)?;
        }
        lane.compute_after_fetch(turn)?;
        let bytes = len * tensor.elem_bytes;
        let out = Place { dtype: tensor.dtype, ptr: place(gpu, outs[turn], 0, bytes)? };
        let from = place(gpu, merged, 8 * (l * tensor.elems + start), 8 * len)?;
        kernels::round(gpu.kernels(), lane.stream(), from, out, len, facts)?;
        under_way.push_back(lane.fetch(gpu, outs[turn], 0, bytes as usize, turn)?);
    }
    while !under_way.is_empty() {
        pieces.take_oldest(lane, &mut under_way)?;
    }
    Ok(())
}
