//! A computing thread: takes units, runs the backend on them, and settles a step when its last unit is done.

use std::sync::mpsc::SyncSender;

use faer::MatRef;
use faer::traits::RealField;
use twox_hash::xxhash3_128::Hasher;

use super::runs::Runs;
use super::schedule::{Taker, Task};
use super::settle::{self, stage_of};
use super::sink::Sink;
use super::sources::{for_segments, in_part, nonfinite_source, sample_of, segments_of, stored_bytes, with_sources};
use super::writer::Written;
use super::{Engine, factors, lines, scores};
use crate::backend::cpu::blend::blend;
use crate::backend::cpu::low_rank;
use crate::backend::cpu::overlap;
use crate::backend::cpu::prune::{Scratch, Sources};
use crate::backend::cpu::select;
use crate::backend::cpu::stats;
use crate::backend::cpu::stored::Widen;
use crate::error::{Error, Result};
use crate::ops::search::{COUNTERS, Ranked, Search};
use crate::ops::{Changes, LowRank, Program, Rescale, RunFacts, SEGMENT};
use crate::output::nonfinite;
use crate::output::source_digest::{BLOCK_ELEMS, block};
use crate::plan::TensorPlan;
use crate::plan::graph::{Kind, Step, StepId, unit_columns, unit_lines, unit_rows};

// A segment is a digest block, so that what a unit reads can be hashed while it is in cache.
const _: () = assert!(SEGMENT as u64 == BLOCK_ELEMS);

/// Elements that are hashed and then merged: so few that all sources' stay in the core's nearest caches meanwhile.
const TURN: usize = 8192;

/// One thread's buffers and its way to the writers.
pub(super) struct Worker<'a, 'p> {
    engine: &'a Engine<'p>,
    to_writers: SyncSender<Written>,
    narrow: Scratch<f32>,
    wide: Scratch<f64>,
    counts: Vec<Vec<u32>>,
    raw: Vec<Vec<u8>>,
}

/// The thread's buffers for a computing type.
trait ScratchFor<C> {
    fn parts(&mut self) -> (&mut Scratch<C>, &mut Vec<Vec<u8>>, &mut Vec<Vec<u32>>);
}

impl ScratchFor<f32> for Worker<'_, '_> {
    fn parts(&mut self) -> (&mut Scratch<f32>, &mut Vec<Vec<u8>>, &mut Vec<Vec<u32>>) {
        (&mut self.narrow, &mut self.raw, &mut self.counts)
    }
}

impl ScratchFor<f64> for Worker<'_, '_> {
    fn parts(&mut self) -> (&mut Scratch<f64>, &mut Vec<Vec<u8>>, &mut Vec<Vec<u32>>) {
        (&mut self.wide, &mut self.raw, &mut self.counts)
    }
}

impl<'a, 'p> Worker<'a, 'p> {
    pub fn new(engine: &'a Engine<'p>, to_writers: SyncSender<Written>) -> Self {
        let models = engine.plan.tensors.iter().map(|t| t.models.len()).max().unwrap_or_default();
        Self {
            engine,
            to_writers,
            narrow: Scratch::new(models),
            wide: Scratch::new(models),
            counts: Vec::new(),
            raw: vec![Vec::new(); models + 1],
        }
    }

    /// Works until nothing is left, or the run is being stopped.
    pub fn work(mut self) -> Result<()> {
        while let Some(task) = self.engine.schedule.take(Taker::Host) {
            let (id, unit) = match task {
                Task::Unit(id, unit) => (id, unit),
                Task::LookUp(id) => {
                    self.engine.look_up(id);
                    continue;
                }
            };
            let step = &self.engine.plan.graph.steps[id];
            let tensor = &self.engine.plan.tensors[step.tensor];
            self.computed(id, step, tensor, unit)?;
            if self.engine.schedule.done(id) {
                let has_ended = settle::settle(self.engine, step, tensor)?;
                if has_ended { self.engine.schedule.end(id) } else { self.engine.schedule.again(id) }
            }
        }
        Ok(())
    }

    /// Runs a whole step, as often as it asks for.
    pub fn whole(&mut self, id: StepId) -> Result<()> {
        let step = &self.engine.plan.graph.steps[id];
        let tensor = &self.engine.plan.tensors[step.tensor];
        loop {
            (0..step.units).try_for_each(|unit| self.computed(id, step, tensor, unit))?;
            if settle::settle(self.engine, step, tensor)? {
                return Ok(());
            }
        }
    }

