//! A merge of matrices by truncation on a device, in f64: Σ w'_t SVD_k(A_t) as on the CPU, from the leading eigenvectors Q of
//! each Gram matrix, L_t = Q Qᵀ A_t (m ≤ n) or A_t Q Qᵀ.
//!
//! Matrices are row-major where they are made and column-major to the libraries: X = Aᵀ is n×m there. In f64 throughout, no
//! certificate is needed; graphics processors for computing centres multiply f64 as fast as f32 without its short forms.

use std::collections::VecDeque;

use faer::MatRef;

use super::LaneWorker;
use super::needs::{Matrix, Needs, most_chunk};
use super::output::Pieces;
use super::sources::{Loaded, Stage};
use crate::backend::cpu::blend::RunFacts;
use crate::backend::cpu::low_rank::LowRankFacts;
use crate::backend::cuda::cublas::{Operand, Sides};
use crate::backend::cuda::cusolver;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::lane::{Lane, place};
use crate::backend::cuda::ops::low_rank::{self as kernels, Centring};
use crate::backend::cuda::ops::{DeviceSources, Place, StageBlob};
use crate::backend::cuda::pool::Span;
use crate::backend::{LowRank, MatrixRule, Rank};
use crate::engine::sources::nonfinite_source;
use crate::engine::{Engine, factors};
use crate::error::{Error, Result};
use crate::plan::TensorPlan;

/// Spans of a matrix's step, in the order of [`Matrix::work`].
struct Spans {
    stages: Span,
    parts: Span,
    grams: Span,
    values: Span,
    infos: Span,
    solver: Span,
    product: Span,
    low: Span,
    merged: Span,
    scratch: Span,
    norms: Span,
    facts: Span,
    outs: Vec<Span>,
}

impl Spans {
    fn of(work: &[Span]) -> Self {
        let [stages, parts, grams, values, infos, solver, product, low, merged, scratch, norms, facts] =
            std::array::from_fn(|i| work[i]);
        let outs = work[12..].to_vec();
        Self { stages, parts, grams, values, infos, solver, product, low, merged, scratch, norms, facts, outs }
    }
}

/// What the tasks of a matrix need to be done with.
struct Job<'a, 'p> {
    engine: &'a Engine<'p>,
    gpu: &'a Gpu,
    tensor: &'a TensorPlan,
    work: &'a LowRank,
    rank: Rank,
    matrix: Matrix,
    spans: Spans,
    to_writers: &'a std::sync::mpsc::SyncSender<crate::engine::writer::Written>,
}

impl LaneWorker<'_, '_> {
    /// Merges a matrix.
    pub(super) fn low_rank(&mut self, stage: &Stage<'_, '_>, index: usize, work: &LowRank) -> Result<()> {
        let (engine, gpu, tensor) = (self.engine, self.gpu, stage.tensor);
        let (run, models) = (&engine.tensors[index], tensor.models.len());
        let measured = run.measured();
        let blob = StageBlob::new(&measured.stages, models);
        let eigen = &mut self.lane.solver()?.eigen;
        let wanted = Matrix::of(tensor, &|n, batch| eigen.batch(n, batch));
        let (Some(matrix), MatrixRule::Truncate(rank)) = (wanted, work.rule) else {
            return Err(Error::internal("this rule is not one of a device"));
        };
        let solver_bytes = eigen.workspace_bytes(matrix.r, matrix.group)?;
        let chunk = most_chunk(tensor, self.chunk_elems(tensor));
        let out_bytes = chunk * tensor.elem_bytes;
        let all = |_| matrix.work(blob.bytes.len() as u64, solver_bytes, out_bytes);
        let needs = Needs::fit(engine.plan, tensor, gpu.pool().bytes(), chunk, &all, &|chunk| chunk);
        let Some(needs) = needs.filter(|needs| !needs.is_streamed) else {
            return Err(Error::internal("a matrix that was to be whole on the device does not fit"));
        };
        let Some(mut loaded) = Loaded::lease(stage, &mut self.lane, index, &needs)? else { return Ok(()) };
        let spans = Spans::of(&loaded.lease.work);
        let lane = &mut self.lane;
        lane.put(gpu, spans.stages, 0, &blob.bytes)?;
        lane.clear(gpu, spans.facts)?;
        let job = Job { engine, gpu, tensor, work, rank, matrix, spans, to_writers: &self.to_writers };
        let mut facts = LowRankFacts::default();
        let done = loaded.all(stage, lane, &mut self.raw, &mut |lane, sources| {
            let stages = blob.at(place(gpu, job.spans.stages, 0, 0)?);
            let centring = Centring { work, wide: tensor.wide, geometry: measured.geometry, stages };
            for first in (0..models).step_by(matrix.group) {
                let tasks = first..models.min(first + matrix.group);
                job.tasks(lane, &centring, sources, tasks, &mut facts)?;
            }
            Ok(())
        });
        if let Err(error) = done {
            return Err(match error.kind() {
                crate::error::Kind::Input => nonfinite_source(engine.plan, tensor, &mut self.raw).unwrap_or(error),
                _ => error,
            });
        }
        let mut pieces = Pieces::new(engine, index, &self.to_writers);
        job.round(lane, chunk, &mut pieces)?;
        let mut found = [0u64; 2];
        lane.get(gpu, job.spans.facts, 0, bytemuck::cast_slice_mut(&mut found))?;
        loaded.finish(stage, lane, index, false)?;
        pieces.finish()?;
        // Sources were finite, or their squares would have said so.
        let total = RunFacts { kept: vec![0; models], nonfinite: found[0], introduced: found[0] };
        run.set_low_rank(engine.plan, tensor, facts)?;
        run.merged(engine.plan, tensor, Vec::new(), &total)
    }
}

