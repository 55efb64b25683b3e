//! One device: its context, its kernels, and its memory, which is allocated once.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::error;
use super::lane::{Lane, LaneSizes};
use super::module::Kernels;
use super::pool::{ALIGN_BYTES, Pool};
use crate::backend::device::CudaDevice;
use crate::error::{Error, Result};

/// What of the free memory is left to the driver, which loads code and keeps stacks there: a share, and at least so much.
const LEFT_SHARE: f64 = 0.05;
const LEFT_BYTES: u64 = 64 << 20;

/// An open device.
#[derive(Debug)]
pub struct Gpu {
    /// `cuda:0 (NAME)`.
    pub label: String,
    /// Its number, as in `cuda:N`.
    pub ordinal: u32,
    pub(super) context: Arc<CudaContext>,
    pub(super) kernels: Kernels,
    memory: sys::CUdeviceptr,
    pool: Pool,
}

/// What may be taken of this many free bytes.
pub fn takeable(free: u64) -> u64 {
    let left = ((free as f64 * LEFT_SHARE) as u64).max(LEFT_BYTES.min(free / 4));
    (free - left) / ALIGN_BYTES * ALIGN_BYTES
}

impl Gpu {
    /// Opens a device with so many lanes, and takes `wanted` bytes of its memory, or as much as there is.
    ///
    /// # Errors
    /// `Environment` if the device cannot be opened, or less than `least` bytes can be had.
    pub fn open(
        info: &CudaDevice,
        lanes: usize,
        sizes: LaneSizes,
        wanted: u64,
        least: u64,
    ) -> Result<(Self, Vec<Lane>)> {
        let label = info.label();
        let context = CudaContext::new(info.ordinal as usize).map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => error::driver(&label, "open it", e),
            _ => Error::device(format!("{label}: {}", error::not_opened(e)))
                .hint("check the device with `nvidia-smi`, name another with `--device cuda:N`, or use `--device cpu`"),
        })?;
        // SAFETY: no `CudaSlice` is ever made here, so there is nothing whose use would have to be tracked; streams are
        // ordered by explicit events (`lane`).
        unsafe { context.disable_event_tracking() };
        let kernels = Kernels::new(&context)?;
        kernels.warm()?;
        let opened: Result<Vec<Lane>> = (0..lanes).map(|_| Lane::new(&context, &label, sizes)).collect();
        let opened = opened?;
        let (memory, bytes) = allocate(&context, wanted, least).map_err(|failure| match failure {
            Failure::Driver(e) => error::driver(&label, "allocate its memory", e),
            Failure::Short(has) => Error::device(format!(
                "{label} has too little free memory: {} can be had, and the merge takes at least {}",
                crate::units::format_bytes(has),
                crate::units::format_bytes(least)
            ))
            .hint("end what else uses the device, raise --device-memory, or use `--device cpu`"),
        })?;
        tracing::debug!(
            "{label}: {bytes} bytes of its memory in one piece, {lanes} lanes, kernels by {}",
            Kernels::how()
        );
        let gpu = Self { label, ordinal: info.ordinal, context, kernels, memory, pool: Pool::new(bytes) };
        Ok((gpu, opened))
    }

    /// Its memory.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The address of a place in the pool.
    pub(super) fn address(&self, offset: u64) -> sys::CUdeviceptr {
        self.memory + offset
    }
}

enum Failure {
    Driver(DriverError),
    Short(u64),
}

/// Takes `wanted` bytes, or as many as there are, halving the wish as long as the driver refuses it.
fn allocate(context: &Arc<CudaContext>, wanted: u64, least: u64) -> Result<(sys::CUdeviceptr, u64), Failure> {
    let (free, _) = context.mem_get_info().map_err(Failure::Driver)?;
    let mut bytes = wanted.min(takeable(free as u64)).next_multiple_of(ALIGN_BYTES);
    loop {
        if bytes < least.max(1) {
            return Err(Failure::Short(bytes));
        }
        // SAFETY: the context is current (`mem_get_info` made it so); the memory is freed in `drop` alone.
        match unsafe { result::malloc_sync(bytes as usize) } {
            Ok(memory) => return Ok((memory, bytes)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                tracing::warn!("a device refused {bytes} bytes of its memory; asking for half");
                bytes = (bytes / 2).next_multiple_of(ALIGN_BYTES);
                if bytes <= ALIGN_BYTES {
                    return Err(Failure::Short(0));
                }
            }
            Err(error) => return Err(Failure::Driver(error)),
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // What a lost device says to this changes nothing: the process gives up on it.
        let quiet = self.context.bind_to_thread().and_then(|()| result::ctx::synchronize());
        if quiet.is_ok() {
            // SAFETY: allocated in `open`, freed here alone; the context has nothing left to do with it.
            let _ = unsafe { result::free_sync(self.memory) };
        }
    }
}
