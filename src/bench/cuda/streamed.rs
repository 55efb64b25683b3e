//! Paths from the host's memory through the device and back: several lanes, each with whole tensors, as in a merge.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};

use super::TO_DEVICE;
use super::device::Open;
use super::tensor::{COLUMNS, Path, Tensor, Work, all_paths, compare, compared, work_bytes};
use crate::backend::cuda::gpu::Gpu;
use crate::backend::cuda::lane::{Fetch, Lane, LaneSizes, TURNS};
use crate::backend::cuda::pool::{Pool, Span};
use crate::bench::data::{ELEM_BYTES, Family, MODELS, Models};
use crate::bench::{Bench, Row, Unit, rounds};
use crate::cost::rates as cost;
use crate::engine::Stop;
use crate::error::{Error, Result};
use crate::ops::{Measured, SEGMENT};
use crate::output::source_digest;

/// Lanes of a device, bytes of a slot on the way there and elements of a launch: what a merge takes where memory is plenty.
const LANES: usize = 8;
const UP_BYTES: usize = 4 << 20;
const CHUNK_ELEMS: usize = 1 << 20;
/// Elements of a tensor at most: a matrix of a large model.
const TENSOR_ELEMS: usize = 1 << 24;

/// What a lane works on: a part of the data as a tensor of its own, and where its result goes.
struct Job<'a> {
    start: usize,
    out: &'a mut [u8],
}

/// How the data is cut.
#[derive(Clone, Copy)]
struct Cut {
    tensor: usize,
    chunk: usize,
    lanes: usize,
}

impl Cut {
    /// Two tensors a lane where they are not longer than the longest, in whole segments.
    fn of(elems: usize) -> Self {
        let tensor = (elems / (2 * LANES) / SEGMENT * SEGMENT).clamp(SEGMENT, TENSOR_ELEMS);
        Self { tensor, chunk: tensor.min(CHUNK_ELEMS), lanes: elems.div_ceil(tensor).clamp(1, LANES) }
    }
}

/// Every path, and a comparison of its result with the CPU's. The rate counts what goes to the device.
pub(super) fn all(bench: &mut Bench<'_>) -> Result<()> {
    let mut family = Family::within(bench.take_block()?, bench.settings.threads)?;
    let elems = family.elems() / COLUMNS * COLUMNS;
    let cut = Cut::of(elems);
    let (sources, work) = sizes(cut);
    let slot = |bytes: usize| bytes.next_multiple_of(SEGMENT * ELEM_BYTES) as u64;
    let lane_sizes = LaneSizes {
        up_bytes: slot(UP_BYTES.min(cut.tensor * ELEM_BYTES)),
        down_bytes: slot(cut.chunk * ELEM_BYTES),
        solves: false,
    };
    let a_lane = Pool::taken_by(sources.into_iter().chain(work));
    let mut open = Open::new(bench.settings, a_lane * cut.lanes as u64, cut.lanes, lane_sizes)?;
    let (models, out) = family.parts();
    let out = &mut out[..elems * ELEM_BYTES];
    for path in all_paths() {
        let name = format!("{}, streamed", path.method.name);
        let sent = path.sources().count() * elems * ELEM_BYTES;
        // Sources cross the bus once, however often they are looked at there; results go back meanwhile.
        let staged = cost::STAGE_PER_LANE * cut.lanes as f64;
        let predicted = bench.card().map(|card| (cost::BOTH_WAYS * cost::bus(card)[0]).min(staged));
        let row = Row::new(name, cut.lanes, Unit::Bytes, sent as f64, Some(TO_DEVICE)).predicted(predicted);
        let mut first = None;
        bench.measure(row, |stop| {
            let (seconds, measured) = round(&mut open, &path, cut, models, out, stop)?;
            first = measured;
            Ok(seconds)
        })?;
        if let Some(measured) = first {
            let len = compared(cut.tensor.min(elems)) * ELEM_BYTES;
            compare(&path, &measured, models, &out[..len], &open.gpu.label)?;
        }
    }
    bench.block = family.into_block();
    Ok(())
}

/// Spans of a lane: the sources of a tensor, and its results and the rest.
fn sizes(cut: Cut) -> (Vec<u64>, Vec<u64>) {
    let mut work = vec![(cut.chunk * ELEM_BYTES) as u64; TURNS];
    work.extend(work_bytes(cut.tensor));
    (vec![(cut.tensor * ELEM_BYTES) as u64; MODELS + 1], work)
}

