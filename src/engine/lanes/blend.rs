//! An element-wise merge on a device: chunk by chunk through a few buffers, downloaded while the next is merged.

use std::collections::VecDeque;

use super::LaneWorker;
use super::output::Pieces;
use super::sources::Stage;
use super::stats::runs;
use crate::backend::cpu::overflow;
use crate::backend::cuda::lane::{Fetch, Lane, place};
use crate::backend::cuda::ops::{self, Place, StageBlob};
use crate::engine::sources::{segments_of, with_sources};
use crate::error::Result;
use crate::ops::{Measured, RunFacts};
use crate::output::nonfinite;
use crate::plan::graph::Kind;
use crate::plan::{Plan, TensorPlan};

impl LaneWorker<'_, '_> {
    /// Merges a tensor whose statistics are known.
    pub(super) fn blend(&mut self, stage: &Stage<'_, '_>, index: usize) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let (measured, models) = (run.measured(), tensor.models.len());
        let blob = StageBlob::new(&measured.stages, models);
        let Some((mut loaded, chunk)) = self.load(stage, index, Kind::Merge, &blob)? else { return Ok(()) };
        let (stages_at, facts_at) = (loaded.lease.work[0], loaded.lease.work[1]);
        let outs: Vec<_> = loaded.lease.work[2..].to_vec();
        let (gpu, lane) = (self.gpu, &mut self.lane);
        lane.put(gpu, stages_at, 0, &blob.bytes)?;
        lane.clear(gpu, facts_at)?;
        let mut pieces = Pieces::new(self.engine, &gpu.label, index, &self.to_writers);
        let mut under_way = VecDeque::new();
        let mut overflow = Overflow::new(self.engine.plan, tensor, &measured);
        loaded.each_run(stage, lane, &mut self.raw, runs(Kind::Merge, tensor, chunk), &mut |lane, sources, turn| {
            if under_way.len() == lane.fetches() {
                take(&mut pieces, lane, &mut under_way, &mut overflow)?;
            }
            lane.compute_after_fetch(turn)?;
            let out = Place { dtype: tensor.dtype, ptr: place(gpu, outs[turn], 0, sources.len * tensor.elem_bytes)? };
            let (stages, facts) = (blob.at(place(gpu, stages_at, 0, 0)?), place(gpu, facts_at, 0, 0)?);
            ops::blend::blend(gpu.kernels(), lane.stream(), &measured, tensor.wide, stages, sources, out, facts)?;
            under_way.push_back(lane.fetch(gpu, outs[turn], 0, (sources.len * tensor.elem_bytes) as usize, turn)?);
            Ok(())
        })?;
        while !under_way.is_empty() {
            take(&mut pieces, lane, &mut under_way, &mut overflow)?;
        }
        let mut facts = vec![0u64; 2 + models];
        lane.get(gpu, facts_at, 0, bytemuck::cast_slice_mut(&mut facts))?;
        loaded.finish(stage, lane, index, false)?;
        pieces.finish()?;
        let [nonfinite, introduced] = [facts[0], facts[1]].map(|count| count.saturating_sub(overflow.mended));
        let facts = RunFacts { nonfinite, introduced, kept: facts[2..].to_vec() };
        run.merged(self.engine.plan, tensor, Vec::new(), &facts)
    }
}

/// Takes what the oldest copy brought, mended where sums overflowed.
fn take(
    pieces: &mut Pieces<'_, '_>,
    lane: &mut Lane,
    under_way: &mut VecDeque<Fetch>,
    overflow: &mut Overflow<'_>,
) -> Result<()> {
    let Some(fetch) = under_way.pop_front() else { return Ok(()) };
    let bytes = lane.fetched(&fetch)?;
    match overflow.mend(bytes)? {
        Some(mended) => pieces.add(&mended),
        None => pieces.add(bytes),
    }
}

/// Elements whose sums overflowed on the device are merged again on the host, by the function that does so for the CPU.
struct Overflow<'a> {
    plan: &'a Plan,
    tensor: &'a TensorPlan,
    measured: &'a Measured,
    /// Elements that have come.
    at: u64,
    /// Elements that the device counted as damaged and that are not any more.
    mended: u64,
}

impl<'a> Overflow<'a> {
    fn new(plan: &'a Plan, tensor: &'a TensorPlan, measured: &'a Measured) -> Self {
        Self { plan, tensor, measured, at: 0, mended: 0 }
    }

    /// The next elements as they are to be stored, if not as they came.
    fn mend(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
        let size = self.tensor.elem_bytes;
        let start = self.at;
        self.at += bytes.len() as u64 / size;
        let before = nonfinite::count(self.tensor.dtype, bytes);
        if before == 0 || self.tensor.wide {
            return Ok(None);
        }
        let mut mended = bytes.to_vec();
        let (mut raw, mut facts) = (vec![Vec::new(); self.tensor.models.len() + 1], RunFacts::default());
        for (_, elems) in segments_of(start, self.at) {
            let out = &mut mended[((elems.start - start) * size) as usize..((elems.end - start) * size) as usize];
            with_sources(self.plan, self.tensor, elems.start, elems.end, &mut raw, |sources| {
                overflow::mend(self.measured, sources, 0, sources.len, self.tensor.dtype, out, &mut facts);
            })?;
        }
        self.mended += before.saturating_sub(facts.nonfinite);
        Ok(Some(mended))
    }
}
