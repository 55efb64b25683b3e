//! Single operations on a device, element by element beside the CPU's: the device, and stored sources to run them on.

mod blend;
mod cases;
mod low_rank;
mod select;
mod sums;

use std::cell::RefCell;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, sys};
use merganser::backend::cpu::prune::Sources;
use merganser::backend::cpu::stored::Stored;
use merganser::backend::cuda::module::Kernels;
use merganser::backend::cuda::ops::{DeviceSources, Place};
use merganser::dtype::{Dtype, DtypeExt};

use crate::support::family::Rng;

/// Every type that is merged.
pub const DTYPES: [Dtype; 6] = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::F64];
/// Lengths around the ends of vectors, warps and segments.
pub const LENGTHS: [usize; 8] = [1, 7, 8, 31, 33, 2047, 5000, 65_537];

/// The first device, one stream, and what a test has put there.
pub struct Gpu {
    pub kernels: Kernels,
    pub stream: Arc<CudaStream>,
    kept: RefCell<Vec<(u64, CudaSlice<u8>)>>,
}

impl Gpu {
    /// The first device; `None`, with the reason printed, where there is none.
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
                eprintln!("skipped: no CUDA device ({other:?})");
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

/// Sources of one tensor: θ₀ first.
pub struct Family {
    pub stored: Vec<(Dtype, Vec<u8>)>,
    pub start: u64,
    pub len: usize,
}

impl Family {
    /// θ₀ and `models` fine-tunes of it, near it, with ties, zeros of both signs, subnormals and large numbers among them.
    pub fn new(seed: u64, dtypes: &[Dtype], models: usize, len: usize) -> Self {
        let mut rng = Rng(seed);
        let base: Vec<f64> = (0..len).map(|_| value(&mut rng)).collect();
        let of = |t: usize| dtypes[t % dtypes.len()];
        let mut stored = vec![(of(0), narrow(of(0), &base))];
        for t in 1..=models {
            let values: Vec<f64> = base.iter().map(|b| b + change(&mut rng)).collect();
            stored.push((of(t), narrow(of(t), &values)));
        }
        Self { stored, start: 0, len }
    }

    /// Puts numbers in place of some of a source's.
    pub fn set(&mut self, source: usize, at: usize, value: f64) {
        let (dtype, bytes) = &mut self.stored[source];
        let size = dtype.size_bytes().unwrap() as usize;
        bytes[at * size..(at + 1) * size].copy_from_slice(&narrow(*dtype, &[value]));
    }

    pub fn models(&self) -> usize {
        self.stored.len() - 1
    }

    pub fn wide(&self) -> bool {
        self.stored.iter().any(|(dtype, _)| *dtype == Dtype::F64)
    }

    /// As the CPU takes them.
    pub fn on_cpu<T>(&self, take: impl FnOnce(&Sources<'_>) -> T) -> T {
        let runs: Vec<Stored<'_>> = self.stored.iter().map(|(dtype, bytes)| Stored { dtype: *dtype, bytes }).collect();
        take(&Sources { base: Some(runs[0]), models: &runs[1..], start: self.start, len: self.len })
    }

    /// As a device takes them, `phase` elements past an aligned address.
    pub fn on_device<T>(&self, gpu: &Gpu, phase: usize, take: impl FnOnce(&DeviceSources<'_>) -> T) -> T {
        let places: Vec<Place> = self
            .stored
            .iter()
            .map(|(dtype, bytes)| Place {
                dtype: *dtype,
                ptr: gpu.put_at(phase * dtype.size_bytes().unwrap() as usize, bytes),
            })
            .collect();
        take(&DeviceSources { base: Some(places[0]), models: &places[1..], start: self.start, len: self.len as u64 })
    }
}

/// Values as stored bytes.
pub fn narrow(dtype: Dtype, values: &[f64]) -> Vec<u8> {
    use merganser::backend::cpu::stored::Widen;
    let mut bytes = vec![0; values.len() * dtype.size_bytes().unwrap() as usize];
    f64::narrow(values, dtype, &mut bytes);
    bytes
}

/// Stored bytes as values.
pub fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let mut values = vec![0.0; bytes.len() / dtype.size_bytes().unwrap() as usize];
    Stored { dtype, bytes }.widen(0, &mut values);
    values
}

/// Fails at the first element whose bits differ; NaNs are equal.
pub fn assert_same(expected: &[f64], found: &[f64], what: &dyn std::fmt::Debug) {
    assert_eq!(expected.len(), found.len(), "{what:?}");
    for (i, (a, b)) in expected.iter().zip(found).enumerate() {
        let is_same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(is_same, "{what:?}: element {i} is {b:e} and not {a:e}");
    }
}

/// In −1..1.
pub fn unit(rng: &mut Rng) -> f64 {
    2.0 * rng.unit() - 1.0
}

fn value(rng: &mut Rng) -> f64 {
    match rng.bits() % 40 {
        0 => 0.0,
        1 => -0.0,
        2 => unit(rng) * 1e-42,
        3 => unit(rng) * 200.0,
        _ => unit(rng) * 0.1,
    }
}

fn change(rng: &mut Rng) -> f64 {
    match rng.bits() % 8 {
        0 | 1 => 0.0,
        2 => 0.015_625,
        3 => -0.015_625,
        4 => unit(rng) * 1e-3,
        _ => unit(rng) * 0.02,
    }
}
