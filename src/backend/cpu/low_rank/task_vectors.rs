//! The task vectors of a matrix, `W_t − W̄` or `W_t − θ₀`, read in panels from the stored sources.

use std::ops::Range;

use super::ReadRuns;
use super::elementwise::{add_weighted, centre};
use super::panels::{Panel, Shape};
use crate::backend::cpu::BLOCK;
use crate::backend::cpu::blend::load_pruned;
use crate::backend::cpu::prune::{Scratch, Sources};
use crate::backend::cpu::stored::Widen;
use crate::error::Result;
use crate::ops::{Centre, Geometry, LowRank, Prune, Real, SEGMENT, StageState};

/// Task vectors A_t of a matrix, computed in `C` where stages prune them, centred in f64.
pub struct TaskVectors<'a, C> {
    pub shape: Shape,
    work: &'a LowRank,
    geometry: Geometry,
    stages: &'a [(Prune, StageState)],
    source: &'a mut dyn ReadRuns,
    scratch: &'a mut Scratch<C>,
    wide: &'a mut Scratch<f64>,
}

impl<'a, C: Widen> TaskVectors<'a, C> {
    pub fn new(
        work: &'a LowRank,
        shape: Shape,
        stages: &'a [(Prune, StageState)],
        source: &'a mut dyn ReadRuns,
        scratch: &'a mut Scratch<C>,
        wide: &'a mut Scratch<f64>,
    ) -> Self {
        let geometry = Geometry::of(&[shape.m as u64, shape.n as u64]);
        Self { shape, work, geometry, stages, source, scratch, wide }
    }

    /// T.
    pub fn models(&self) -> usize {
        self.work.weights.len()
    }

    /// Sources will be read so many times more than was planned.
    pub fn again(&mut self, passes: u64) {
        self.source.again(passes);
    }

    /// Loads a panel, row-major: A_t of the tasks in `wanted` into `parts` (one each), and what they are measured from into
    /// `origin` if asked for.
    ///
    /// # Errors
    /// If a source cannot be read.
    pub fn load<P: Real>(
        &mut self,
        panel: Panel,
        wanted: Range<usize>,
        parts: &mut [Vec<P>],
        mut origin: Option<&mut [f64]>,
    ) -> Result<()> {
        let Self { shape, work, geometry, stages, source, scratch, wide } = self;
        // Whole rows are one run; else each row of the panel is one.
        let (runs, run) =
            if panel.columns == shape.n { (1, panel.rows * shape.n) } else { (panel.rows, panel.columns) };
        for i in 0..runs {
            let start = (panel.row + i) * shape.n + panel.column;
            // Runs of bounded length: a source that cannot be mapped is read into memory run by run.
            for piece in (0..run).step_by(SEGMENT) {
                let len = SEGMENT.min(run - piece);
                source.run((start + piece) as u64, len, &mut |sources| {
                    for at in (0..len).step_by(BLOCK) {
                        let n = BLOCK.min(len - at);
                        load_block(*geometry, stages, work, sources, at, n, scratch, wide);
                        let Scratch { base, tau, sum, .. } = &**wide;
                        let to = i * run + piece + at;
                        for (part, t) in parts.iter_mut().zip(wanted.clone()) {
                            centre(&mut part[to..to + n], &tau[t][..n], &sum[..n]);
                        }
                        if let Some(origin) = origin.as_deref_mut() {
                            for ((o, b), s) in origin[to..to + n].iter_mut().zip(base).zip(sum) {
                                // A negative zero of θ₀ stays one where the mean is zero.
                                *o = if *s == 0.0 { *b } else { b + s };
                            }
                        }
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// Into `wide`: θ_t or (with stages, or around θ₀) task vectors of all models in `tau`, what is subtracted from them in `sum`,
/// and what to add to that to get their origin in `base`.
#[allow(clippy::too_many_arguments)]
fn load_block<C: Widen>(
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    work: &LowRank,
    sources: &Sources<'_>,
    at: usize,
    n: usize,
    scratch: &mut Scratch<C>,
    wide: &mut Scratch<f64>,
) {
    let Scratch { base, tau, sum, .. } = wide;
    let (base, sum) = (&mut base[..n], &mut sum[..n]);
    if !stages.is_empty() {
        load_pruned(geometry, stages, sources, at, n, scratch);
        base.iter_mut().zip(&scratch.base).for_each(|(to, from)| *to = from.f64());
        for (to, from) in tau.iter_mut().zip(&scratch.tau) {
            to.iter_mut().zip(&from[..n]).for_each(|(to, from)| *to = from.f64());
        }
    } else {
        for (stored, x) in sources.models.iter().zip(tau.iter_mut()) {
            stored.widen(at, &mut x[..n]);
        }
        // Around the average θ₀ drops out.
        match (work.centre, sources.base) {
            (Centre::Base, Some(stored)) => {
                stored.widen(at, base);
                for x in tau.iter_mut().take(sources.models.len()) {
                    x.iter_mut().zip(&*base).for_each(|(x, b)| *x -= b);
                }
            }
            _ => base.fill(0.0),
        }
    }
    sum.fill(0.0);
    if work.centre == Centre::Average {
        for (x, w) in tau.iter().zip(&work.weights) {
            add_weighted(sum, x, *w);
        }
        let total: f64 = work.weights.iter().sum();
        sum.iter_mut().for_each(|s| *s /= total);
    }
}