/// Merges everything once; seconds, and what was measured of the first tensor.
fn round(
    open: &mut Open,
    path: &Path,
    cut: Cut,
    models: Models<'_>,
    out: &mut [u8],
    stop: &Stop,
) -> Result<(f64, Option<Measured>)> {
    let jobs = out.chunks_mut(cut.tensor * ELEM_BYTES).enumerate();
    let jobs = Mutex::new(jobs.map(|(i, out)| Job { start: i * cut.tensor, out }));
    let (gpu, first) = (&open.gpu, Mutex::new(None));
    let seconds = rounds::in_parallel(open.lanes.iter_mut().collect(), |lane| {
        lane.bind()?;
        loop {
            rounds::check(stop)?;
            let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(job) = next else { return Ok(()) };
            let (is_first, measured) = (job.start == 0, merge(gpu, lane, path, cut, models, job)?);
            if is_first {
                *first.lock().unwrap_or_else(PoisonError::into_inner) = Some(measured);
            }
        }
    })?;
    Ok((seconds, first.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

/// Merges one tensor on a lane.
fn merge(gpu: &Gpu, lane: &mut Lane, path: &Path, cut: Cut, models: Models<'_>, job: Job<'_>) -> Result<Measured> {
    let elems = job.out.len() / ELEM_BYTES;
    let (sources, work) = sizes(cut);
    let lease = gpu.pool().lease(None, &sources, &work).ok_or_else(|| Error::internal("a lane has no memory"))?;
    let (outs, work) = lease.work.split_at(TURNS);
    let tensor = Tensor { gpu, elems, sources: &lease.sources, work: Work(work) };
    let send = |lane: &mut Lane, range: std::ops::Range<usize>| -> Result<()> {
        for source in path.sources() {
            stage(gpu, lane, models, source, job.start, range.clone(), lease.sources[source])?;
        }
        lane.uploaded()
    };
    if path.looks_first() {
        send(lane, 0..elems)?;
    }
    let known = tensor.measure(lane, path)?;
    tensor.clear_facts(lane)?;
    let mut under_way = VecDeque::new();
    let mut results = job.out.chunks_mut(cut.chunk * ELEM_BYTES);
    for (i, start) in (0..elems).step_by(cut.chunk).enumerate() {
        let (len, turn) = (cut.chunk.min(elems - start), i % TURNS);
        if !path.looks_first() {
            send(lane, start..start + len)?;
        }
        if under_way.len() == lane.fetches() {
            take_oldest(lane, &mut under_way, &mut results)?;
        }
        lane.compute_after_fetch(turn)?;
        tensor.blend(lane, path, &known, (start, len), outs[turn])?;
        under_way.push_back(lane.fetch(gpu, outs[turn], 0, len * ELEM_BYTES, turn)?);
    }
    while !under_way.is_empty() {
        take_oldest(lane, &mut under_way, &mut results)?;
    }
    lane.finish()?;
    gpu.pool().give_back(lease, false);
    Ok(known.0)
}

/// Puts elements of a source into slots, hashing them on the way, and sends them.
fn stage(
    gpu: &Gpu,
    lane: &mut Lane,
    models: Models<'_>,
    source: usize,
    first: usize,
    range: std::ops::Range<usize>,
    to: Span,
) -> Result<()> {
    let at_once = (lane.up_bytes() / (SEGMENT * ELEM_BYTES)).max(1) * SEGMENT;
    for start in range.clone().step_by(at_once) {
        let end = range.end.min(start + at_once);
        let bytes = models.bytes_of(source, first + start..first + end);
        lane.put_with(gpu, to, (start * ELEM_BYTES) as u64, bytes.len(), &mut |slot| {
            let block = SEGMENT * ELEM_BYTES;
            for (from, to) in bytes.chunks(block).zip(slot.chunks_mut(block)) {
                black_box(source_digest::block(from));
                to.copy_from_slice(from);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn take_oldest<'a>(
    lane: &mut Lane,
    under_way: &mut VecDeque<Fetch>,
    results: &mut impl Iterator<Item = &'a mut [u8]>,
) -> Result<()> {
    if let (Some(fetch), Some(to)) = (under_way.pop_front(), results.next()) {
        to.copy_from_slice(lane.fetched(&fetch)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_whole_segments_and_no_more_lanes_are_taken_than_there_are_tensors() {
        for elems in [0, 1024, SEGMENT, 100 * SEGMENT + 1024, 1 << 31] {
            let cut = Cut::of(elems);
            assert!(cut.tensor.is_multiple_of(SEGMENT) && cut.chunk <= cut.tensor, "{elems}");
            assert_eq!(cut.lanes, elems.div_ceil(cut.tensor).clamp(1, LANES), "{elems}");
        }
        assert_eq!(Cut::of(1 << 31).tensor, TENSOR_ELEMS);
    }
}
