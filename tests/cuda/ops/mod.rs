//! Single operations on a device, element by element beside the CPU's: the device, and stored sources to run them on.

mod contract;
mod lane;
mod low_rank;

use std::cell::RefCell;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, sys};
use merganser::backend::cuda::module::Kernels;
use merganser::backend::cuda::ops::{DeviceSources, Place};
use merganser::dtype::DtypeExt;

use crate::support::operations::Family;
use crate::support::skip;

/// The first device, one stream, and what a test has put there.
pub struct Gpu {
    pub kernels: Kernels,
    pub stream: Arc<CudaStream>,
    kept: RefCell<Vec<(u64, CudaSlice<u8>)>>,
}

impl Gpu {
    /// The first device; `None` where there is none: the test is skipped.
    pub fn open() -> Option<Self> {
        // SAFETY: only looks for the library.
        #[allow(unsafe_code)]
        let is_present = unsafe { sys::is_culib_present() };
        let context = is_present.then(|| CudaContext::new(0));
        match context {
            Some(Ok(context)) => {
                let kernels = Kernels::new(&context).unwrap();
                Some(Self { kernels, stream: context.new_stream().unwrap(), kept: RefCell::default() })
            }
            other => {
                assert!(std::env::var_os("MERGANSER_REQUIRE_CUDA").is_none(), "no CUDA device: {other:?}");
                skip("no CUDA device");
                None
            }
        }
    }

    /// Copies bytes to the device, `phase` bytes past a multiple of 256. Memory ends with the last byte.
    pub fn put_at(&self, phase: usize, bytes: &[u8]) -> u64 {
        let mut all = vec![0xFF; phase];
        all.extend_from_slice(bytes);
        all.resize(all.len().max(1), 0xFF);
        let slice = self.stream.clone_htod(&all).unwrap();
        let at = slice.device_ptr(&self.stream).0;
        self.kept.borrow_mut().push((at + phase as u64, slice));
        at + phase as u64
    }

    pub fn put<T: bytemuck::Pod>(&self, values: &[T]) -> u64 {
        self.put_at(0, bytemuck::cast_slice(values))
    }

    pub fn zeros(&self, bytes: u64) -> u64 {
        self.put(&vec![0u8; bytes as usize])
    }

    /// What lies at an address that `put` or `zeros` gave.
    pub fn get<T: bytemuck::Pod>(&self, at: u64) -> Vec<T> {
        let kept = self.kept.borrow();
        let (start, slice) = kept.iter().find(|(start, _)| *start == at).unwrap();
        let bytes = self.stream.clone_dtoh(slice).unwrap();
        self.stream.synchronize().unwrap();
        let phase = (start - slice.device_ptr(&self.stream).0) as usize;
        bytes[phase..].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    /// Forgets what was put there.
    pub fn clear(&self) {
        self.stream.synchronize().unwrap();
        self.kept.borrow_mut().clear();
    }
}

/// A family's sources as a device takes them, `phase` elements past an aligned address.
fn on_device<T>(family: &Family, gpu: &Gpu, phase: usize, take: impl FnOnce(&DeviceSources<'_>) -> T) -> T {
    let places: Vec<Place> = family
        .stored
        .iter()
        .map(|(dtype, bytes)| Place {
            dtype: *dtype,
            ptr: gpu.put_at(phase * dtype.size_bytes().unwrap() as usize, bytes),
        })
        .collect();
    take(&DeviceSources { base: Some(places[0]), models: &places[1..], start: family.start, len: family.len as u64 })
}
