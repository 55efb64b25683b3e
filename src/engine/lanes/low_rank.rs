//! Merges of matrices by truncation on a device, in f64: Σ w'_t SVD_k(A_t) as on the CPU, from the leading eigenvectors Q of
//! each Gram matrix, L_t = Q Qᵀ A_t (m ≤ n) or A_t Q Qᵀ. Matrices of one shape are merged together, as `matrices` says.
//!
//! Matrices are row-major where they are made and column-major to the libraries: X = Aᵀ is n×m there. In f64 throughout, no
//! certificate is needed; graphics processors for computing centres multiply f64 as fast as f32 without its short forms.

use std::ops::Range;

use faer::MatRef;

use super::LaneWorker;
use super::matrices::{Matrix, needs_of};
use super::members::{Member, round};
use super::output::Pieces;
use super::sources::{Loaded, Stage};
use crate::backend::cuda::cublas::{Operand, Sides};
use crate::backend::cuda::cusolver;
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::lane::{Lane, place};
use crate::backend::cuda::ops::DeviceSources;
use crate::backend::cuda::ops::low_rank::{self as kernels, Centring};
use crate::backend::cuda::pool::Span;
use crate::engine::sources::nonfinite_source;
use crate::engine::{Engine, factors};
use crate::error::{Error, Kind, Result};
use crate::ops::{LowRankFacts, MatrixRule, Rank, RunFacts};

/// Spans of a step, in the order of [`Matrix::work`]. Matrix i of a group is task i mod T of tensor ⌊i/T⌋.
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
    /// Of each matrix ‖A − L‖² and ‖A‖² as it was added, then of each ‖A‖² as it was centred.
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

/// What the tasks of some matrices need to be done with.
struct Job<'a, 'p> {
    engine: &'a Engine<'p>,
    gpu: &'a Gpu,
    members: Vec<Member<'a>>,
    rank: Rank,
    matrix: Matrix,
    spans: Spans,
    to_writers: &'a std::sync::mpsc::SyncSender<crate::engine::writer::Written>,
}

