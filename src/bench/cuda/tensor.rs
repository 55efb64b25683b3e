//! One tensor on the device: where its sources and results lie, and what a lane does to merge it.

use crate::backend::cpu::blend::blend;
use crate::backend::cpu::prune::{Scratch, Sources};
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::lane::{Lane, place};
use crate::backend::cuda::ops::select::{self, SelectState};
use crate::backend::cuda::ops::sums::{self, Stat};
use crate::backend::cuda::ops::{self, DeviceSources, Place, StageBlob, Stages};
use crate::backend::cuda::pool::Span;
use crate::bench::data::{MODELS, Models};
use crate::bench::paths::{self, DENSITY};
use crate::dtype::Dtype;
use crate::engine::choose;
use crate::error::{Error, Result};
use crate::ops::search::{Cut, Ranked};
use crate::ops::{
    Geometry, Gram, Granularity, Measured, Prune, Rescale, SEGMENT, Score, Sparsify, StageState, kept_of,
};

/// Columns of the matrix as which flat data is looked at, for stages that go by rows and columns.
pub(super) const COLUMNS: usize = 1024;
/// Elements of a result that are compared with the CPU's.
const COMPARED: usize = SEGMENT;
/// The share that a stage keeps.
const KEEP: f64 = 0.7;

/// A method, and what stands before it.
pub(super) struct Path {
    pub method: paths::Path,
    pub stage: Option<Prune>,
}

/// Every path: the CPU's, and stages in front of task arithmetic.
pub(super) fn all_paths() -> Vec<Path> {
    let mut all: Vec<Path> = paths::paths().into_iter().map(|method| Path { method, stage: None }).collect();
    let by = |score, granularity| Prune {
        stage: 0,
        score,
        granularity,
        keep: KEEP,
        keep_redundant: false,
        rescale: Rescale::None,
    };
    for (name, prune) in [
        ("lwptv by column, task_arithmetic", by(Score::Magnitude, Granularity::Column)),
        ("lwptv by row, task_arithmetic", by(Score::Magnitude, Granularity::Row)),
        ("lwptv by element, task_arithmetic", by(Score::Magnitude, Granularity::Element)),
        ("lwptv by element and agreement, task_arithmetic", by(Score::Agreement, Granularity::Element)),
    ] {
        all.push(Path { method: paths::Path { name, ..paths::sum() }, stage: Some(prune) });
    }
    all
}

impl Path {
    /// Models that are read, the base first where it is.
    pub fn sources(&self) -> std::ops::RangeInclusive<usize> {
        usize::from(!self.method.combine.reads_base())..=self.method.models
    }

    /// Whether all of a tensor must be seen before any of it is merged.
    pub fn looks_first(&self) -> bool {
        self.stage.is_some()
            || matches!(self.method.sparsify, Sparsify::TopK { .. })
            || self.method.combine.fit.is_some()
    }
}

/// Spans beside sources and results, in the order of [`work_bytes`].
pub(super) struct Work<'a>(pub &'a [Span]);

/// Bytes of what the paths need beside sources and results.
pub(super) fn work_bytes(elems: usize) -> Vec<u64> {
    let geometry = geometry(elems);
    let stage = all_paths().iter().filter_map(|path| path.stage).collect::<Vec<_>>();
    let (len, segments) = (elems as u64, elems.div_ceil(SEGMENT) as u64);
    let scratch = [Stat::Gram, Stat::Rows].map(|stat| sums::scratch_bytes(stat, geometry, len, MODELS));
    let scores = geometry.rows.max(geometry.columns).max(3 * segments) * MODELS as u64 * 8;
    vec![
        StageBlob::most_bytes(&stage, MODELS, geometry),
        select::states_bytes(MODELS),
        select::bins_bytes(MODELS),
        scratch[0].max(scratch[1]),
        scores,
        ops::blend::facts_bytes(MODELS),
    ]
}

fn geometry(elems: usize) -> Geometry {
    Geometry::of(&[(elems / COLUMNS) as u64, COLUMNS as u64])
}

