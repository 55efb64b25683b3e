//! Reads pairs of tensors in units of fixed size and sums over them, many threads at once.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::Way;
use super::elements::{Scale, Sums, sums as element_sums};
use crate::backend::cpu::stored::Stored;
use crate::checkpoint::{Shard, Tensor};
use crate::error::{Error, Result};
use crate::ops::SEGMENT;
use crate::run::together;

/// Elements read and widened at a time: what a thread holds of each side where files cannot be mapped.
const RUN_ELEMS: u64 = SEGMENT as u64;
/// Elements that one thread takes at a time; one note of sums is kept for each.
const UNIT_ELEMS: u64 = 64 * RUN_ELEMS;

/// Two tensors of the same shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub a: (&'a Tensor, &'a Shard),
    pub b: (&'a Tensor, &'a Shard),
    pub way: Way,
}

/// The sums of each pair.
pub(super) fn sums(pairs: &[Pair<'_>], threads: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<Vec<Sums>> {
    let scales = vec![Scale::default(); pairs.len()];
    let mut sums = scaled_sums(pairs, &scales, threads, progress)?;
    // Values so large or small that their squares are lost are rare enough to read such tensors twice.
    let lost: Vec<usize> = (0..pairs.len()).filter(|i| sums[*i].lost_size()).collect();
    if !lost.is_empty() {
        let again: Vec<Pair<'_>> = lost.iter().map(|i| pairs[*i]).collect();
        let scales: Vec<Scale> = lost.iter().map(|i| Scale::of(&sums[*i])).collect();
        for (i, found) in lost.into_iter().zip(scaled_sums(&again, &scales, threads, &|_| ())?) {
            sums[i] = found;
        }
    }
    Ok(sums)
}

fn scaled_sums(
    pairs: &[Pair<'_>],
    scales: &[Scale],
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Sums>> {
    // Units before each pair's first; a tensor without elements has none.
    let mut firsts = Vec::with_capacity(pairs.len() + 1);
    let mut units = 0;
    for pair in pairs {
        firsts.push(units);
        units += units_of(pair.a.0)?;
    }
    firsts.push(units);
    let found: Vec<OnceLock<Sums>> = (0..units).map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let work = || {
        let mut scratch = (Vec::new(), Vec::new());
        while !failed.load(Ordering::Relaxed) {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            let Some(slot) = found.get(unit) else { return };
            let pair = firsts.partition_point(|first| *first <= unit) - 1;
            let start = (unit - firsts[pair]) as u64 * UNIT_ELEMS;
            let range = start..(start + UNIT_ELEMS).min(pairs[pair].a.0.elems);
            match unit_sums(&pairs[pair], range, scales[pair], &mut scratch, progress) {
                // Each unit is taken once, so that the slot is empty.
                Ok(sums) => drop(slot.set(sums)),
                Err(error) => {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    failed.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    together(threads.min(units), work);
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    // In the order of the elements, whichever thread was first.
    let of_pair = |pair: usize| {
        let mut sums = Sums { scale: scales[pair], ..Sums::default() };
        found[firsts[pair]..firsts[pair + 1]].iter().filter_map(OnceLock::get).for_each(|unit| sums.add(unit));
        sums
    };
    Ok((0..pairs.len()).map(of_pair).collect())
}

fn units_of(tensor: &Tensor) -> Result<usize> {
    usize::try_from(tensor.elems.div_ceil(UNIT_ELEMS))
        .map_err(|_| Error::input(format!("tensor `{}` is too large for this machine", tensor.name)))
}

fn unit_sums(
    pair: &Pair<'_>,
    unit: Range<u64>,
    scale: Scale,
    scratch: &mut (Vec<u8>, Vec<u8>),
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Sums> {
    let (place_a, place_b) = (place(pair.a.0, &unit), place(pair.b.0, &unit));
    pair.a.1.will_need(place_a.clone());
    pair.b.1.will_need(place_b.clone());
    let mut sums = Sums { scale, ..Sums::default() };
    for start in unit.clone().step_by(RUN_ELEMS as usize) {
        let run = start..(start + RUN_ELEMS).min(unit.end);
        let a = pair.a.1.bytes(place(pair.a.0, &run), &mut scratch.0)?;
        let b = pair.b.1.bytes(place(pair.b.0, &run), &mut scratch.1)?;
        let (stored_a, stored_b) =
            (Stored { dtype: pair.a.0.dtype, bytes: a }, Stored { dtype: pair.b.0.dtype, bytes: b });
        sums.add(&element_sums(pair.way, (run.end - run.start) as usize, stored_a, stored_b, scale));
        progress((a.len() + b.len()) as u64);
    }
    pair.a.1.release(place_a);
    pair.b.1.release(place_b);
    Ok(sums)
}

/// Where elements are in their file. Runs start at multiples of [`RUN_ELEMS`], which are whole bytes of every dtype.
fn place(tensor: &Tensor, elems: &Range<u64>) -> Range<u64> {
    let bits = tensor.dtype.bitsize() as u64;
    // A tensor lies in its file, so that neither product overflows: 8 bytes an element at most.
    let at = |elem: u64| tensor.begin + (elem / 8 * bits + (elem % 8 * bits).div_ceil(8)).min(tensor.bytes);
    at(elems.start)..at(elems.end)
}
