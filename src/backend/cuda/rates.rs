//! What a device does without merganser's kernels, for `bench`: copies, products in f32; and a clock of the device's own.
//!
//! Everything here goes on a lane's compute stream, one after the other.
#![allow(unsafe_code)]

use cudarc::cublas::{result as blas, sys as cublas};
use cudarc::driver::{CudaEvent, DriverError, result, sys};

use super::gpu::Gpu;
use super::lane::{Lane, place};
use super::pinned::Ring;
use super::pool::Span;
use super::{cublas as products, error};
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

/// Products of matrices in f32, all of it: without the short form TF32 that cuBLAS offers for them.
#[derive(Debug)]
pub struct SingleProducts(cublas::cublasHandle_t);

impl SingleProducts {
    /// On a lane's stream.
    ///
    /// # Errors
    /// If cuBLAS is missing, or what it says.
    pub fn new(gpu: &Gpu, lane: &Lane) -> Result<Self> {
        // SAFETY: it only tries to load libraries of these names.
        if !unsafe { cublas::is_culib_present() } {
            return Err(products::missing("libcublas"));
        }
        lane.bind()?;
        let handle = blas::create_handle().map_err(|e| said(gpu, "start", e))?;
        let new = Self(handle);
        // SAFETY: the handle is live, and the caller keeps the lane for as long as it multiplies.
        unsafe { blas::set_stream(handle, lane.stream().cu_stream().cast()) }
            .map_err(|e| said(gpu, "take a stream", e))?;
        // SAFETY: the handle is live. Without short forms is the default, which an environment variable can change.
        unsafe { cublas::cublasSetMathMode(handle, cublas::cublasMath_t::CUBLAS_PEDANTIC_MATH).result() }
            .map_err(|e| said(gpu, "compute in f32", e))?;
        Ok(new)
    }

    /// Enqueues C ← A A of square matrices in f32.
    ///
    /// # Errors
    /// `Internal` if a span does not hold a matrix of this side, or what cuBLAS says.
    pub fn square(&mut self, gpu: &Gpu, side: usize, a: Span, c: Span) -> Result<()> {
        let bytes = 4 * (side as u64).pow(2);
        let (a, c) = (place(gpu, a, 0, bytes)? as *const f32, place(gpu, c, 0, bytes)? as *mut f32);
        let n = i32::try_from(side).map_err(|_| Error::internal(format!("a side of {side} for cuBLAS")))?;
        let op = cublas::cublasOperation_t::CUBLAS_OP_N;
        let (one, zero) = (1f32, 0f32);
        // SAFETY: both spans hold n×n values (`place`), used by this stream's work alone; the scalars are the host's and are read
        // before the call returns.
        unsafe { blas::sgemm(self.0, op, op, n, n, n, &one, a, n, a, n, &zero, c, n) }
            .map_err(|e| said(gpu, "multiply matrices", e))
    }
}

impl Drop for SingleProducts {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed here alone. What it says changes nothing.
        let _ = unsafe { blas::destroy_handle(self.0) };
    }
}

fn said(gpu: &Gpu, doing: &str, error: blas::CublasError) -> Error {
    Error::environment(format!("cuBLAS on {} could not {doing}: {:?}", gpu.label, error.0))
}
