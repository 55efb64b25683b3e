//! A device as a lane of the contract: the run is copied there, the kernels of one operation run, and what they give is fetched.

use merganser::backend::contract::{Lane, Pass, Run};
use merganser::backend::cpu::prune::Sources;
use merganser::backend::cuda::ops::ranks::Places;
use merganser::backend::cuda::ops::sums::{Stat, out_bytes, scratch_bytes};
use merganser::backend::cuda::ops::{self, DeviceSources, Place, StageBlob};
use merganser::dtype::{Dtype, DtypeExt};
use merganser::ops::search::{Cut, Ranked, Search};
use merganser::ops::{Chosen, Measured, Restore, RunFacts, Sparsify};
use merganser::{Error, Result};

use super::Gpu;

/// The device, with sources and results so many elements past an aligned address.
pub struct GpuLane<'a> {
    pub gpu: &'a Gpu,
    pub phase: usize,
}

/// Whether factors are chosen, and not bits.
fn scales(m: &Measured) -> bool {
    matches!(m.sparsify, Sparsify::Ranked { restore: Restore::Inverse, .. })
}

/// What was chosen element by element of a tensor of so many, or what its rows are weighed by, on the device.
fn chosen_on(gpu: &Gpu, m: &Measured, elems: u64) -> ops::ChosenAt {
    let stride = ops::ranks::stride(elems, scales(m));
    if !m.rows.is_empty() {
        return ops::ChosenAt { ptr: gpu.put(&m.rows), stride };
    }
    let mut bytes = vec![0u8; (stride * m.chosen.len() as u64) as usize];
    for (to, chosen) in bytes.chunks_mut(stride.max(1) as usize).zip(m.chosen.iter()) {
        let from: Vec<u8> = match chosen {
            Chosen::Bits(bits) => bits.clone(),
            Chosen::Scales(scales) => scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
        };
        to[..from.len()].copy_from_slice(&from);
    }
    if bytes.is_empty() { ops::ChosenAt::default() } else { ops::ChosenAt { ptr: gpu.put(&bytes), stride } }
}

impl GpuLane<'_> {
    fn on_device<T>(&self, sources: &Sources<'_>, take: impl FnOnce(&DeviceSources<'_>) -> T) -> T {
        let place = |stored: &merganser::backend::cpu::stored::Stored<'_>| Place {
            dtype: stored.dtype,
            ptr: self.gpu.put_at(self.phase * stored.dtype.size_bytes().unwrap() as usize, stored.bytes),
        };
        let models: Vec<Place> = sources.models.iter().map(place).collect();
        let base = sources.base.as_ref().map(place);
        take(&DeviceSources { base, models: &models, start: sources.start, len: sources.len as u64 })
    }
}