    /// Runs a unit in the tensor's computing type.
    fn computed(&mut self, id: StepId, step: &Step, tensor: &TensorPlan, unit: u64) -> Result<()> {
        let done = if tensor.wide {
            self.unit::<f64>(id, step, tensor, unit)
        } else {
            self.unit::<f32>(id, step, tensor, unit)
        };
        done.map_err(|error| error.at_tensor(&tensor.name))
    }

    fn unit<C: Widen + RealField>(&mut self, id: StepId, step: &Step, tensor: &TensorPlan, unit: u64) -> Result<()>
    where
        Self: ScratchFor<C>,
    {
        let (plan, run) = (self.engine.plan, &self.engine.tensors[step.tensor]);
        let chunk = plan.memory.chunk_elems;
        let (start, end) = (unit * chunk, ((unit + 1) * chunk).min(tensor.elems));
        let is_first = plan.graph.first(step.tensor) == id && !run.has_been_read();
        let segment = start as usize / SEGMENT;
        let segments = tensor.elems.div_ceil(SEGMENT as u64) as usize;
        match step.kind {
            Kind::Rank(_) | Kind::Restore { .. } => Ok(()),
            Kind::Merge => match &tensor.program {
                Program::Copy => self.copy(step.tensor, unit, start, end, is_first),
                Program::Blend(_) => self.blend::<C>(step.tensor, unit, start, end, is_first),
                Program::LowRank(work) => self.low_rank::<C>(step.tensor, work, is_first),
                Program::Factor { .. } => Err(Error::internal("a factor has no step of its own")),
            },
            Kind::Select { stage } => {
                let searches = run.searches(tensor, stage.and_then(|id| tensor.stage(id)).map(|(_, prune)| prune));
                if searches.iter().all(Option::is_none) {
                    return Ok(());
                }
                let measured = run.measured();
                let (ranked, before) = match stage {
                    Some(stage) => {
                        let (before, prune) = stage_of(tensor, stage)?;
                        (Ranked::Score(prune.score), before)
                    }
                    None => (Ranked::Magnitude, measured.stages.len()),
                };
                let (scratch, raw, counts) = self.parts();
                counts.resize_with(searches.len().max(counts.len()), || vec![0; COUNTERS]);
                let counts = &mut counts[..searches.len()];
                let (geometry, stages, models) = (measured.geometry, &measured.stages[..before], tensor.models.len());
                // A method may cut a model more than once.
                let count = |sources: &Sources<'_>, counts: &mut [Vec<u32>], scratch: &mut Scratch<C>| {
                    for (searches, counts) in searches.chunks(models).zip(counts.chunks_mut(models)) {
                        select::count(ranked, searches, geometry, stages, sources, counts, scratch);
                    }
                };
                if searches.iter().flatten().all(Search::samples) {
                    for (segment, at) in segments_of(start, end) {
                        for at in sample_of(segment, at) {
                            with_sources(plan, tensor, at.start, at.end, raw, |sources| {
                                count(sources, counts, scratch);
                            })?;
                        }
                    }
                    run.add_counts(&searches, counts);
                    // A sample touches every page, so that readahead must keep ahead of it; but it reads little.
                    if is_first {
                        self.engine.progress.add_first_read(self.bytes_of(tensor, end - start));
                    }
                    return Ok(());
                }
                for_segments(plan, tensor, start, end, raw, |sources| count(sources, counts, scratch))?;
                run.add_counts(&searches, counts);
                self.note_read(tensor, end - start, is_first);
                Ok(())
            }
            Kind::Norms(stage) => {
                let measured = run.measured();
                let (place, prune) = stage_of(tensor, stage)?;
                let (mut before, mut after) = (Vec::new(), Vec::new());
                let (scratch, raw, _) = self.parts();
                let after_too = measured.stages.len() > place && prune.rescale != Rescale::None;
                for_segments(plan, tensor, start, end, raw, |sources| {
                    before.extend(stats::sums(measured.geometry, &measured.stages[..place], sources, scratch));
                    if after_too {
                        after.extend(stats::sums(measured.geometry, &measured.stages[..=place], sources, scratch));
                    }
                })?;
                run.set_norms(segments, segment, before, after);
                self.note_read(tensor, end - start, is_first);
                Ok(())
            }
            Kind::TrimNorms => {
                let measured = run.measured();
                let mut pairs = Vec::new();
                let (scratch, raw, _) = self.parts();
                for_segments(plan, tensor, start, end, raw, |sources| {
                    pairs.extend(stats::trim_norms(&measured, sources, scratch));
                })?;
                run.set_pairs(segments, segment, pairs);
                self.note_read(tensor, end - start, is_first);
                Ok(())
            }
            Kind::Gram => {
                let (measured, of) = (run.measured(), tensor.fit()?.of);
                let mut products = Vec::new();
                let (scratch, raw, _) = self.parts();
                for_segments(plan, tensor, start, end, raw, |sources| {
                    products.extend(stats::gram(of, measured.geometry, &measured.stages, sources, scratch));
                })?;
                run.set_products(segments, segment, products);
                self.note_read(tensor, end - start, is_first);
                Ok(())
            }
            Kind::Lines => {
                let (measured, of) = (run.measured(), tensor.lines());
                let per_unit = unit_lines(of, chunk);
                let range = unit * per_unit..((unit + 1) * per_unit).min(of.count);
                let (scratch, raw, _) = self.parts();
                let weights = lines::weights((plan, tensor), &measured, range.clone(), raw, scratch)?;
                run.set_lines(tensor, range.start as usize, weights);
                self.note_read(tensor, (range.end - range.start) * of.len, is_first);
                Ok(())
            }
            Kind::Overlap => {
                let measured = run.measured();
                let mut changes = vec![Changes::default(); tensor.models.len()];
                let (scratch, raw, _) = self.parts();
                let (threshold, geometry) = (measured.combine.numbers.threshold, measured.geometry);
                for_segments(plan, tensor, start, end, raw, |sources| {
                    overlap::count(threshold, geometry, &measured.stages, sources, &mut changes, scratch);
                })?;
                run.add_changes(&changes);
                self.note_read(tensor, end - start, is_first);
                Ok(())
            }
            Kind::Rows(stage) => self.rows::<C>(step, tensor, stage, unit, is_first),
            Kind::Columns(stage) => self.columns::<C>(step, tensor, stage, unit, is_first),
        }
    }

    fn rows<C: Widen>(
        &mut self,
        step: &Step,
        tensor: &TensorPlan,
        stage: usize,
        unit: u64,
        is_first: bool,
    ) -> Result<()>
    where
        Self: ScratchFor<C>,
    {
        let (plan, run) = (self.engine.plan, &self.engine.tensors[step.tensor]);
        let (measured, (place, prune)) = (run.measured(), stage_of(tensor, stage)?);
        let geometry = measured.geometry;
        let per_unit = unit_rows(geometry, plan.memory.chunk_elems);
        let rows = unit * per_unit..((unit + 1) * per_unit).min(geometry.rows);
        let (scratch, raw, _) = self.parts();
        let stages = &measured.stages[..place];
        let scores = scores::of_rows((plan, tensor), prune, stages, rows.clone(), raw, scratch)?;
        run.set_scores(geometry.rows as usize, rows.start as usize, &scores);
        self.note_read(tensor, (rows.end - rows.start) * geometry.row_elems, is_first);
        Ok(())
    }

    fn columns<C: Widen>(
        &mut self,
        step: &Step,
        tensor: &TensorPlan,
        stage: usize,
        unit: u64,
        is_first: bool,
    ) -> Result<()>
    where
        Self: ScratchFor<C>,
    {
        let (plan, run) = (self.engine.plan, &self.engine.tensors[step.tensor]);
        let (measured, (place, prune)) = (run.measured(), stage_of(tensor, stage)?);
        let geometry = measured.geometry;
        let per_unit = unit_columns(geometry);
        let columns = unit * per_unit..((unit + 1) * per_unit).min(geometry.columns);
        let (scratch, raw, _) = self.parts();
        let stages = &measured.stages[..place];
        let scores = scores::of_columns((plan, tensor), prune, stages, columns.clone(), raw, scratch)?;
        run.set_scores(geometry.columns as usize, columns.start as usize, &scores);
        self.note_read(tensor, geometry.column_elems() * (columns.end - columns.start), is_first);
        Ok(())
    }

    fn copy(&mut self, index: usize, unit: u64, start: u64, end: u64, is_first: bool) -> Result<()> {
        let (plan, tensor) = (self.engine.plan, &self.engine.plan.tensors[index]);
        if start == end {
            return Ok(());
        }
        let Some(mut out) = self.engine.buffer_for(index) else { return Ok(()) };
        let mut blocks = Vec::new();
        let mut facts = RunFacts::default();
        for (segment, at) in segments_of(start, end) {
            let Some(from) = tensor.base else { return Err(Error::internal("a copy of nothing")) };
            let (stored, shard) = plan.stored(from);
            let range = stored.begin + at.start * tensor.elem_bytes..stored.begin + at.end * tensor.elem_bytes;
            let bytes = shard.bytes(range, &mut self.raw[0])?;
            blocks.push((0, segment, block(bytes)));
            facts.nonfinite += nonfinite::count(stored.dtype, bytes);
            out.extend_from_slice(bytes);
        }
        self.engine.tensors[index].merged(plan, tensor, blocks, &facts)?;
        self.note_read(tensor, end - start, is_first);
        self.sink(index).send(unit as usize, out)
    }

    fn blend<C: Widen>(&mut self, index: usize, unit: u64, start: u64, end: u64, is_first: bool) -> Result<()>
    where
        Self: ScratchFor<C>,
    {
        let (plan, tensor, run) = (self.engine.plan, &self.engine.plan.tensors[index], &self.engine.tensors[index]);
        if start == end {
            return Ok(());
        }
        let measured = run.measured();
        let Some(mut out) = self.engine.buffer_for(index) else { return Ok(()) };
        out.set_len(((end - start) * tensor.elem_bytes) as usize);
        let (scratch, raw, _) = self.parts();
        let mut blocks = Vec::new();
        let mut total = RunFacts { kept: vec![0; tensor.models.len()], ..RunFacts::default() };
        for (segment, at) in segments_of(start, end) {
            with_sources(plan, tensor, at.start, at.end, raw, |sources| {
                let mut hashers: Vec<Hasher> = tensor.reads().map(|_| Hasher::new()).collect();
                for from in (0..sources.len).step_by(TURN) {
                    in_part(sources, from, TURN.min(sources.len - from), |part| {
                        // Hashed first, which brings the part into cache for the merge.
                        let read = part.base.iter().chain(part.models);
                        hashers.iter_mut().zip(read).for_each(|(hasher, stored)| hasher.write(stored.bytes));
                        let to = ((part.start - start) * tensor.elem_bytes) as usize;
                        let bytes = &mut out[to..to + part.len * tensor.elem_bytes as usize];
                        let facts = blend(&measured, part, tensor.dtype, bytes, scratch);
                        total.kept.iter_mut().zip(&facts.kept).for_each(|(a, b)| *a += b);
                        total.nonfinite += facts.nonfinite;
                        total.introduced += facts.introduced;
                    });
                }
                blocks
                    .extend(hashers.iter().enumerate().map(|(source, hasher)| (source, segment, hasher.finish_128())));
            })?;
        }
        run.merged(plan, tensor, blocks, &total)?;
        self.note_read(tensor, end - start, is_first);
        self.sink(index).send(unit as usize, out)
    }

    fn low_rank<C: Widen + RealField>(&mut self, index: usize, work: &LowRank, is_first: bool) -> Result<()>
    where
        Self: ScratchFor<C>,
    {
        let (engine, plan, tensor) = (self.engine, self.engine.plan, &self.engine.plan.tensors[index]);
        let measured = engine.tensors[index].measured();
        let mut sink = Sink::new(engine, index, self.to_writers.clone());
        // Taken out, so that the source can use the buffers while the worker's scratch is in use.
        let mut raw = std::mem::take(&mut self.raw);
        let mut centring = Scratch::<f64>::new(tensor.models.len());
        let mut runs = Runs::new(engine, tensor, &mut raw, is_first);
        let to_writers = self.to_writers.clone();
        let (scratch, ..) = self.parts();
        let mut store = |task: usize, left: MatRef<'_, C>, right: MatRef<'_, C>| {
            tensor
                .factors
                .get(task)
                .map_or(Ok(()), |outputs| factors::store(engine, &to_writers, *outputs, left, right))
        };
        let facts = low_rank::merge_and_take(
            work,
            tensor.matrix(),
            &measured.stages,
            &mut runs,
            scratch,
            &mut centring,
            &mut store,
            &mut |values| sink.push(values),
        );
        let blocks = runs.blocks();
        self.raw = raw;
        crate::backend::cpu::allocator::trim();
        let facts = facts.map_err(|error| match error.kind() {
            crate::error::Kind::Input => nonfinite_source(plan, tensor, &mut self.raw).unwrap_or(error),
            _ => error,
        })?;
        let mut found = sink.finish()?;
        if found.nonfinite > 0 {
            // Sources were finite, or the Gram matrix would have said so.
            found.introduced = found.nonfinite;
        }
        engine.tensors[index].set_low_rank(plan, tensor, facts)?;
        engine.tensors[index].merged(plan, tensor, blocks, &found)
    }

    fn sink(&self, tensor: usize) -> Sink<'a, 'p> {
        Sink::new(self.engine, tensor, self.to_writers.clone())
    }

    fn note_read(&self, tensor: &TensorPlan, elems: u64, is_first: bool) {
        let bytes = self.bytes_of(tensor, elems);
        self.engine.progress.add_read(bytes, is_first);
    }

    /// Bytes of so many elements of all sources.
    fn bytes_of(&self, tensor: &TensorPlan, elems: u64) -> u64 {
        tensor.reads().map(|at| stored_bytes(self.engine.plan, tensor, at, elems)).sum()
    }
}
