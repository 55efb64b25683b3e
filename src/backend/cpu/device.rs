//! The CPU as a device, on one of its instruction sets.

use super::blend::blend_with;
use super::lines::add_products;
use super::prune::{Scratch, Sources};
use super::simd::{self, Level};
use super::stored::{Stored, Widen};
use super::{features, low_rank, overlap, select, stats};
use crate::backend::contract::{Device, Job, Lane, Pass, Run, Support};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::Result;
use crate::instructions::Instructions;
use crate::ops::search::{COUNTERS, Cut, Ranked, Search, Totals};
use crate::ops::{Changes, Combine, Gram, Measured, Program, RunFacts, Sparsify, Sums, Vectors};

/// The CPU, on an instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu(pub Instructions);

impl Cpu {
    /// A lane: a thread's buffers.
    pub fn lane(self) -> CpuLane {
        CpuLane { set: self.0, level: simd::level_of(self.0) }
    }
}

impl Device for Cpu {
    fn label(&self) -> String {
        format!("{} ({})", features::name(), self.0)
    }

    fn supports(&self, job: &Job<'_>) -> Support {
        match job.program {
            Program::LowRank(work) => Support::Yes { bytes: low_rank::bytes(work, job.matrix, job.wide) },
            Program::Copy | Program::Blend(_) | Program::Factor { .. } => Support::Yes { bytes: 0 },
        }
    }
}

/// A lane of the CPU.
#[derive(Debug)]
pub struct CpuLane {
    set: Instructions,
    level: Option<Level>,
}

impl Lane for CpuLane {
    fn label(&self) -> String {
        format!("the CPU's {} loops", self.set)
    }

    fn cuts(&mut self, run: &Run<'_>, ranked: Ranked, searches: &[Option<Search>]) -> Result<Vec<Option<Cut>>> {
        Ok(if run.wide {
            self.cuts_in::<f64>(run, ranked, searches)
        } else {
            self.cuts_in::<f32>(run, ranked, searches)
        })
    }

    fn pass(&mut self, run: &Run<'_>, pass: Pass<'_>) -> Result<Vec<f64>> {
        Ok(if run.wide { self.pass_in::<f64>(run, pass) } else { self.pass_in::<f32>(run, pass) })
    }

    fn merge(
        &mut self,
        m: &Measured,
        sources: &Sources<'_>,
        wide: bool,
        dtype: Dtype,
        out: &mut [u8],
    ) -> Result<RunFacts> {
        let models = sources.models.len();
        Ok(if wide {
            blend_with(self.level, m, sources, dtype, out, &mut Scratch::<f64>::new(models))
        } else {
            blend_with(self.level, m, sources, dtype, out, &mut Scratch::<f32>::new(models))
        })
    }
}

impl CpuLane {
    fn cuts_in<C: Widen>(&self, run: &Run<'_>, ranked: Ranked, searches: &[Option<Search>]) -> Vec<Option<Cut>> {
        let models = run.sources.models.len();
        let mut scratch = Scratch::<C>::new(models);
        let (mut left, mut cuts) = (searches.to_vec(), vec![None; models]);
        while left.iter().any(Option::is_some) {
            let mut counts = vec![vec![0; COUNTERS]; models];
            let Run { geometry, stages, sources, .. } = *run;
            select::count_with(self.level, ranked, &left, geometry, stages, sources, &mut counts, &mut scratch);
            for ((search, counts), cut) in left.iter_mut().zip(&mut counts).zip(&mut cuts) {
                let Some(searching) = search else { continue };
                let mut totals = Totals::default();
                totals.add(counts);
                *cut = searching.advance(&totals);
                if cut.is_some() {
                    *search = None;
                }
            }
        }
        cuts
    }

    fn pass_in<C: Widen>(&self, run: &Run<'_>, pass: Pass<'_>) -> Vec<f64> {
        let Run { geometry, stages, sources, .. } = *run;
        let mut scratch = Scratch::<C>::new(sources.models.len());
        match pass {
            Pass::Norms => {
                let values = |s: Sums| [s.l1, s.squares, s.deviation, s.dot, s.rest, s.base];
                stats::sums(geometry, stages, sources, &mut scratch).into_iter().flatten().flat_map(values).collect()
            }
            Pass::Changes(threshold) => {
                let mut changes = vec![Changes::default(); sources.models.len()];
                overlap::count(threshold, geometry, stages, sources, &mut changes, &mut scratch);
                changes.iter().flat_map(|c| [c.alone as f64, c.shared as f64]).collect()
            }
            Pass::TrimNorms([cuts, tops]) => {
                let m = Measured {
                    geometry,
                    stages: stages.to_vec(),
                    sparsify: Sparsify::None,
                    cuts: cuts.to_vec(),
                    tops: tops.to_vec(),
                    factors: Vec::new(),
                    lines: None,
                    combine: Combine::average(Vec::new(), 1.0),
                };
                stats::trim_norms(&m, sources, &mut scratch).into_iter().flatten().flatten().collect()
            }
            Pass::Lines(of, lines) => {
                let has_base = of != Vectors::TaskVectors && sources.base.is_some();
                let pairs = Gram::len(sources.models.len() + usize::from(has_base));
                let mut totals = vec![0.0; lines.count as usize * pairs];
                // Whole where lines follow each other, else row by row.
                let row = if lines.is_contiguous() { sources.len as u64 } else { lines.stride };
                for first in (0..sources.len as u64).step_by(row.max(1) as usize) {
                    with_part(sources, first, row, |part| {
                        add_products(of, lines, 0, geometry, stages, part, &mut totals, &mut scratch);
                    });
                }
                totals
            }
            Pass::Gram(of) => stats::gram(of, geometry, stages, sources, &mut scratch).concat(),
            Pass::Rows(score) => stats::row_scores(score, geometry, stages, sources, &mut scratch).concat(),
            Pass::Columns(score) => {
                let mut totals = vec![vec![0.0; geometry.columns as usize]; sources.models.len()];
                // Row by row, as the engine goes.
                let row = geometry.columns * geometry.inner;
                for first in (0..sources.len as u64).step_by(row.max(1) as usize) {
                    with_part(sources, first, row, |part| {
                        let (level, totals) = (self.level, &mut totals);
                        stats::add_column_scores_with(level, score, geometry, stages, part, 0, totals, &mut scratch);
                    });
                }
                let elems = geometry.column_elems() as f64;
                totals.concat().into_iter().map(|total| total / elems).collect()
            }
        }
    }
}

/// Calls `take` with `len` elements of a run from its `first` on.
fn with_part(sources: &Sources<'_>, first: u64, len: u64, take: impl FnOnce(&Sources<'_>)) {
    fn part<'a>(stored: &Stored<'a>, first: u64, len: u64) -> Stored<'a> {
        let size = stored.dtype.size_bytes().unwrap_or(1);
        Stored { dtype: stored.dtype, bytes: &stored.bytes[(first * size) as usize..((first + len) * size) as usize] }
    }
    let models: Vec<Stored<'_>> = sources.models.iter().map(|stored| part(stored, first, len)).collect();
    let base = sources.base.as_ref().map(|stored| part(stored, first, len));
    take(&Sources { base, models: &models, start: sources.start + first, len: len as usize });
}
