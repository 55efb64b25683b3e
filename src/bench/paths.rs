//! Element-wise paths of a merge over data in memory: what the engine's threads do between the page cache and the writers.

use std::hint::black_box;
use std::time::Instant;

use super::data::{ELEM_BYTES, Family, MODELS, Models};
use super::limits::COPY;
use super::{Bench, Unit, rounds};
use crate::backend::cpu::blend::blend;
use crate::backend::cpu::prune::{Scratch, Sources};
use crate::backend::cpu::select::count;
use crate::backend::cpu::stats;
use crate::dtype::Dtype;
use crate::engine::{Stop, choose, sample_of};
use crate::error::Result;
use crate::methods::slerp::combine as slerp;
use crate::ops::philox::element_key;
use crate::ops::rules::{Numbers, RuleId};
use crate::ops::search::{COUNTERS, Cut, Ranked, Search, Totals};
use crate::ops::{Combine, Geometry, Gram, Measured, SEGMENT, Sparsify, kept_of};
use crate::output::source_digest;

/// The share of elements that trimming and dropping keep.
pub(super) const DENSITY: f64 = 0.2;
/// Bytes that an output digest is made of at a time.
const PIECE_BYTES: usize = 2 << 20;

/// A method, and how many fine-tunes it takes.
pub(super) struct Path {
    pub name: &'static str,
    pub models: usize,
    pub sparsify: Sparsify,
    pub combine: Combine,
}

/// Task arithmetic.
pub(super) fn sum() -> Path {
    let combine = Combine::sum(vec![1.0; MODELS], 1.0, 0.5);
    Path { name: "task_arithmetic", models: MODELS, sparsify: Sparsify::None, combine }
}

/// Every path.
pub(super) fn paths() -> Vec<Path> {
    let (weights, density) = (vec![1.0; MODELS], vec![DENSITY; MODELS]);
    let keys = (0..MODELS).map(|model| element_key(0, "bench", model)).collect();
    let elect = || Combine::weighted(RuleId::Elect, weights.clone(), Numbers { normalize: true, ..Numbers::default() });
    let of_all = |name, sparsify, combine| Path { name, models: MODELS, sparsify, combine };
    vec![
        of_all("linear", Sparsify::None, Combine::average(weights.clone(), MODELS as f64)),
        sum(),
        of_all("ties, density 0.2", Sparsify::TopK { density: density.clone(), rescale: false }, elect()),
        of_all("dare_ties, density 0.2", Sparsify::Random { density, rescale: true, keys }, elect()),
        Path { name: "slerp", models: 1, sparsify: Sparsify::None, combine: slerp(0.4) },
    ]
}

/// Every path on all threads, and the digests that a merge takes of what it reads and writes.
pub(super) fn element_wise(bench: &mut Bench<'_>) -> Result<()> {
    let threads = bench.settings.threads;
    let mut family = Family::within(bench.take_block()?, threads)?;
    let bytes = (family.elems() * ELEM_BYTES) as f64;
    let (models, out) = family.parts();
    let mut workers: Vec<Worker> = (0..threads).map(|_| Worker::default()).collect();
    for path in paths() {
        let sources = path.models + usize::from(path.combine.reads_base());
        bench.path(path.name, COPY, (Unit::Bytes, (sources + 1) as f64 * bytes), |stop| {
            path.merge(models, out, &mut workers, stop)
        })?;
    }
    bench.path("digests of sources", COPY, (Unit::Bytes, (MODELS + 1) as f64 * bytes), |stop| {
        over_segments(models, out, &mut workers, stop, |_, sources, _| {
            for stored in sources.base.iter().chain(sources.models) {
                black_box(source_digest::block(stored.bytes));
            }
        })
    })?;
    bench.path("digest of the output", COPY, (Unit::Bytes, bytes), |stop| {
        let part = out.len().div_ceil(threads).max(1);
        rounds::in_parallel(out.chunks(part).collect(), |part| {
            part.chunks(PIECE_BYTES).try_for_each(|piece| {
                black_box(blake3::hash(piece));
                rounds::check(stop)
            })
        })
    })?;
    bench.block = family.into_block();
    Ok(())
}

/// What a thread needs.
struct Worker {
    scratch: Scratch<f32>,
    counts: Vec<Vec<u32>>,
    products: Vec<f64>,
}

impl Default for Worker {
    fn default() -> Self {
        Self { scratch: Scratch::new(MODELS), counts: vec![vec![0; COUNTERS]; MODELS], products: Vec::new() }
    }
}