impl<'a, 'p> LaneWorker<'a, 'p> {
    /// Merges a matrix, and those that are decomposed together with it: in the step of the first of them.
    pub(super) fn low_rank(&mut self, index: usize) -> Result<()> {
        let (engine, gpu) = (self.engine, self.gpu);
        let plan = engine.plan;
        let tensors = super::together(plan, &index);
        if tensors[0] != index {
            return Ok(());
        }
        let members: Vec<Member<'a>> = tensors.iter().map(|t| Member::of(engine, *t)).collect::<Result<_>>()?;
        let eigen = &mut self.lane.solver()?.eigen;
        let wanted = Matrix::of(members[0].tensor, members.len(), &|n, batch| eigen.batch(n, batch));
        let (Some(matrix), MatrixRule::Truncate(rank)) = (wanted, members[0].work.rule) else {
            return Err(Error::internal("this rule is not one of a device"));
        };
        let solver_bytes = eigen.workspace_bytes(matrix.r, matrix.count())?;
        let most = members.iter().map(|m| self.chunk_elems(m.tensor)).min().unwrap_or_default();
        let needs = needs_of(plan, tensors, &|blob, out| matrix.work(blob, solver_bytes, out), most);
        if needs.taken() > gpu.pool().bytes() || matrix.layers != members.len() {
            return Err(Error::internal("matrices that were to be whole on the device do not fit"));
        }
        for member in &members {
            let run = &engine.tensors[member.index];
            run.computed_on(&format!("cuda:{}", gpu.ordinal), None);
            run.computed_together(members.len());
        }
        let stage = members[0].stage(engine, gpu);
        let Some(mut loaded) = Loaded::lease(&stage, &mut self.lane, index, &needs)? else { return Ok(()) };
        let spans = Spans::of(&loaded.lease.work);
        let (lane, raw) = (&mut self.lane, &mut self.raw);
        lane.clear(gpu, spans.facts)?;
        let job = Job { engine, gpu, members, rank, matrix, spans, to_writers: &self.to_writers };
        let mut facts = vec![LowRankFacts::default(); job.members.len()];
        let done = if job.members.len() == 1 {
            job.alone(lane, &mut loaded, &stage, raw, &mut facts)
        } else {
            job.together(lane, &mut loaded, (needs.work[0] / job.members.len() as u64, needs.chunk), raw, &mut facts)
        };
        if let Err(error) = done {
            // Which of the sources it is that cannot be decomposed.
            let of = |member: &Member<'_>| nonfinite_source(plan, member.tensor, raw);
            let named = (error.kind() == Kind::Input).then(|| job.members.iter().find_map(of)).flatten();
            return Err(named.unwrap_or(error));
        }
        let mut found = vec![[0u64; 2]; job.members.len()];
        for (l, member) in job.members.iter().enumerate().filter(|(_, member)| !member.is_done) {
            let mut pieces = Pieces::new(engine, &gpu.label, member.index, &self.to_writers);
            let outs = (&job.spans.outs[..], place(gpu, job.spans.facts, 16 * l as u64, 16)?);
            round(gpu, lane, member.tensor, (job.spans.merged, l as u64), outs, needs.chunk, &mut pieces)?;
            pieces.finish()?;
        }
        lane.get(gpu, job.spans.facts, 0, bytemuck::cast_slice_mut(&mut found))?;
        if job.members.len() == 1 {
            loaded.finish(&stage, lane, index, false)?
        } else {
            loaded.end(gpu, lane)?
        }
        for ((member, facts), found) in job.members.iter().zip(facts).zip(found).filter(|((m, _), _)| !m.is_done) {
            let (run, tensor) = (&engine.tensors[member.index], member.tensor);
            // Sources were finite, or their squares would have said so.
            let total = RunFacts { kept: vec![0; tensor.models.len()], nonfinite: found[0], introduced: found[0] };
            run.set_low_rank(plan, tensor, facts)?;
            run.merged(plan, tensor, Vec::new(), &total)?;
        }
        Ok(())
    }
}

impl Job<'_, '_> {
    fn at(&self, span: Span, element: u64) -> Result<u64> {
        place(self.gpu, span, 8 * element, 0)
    }

    /// One matrix, its sources whole on the device, by groups of tasks.
    fn alone(
        &self,
        lane: &mut Lane,
        loaded: &mut Loaded,
        stage: &Stage<'_, '_>,
        raw: &mut [Vec<u8>],
        facts: &mut [LowRankFacts],
    ) -> Result<()> {
        let member = &self.members[0];
        let (geometry, blob) = member.measured(self.engine);
        lane.put(self.gpu, self.spans.stages, 0, &blob.bytes)?;
        let stages = blob.at(place(self.gpu, self.spans.stages, 0, 0)?);
        let centring = Centring { work: member.work, wide: member.tensor.wide, geometry, stages };
        let models = member.tensor.models.len();
        loaded.all(stage, lane, raw, &mut |lane, sources| {
            for first in (0..models).step_by(self.matrix.group) {
                let tasks = first..models.min(first + self.matrix.group);
                self.centre(lane, &centring, sources, 0, tasks.clone())?;
                self.tasks(lane, tasks, facts)?;
            }
            Ok(())
        })
    }

