//! A step's sources on the device: found there, or staged from the page cache through page-locked slots, hashed on the way.

use std::ops::Range;

use crate::backend::cpu::low_rank;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::lane::{Lane, TURNS, place};
use crate::backend::cuda::ops::{DeviceSources, Place};
use crate::backend::cuda::pool::Lease;
use crate::engine::Engine;
use crate::engine::sources::segments_of;
use crate::error::{Error, Result};
use crate::ops::{Program, RunFacts};
use crate::output::source_digest::block;
use crate::plan::TensorPlan;

use super::needs::Needs;

/// A lease with what of its sources is there.
#[derive(Debug)]
pub(super) struct Loaded {
    pub lease: Lease,
    is_streamed: bool,
    /// The element up to which sources that lie there whole have come.
    there: u64,
    /// Digests of blocks that passed by: source, block, digest.
    blocks: Vec<(usize, usize, u128)>,
    /// Bytes that went to the device.
    sent: u64,
}

/// Where a tensor's sources come from and go to.
pub(super) struct Stage<'a, 'p> {
    pub engine: &'a Engine<'p>,
    pub gpu: &'a Gpu,
    pub tensor: &'a TensorPlan,
    /// Whether this is the first step that reads the tensor.
    pub is_first: bool,
    /// Whether this is the step that merges.
    pub is_merge: bool,
    /// Whether chunks are of whole blocks, all of the tensor, in order: what digests are made of.
    pub hashes_chunks: bool,
}

impl Loaded {
    /// Leases what a step takes; `None` if the run is being stopped. In debug builds it comes poisoned.
    pub fn lease(stage: &Stage<'_, '_>, lane: &mut Lane, index: usize, needs: &Needs) -> Result<Option<Self>> {
        let tensor = (!needs.is_streamed).then_some(index);
        let Some(lease) = stage.gpu.pool().lease(tensor, &needs.sources, &needs.work) else { return Ok(None) };
        if cfg!(debug_assertions) {
            let sources = if lease.is_filled { &[] } else { &lease.sources[..] };
            lane.poison(stage.gpu, &[sources, &lease.work].concat())?;
        }
        let there = if lease.is_filled { stage.tensor.elems } else { 0 };
        Ok(Some(Self { lease, is_streamed: needs.is_streamed, there, blocks: Vec::new(), sent: 0 }))
    }

