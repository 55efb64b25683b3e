//! What a device does without merganser's kernels, for `bench`: copies, products in f32; and a clock of the device's own.
//!
//! Everything here goes on a lane's compute stream, one after the other.
#![allow(unsafe_code)]

use cudarc::driver::{CudaEvent, DriverError, result, sys};

use super::error;
use super::gpu::Gpu;
use super::lane::{Lane, place};
use super::pinned::Ring;
use super::pool::Span;
use crate::error::{Error, Result};

/// The shortest time that events tell apart, in seconds.
const RESOLUTION: f64 = 0.5e-6;

/// Two events, and the time between them.
#[derive(Debug)]
pub struct Clock {
    begin: CudaEvent,
    end: CudaEvent,
}

fn failed(gpu: &Gpu, doing: &str, error: DriverError) -> Error {
    error::driver(&gpu.label, doing, error)
}

impl Clock {
    /// Of a device.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let event = || {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            gpu.context.new_event(Some(flags)).map_err(|e| failed(gpu, "make events", e))
        };
        Ok(Self { begin: event()?, end: event()? })
    }

    /// Seconds from where the lane's kernels have come when `work` is called to the end of the last that it enqueues, for
    /// which this waits; at least what the clock can tell.
    ///
    /// # Errors
    /// Of `work`, or what the driver says.
    pub fn time(&self, gpu: &Gpu, lane: &mut Lane, work: impl FnOnce(&mut Lane) -> Result<()>) -> Result<f64> {
        self.begin.record(lane.stream()).map_err(|e| failed(gpu, "start a clock", e))?;
        let done = work(lane);
        let seconds = self.end.record(lane.stream()).and_then(|()| self.begin.elapsed_ms(&self.end));
        done?;
        Ok((f64::from(seconds.map_err(|e| failed(gpu, "read a clock", e))?) / 1e3).max(RESOLUTION))
    }
}

/// Page-locked memory of the host, of so many bytes, in one slot.
///
/// # Errors
/// What the driver says.
pub fn page_locked(gpu: &Gpu, bytes: usize) -> Result<Ring> {
    Ring::new(&gpu.context, 1, bytes).map_err(|e| failed(gpu, "lock pages of the host's memory", e))
}

/// Enqueues a copy of the slot's first bytes to a span, as many as it has.
///
/// # Errors
/// What the driver says.
pub fn send_locked(gpu: &Gpu, lane: &Lane, from: &mut Ring, to: Span) -> Result<()> {
    let address = place(gpu, to, 0, to.bytes)?;
    // SAFETY: `place` checked that the pool holds the span, which the caller has leased from it; the copy is ordered with
    // everything else that the compute stream does to it.
    unsafe { from.slot(0).send(to.bytes as usize, address, lane.stream()) }.map_err(|e| failed(gpu, "copy to it", e))
}

/// Enqueues a copy of a span to the slot's first bytes.
///
/// # Errors
/// What the driver says.
pub fn fetch_locked(gpu: &Gpu, lane: &Lane, from: Span, to: &mut Ring) -> Result<()> {
    let address = place(gpu, from, 0, from.bytes)?;
    // SAFETY: as in `send_locked`; the slot waits for the copy before anyone sees it.
    unsafe { to.slot(0).fetch(from.bytes as usize, address, lane.stream()) }.map_err(|e| failed(gpu, "copy from it", e))
}

/// Copies ordinary memory to a span, and waits for that.
///
/// # Errors
/// `Internal` if the span is not as large, or what the driver says.
pub fn send_pageable(gpu: &Gpu, lane: &Lane, from: &[u8], to: Span) -> Result<()> {
    let address = place(gpu, to, 0, from.len() as u64)?;
    // SAFETY: the span holds as many bytes (`place`), in order with the compute stream's other work; `from` is borrowed until
    // the stream has been waited for.
    let sent = unsafe { result::memcpy_htod_async(address, from, lane.stream().cu_stream()) };
    sent.and(lane.stream().synchronize()).map_err(|e| failed(gpu, "copy to it", e))
}

/// Copies a span to ordinary memory, and waits for that.
///
/// # Errors
/// `Internal` if the span is not as large, or what the driver says.
pub fn fetch_pageable(gpu: &Gpu, lane: &Lane, from: Span, to: &mut [u8]) -> Result<()> {
    let address = place(gpu, from, 0, to.len() as u64)?;
    // SAFETY: as in `send_pageable`; `to` is borrowed, and nobody looks at it, until the stream has been waited for.
    let fetched = unsafe { result::memcpy_dtoh_async(to, address, lane.stream().cu_stream()) };
    fetched.and(lane.stream().synchronize()).map_err(|e| failed(gpu, "copy from it", e))
}

/// Enqueues a copy of a span to another of its size.
///
/// # Errors
/// `Internal` if that is smaller, or what the driver says.
pub fn copy_within(gpu: &Gpu, lane: &Lane, from: Span, to: Span) -> Result<()> {
    let (source, target) = (place(gpu, from, 0, from.bytes)?, place(gpu, to, 0, from.bytes)?);
    // SAFETY: both spans are the caller's and hold as many bytes (`place`); spans of one lease do not overlap.
    unsafe { result::memcpy_dtod_async(target, source, from.bytes as usize, lane.stream().cu_stream()) }
        .map_err(|e| failed(gpu, "copy its memory", e))
}

/// Enqueues C ← A A of square matrices in f32, all of it: without the short form TF32 that cuBLAS offers for them.
///
/// # Errors
/// `Internal` if a span does not hold a matrix of this side, or what cuBLAS says.
pub fn square_single(gpu: &Gpu, lane: &mut Lane, side: usize, a: Span, c: Span) -> Result<()> {
    let bytes = 4 * (side as u64).pow(2);
    let (a, c) = (place(gpu, a, 0, bytes)?, place(gpu, c, 0, bytes)?);
    // SAFETY: both spans hold side×side values (`place`) and are the caller's, used by the compute stream's work alone.
    unsafe { lane.solver()?.blas.square_single(side, a, c) }
}