    /// Several matrices, all of their tasks at once: their sources pass through buffers of `chunk` elements, and their stages
    /// lie `blob_bytes` apart.
    fn together(
        &self,
        lane: &mut Lane,
        loaded: &mut Loaded,
        (blob_bytes, chunk): (u64, u64),
        raw: &mut [Vec<u8>],
        facts: &mut [LowRankFacts],
    ) -> Result<()> {
        let gpu = self.gpu;
        for (l, member) in self.members.iter().enumerate() {
            if let Some(next) = self.members.get(l + 1) {
                // They may lie far apart in their files, where nobody reads ahead.
                for (stored, shard) in next.tensor.reads().map(|at| self.engine.plan.stored(at)) {
                    shard.will_need(stored.range());
                }
            }
            let stage = member.stage(self.engine, gpu);
            let (geometry, blob) = member.measured(self.engine);
            let at = l as u64 * blob_bytes;
            lane.put(gpu, self.spans.stages, at, &blob.bytes)?;
            let stages = blob.at(place(gpu, self.spans.stages, at, 0)?);
            let centring = Centring { work: member.work, wide: member.tensor.wide, geometry, stages };
            let (elems, models) = (member.tensor.elems, member.tensor.models.len());
            let runs = (0..elems).step_by(chunk as usize).map(|start| start..(start + chunk).min(elems));
            let done = loaded.each_run(&stage, lane, raw, runs, &mut |lane, sources, _| {
                self.centre(lane, &centring, sources, l, 0..models)
            });
            done.and_then(|()| loaded.note(&stage, member.index)).map_err(|e| e.at_tensor(&member.tensor.name))?;
        }
        self.tasks(lane, 0..self.members[0].tensor.models.len(), facts)
    }

    /// Task vectors of a run of a tensor's elements, and with the first of them what they are measured from.
    fn centre(
        &self,
        lane: &Lane,
        centring: &Centring<'_>,
        sources: &DeviceSources<'_>,
        l: usize,
        tasks: Range<usize>,
    ) -> Result<()> {
        let (l, elems, count) = (l as u64, self.matrix.elems(), tasks.len() as u64);
        let parts = self.at(self.spans.parts, l * count * elems + sources.start)?;
        let origin = if tasks.start == 0 { self.at(self.spans.merged, l * elems + sources.start)? } else { 0 };
        kernels::centre(self.gpu.kernels(), lane.stream(), centring, sources, tasks, true, parts, elems, origin)
    }

    /// Decomposes some tasks of every matrix, and adds their low-rank parts to the sums in order.
    fn tasks(&self, lane: &mut Lane, tasks: Range<usize>, facts: &mut [LowRankFacts]) -> Result<()> {
        self.go_on()?;
        let whole = self.wholes(lane, &tasks)?;
        let (gpu, Matrix { m, n, r, most, .. }) = (self.gpu, self.matrix);
        // Zeros are not decomposed: models leave matrices as they were, all but a few where they were fine-tuned by adapters.
        let mut values = vec![0f64; r * whole.len()];
        for these in runs(&whole, |whole| *whole != 0.0) {
            self.decompose(lane, &these)?;
            let here = &mut values[these.start * r..these.end * r];
            lane.get(gpu, self.spans.values, 8 * (these.start * r) as u64, bytemuck::cast_slice_mut(here))?;
            self.converged(lane, &tasks, &these)?;
        }
        for these in runs(&whole, |whole| *whole == 0.0) {
            let side = 8 * (r * r) as u64;
            let (offset, bytes) = (self.spans.grams.offset + these.start as u64 * side, these.len() as u64 * side);
            lane.clear(gpu, Span { offset, bytes })?;
        }
        let mut kept = Vec::with_capacity(whole.len());
        for (i, (whole, values)) in whole.iter().zip(values.chunks_exact(r)).enumerate() {
            // Ascending; rounding may leave values that are not positive where they should be 0.
            let squares: Vec<f64> = values.iter().rev().map(|x| x.max(0.0)).take(most).collect();
            let k = self.rank.of(m as u64, n as u64, &squares) as usize;
            let share = squares[..k].iter().sum::<f64>() / whole;
            let facts = &mut facts[i / tasks.len()];
            facts.rank.push(k as u64);
            facts.energy.push(if *whole == 0.0 { 1.0 } else { share.min(1.0) });
            facts.precision.push("float64");
            kept.push(k);
        }
        lane.clear(gpu, Span { bytes: 16 * whole.len() as u64, ..self.spans.norms })?;
        let mut first = 0;
        while first < kept.len() {
            self.go_on()?;
            // Those that are multiplied together have one rank.
            let same = kept[first..].iter().take(self.matrix.together).take_while(|k| **k == kept[first]).count();
            self.add(lane, &tasks, first..first + same, kept[first])?;
            first += same;
        }
        let mut norms = vec![[0f64; 2]; whole.len()];
        lane.get(gpu, self.spans.norms, 0, bytemuck::cast_slice_mut(norms.as_flattened_mut()))?;
        for (i, [left, whole]) in norms.into_iter().enumerate() {
            facts[i / tasks.len()].residual.push(if whole == 0.0 { 0.0 } else { (left / whole).sqrt() });
        }
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        match self.engine.schedule.is_over() {
            true => Err(Error::internal("the merge is being stopped")),
            false => Ok(()),
        }
    }

