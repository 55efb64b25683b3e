//! Merges of matrices by orthogonal factors on a device, in f64 and by the CPU's rules (`backend/cpu/low_rank/orthogonal`): TSV-M,
//! Iso-C, Iso-CTS. Singular triples and polar factors come from Gram matrices and their eigenvectors where those hold enough
//! digits, else from a singular value decomposition.
//!
//! Matrices are row-major where they are made and column-major to the libraries: X = Aᵀ is n×m there. Tasks of one matrix are
//! decomposed together, as `matrices` says.

use std::ops::Range;

use super::LaneWorker;
use super::factored::Factored;
use super::matrices::{Orthogonal, SolverLimits, needs_of};
use super::members::{Member, round};
use super::output::Pieces;
use super::sources::Loaded;
use crate::backend::cuda::cublas::Sides;
use crate::backend::cuda::lane::{Lane, place};
use crate::backend::cuda::ops::DeviceSources;
use crate::backend::cuda::ops::low_rank::{self as kernels, Centring};
use crate::engine::sources::nonfinite_source;
use crate::error::{Error, Kind, Result};
use crate::linalg::polar::NULL_OF_COMPUTED;
use crate::ops::{LowRankFacts, MatrixRule, RunFacts};

/// The least weight, but 0, with which squares of stored numbers of 32 bits are not lost.
const LEAST_WEIGHT: f64 = 1e-60;

/// The task vectors of a matrix.
struct Vectors<'a> {
    centring: Centring<'a>,
    sources: &'a DeviceSources<'a>,
    weights: Vec<f64>,
}

impl LaneWorker<'_, '_> {
    /// Merges a matrix.
    pub(super) fn orthogonal(&mut self, index: usize) -> Result<()> {
        let (engine, gpu) = (self.engine, self.gpu);
        let plan = engine.plan;
        let member = Member::of(engine, index)?;
        let (run, tensor) = (&engine.tensors[index], member.tensor);
        let eigen = &self.lane.solver()?.eigen;
        let says = SolverLimits {
            workspace: &|r, count| eigen.workspace_bytes(r, count),
            batch: &|r, wanted| eigen.batch(r, wanted),
            svd: &|rows, columns| eigen.svd_bytes(rows, columns),
        };
        let Some(matrix) = Orthogonal::of(tensor, says.batch) else {
            return Err(Error::internal("this rule is not one of a device"));
        };
        let solver = matrix.solver_bytes(&says)?;
        let most = self.chunk_elems(tensor);
        let needs = needs_of(plan, &[index], &|blob, out| matrix.work(blob, solver, out), most);
        if needs.taken() > gpu.pool().bytes() {
            return Err(Error::internal("a matrix that was to be whole on the device does not fit"));
        }
        run.computed_on(&format!("cuda:{}", gpu.ordinal), None);
        let stage = member.stage(engine, gpu);
        let Some(mut loaded) = Loaded::lease(&stage, &mut self.lane, index, &needs)? else { return Ok(()) };
        let lane = &mut self.lane;
        let weights = member.work.scaled_weights();
        let squares_vanish = tensor.wide || weights.iter().any(|w| *w != 0.0 && w.abs() < LEAST_WEIGHT);
        let work = Factored::new(gpu, matrix, &loaded.lease.work, squares_vanish);
        let (geometry, blob) = member.measured(engine);
        lane.put(gpu, work.stages, 0, &blob.bytes)?;
        work.clear(lane)?;
        let stages = blob.at(place(gpu, work.stages, 0, 0)?);
        let centring = Centring { work: member.work, wide: tensor.wide, geometry, stages };
        let mut facts = LowRankFacts::default();
        let done = loaded.all(&stage, lane, &mut self.raw, &mut |lane, sources| {
            let vectors = Vectors { centring, sources, weights: weights.clone() };
            let go_on = || match engine.schedule.is_over() {
                true => Err(Error::internal("the merge is being stopped")),
                false => Ok(()),
            };
            work.merge(lane, &vectors, member.work.rule, member.work.lambda, &mut facts, &go_on)
        });
        if let Err(error) = done {
            let named = (error.kind() == Kind::Input).then(|| nonfinite_source(plan, tensor, &mut self.raw)).flatten();
            return Err(named.unwrap_or(error));
        }
        let mut pieces = Pieces::new(engine, &gpu.label, index, &self.to_writers);
        let outs = (&work.outs[..], place(gpu, work.facts, 0, 16)?);
        round(gpu, lane, tensor, (work.merged, 0), outs, needs.chunk, &mut pieces)?;
        let mut found = [0u64; 2];
        lane.get(gpu, work.facts, 0, bytemuck::cast_slice_mut(&mut found))?;
        loaded.finish(&stage, lane, index, false)?;
        pieces.finish()?;
        let total = RunFacts { kept: vec![0; tensor.models.len()], nonfinite: found[0], introduced: found[0] };
        run.set_low_rank(plan, tensor, facts)?;
        run.merged(plan, tensor, Vec::new(), &total)
    }
}

