//! Statistics of a tensor on a device: cuts, norms, scores, products; handed to the tensor's run as a CPU thread would.

use std::ops::Range;

use super::LaneWorker;
use super::sources::Stage;
use crate::backend::cuda::lane::{TURNS, place};
use crate::backend::cuda::ops::columns::products_bytes;
use crate::backend::cuda::ops::overlap::counts_bytes;
use crate::backend::cuda::ops::select::{SelectState, bins_bytes};
use crate::backend::cuda::ops::sums::{Stat, line_bytes, scratch_bytes};
use crate::backend::cuda::ops::{self, StageBlob};
use crate::engine::lines::Weights;
use crate::error::Result;
use crate::ops::search::{Ranked, Search};
use crate::ops::{Changes, Geometry, Gram, Prune, Rescale, SEGMENT, Score, Sums};
use crate::plan::TensorPlan;
use crate::plan::graph::Kind;

/// Bytes of an `f64`.
const F64: u64 = 8;

fn segments(elems: u64) -> u64 {
    elems.div_ceil(SEGMENT as u64)
}

/// Spans beside the sources that a step of this kind takes, for launches of `chunk` elements. The first is for the stages.
pub(super) fn work(kind: Kind, tensor: &TensorPlan, blob: u64, chunk: u64) -> Vec<u64> {
    let (models, geometry) = (tensor.models.len(), Geometry::of(&tensor.shape));
    let m = models as u64;
    let scratch = |stat| scratch_bytes(stat, geometry, run_of(kind, tensor, chunk), models);
    match kind {
        Kind::Select { .. } => vec![blob, m * size_of::<SelectState>() as u64, bins_bytes(models)],
        Kind::Norms(_) => {
            let sums = segments(tensor.elems) * m * 6 * F64;
            vec![blob, blob, scratch(Stat::Norms), sums, sums]
        }
        Kind::TrimNorms => vec![blob, scratch(Stat::TrimNorms), segments(tensor.elems) * m * 2 * F64],
        Kind::Gram => {
            vec![blob, scratch(Stat::Gram), segments(tensor.elems) * Gram::len(tensor.fitted_vectors()) as u64 * F64]
        }
        Kind::Lines => {
            let (lines, vectors) = (tensor.lines(), tensor.fitted_vectors());
            let run = run_of(kind, tensor, chunk);
            let [scratch, out] = if lines.is_contiguous() {
                line_bytes(lines.len, run, vectors)
            } else {
                [0, products_bytes(lines.count, vectors)]
            };
            vec![blob, scratch, out]
        }
        Kind::Overlap => vec![blob, counts_bytes(models)],
        Kind::Rows(_) => vec![blob, scratch(Stat::Rows), m * geometry.rows * F64],
        Kind::Columns(_) => vec![blob, m * geometry.columns * F64],
        Kind::Merge => {
            let mut work = vec![blob, (2 + m) * 8];
            work.extend([chunk * tensor.elem_bytes; TURNS]);
            // Weights of lines.
            work.push(if tensor.weighs_lines() { m * tensor.lines().count * F64 } else { 0 });
            work
        }
        Kind::Rank(_) | Kind::Restore { .. } => Vec::new(),
    }
}

/// Elements of a run that a chunk of so many elements holds: whole rows, where a step scores rows or columns.
pub(super) fn run_of(kind: Kind, tensor: &TensorPlan, chunk: u64) -> u64 {
    let row = row_of(kind, tensor);
    match kind {
        Kind::Rows(_) | Kind::Columns(_) | Kind::Lines => (chunk / row).max(1) * row,
        _ => chunk,
    }
}

/// Elements that a run of this kind may not cut.
fn row_of(kind: Kind, tensor: &TensorPlan) -> u64 {
    let (geometry, lines) = (Geometry::of(&tensor.shape), tensor.lines());
    let elems = match kind {
        Kind::Columns(_) => geometry.columns * geometry.inner,
        Kind::Lines if lines.is_contiguous() => lines.len,
        Kind::Lines => lines.stride,
        _ => geometry.row_elems,
    };
    elems.max(1)
}