    /// ‖A‖² of every task vector, by matrix.
    fn wholes(&self, lane: &mut Lane, tasks: &Range<usize>) -> Result<Vec<f64>> {
        let (gpu, spans, elems) = (self.gpu, &self.spans, self.matrix.elems());
        let mut whole = vec![0f64; self.members.len() * tasks.len()];
        let first = 2 * whole.len() as u64;
        for i in 0..whole.len() as u64 {
            let (x, scratch) = (self.at(spans.parts, i * elems)?, self.at(spans.scratch, 0)?);
            kernels::squares(gpu.kernels(), lane.stream(), x, true, elems, scratch, self.at(spans.norms, first + i)?)?;
        }
        lane.get(gpu, spans.norms, 8 * first, bytemuck::cast_slice_mut(&mut whole))?;
        if let Some(i) = whole.iter().position(|w| !w.is_finite()) {
            let (name, task) = (&self.members[i / tasks.len()].tensor.name, tasks.start + i % tasks.len() + 1);
            let error = Error::input(format!("model {task} or the average holds a NaN or an infinity"));
            return Err(error.at_tensor(name));
        }
        Ok(whole)
    }

    /// Eigenvectors of the Gram matrices of some task vectors, in the Gram matrices' place.
    fn decompose(&self, lane: &mut Lane, these: &Range<usize>) -> Result<()> {
        let (gpu, spans) = (self.gpu, &self.spans);
        let (Matrix { m, n, r, .. }, count, begin) = (self.matrix, these.len(), these.start as u64);
        let (elems, side) = (self.matrix.elems(), (r * r) as u64);
        let a = Operand { ptr: self.at(spans.parts, begin * elems)?, ld: n, stride: elems, is_transposed: false };
        let grams = Operand { ptr: self.at(spans.grams, begin * side)?, ld: r, stride: side, is_transposed: false };
        // X Xᵀ is n×n, Xᵀ X is m×m: the smaller.
        let (left, right, k) = if m <= n { (a.t(), a, n) } else { (a, a.t(), m) };
        lane.multiply(gpu, Sides { m: r, n: r, k, batch: count }, left, right, grams, false)?;
        let batch = lane.solver()?.eigen.batch(r, count);
        for first in these.clone().step_by(batch) {
            let at = cusolver::Place {
                matrices: self.at(spans.grams, first as u64 * side)?,
                values: self.at(spans.values, (first * r) as u64)?,
                info: place(gpu, spans.infos, 4 * first as u64, 0)?,
                workspace: place(gpu, spans.solver, 0, 0)?,
                workspace_bytes: spans.solver.bytes,
            };
            lane.decompose(gpu, r, batch.min(these.end - first), at)?;
        }
        Ok(())
    }

    /// Fails unless the decompositions of some task vectors converged.
    fn converged(&self, lane: &mut Lane, tasks: &Range<usize>, these: &Range<usize>) -> Result<()> {
        let (gpu, r) = (self.gpu, self.matrix.r);
        let mut infos = vec![0i32; these.len()];
        lane.get(gpu, self.spans.infos, 4 * these.start as u64, bytemuck::cast_slice_mut(&mut infos))?;
        let Some(i) = infos.iter().position(|info| *info != 0).map(|i| these.start + i) else { return Ok(()) };
        let text = format!("the eigenvectors of a {r}×{r} matrix did not converge on {}", gpu.label);
        let error = Error::device(text).hint("use `--device cpu` for this recipe");
        Err(error.at_tensor(&self.members[i / tasks.len()].tensor.name))
    }

