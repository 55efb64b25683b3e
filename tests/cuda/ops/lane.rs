//! A device as a lane of the contract: the run is copied there, the kernels of one operation run, and what they give is fetched.

use merganser::backend::contract::{Lane, Pass, Run};
use merganser::backend::cpu::prune::Sources;
use merganser::backend::cuda::ops::sums::{Stat, out_bytes, scratch_bytes};
use merganser::backend::cuda::ops::{self, DeviceSources, Place, StageBlob};
use merganser::dtype::{Dtype, DtypeExt};
use merganser::ops::search::{Cut, Ranked, Search};
use merganser::ops::{Measured, RunFacts};
use merganser::{Error, Result};

use super::Gpu;

/// The device, with sources and results so many elements past an aligned address.
pub struct GpuLane<'a> {
    pub gpu: &'a Gpu,
    pub phase: usize,
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

    fn cuts(&mut self, run: &Run<'_>, ranked: Ranked, searches: &[Option<Search>]) -> Result<Vec<Option<Cut>>> {
        use ops::select::SelectState;
        let (gpu, models) = (self.gpu, run.sources.models.len());
        let state = |search: &Option<Search>| match search.as_ref().map(Search::wanted) {
            Some((rank, lowest)) => SelectState::new(rank, lowest, run.wide),
            None => SelectState::none(),
        };
        let states = gpu.put(&searches.iter().map(state).collect::<Vec<_>>());
        let bins = gpu.zeros(ops::select::bins_bytes(models));
        let blob = StageBlob::new(run.stages, models);
        let stages = blob.at(gpu.put(&blob.bytes));
        self.on_device(run.sources, |sources| {
            for _ in 0..ops::select::levels(run.wide) {
                let (k, s) = (&gpu.kernels, &gpu.stream);
                ops::select::count(k, s, ranked, run.wide, run.geometry, stages, sources, states, bins)?;
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
                Pass::TrimNorms(cuts) => {
                    let (scratch, out) = room(Stat::TrimNorms);
                    ops::sums::trim_norms(k, s, wide, geometry, stages, cuts, sources, scratch, out)?;
                    out
                }
                Pass::Lines(of, lines) => {
                    let vectors =
                        models + usize::from(of != merganser::ops::Vectors::TaskVectors && sources.base.is_some());
                    if lines.is_contiguous() {
                        let [scratch, out] = ops::sums::line_bytes(lines.len, len, vectors)
                            .map(|bytes| gpu.put(&vec![f64::NAN; bytes as usize / 8]));
                        ops::sums::line_products(k, s, wide, of, lines.len, geometry, stages, sources, scratch, out)?;
                        out
                    } else {
                        let totals = gpu.zeros(ops::columns::products_bytes(lines.count, vectors));
                        ops::columns::add_products(k, s, wide, of, geometry, stages, sources, totals)?;
                        totals
                    }
                }
                Pass::Gram(of) => {
                    let (scratch, out) = room(Stat::Gram);
                    ops::sums::gram(k, s, wide, of, geometry, stages, sources, scratch, out)?;
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
            Pass::Changes(_) => gpu.get::<u64>(out).into_iter().map(|count| count as f64).collect(),
            _ => gpu.get(out),
        };
        gpu.clear();
        if let Pass::Gram(of) = pass {
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
        let weights: Vec<f64> = m.lines.iter().flat_map(|by| by.weights.concat()).collect();
        let lines = if m.lines.is_some() { gpu.put(&weights) } else { 0 };
        self.on_device(sources, |sources| {
            let place = Place { dtype, ptr: to };
            ops::blend::blend(&gpu.kernels, &gpu.stream, m, wide, stages, lines, sources, place, counted)
        })?;
        out.copy_from_slice(&gpu.get::<u8>(to));
        let counted: Vec<u64> = gpu.get(counted);
        gpu.clear();
        Ok(RunFacts { nonfinite: counted[0], introduced: counted[1], kept: counted[2..].to_vec() })
    }
}