/// A tensor of whole rows.
pub(super) struct Tensor<'a> {
    pub gpu: &'a Gpu,
    pub elems: usize,
    /// θ₀ and the models, whole, in bfloat16.
    pub sources: &'a [Span],
    pub work: Work<'a>,
}

impl Tensor<'_> {
    fn at(&self, work: usize) -> Result<u64> {
        place(self.gpu, self.work.0[work], 0, 0)
    }

    /// Calls `take` with the sources of a run.
    fn with<T>(
        &self,
        path: &Path,
        (start, len): (usize, usize),
        take: impl FnOnce(&DeviceSources<'_>) -> Result<T>,
    ) -> Result<T> {
        let bytes = |elems: usize| (elems * crate::bench::ELEM_BYTES) as u64;
        let at = |source: usize| -> Result<Place> {
            let ptr = place(self.gpu, self.sources[source], bytes(start), bytes(len))?;
            Ok(Place { dtype: Dtype::BF16, ptr })
        };
        let base = if path.method.combine.reads_base() { Some(at(0)?) } else { None };
        let models: Vec<Place> = (1..=path.method.models).map(at).collect::<Result<_>>()?;
        take(&DeviceSources { base, models: &models, start: start as u64, len: len as u64 })
    }

    /// Measures what a path must know before it merges, and lays its stages where the kernels look for them.
    pub fn measure(&self, lane: &mut Lane, path: &Path) -> Result<(Measured, StageBlob)> {
        let mut measured = Measured {
            geometry: geometry(self.elems),
            stages: Vec::new(),
            sparsify: path.method.sparsify.clone(),
            cuts: Vec::new(),
            tops: Vec::new(),
            factors: vec![1.0; MODELS],
            lines: None,
            combine: path.method.combine.clone(),
        };
        if let Some(prune) = path.stage {
            let masks = self.masks(lane, path, prune, measured.geometry)?;
            measured.stages.push((prune, StageState { masks, factors: vec![1.0; MODELS] }));
        }
        let blob = StageBlob::new(&measured.stages, path.method.models);
        lane.put(self.gpu, self.work.0[0], 0, &blob.bytes)?;
        if matches!(path.method.sparsify, Sparsify::TopK { .. }) {
            let cuts = self.cuts(lane, path, Ranked::Magnitude, DENSITY)?;
            measured.cuts = cuts.into_iter().flatten().map(|cut| cut.key).collect();
        }
        if let Some(fit) = &path.method.combine.fit {
            let vectors = path.method.models + usize::from(path.method.combine.reads_base());
            let len = Gram::len(vectors);
            let (scratch, out) = (self.at(3)?, self.at(4)?);
            self.with(path, (0, self.elems), |sources| {
                let (kernels, geometry) = (self.gpu.kernels(), measured.geometry);
                sums::gram(kernels, lane.stream(), false, fit.of, geometry, Stages::default(), sources, scratch, out)
            })?;
            let mut parts = vec![0f64; self.elems.div_ceil(SEGMENT) * len];
            lane.get(self.gpu, self.work.0[4], 0, bytemuck::cast_slice_mut(&mut parts))?;
            let sum = |i: usize| parts.iter().skip(i).step_by(len).sum();
            let gram = Gram::new(vectors, (0..len).map(sum).collect());
            (fit.settle)(&gram, &fit.parameters, &mut measured.combine);
        }
        Ok((measured, blob))
    }

    /// What a stage keeps of each model.
    fn masks(&self, lane: &mut Lane, path: &Path, prune: Prune, geometry: Geometry) -> Result<Vec<crate::ops::Mask>> {
        let (kernels, elems, none) = (self.gpu.kernels(), self.elems as u64, Stages::default());
        let (scratch, out, score) = (self.at(3)?, self.at(4)?, prune.score);
        let units = match prune.granularity {
            Granularity::Row => geometry.rows,
            Granularity::Column => geometry.columns,
            _ => {
                let cuts = self.cuts(lane, path, Ranked::Score(score), prune.keep)?;
                return Ok(choose::cut_masks(&cuts, prune, elems).0);
            }
        };
        let means = Span { bytes: units * MODELS as u64 * 8, ..self.work.0[4] };
        lane.clear(self.gpu, means)?;
        self.with(path, (0, self.elems), |sources| {
            if prune.granularity == Granularity::Row {
                return sums::row_scores(kernels, lane.stream(), false, score, geometry, none, sources, scratch, out);
            }
            ops::columns::add_column_scores(kernels, lane.stream(), false, score, geometry, none, sources, out)?;
            ops::columns::finish_columns(kernels, lane.stream(), geometry, MODELS, out)
        })?;
        let mut values = vec![0f64; units as usize * MODELS];
        lane.get(self.gpu, means, 0, bytemuck::cast_slice_mut(&mut values))?;
        let scores: Vec<Vec<f64>> = values.chunks((units as usize).max(1)).map(<[f64]>::to_vec).collect();
        Ok(choose::unit_masks(&scores, prune, geometry, elems).0)
    }

    /// The exact cut of every model that keeps this share.
    fn cuts(&self, lane: &mut Lane, path: &Path, ranked: Ranked, share: f64) -> Result<Vec<Option<Cut>>> {
        let (kernels, stages) = (self.gpu.kernels(), Stages::default());
        let rank = kept_of(share, self.elems as u64);
        let mut states = vec![SelectState::new(rank, false, false); MODELS];
        lane.put(self.gpu, self.work.0[1], 0, bytemuck::cast_slice(&states))?;
        lane.clear(self.gpu, self.work.0[2])?;
        let (at, bins) = (self.at(1)?, self.at(2)?);
        for _ in 0..select::levels(false) {
            self.with(path, (0, self.elems), |sources| {
                let geometry = geometry(self.elems);
                select::count(kernels, lane.stream(), ranked, false, geometry, stages, sources, at, bins)
            })?;
            select::advance(kernels, lane.stream(), MODELS, at, bins)?;
        }
        lane.get(self.gpu, self.work.0[1], 0, bytemuck::cast_slice_mut(&mut states))?;
        Ok(states.iter().map(SelectState::cut).collect())
    }

    /// Enqueues the merge of a run into `out`.
    pub fn blend(
        &self,
        lane: &mut Lane,
        path: &Path,
        (measured, blob): &(Measured, StageBlob),
        run: (usize, usize),
        out: Span,
    ) -> Result<()> {
        let (stages, facts) = (blob.at(self.at(0)?), self.at(5)?);
        let out =
            Place { dtype: Dtype::BF16, ptr: place(self.gpu, out, 0, (run.1 * crate::bench::ELEM_BYTES) as u64)? };
        self.with(path, run, |sources| {
            ops::blend::blend(self.gpu.kernels(), lane.stream(), measured, false, stages, 0, sources, out, facts)
        })
    }

    /// Zeroes what the merges of a tensor add up.
    pub fn clear_facts(&self, lane: &mut Lane) -> Result<()> {
        lane.clear(self.gpu, self.work.0[5])
    }
}

/// Fails unless the first elements of a result are the CPU's, bit for bit.
pub(super) fn compare(path: &Path, measured: &Measured, models: Models<'_>, found: &[u8], label: &str) -> Result<()> {
    let len = (found.len() / crate::bench::ELEM_BYTES).min(COMPARED);
    let mut expected = vec![0; len * crate::bench::ELEM_BYTES];
    models.with_run(0, len, |sources| {
        let base = sources.base.filter(|_| path.method.combine.reads_base());
        let sources = Sources { base, models: &sources.models[..path.method.models], ..*sources };
        blend(measured, &sources, Dtype::BF16, &mut expected, &mut Scratch::<f32>::new(MODELS));
    });
    let mut pairs = expected.chunks(crate::bench::ELEM_BYTES).zip(found.chunks(crate::bench::ELEM_BYTES));
    match pairs.position(|(expected, found)| expected != found) {
        None => Ok(()),
        Some(at) => Err(Error::internal(format!(
            "`{}` on {label} gives other bits than the CPU, first at element {at}",
            path.method.name
        ))),
    }
}

/// Elements to compare of a tensor of so many.
pub(super) fn compared(elems: usize) -> usize {
    elems.min(COMPARED)
}