impl Job<'_, '_> {
    fn at(&self, span: Span, element: u64) -> Result<u64> {
        place(self.gpu, span, 8 * element, 0)
    }

    /// Decomposes some tasks, and adds their low-rank parts to the sum in order.
    fn tasks(
        &self,
        lane: &mut Lane,
        centring: &Centring<'_>,
        sources: &DeviceSources<'_>,
        tasks: std::ops::Range<usize>,
        facts: &mut LowRankFacts,
    ) -> Result<()> {
        let Self { gpu, matrix, spans, rank, .. } = self;
        let (kernels_of, Matrix { m, n, r, .. }) = (gpu.kernels(), *matrix);
        let (elems, side, count) = (matrix.elems(), (r * r) as u64, tasks.len());
        if self.engine.schedule.is_over() {
            return Err(Error::internal("the merge is being stopped"));
        }
        let (parts, origin) = (self.at(spans.parts, 0)?, if tasks.start == 0 { self.at(spans.merged, 0)? } else { 0 });
        kernels::centre(kernels_of, lane.stream(), centring, sources, tasks.clone(), true, parts, elems, origin)?;
        for i in 0..count as u64 {
            let (x, scratch, out) =
                (self.at(spans.parts, i * elems)?, self.at(spans.scratch, 0)?, self.at(spans.norms, 2 + i)?);
            kernels::squares(kernels_of, lane.stream(), x, true, elems, scratch, out)?;
        }
        let mut whole = vec![0f64; count];
        lane.get(gpu, spans.norms, 16, bytemuck::cast_slice_mut(&mut whole))?;
        if let Some(t) = whole.iter().position(|w| !w.is_finite()) {
            let task = tasks.start + t + 1;
            return Err(Error::input(format!("model {task} or the average holds a NaN or an infinity")));
        }
        let a = Operand { ptr: parts, ld: n, stride: elems, is_transposed: false };
        let grams = Operand { ptr: self.at(spans.grams, 0)?, ld: r, stride: side, is_transposed: false };
        // X Xᵀ is n×n, Xᵀ X is m×m: the smaller.
        let (left, right, k) = if m <= n { (a.t(), a, n) } else { (a, a.t(), m) };
        lane.multiply(gpu, Sides { m: r, n: r, k, batch: count }, left, right, grams, false)?;
        let workspace = spans.solver;
        let batch = lane.solver()?.eigen.batch(r, count);
        for first in (0..count).step_by(batch) {
            let at = cusolver::Place {
                matrices: self.at(spans.grams, first as u64 * side)?,
                values: self.at(spans.values, (first * r) as u64)?,
                info: place(gpu, spans.infos, 4 * first as u64, 0)?,
                workspace: place(gpu, workspace, 0, 0)?,
                workspace_bytes: workspace.bytes,
            };
            lane.decompose(gpu, r, batch.min(count - first), at)?;
        }
        let (mut values, mut infos) = (vec![0f64; count * r], vec![0i32; count]);
        lane.get(gpu, spans.values, 0, bytemuck::cast_slice_mut(&mut values))?;
        lane.get(gpu, spans.infos, 0, bytemuck::cast_slice_mut(&mut infos))?;
        if infos.iter().any(|info| *info != 0) {
            return Err(Error::environment(format!(
                "the eigenvectors of a {r}×{r} matrix did not converge on {}",
                gpu.label
            ))
            .hint("use `--device cpu` for this recipe"));
        }
        for (i, t) in tasks.enumerate() {
            // Ascending; rounding may leave values that are not positive where they should be 0.
            let squares: Vec<f64> = values[i * r..(i + 1) * r].iter().rev().map(|x| x.max(0.0)).collect();
            let k = rank.of(m as u64, n as u64, &squares[..matrix.most]) as usize;
            let kept: f64 = squares[..k].iter().sum();
            facts.rank.push(k as u64);
            facts.energy.push(if whole[i] == 0.0 { 1.0 } else { (kept / whole[i]).min(1.0) });
            facts.precision.push("float64");
            facts.residual.push(self.add(lane, i as u64, t, k)?);
        }
        Ok(())
    }