impl Factored<'_> {
    /// θ₀ + λ·(what the rule makes of all w'_t A_t), in the span for it.
    fn merge(
        &self,
        lane: &mut Lane,
        vectors: &Vectors<'_>,
        rule: MatrixRule,
        lambda: f64,
        facts: &mut LowRankFacts,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let Vectors { centring, sources, weights } = vectors;
        let (gpu, elems, models) = (self.gpu, self.matrix.elems(), weights.len());
        let origin = self.at(self.merged, 0)?;
        kernels::centre(gpu.kernels(), lane.stream(), centring, sources, 0..0, true, 0, 0, origin)?;
        let by = match rule {
            MatrixRule::Truncate(_) => return Err(Error::internal("a truncation is no orthogonal merge")),
            MatrixRule::Isotropic => {
                self.load(lane, vectors, 0..models, 0)?;
                let singular = self.polar_of_whole(lane)?;
                mean(&singular, facts)
            }
            MatrixRule::TaskSingular => {
                let all = self.specific(lane, vectors, false, facts, go_on)?;
                // Of zeros alone all vectors are zeros.
                if all.iter().any(|s| *s > 0.0) {
                    self.orthonormalise(lane)?;
                    self.scale_left(lane, &all)?;
                }
                1.0
            }
            MatrixRule::CommonAndSpecific { .. } => {
                self.load(lane, vectors, 0..models, 0)?;
                let wholes = self.squares(lane, 1)?;
                let values = self.vectors(lane, &wholes)?;
                let at = self.matrix.each * models;
                let common = self.triples(lane, (0, wholes[0]), self.matrix.common, 0.0, &values, at)?;
                let mut all = self.specific(lane, vectors, true, facts, go_on)?;
                all.extend(common);
                if all.iter().any(|s| *s > 0.0) {
                    self.orthonormalise(lane)?;
                }
                mean(&all, facts)
            }
        };
        if rule != MatrixRule::Isotropic {
            // Rows of left rightᵀ are columns of right leftᵀ.
            let (m, n, k) = (self.matrix.m, self.matrix.n, self.matrix.columns);
            let (left, right, low) = (self.left(0)?, self.right(0)?, self.operand(self.low, 0, n)?);
            lane.multiply(gpu, Sides { m: n, n: m, k, batch: 1 }, right, left.t(), low, false)?;
        }
        let low = self.at(self.low, 0)?;
        kernels::add_low_rank(gpu.kernels(), lane.stream(), origin, low, 0, true, lambda * by, elems, 0, 0)
    }

    /// Σ w_t A_t of some tasks, as part `i` of the group.
    fn load(&self, lane: &mut Lane, vectors: &Vectors<'_>, tasks: Range<usize>, i: usize) -> Result<()> {
        let Vectors { centring, sources, weights } = vectors;
        let (gpu, elems) = (self.gpu, self.matrix.elems());
        let to = self.at(self.parts, i as u64 * elems)?;
        let scale = &weights[tasks.clone()];
        kernels::weighted(gpu.kernels(), lane.stream(), centring, sources, tasks, scale, to)?;
        self.check(lane, i)
    }

    /// The leading triples of every task, of what it has outside the common ones where `outside`; returns their singular values.
    fn specific(
        &self,
        lane: &mut Lane,
        vectors: &Vectors<'_>,
        outside: bool,
        facts: &mut LowRankFacts,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<f64>> {
        let (gpu, each, models) = (self.gpu, self.matrix.each, vectors.weights.len());
        let (m, n, r, common) = (self.matrix.m, self.matrix.n, self.matrix.r, self.matrix.common);
        let mut all = Vec::with_capacity(each * models);
        for first in (0..models).step_by(self.matrix.group) {
            go_on()?;
            let tasks = first..models.min(first + self.matrix.group);
            for (i, t) in tasks.clone().enumerate() {
                self.load(lane, vectors, t..t + 1, i)?;
            }
            let wholes = self.squares(lane, tasks.len())?;
            let sizes: Vec<f64> = wholes.iter().map(|whole| whole.sqrt()).collect();
            if outside && each > 0 {
                // Xᵀ loses Uᵀ's part: X ← X − (X U) Uᵀ. What is left may be smaller than Gram matrices hold, where `null` is larger.
                let (basis, inside) = (self.left(each * models)?, self.operand(self.spare, 0, n)?);
                for i in 0..tasks.len() {
                    let x = self.operand(self.parts, i as u64 * self.matrix.elems(), n)?;
                    lane.multiply(gpu, Sides { m: n, n: common, k: m, batch: 1 }, x, basis, inside, false)?;
                    let sides = Sides { m: n, n: m, k: common, batch: 1 };
                    lane.product(gpu, sides, inside, basis.t(), x, [-1.0, 1.0])?;
                }
            }
            let values = if each > 0 { self.vectors(lane, &wholes)? } else { vec![0.0; r * tasks.len()] };
            for (i, t) in tasks.enumerate() {
                let null = if outside { NULL_OF_COMPUTED * sizes[i] } else { 0.0 };
                let singular = self.triples(lane, (i, wholes[i]), each, null, &values[i * r..(i + 1) * r], t * each)?;
                facts.rank.push(each as u64);
                if !outside {
                    let kept: f64 = singular.iter().map(|s| s * s).sum();
                    facts.energy.push(if wholes[i] == 0.0 { 1.0 } else { (kept / wholes[i]).min(1.0) });
                }
                all.extend(singular);
            }
        }
        Ok(all)
    }
}

/// The mean of singular values, noted.
fn mean(singular: &[f64], facts: &mut LowRankFacts) -> f64 {
    let mean = singular.iter().sum::<f64>() / singular.len().max(1) as f64;
    facts.singular_value = Some(mean);
    mean
}