/// The runs of a step over a whole tensor.
pub(super) fn runs(kind: Kind, tensor: &TensorPlan, chunk: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let (run, elems) = (run_of(kind, tensor, chunk), tensor.elems);
    (0..elems).step_by(run as usize).map(move |start| start..(start + run).min(elems))
}

impl LaneWorker<'_, '_> {
    /// The exact cut of every model that searches for one.
    pub(super) fn select(
        &mut self,
        stage: &Stage<'_, '_>,
        index: usize,
        kind: Kind,
        of: Option<(usize, Prune)>,
    ) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let searches = run.searches(tensor, of.map(|(_, prune)| prune));
        if searches.iter().all(Option::is_none) {
            return Ok(());
        }
        let measured = run.measured();
        let (ranked, before) = match of {
            Some((place, prune)) => (Ranked::Score(prune.score), place),
            None => (Ranked::Magnitude, measured.stages.len()),
        };
        let models = tensor.models.len();
        let blob = StageBlob::new(&measured.stages[..before], models);
        let state = |search: &Option<Search>| match search.as_ref().map(Search::wanted) {
            Some((rank, lowest)) => SelectState::new(rank, lowest, tensor.wide),
            None => SelectState::none(),
        };
        let mut found: Vec<SelectState> = searches.iter().map(state).collect();
        let Some((mut loaded, chunk)) = self.load(stage, index, kind, &blob)? else { return Ok(()) };
        let [stages_at, states_at, bins] = [0, 1, 2].map(|i| loaded.lease.work[i]);
        let (gpu, lane) = (self.gpu, &mut self.lane);
        let at = |span| place(gpu, span, 0, 0);
        lane.put(gpu, stages_at, 0, &blob.bytes)?;
        lane.clear(gpu, bins)?;
        // A method may cut a model more than once; counters are zero again after a search.
        for states in found.chunks_mut(models) {
            if states.iter().all(|state| *state == SelectState::none()) {
                continue;
            }
            lane.put(gpu, states_at, 0, bytemuck::cast_slice(states))?;
            for _ in 0..ops::select::levels(tensor.wide) {
                loaded.each_run(stage, lane, &mut self.raw, runs(kind, tensor, chunk), &mut |lane, sources, _| {
                    let stages = blob.at(at(stages_at)?);
                    let (wide, geometry) = (tensor.wide, measured.geometry);
                    let (kernels, stream, states, bins) = (gpu.kernels(), lane.stream(), at(states_at)?, at(bins)?);
                    ops::select::count(kernels, stream, ranked, wide, geometry, stages, sources, states, bins)
                })?;
                ops::select::advance(gpu.kernels(), lane.stream(), models, at(states_at)?, at(bins)?)?;
            }
            lane.get(gpu, states_at, 0, bytemuck::cast_slice_mut(states))?;
        }
        loaded.finish(stage, lane, index, true)?;
        let cut = |(state, search): (&SelectState, &Option<Search>)| search.as_ref().and_then(|_| state.cut());
        run.set_cuts(found.iter().zip(searches.iter()).map(cut).collect());
        Ok(())
    }

    /// Norms of what enters a stage and, for `rescale`, of what its masks leave.
    pub(super) fn norms(&mut self, stage: &Stage<'_, '_>, index: usize, kind: Kind, of: (usize, Prune)) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let (measured, (place_of, prune)) = (run.measured(), of);
        let models = tensor.models.len();
        let after_too = measured.stages.len() > place_of && prune.rescale != Rescale::None;
        let before = StageBlob::new(&measured.stages[..place_of], models);
        let after = StageBlob::new(&measured.stages[..if after_too { place_of + 1 } else { place_of }], models);
        let longer = if before.bytes.len() > after.bytes.len() { &before } else { &after };
        let Some((mut loaded, chunk)) = self.load(stage, index, kind, longer)? else { return Ok(()) };
        let [before_at, after_at, scratch, sums_before, sums_after] = [0, 1, 2, 3, 4].map(|i| loaded.lease.work[i]);
        let (gpu, lane) = (self.gpu, &mut self.lane);
        lane.put(gpu, before_at, 0, &before.bytes)?;
        lane.put(gpu, after_at, 0, &after.bytes)?;
        let per_segment = models as u64 * 6 * F64;
        let both = [(&before, before_at, sums_before), (&after, after_at, sums_after)];
        let wanted = &both[..1 + usize::from(after_too)];
        loaded.each_run(stage, lane, &mut self.raw, runs(kind, tensor, chunk), &mut |lane, sources, _| {
            for (blob, blob_at, out) in wanted {
                let stages = blob.at(place(gpu, *blob_at, 0, 0)?);
                let to = place(gpu, *out, sources.start / SEGMENT as u64 * per_segment, 0)?;
                let (wide, geometry, scratch) = (tensor.wide, measured.geometry, place(gpu, scratch, 0, 0)?);
                ops::sums::sums(gpu.kernels(), lane.stream(), wide, geometry, stages, sources, scratch, to)?;
            }
            Ok(())
        })?;
        let count = segments(tensor.elems) as usize;
        let mut read = |span| -> Result<Vec<Vec<Sums>>> {
            let mut values = vec![[0f64; 6]; count * models];
            lane.get(gpu, span, 0, bytemuck::cast_slice_mut(&mut values))?;
            let sums = |[l1, squares, deviation, dot, rest, base]: &[f64; 6]| Sums {
                l1: *l1,
                squares: *squares,
                deviation: *deviation,
                dot: *dot,
                rest: *rest,
                base: *base,
            };
            Ok(values.chunks(models).map(|segment| segment.iter().map(sums).collect()).collect())
        };
        let before = read(sums_before)?;
        let after = if after_too { read(sums_after)? } else { Vec::new() };
        loaded.finish(stage, lane, index, true)?;
        run.set_norms(count, 0, before, after);
        Ok(())
    }

    /// Norms before and after trimming.
    pub(super) fn trim_norms(&mut self, stage: &Stage<'_, '_>, index: usize, kind: Kind) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let (measured, models) = (run.measured(), tensor.models.len());
        let blob = StageBlob::new(&measured.stages, models);
        let Some((mut loaded, chunk)) = self.load(stage, index, kind, &blob)? else { return Ok(()) };
        let [stages_at, scratch, out] = [0, 1, 2].map(|i| loaded.lease.work[i]);
        let (gpu, lane) = (self.gpu, &mut self.lane);
        lane.put(gpu, stages_at, 0, &blob.bytes)?;
        loaded.each_run(stage, lane, &mut self.raw, runs(kind, tensor, chunk), &mut |lane, sources, _| {
            let stages = blob.at(place(gpu, stages_at, 0, 0)?);
            let to = place(gpu, out, sources.start / SEGMENT as u64 * models as u64 * 2 * F64, 0)?;
            let (wide, geometry, cuts) = (tensor.wide, measured.geometry, [&measured.cuts[..], &measured.tops[..]]);
            let scratch = place(gpu, scratch, 0, 0)?;
            ops::sums::trim_norms(gpu.kernels(), lane.stream(), wide, geometry, stages, cuts, sources, scratch, to)
        })?;
        let count = segments(tensor.elems) as usize;
        let mut values = vec![[0f64; 2]; count * models];
        lane.get(gpu, out, 0, bytemuck::cast_slice_mut(&mut values))?;
        loaded.finish(stage, lane, index, true)?;
        run.set_pairs(count, 0, values.chunks(models).map(<[_]>::to_vec).collect());
        Ok(())
    }

    /// Products of the vectors that are combined.
    pub(super) fn gram(&mut self, stage: &Stage<'_, '_>, index: usize, kind: Kind) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let (measured, of) = (run.measured(), tensor.fit()?.of);
        let blob = StageBlob::new(&measured.stages, tensor.models.len());
        let Some((mut loaded, chunk)) = self.load(stage, index, kind, &blob)? else { return Ok(()) };
        let [stages_at, scratch, out] = [0, 1, 2].map(|i| loaded.lease.work[i]);
        let (gpu, lane, len) = (self.gpu, &mut self.lane, Gram::len(tensor.fitted_vectors()));
        lane.put(gpu, stages_at, 0, &blob.bytes)?;
        let stages = blob.at(place(gpu, stages_at, 0, 0)?);
        loaded.each_run(stage, lane, &mut self.raw, runs(kind, tensor, chunk), &mut |lane, sources, _| {
            let to = place(gpu, out, sources.start / SEGMENT as u64 * len as u64 * F64, 0)?;
            let (scratch, geometry) = (place(gpu, scratch, 0, 0)?, measured.geometry);
            let stream = lane.stream();
            ops::sums::gram(gpu.kernels(), stream, tensor.wide, of, geometry, stages, sources, scratch, to)
        })?;
        let mut values = vec![0f64; segments(tensor.elems) as usize * len];
        lane.get(gpu, out, 0, bytemuck::cast_slice_mut(&mut values))?;
        loaded.finish(stage, lane, index, true)?;
        run.set_products(segments(tensor.elems) as usize, 0, values.chunks(len).map(<[_]>::to_vec).collect());
        Ok(())
    }

    /// Weights of the tensor's lines, from their products.
    pub(super) fn lines(&mut self, stage: &Stage<'_, '_>, index: usize, kind: Kind) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let (measured, fit, of) = (run.measured(), tensor.fit()?, tensor.lines());
        let blob = StageBlob::new(&measured.stages, tensor.models.len());
        let Some((mut loaded, chunk)) = self.load(stage, index, kind, &blob)? else { return Ok(()) };
        let [stages_at, scratch, out] = [0, 1, 2].map(|i| loaded.lease.work[i]);
        let (gpu, lane, vectors) = (self.gpu, &mut self.lane, tensor.fitted_vectors());
        lane.put(gpu, stages_at, 0, &blob.bytes)?;
        let (stages, geometry) = (blob.at(place(gpu, stages_at, 0, 0)?), measured.geometry);
        let mut found = Weights::new(tensor.models.len());
        let (kernels, wide) = (gpu.kernels(), tensor.wide);
        let mut products = Vec::new();
        if !of.is_contiguous() {
            // Sums of strided lines are added to.
            lane.clear(gpu, out)?;
        }
        loaded.each_run(stage, lane, &mut self.raw, runs(kind, tensor, chunk), &mut |lane, sources, _| {
            let to = place(gpu, out, 0, 0)?;
            if !of.is_contiguous() {
                return ops::columns::add_products(kernels, lane.stream(), wide, fit.of, geometry, stages, sources, to);
            }
            let by = place(gpu, scratch, 0, 0)?;
            ops::sums::line_products(kernels, lane.stream(), wide, fit.of, of.len, geometry, stages, sources, by, to)?;
            // As many as there are elements for; a device's results are settled run by run, so that they take no more memory.
            products.resize((sources.len / of.len.max(1)) as usize * Gram::len(vectors), 0.0);
            lane.get(gpu, out, 0, bytemuck::cast_slice_mut(&mut products))?;
            found.settle(fit, &measured.combine, vectors, &products);
            Ok(())
        })?;
        if !of.is_contiguous() {
            products.resize(of.count as usize * Gram::len(vectors), 0.0);
            lane.get(gpu, out, 0, bytemuck::cast_slice_mut(&mut products))?;
            found.settle(fit, &measured.combine, vectors, &products);
        }
        loaded.finish(stage, lane, index, true)?;
        run.set_lines(tensor, 0, found);
        Ok(())
    }

    /// Elements that task vectors change alone and together.
    pub(super) fn overlap(&mut self, stage: &Stage<'_, '_>, index: usize, kind: Kind) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let (measured, models) = (run.measured(), tensor.models.len());
        let blob = StageBlob::new(&measured.stages, models);
        let Some((mut loaded, chunk)) = self.load(stage, index, kind, &blob)? else { return Ok(()) };
        let [stages_at, counts] = [0, 1].map(|i| loaded.lease.work[i]);
        let (gpu, lane) = (self.gpu, &mut self.lane);
        lane.put(gpu, stages_at, 0, &blob.bytes)?;
        lane.clear(gpu, counts)?;
        let (stages, to) = (blob.at(place(gpu, stages_at, 0, 0)?), place(gpu, counts, 0, 0)?);
        let (threshold, geometry) = (measured.combine.numbers.threshold, measured.geometry);
        loaded.each_run(stage, lane, &mut self.raw, runs(kind, tensor, chunk), &mut |lane, sources, _| {
            let (kernels, stream) = (gpu.kernels(), lane.stream());
            ops::overlap::overlap(kernels, stream, tensor.wide, threshold, geometry, stages, sources, to)
        })?;
        let mut values = vec![[0_u64; 2]; models];
        lane.get(gpu, counts, 0, bytemuck::cast_slice_mut(&mut values))?;
        loaded.finish(stage, lane, index, true)?;
        let changes: Vec<Changes> =
            values.iter().map(|[alone, shared]| Changes { alone: *alone, shared: *shared }).collect();
        run.add_changes(&changes);
        Ok(())
    }

    /// Mean scores of rows or columns.
    pub(super) fn scores(&mut self, stage: &Stage<'_, '_>, index: usize, kind: Kind, of: (usize, Prune)) -> Result<()> {
        let (run, tensor) = (&self.engine.tensors[index], stage.tensor);
        let (measured, models) = (run.measured(), tensor.models.len());
        let (geometry, score, wide): (Geometry, Score, bool) = (measured.geometry, of.1.score, tensor.wide);
        let blob = StageBlob::new(&measured.stages[..of.0], models);
        let Some((mut loaded, chunk)) = self.load(stage, index, kind, &blob)? else { return Ok(()) };
        let by_rows = matches!(kind, Kind::Rows(_));
        let stages_at = loaded.lease.work[0];
        let (scratch, out) =
            if by_rows { (loaded.lease.work[1], loaded.lease.work[2]) } else { (stages_at, loaded.lease.work[1]) };
        let (gpu, lane) = (self.gpu, &mut self.lane);
        lane.put(gpu, stages_at, 0, &blob.bytes)?;
        if !by_rows {
            // Scores of columns are added to; those of rows are written whole.
            lane.clear(gpu, out)?;
        }
        let mut parts = Vec::new();
        loaded.each_run(stage, lane, &mut self.raw, runs(kind, tensor, chunk), &mut |lane, sources, _| {
            let stages = blob.at(place(gpu, stages_at, 0, 0)?);
            if by_rows {
                // One part a run, models by rows; parts follow each other.
                let first = sources.start / geometry.row_elems.max(1);
                let rows = sources.len / geometry.row_elems.max(1);
                parts.push(first as usize..(first + rows) as usize);
                let to = place(gpu, out, first * models as u64 * F64, 0)?;
                let scratch = place(gpu, scratch, 0, 0)?;
                ops::sums::row_scores(gpu.kernels(), lane.stream(), wide, score, geometry, stages, sources, scratch, to)
            } else {
                let totals = place(gpu, out, 0, 0)?;
                ops::columns::add_column_scores(
                    gpu.kernels(),
                    lane.stream(),
                    wide,
                    score,
                    geometry,
                    stages,
                    sources,
                    totals,
                )
            }
        })?;
        let units = if by_rows { geometry.rows } else { geometry.columns } as usize;
        if !by_rows {
            ops::columns::finish_columns(gpu.kernels(), lane.stream(), geometry, models, place(gpu, out, 0, 0)?)?;
            parts.push(0..units);
        }
        let mut values = vec![0f64; units * models];
        lane.get(gpu, out, 0, bytemuck::cast_slice_mut(&mut values))?;
        loaded.finish(stage, lane, index, true)?;
        let mut scores = vec![vec![0.0; units]; models];
        for part in parts {
            let from = &values[part.start * models..part.end * models];
            for (model, means) in from.chunks(part.len().max(1)).enumerate() {
                scores[model][part.clone()].copy_from_slice(means);
            }
        }
        run.set_scores(units, 0, &scores);
        Ok(())
    }
}