    /// Adds a task's low-rank part to the sum, and stores its factors; returns ‖A − L‖/‖A‖.
    fn add(&self, lane: &mut Lane, i: u64, task: usize, k: usize) -> Result<f64> {
        let Self { gpu, matrix, spans, .. } = self;
        let Matrix { m, n, r, long, rows, .. } = *matrix;
        let (elems, is_wide) = (matrix.elems(), m <= n);
        let x = Operand { ptr: self.at(spans.parts, i * elems)?, ld: n, stride: 0, is_transposed: false };
        // The last k columns are those of the greatest values.
        let first = (r - k) as u64 * r as u64;
        let q_at = i * (r * r) as u64 + first;
        let q = Operand { ptr: self.at(spans.grams, q_at)?, ld: r, stride: 0, is_transposed: false };
        let b = Operand { ptr: self.at(spans.product, 0)?, ld: long, stride: 0, is_transposed: false };
        // B = X Q (n×k) or Xᵀ Q (m×k).
        lane.multiply(gpu, Sides { m: long, n: k, k: r, batch: 1 }, if is_wide { x } else { x.t() }, q, b, false)?;
        if let Some(outputs) = self.tensor.factors.get(task) {
            let (mut basis, mut product) = (vec![0f64; r * k], vec![0f64; long * k]);
            lane.get(gpu, spans.grams, 8 * q_at, bytemuck::cast_slice_mut(&mut basis))?;
            lane.get(gpu, spans.product, 0, bytemuck::cast_slice_mut(&mut product))?;
            let basis = MatRef::from_column_major_slice(&basis, r, k);
            let product = MatRef::from_column_major_slice(&product, long, k);
            let (left, right) = if is_wide { (basis, product) } else { (product, basis) };
            factors::store(self.engine, self.to_writers, *outputs, left, right)?;
        }
        lane.clear(gpu, Span { bytes: 16, ..spans.norms })?;
        let weight = self.work.lambda * self.work.scaled_weights()[task];
        let low = Operand { ptr: self.at(spans.low, 0)?, ld: n, stride: 0, is_transposed: false };
        for row in (0..m).step_by(rows) {
            let here = rows.min(m - row);
            let sides = Sides { m: n, n: here, k, batch: 1 };
            // Rows of L are columns of B Qᵀ (n×m), or of Q Bᵀ.
            let from = 8 * row as u64;
            let (left, right) = if is_wide {
                (b, Operand { ptr: q.ptr + from, ..q }.t())
            } else {
                (q, Operand { ptr: b.ptr + from, ..b }.t())
            };
            lane.multiply(gpu, sides, left, right, low, false)?;
            let start = row as u64 * n as u64;
            let len = here as u64 * n as u64;
            let (merged, part) = (self.at(spans.merged, start)?, self.at(spans.parts, i * elems + start)?);
            let (scratch, norms) = (self.at(spans.scratch, 0)?, self.at(spans.norms, 0)?);
            kernels::add_low_rank(
                gpu.kernels(),
                lane.stream(),
                merged,
                low.ptr,
                part,
                true,
                weight,
                len,
                scratch,
                norms,
            )?;
        }
        let mut norms = [0f64; 2];
        lane.get(gpu, spans.norms, 0, bytemuck::cast_slice_mut(&mut norms))?;
        let [left, whole] = norms;
        Ok(if whole == 0.0 { 0.0 } else { (left / whole).sqrt() })
    }

    /// Rounds the sum to what is stored, and brings it back.
    fn round(&self, lane: &mut Lane, chunk: u64, pieces: &mut Pieces<'_, '_>) -> Result<()> {
        let (gpu, spans, tensor) = (self.gpu, &self.spans, self.tensor);
        let mut under_way = VecDeque::new();
        for (i, start) in (0..tensor.elems).step_by(chunk as usize).enumerate() {
            let (len, turn) = (chunk.min(tensor.elems - start), i % spans.outs.len());
            if under_way.len() == lane.fetches() {
                pieces.take_oldest(lane, &mut under_way)?;
            }
            lane.compute_after_fetch(turn)?;
            let bytes = len * tensor.elem_bytes;
            let out = Place { dtype: tensor.dtype, ptr: place(gpu, spans.outs[turn], 0, bytes)? };
            let facts = place(gpu, spans.facts, 0, 0)?;
            kernels::round(gpu.kernels(), lane.stream(), self.at(spans.merged, start)?, out, len, facts)?;
            under_way.push_back(lane.fetch(gpu, spans.outs[turn], 0, bytes as usize, turn)?);
        }
        while !under_way.is_empty() {
            pieces.take_oldest(lane, &mut under_way)?;
        }
        Ok(())
    }
}
