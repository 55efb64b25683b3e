//! An element-wise merge on a device: chunk by chunk through a few buffers, downloaded while the next is merged.

use std::collections::VecDeque;

use super::LaneWorker;
use super::output::Pieces;
use super::sources::Stage;
use super::stats::runs;
use crate::backend::cuda::lane::{TURNS, place};
use crate::backend::cuda::ops::{self, Place, StageBlob};
use crate::error::Result;
use crate::ops::RunFacts;
use crate::plan::graph::Kind;

impl LaneWorker<'_, '_> {
    /// Merges a tensor whose statistics are known.
    pub(super) fn blend(&mut self, stage: &Stage<'_, '_>, index: usize) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let (measured, models) = (run.measured(), tensor.models.len());
        let blob = StageBlob::new(&measured.stages, models);
        let Some((mut loaded, chunk)) = self.load(stage, index, Kind::Merge, &blob)? else { return Ok(()) };
        let (stages_at, facts_at) = (loaded.lease.work[0], loaded.lease.work[1]);
        let (outs, lines_at) = (loaded.lease.work[2..2 + TURNS].to_vec(), loaded.lease.work[2 + TURNS]);
        let (gpu, lane) = (self.gpu, &mut self.lane);
        lane.put(gpu, stages_at, 0, &blob.bytes)?;
        lane.clear(gpu, facts_at)?;
        for (t, weights) in measured.lines.iter().flat_map(|by| &by.weights).enumerate() {
            lane.put(gpu, lines_at, (t * weights.len() * 8) as u64, bytemuck::cast_slice(weights))?;
        }
        let lines = if measured.lines.is_some() { place(gpu, lines_at, 0, 0)? } else { 0 };
        let mut pieces = Pieces::new(self.engine, index, &self.to_writers);
        let mut under_way = VecDeque::new();
        loaded.each_run(stage, lane, &mut self.raw, runs(Kind::Merge, tensor, chunk), &mut |lane, sources, turn| {
            if under_way.len() == lane.fetches() {
                pieces.take_oldest(lane, &mut under_way)?;
            }
            lane.compute_after_fetch(turn)?;
            let out = Place { dtype: tensor.dtype, ptr: place(gpu, outs[turn], 0, sources.len * tensor.elem_bytes)? };
            let (stages, facts) = (blob.at(place(gpu, stages_at, 0, 0)?), place(gpu, facts_at, 0, 0)?);
            ops::blend::blend(
                gpu.kernels(),
                lane.stream(),
                &measured,
                tensor.wide,
                stages,
                lines,
                sources,
                out,
                facts,
            )?;
            under_way.push_back(lane.fetch(gpu, outs[turn], 0, (sources.len * tensor.elem_bytes) as usize, turn)?);
            Ok(())
        })?;
        while !under_way.is_empty() {
            pieces.take_oldest(lane, &mut under_way)?;
        }
        let mut facts = vec![0u64; 2 + models];
        lane.get(gpu, facts_at, 0, bytemuck::cast_slice_mut(&mut facts))?;
        loaded.finish(stage, lane, index, false)?;
        pieces.finish()?;
        let facts = RunFacts { nonfinite: facts[0], introduced: facts[1], kept: facts[2..].to_vec() };
        run.merged(self.engine.plan, tensor, Vec::new(), &facts)
    }
}