    /// Adds the low-rank parts of rank k of some matrices of a group to the sums, and stores their factors.
    fn add(&self, lane: &mut Lane, tasks: &Range<usize>, these: Range<usize>, k: usize) -> Result<()> {
        let Self { gpu, matrix, spans, .. } = self;
        let Matrix { m, n, r, long, rows, .. } = *matrix;
        let (elems, is_wide, batch, first) = (matrix.elems(), m <= n, these.len(), these.start as u64);
        let x = Operand { ptr: self.at(spans.parts, first * elems)?, ld: n, stride: elems, is_transposed: false };
        // The last k columns are those of the greatest values.
        let (side, last) = ((r * r) as u64, ((r - k) * r) as u64);
        let q = Operand { ptr: self.at(spans.grams, first * side + last)?, ld: r, stride: side, is_transposed: false };
        let stride = (long * k) as u64;
        let b = Operand { ptr: self.at(spans.product, 0)?, ld: long, stride, is_transposed: false };
        // B = X Q (n×k) or Xᵀ Q (m×k).
        lane.multiply(gpu, Sides { m: long, n: k, k: r, batch }, if is_wide { x } else { x.t() }, q, b, false)?;
        for i in these.clone() {
            let (member, task) = (&self.members[i / tasks.len()], tasks.start + i % tasks.len());
            let Some(outputs) = member.tensor.factors.get(task).filter(|_| !member.is_done) else { continue };
            let (mut basis, mut product) = (vec![0f64; r * k], vec![0f64; long * k]);
            let (q_at, b_at) = (i as u64 * side + last, (i as u64 - first) * stride);
            lane.get(gpu, spans.grams, 8 * q_at, bytemuck::cast_slice_mut(&mut basis))?;
            lane.get(gpu, spans.product, 8 * b_at, bytemuck::cast_slice_mut(&mut product))?;
            let basis = MatRef::from_column_major_slice(&basis, r, k);
            let product = MatRef::from_column_major_slice(&product, long, k);
            let (left, right) = if is_wide { (basis, product) } else { (product, basis) };
            factors::store(self.engine, self.to_writers, *outputs, left, right)?;
        }
        for row in (0..m).step_by(rows) {
            let here = rows.min(m - row);
            let (start, len) = (row as u64 * n as u64, here as u64 * n as u64);
            let low = Operand { ptr: self.at(spans.low, 0)?, ld: n, stride: len, is_transposed: false };
            // Rows of L are columns of B Qᵀ (n×m), or of Q Bᵀ.
            let from = 8 * row as u64;
            let (left, right) = if is_wide {
                (b, Operand { ptr: q.ptr + from, ..q }.t())
            } else {
                (q, Operand { ptr: b.ptr + from, ..b }.t())
            };
            lane.multiply(gpu, Sides { m: n, n: here, k, batch }, left, right, low, false)?;
            for i in these.clone() {
                let (l, t, at) = (i / tasks.len(), tasks.start + i % tasks.len(), i as u64);
                let merged = self.at(spans.merged, l as u64 * elems + start)?;
                let (low, part) = (low.ptr + 8 * (at - first) * len, self.at(spans.parts, at * elems + start)?);
                let (scratch, norms) = (self.at(spans.scratch, 0)?, self.at(spans.norms, 2 * at)?);
                let (stream, scale) = (lane.stream(), self.members[l].scale[t]);
                let kernels_of = gpu.kernels();
                kernels::add_low_rank(kernels_of, stream, merged, low, part, true, scale, len, scratch, norms)?;
            }
        }
        Ok(())
    }
}

/// The longest runs of a list's places where something holds.
fn runs<T>(list: &[T], holds: impl Fn(&T) -> bool) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (i, _) in list.iter().enumerate().filter(|(_, x)| holds(x)) {
        match runs.last_mut().filter(|run| run.end == i) {
            Some(run) => run.end = i + 1,
            None => runs.push(i..i + 1),
        }
    }
    runs
}