    /// Calls `take` with the sources of each run in turn, once copies of them have been ordered before the kernels that it
    /// launches. `take` gets the turn, which tells the buffers that it may use.
    pub fn each_run(
        &mut self,
        stage: &Stage<'_, '_>,
        lane: &mut Lane,
        raw: &mut [Vec<u8>],
        runs: impl Iterator<Item = Range<u64>>,
        take: &mut dyn FnMut(&mut Lane, &DeviceSources<'_>, usize) -> Result<()>,
    ) -> Result<()> {
        for (i, run) in runs.enumerate() {
            if stage.engine.schedule.is_over() {
                return Err(Error::internal("the merge is being stopped"));
            }
            let turn = i % TURNS;
            let places = if self.is_streamed {
                lane.upload_after(turn)?;
                let sources = stage.tensor.reads().count();
                self.send(stage, lane, raw, run.clone(), (turn * sources, run.start), stage.hashes_chunks)?;
                lane.uploaded()?;
                self.places(stage, turn * sources, 0)?
            } else {
                // Whole blocks, as they are hashed; the last run ends with the tensor.
                let end = run.end.next_multiple_of(crate::ops::SEGMENT as u64).min(stage.tensor.elems);
                if self.there < end {
                    let there = self.there;
                    self.send(stage, lane, raw, there..end, (0, 0), true)?;
                    self.there = end;
                    lane.uploaded()?;
                }
                self.places(stage, 0, run.start)?
            };
            let (base, models) = places.split_at(usize::from(stage.tensor.base.is_some()));
            let sources =
                DeviceSources { base: base.first().copied(), models, start: run.start, len: run.end - run.start };
            take(lane, &sources, turn)?;
            lane.computed(turn)?;
        }
        Ok(())
    }

    /// All of the sources, which must lie there whole.
    pub fn all(
        &mut self,
        stage: &Stage<'_, '_>,
        lane: &mut Lane,
        raw: &mut [Vec<u8>],
        take: &mut dyn FnMut(&mut Lane, &DeviceSources<'_>) -> Result<()>,
    ) -> Result<()> {
        let all = std::iter::once(0..stage.tensor.elems);
        self.each_run(stage, lane, raw, all, &mut |lane, sources, _| take(lane, sources))
    }

    fn places(&self, stage: &Stage<'_, '_>, first_span: usize, element: u64) -> Result<Vec<Place>> {
        let spans = &self.lease.sources[first_span..];
        let each = stage.tensor.reads().zip(spans).map(|(at, span)| {
            let dtype = stage.engine.plan.stored(at).0.dtype;
            let offset = element * (dtype.bitsize() as u64 / 8);
            Ok(Place { dtype, ptr: place(stage.gpu, *span, offset, 0)? })
        });
        each.collect()
    }

    /// Sends a run of every source; `to`: the span of the first source, and the element that lies at a span's beginning.
    fn send(
        &mut self,
        stage: &Stage<'_, '_>,
        lane: &mut Lane,
        raw: &mut [Vec<u8>],
        run: Range<u64>,
        (first_span, origin): (usize, u64),
        hashes: bool,
    ) -> Result<()> {
        let (engine, gpu) = (stage.engine, stage.gpu);
        let mut bytes_sent = 0;
        for (source, (at, raw)) in stage.tensor.reads().zip(raw).enumerate() {
            let (stored, shard) = engine.plan.stored(at);
            let size = stored.dtype.bitsize() as u64 / 8;
            let span = self.lease.sources[first_span + source];
            let segment = crate::ops::SEGMENT as u64;
            // As many whole segments as a slot holds; a slot holds one of the widest elements at least.
            let at_once = (lane.up_bytes() as u64 / (segment * size)).max(1) * segment;
            let blocks = &mut self.blocks;
            for from in run.clone().step_by(at_once as usize) {
                let part = from..(from + at_once).min(run.end);
                let bytes = ((part.end - part.start) * size) as usize;
                lane.put_with(gpu, span, (from - origin) * size, bytes, &mut |slot| {
                    for (number, elems) in segments_of(part.start, part.end) {
                        let range = stored.begin + elems.start * size..stored.begin + elems.end * size;
                        let stored = shard.bytes(range, raw)?;
                        if hashes {
                            blocks.push((source, number, block(stored)));
                        }
                        let to = ((elems.start - part.start) * size) as usize;
                        slot[to..to + stored.len()].copy_from_slice(stored);
                    }
                    Ok(())
                })?;
                bytes_sent += bytes as u64;
            }
        }
        self.sent += bytes_sent;
        engine.progress.add_read(bytes_sent, stage.is_first);
        Ok(())
    }

    /// Notes the digests of a tensor's sources that have passed by, and what the plan counts as read and was not.
    pub fn note(&mut self, stage: &Stage<'_, '_>, index: usize) -> Result<()> {
        let facts = RunFacts { kept: vec![0; stage.tensor.models.len()], ..RunFacts::default() };
        let blocks = std::mem::take(&mut self.blocks);
        if !blocks.is_empty() {
            stage.engine.tensors[index].merged(stage.engine.plan, stage.tensor, blocks, &facts)?;
        }
        let plan = stage.engine.plan;
        let passes = match &stage.tensor.program {
            Program::LowRank(work) if stage.is_merge => {
                low_rank::passes(work, stage.tensor.matrix(), stage.tensor.wide)
            }
            _ => 1,
        };
        let sent = std::mem::take(&mut self.sent);
        let planned = plan.pass_bytes(index) * passes;
        stage.engine.progress.spare(planned.saturating_sub(sent));
        stage.engine.progress.add_unplanned(sent.saturating_sub(planned));
        Ok(())
    }

    /// Waits for the lane's work, notes digests, and gives the lease back. `keep`: later steps may want the sources.
    pub fn finish(mut self, stage: &Stage<'_, '_>, lane: &mut Lane, index: usize, keep: bool) -> Result<()> {
        lane.finish()?;
        self.note(stage, index)?;
        let is_whole = self.there == stage.tensor.elems;
        stage.gpu.pool().give_back(self.lease, keep && is_whole);
        Ok(())
    }

    /// Waits for the lane's work, and gives the lease of several tensors back.
    pub fn end(self, gpu: &Gpu, lane: &mut Lane) -> Result<()> {
        lane.finish()?;
        gpu.pool().give_back(self.lease, false);
        Ok(())
    }
}