impl Path {
    /// Measures what the method needs to know, then merges; seconds.
    fn merge(&self, models: Models<'_>, out: &mut [u8], workers: &mut [Worker], stop: &Stop) -> Result<f64> {
        let elems = out.len() / ELEM_BYTES;
        let mut measured = Measured {
            geometry: Geometry::of(&[elems as u64]),
            stages: Vec::new(),
            sparsify: self.sparsify.clone(),
            cuts: Vec::new(),
            tops: Vec::new(),
            factors: vec![1.0; MODELS],
            lines: None,
            combine: self.combine.clone(),
        };
        let mut seconds = 0.0;
        if matches!(self.sparsify, Sparsify::TopK { .. }) {
            (measured.cuts, seconds) = cuts(models, out, workers, stop)?;
        }
        if let Some(fit) = &self.combine.fit {
            let vectors = self.models + usize::from(self.combine.reads_base());
            workers.iter_mut().for_each(|worker| worker.products = vec![0.0; Gram::len(vectors)]);
            seconds += over_segments(models, out, workers, stop, |worker, sources, _| {
                let sources = Sources { models: &sources.models[..self.models], ..*sources };
                for products in stats::gram(fit.of, measured.geometry, &[], &sources, &mut worker.scratch) {
                    worker.products.iter_mut().zip(products).for_each(|(total, product)| *total += product);
                }
            })?;
            let sum = |i: usize| workers.iter().map(|worker| worker.products[i]).sum();
            let gram = Gram::new(vectors, (0..Gram::len(vectors)).map(sum).collect());
            (fit.settle)(&gram, &fit.parameters, &mut measured.combine);
        }
        seconds += over_segments(models, out, workers, stop, |worker, sources, out| {
            let base = sources.base.filter(|_| self.combine.reads_base());
            let sources = Sources { base, models: &sources.models[..self.models], ..*sources };
            black_box(blend(&measured, &sources, Dtype::BF16, out, &mut worker.scratch));
        })?;
        Ok(seconds)
    }
}

/// Keys of the cuts that keep [`DENSITY`] of every model, by a sample and then whole passes as in the engine; and seconds.
fn cuts(models: Models<'_>, out: &mut [u8], workers: &mut [Worker], stop: &Stop) -> Result<(Vec<u64>, f64)> {
    let elems = (out.len() / ELEM_BYTES) as u64;
    let geometry = Geometry::of(&[elems]);
    let mut searches = vec![Some(Search::new::<f32>(elems, kept_of(DENSITY, elems), false)); MODELS];
    let mut cuts: Vec<Option<Cut>> = vec![None; MODELS];
    let mut totals = vec![Totals::default(); MODELS];
    let mut seconds = 0.0;
    while searches.iter().any(Option::is_some) {
        let samples = searches.iter().flatten().all(Search::samples);
        seconds += over_segments(models, out, workers, stop, |worker, sources, _| {
            let Worker { scratch, counts, .. } = worker;
            let first = sources.start / SEGMENT as u64;
            let count = |sources: &Sources<'_>, counts: &mut [Vec<u32>], scratch: &mut Scratch<f32>| {
                count(Ranked::Magnitude, &searches, geometry, &[], sources, counts, scratch);
            };
            if samples {
                for part in sample_of(first as usize, sources.start..sources.start + sources.len as u64) {
                    models.with_run(part.start as usize, (part.end - part.start) as usize, |sources| {
                        count(sources, counts, scratch);
                    });
                }
            } else {
                count(sources, counts, scratch);
            }
        })?;
        // What the engine does under a lock after every unit.
        let started = Instant::now();
        for worker in &mut *workers {
            choose::add_counts(&mut totals, &searches, &mut worker.counts);
        }
        for ((search, cut), counts) in searches.iter_mut().zip(&mut cuts).zip(&mut totals) {
            if let Some(searching) = search {
                *cut = searching.advance(counts);
                *search = search.filter(|_| cut.is_none());
            }
            counts.clear();
        }
        seconds += started.elapsed().as_secs_f64();
    }
    Ok((cuts.into_iter().flatten().map(|cut| cut.key).collect(), seconds))
}

/// Calls `body` with every segment and its part of the output, on a thread for each worker; seconds.
fn over_segments(
    models: Models<'_>,
    out: &mut [u8],
    workers: &mut [Worker],
    stop: &Stop,
    body: impl Fn(&mut Worker, &Sources<'_>, &mut [u8]) + Sync,
) -> Result<f64> {
    let ranges = rounds::split(out.len() / ELEM_BYTES, workers.len(), SEGMENT);
    let mut parts = Vec::with_capacity(ranges.len());
    let mut rest = out;
    for (range, worker) in ranges.into_iter().zip(workers) {
        let (now, later) = rest.split_at_mut(range.len() * ELEM_BYTES);
        parts.push((range, now, worker));
        rest = later;
    }
    rounds::in_parallel(parts, |(range, out, worker)| {
        for (start, out) in range.clone().step_by(SEGMENT).zip(out.chunks_mut(SEGMENT * ELEM_BYTES)) {
            rounds::check(stop)?;
            models.with_run(start, out.len() / ELEM_BYTES, |sources| body(worker, sources, out));
        }
        Ok(())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::cpu::stored::Widen;
    use crate::ops::Real;

    #[test]
    fn the_cuts_that_are_timed_are_the_exact_ones() {
        let mut family = Family::within(vec![0; 10 * 3 * SEGMENT], 2).unwrap();
        let (elems, rank) = (family.elems(), kept_of(DENSITY, family.elems() as u64) as usize);
        let (models, out) = family.parts();
        let mut workers = [Worker::default(), Worker::default()];
        let (found, _) = cuts(models, out, &mut workers, &Stop::default()).unwrap();
        models.with_run(0, elems, |sources| {
            let wide = |bytes| {
                let mut wide = vec![0f32; elems];
                f32::widen(Dtype::BF16, bytes, &mut wide);
                wide
            };
            let base = wide(sources.base.unwrap().bytes);
            for (model, cut) in sources.models.iter().zip(found) {
                let mut keys: Vec<u64> = wide(model.bytes).iter().zip(&base).map(|(m, b)| (m - b).key()).collect();
                keys.sort_unstable();
                assert_eq!(cut, keys[elems - rank]);
            }
        });
    }
}