impl Lane for GpuLane<'_> {
    fn label(&self) -> String {
        format!("the device, {} elements off", self.phase)
    }

    fn cuts(&mut self, run: &Run<'_>, ranked: Ranked<'_>, searches: &[Option<Search>]) -> Result<Vec<Option<Cut>>> {
        use ops::select::SelectState;
        let (gpu, models) = (self.gpu, run.sources.models.len());
        let state =
            |search: &Option<Search>| search.as_ref().map_or(SelectState::none(), |s| SelectState::of(s, run.wide));
        // A search for all models is the first one's.
        let mut begin: Vec<SelectState> = searches.iter().map(state).collect();
        begin.resize(models, SelectState::none());
        let states = gpu.put(&begin);
        let rows = if let Ranked::Importance(rows) = ranked { gpu.put(rows) } else { 0 };
        let bins = gpu.zeros(ops::select::bins_bytes(models));
        let blob = StageBlob::new(run.stages, models);
        let stages = blob.at(gpu.put(&blob.bytes));
        self.on_device(run.sources, |sources| {
            for _ in 0..ops::select::levels(run.wide) {
                let (k, s) = (&gpu.kernels, &gpu.stream);
                let (wide, geometry) = (run.wide, run.geometry);
                ops::select::count(k, s, ranked, wide, geometry, stages, sources, states, bins, false, rows)?;
                ops::select::advance(k, s, models, states, bins)?;
            }
            Ok::<_, Error>(())
        })?;
        let found: Vec<SelectState> = gpu.get(states);
        gpu.clear();
        Ok(found.iter().zip(searches).map(|(state, search)| search.and_then(|_| state.cut())).collect())
    }

    fn pass(&mut self, run: &Run<'_>, pass: Pass<'_>) -> Result<Vec<f64>> {
        let (gpu, models, len) = (self.gpu, run.sources.models.len(), run.sources.len as u64);
        let Run { geometry, wide, .. } = *run;
        let blob = StageBlob::new(run.stages, models);
        let stages = blob.at(gpu.put(&blob.bytes));
        let (k, s) = (&gpu.kernels, &gpu.stream);
        let room = |stat| {
            let nan = |bytes: u64| gpu.put(&vec![f64::NAN; bytes as usize / 8]);
            (nan(scratch_bytes(stat, geometry, len, models)), nan(out_bytes(stat, geometry, len, models)))
        };
        let out = self.on_device(run.sources, |sources| {
            Ok::<_, Error>(match pass {
                Pass::Norms => {
                    let (scratch, out) = room(Stat::Norms);
                    ops::sums::sums(k, s, wide, geometry, stages, sources, scratch, out)?;
                    out
                }
                Pass::TrimNorms(m) => {
                    let (scratch, out) = room(Stat::TrimNorms);
                    let chosen = chosen_on(gpu, m, sources.start + len);
                    ops::sums::trim_norms(k, s, wide, m, stages, chosen, sources, scratch, out)?;
                    out
                }
                Pass::Gram(of, m) => {
                    let (scratch, out) = room(Stat::Gram);
                    ops::sums::gram(k, s, wide, of, m, stages, sources, scratch, out)?;
                    out
                }
                Pass::Chosen(m) => {
                    let scratch = ops::ranks::scratch_bytes(len, models, wide).map(|bytes| gpu.zeros(bytes));
                    let stride = ops::ranks::stride(len, scales(m));
                    let chosen = gpu.zeros(stride * models as u64);
                    let places = Places { scratch, chosen, stride };
                    ops::ranks::choose(k, s, m, wide, stages, sources, places)?;
                    chosen
                }
                Pass::Divergence(_) => {
                    let rows = len / geometry.last.max(1);
                    let nan = |bytes: u64| gpu.put(&vec![f64::NAN; bytes as usize / 8]);
                    let pairs = [0, 1].map(|_| nan(ops::sums::row_pairs_bytes(rows)));
                    let (scratch, out) = (nan(scratch_bytes(Stat::Maxima, geometry, len, 1)), nan(8 * rows));
                    ops::sums::divergence(k, s, wide, geometry, stages, sources, scratch, pairs, out)?;
                    out
                }
                Pass::Changes(threshold) => {
                    let counts = gpu.zeros(ops::overlap::counts_bytes(models));
                    ops::overlap::overlap(k, s, wide, threshold, geometry, stages, sources, counts)?;
                    counts
                }
                Pass::Rows(score) => {
                    let (scratch, out) = room(Stat::Rows);
                    ops::sums::row_scores(k, s, wide, score, geometry, stages, sources, scratch, out)?;
                    out
                }
                Pass::Columns(score) => {
                    let totals = gpu.zeros(ops::columns::totals_bytes(geometry, models));
                    ops::columns::add_column_scores(k, s, wide, score, geometry, stages, sources, totals)?;
                    ops::columns::finish_columns(k, s, geometry, models, totals)?;
                    totals
                }
            })
        })?;
        let mut values: Vec<f64> = match pass {
            Pass::Chosen(m) => {
                let bytes: Vec<u8> = gpu.get(out);
                let of = |bytes: &[u8]| ops::ranks::chosen_of(bytes, len, scales(m));
                let chosen = bytes.chunks(ops::ranks::stride(len, scales(m)) as usize).map(of);
                let scale = |of: &Chosen, element: u64| of.scale(element as usize).map_or(0.0, f64::from);
                chosen.flat_map(|of| (0..len).map(|element| scale(&of, element)).collect::<Vec<_>>()).collect()
            }
            Pass::Changes(_) => gpu.get::<u64>(out).into_iter().map(|count| count as f64).collect(),
            _ => gpu.get(out),
        };
        gpu.clear();
        if let Pass::Gram(of, _) = pass {
            // Room was made for the base among the vectors, too.
            let vectors =
                models + usize::from(of != merganser::ops::Vectors::TaskVectors && run.sources.base.is_some());
            values.truncate(merganser::ops::Gram::len(vectors) * run.sources.len.div_ceil(merganser::ops::SEGMENT));
        }
        Ok(values)
    }

    fn merge(
        &mut self,
        m: &Measured,
        sources: &Sources<'_>,
        wide: bool,
        dtype: Dtype,
        out: &mut [u8],
    ) -> Result<RunFacts> {
        let (gpu, models) = (self.gpu, sources.models.len());
        let to = gpu.put_at(self.phase * dtype.size_bytes().unwrap() as usize, out);
        let counted = gpu.zeros(ops::blend::facts_bytes(models));
        let blob = StageBlob::new(&m.stages, models);
        let stages = blob.at(gpu.put(&blob.bytes));
        self.on_device(sources, |sources| {
            let place = Place { dtype, ptr: to };
            let chosen = chosen_on(gpu, m, sources.start + sources.len);
            ops::blend::blend(&gpu.kernels, &gpu.stream, m, wide, stages, chosen, sources, place, counted)
        })?;
        out.copy_from_slice(&gpu.get::<u8>(to));
        let counted: Vec<u64> = gpu.get(counted);
        gpu.clear();
        Ok(RunFacts { nonfinite: counted[0], introduced: counted[1], kept: counted[2..].to_vec() })
    }
}
