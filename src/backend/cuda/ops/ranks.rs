//! Elements chosen at random by their rank in their row: `kernels/ranks.cu`. CPU twin: [`crate::backend::cpu::ranks`].

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, Shape, arg};
use super::params::{DeviceSources, Load, MAX_MODELS, of_two, spread};
use super::shape::{THREADS, VECTOR, slots};
use super::stages::Stages;
use crate::error::{Error, Result};
use crate::ops::{Chosen, Measured, Restore, Sparsify};

/// `Ranks` of ranks.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    density: [f64; MAX_MODELS],
    least: [f64; MAX_MODELS],
    rise: [f64; MAX_MODELS],
    random: [[u32; 2]; MAX_MODELS],
    keys: u64,
    order: u64,
    chosen: u64,
    stride: u64,
    row_elems: u64,
    scales: u32,
    pad: u32,
}

const _: () = assert!(size_of::<Params>() == 2752);

/// Bytes of the keys and of the order of a run of `len` elements.
pub fn scratch_bytes(len: u64, models: usize, wide: bool) -> [u64; 2] {
    let all = len * models as u64;
    [all * if wide { 8 } else { 4 }, all * 8]
}

/// Bytes of what is chosen of one model, on the device: whole words, at multiples of 16.
pub fn stride(elems: u64, scales: bool) -> u64 {
    Chosen::bytes(elems, scales).next_multiple_of(16)
}

/// What lies on the device of one model.
pub fn chosen_of(bytes: &[u8], elems: u64, scales: bool) -> Chosen {
    let bytes = &bytes[..Chosen::bytes(elems, scales) as usize];
    let scale = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
    if scales {
        Chosen::Scales(bytes.as_chunks::<4>().0.iter().map(scale).collect())
    } else {
        Chosen::Bits(bytes.to_vec())
    }
}

/// Where [`choose`] works.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The keys and the order ([`scratch_bytes`]).
    pub scratch: [u64; 2],
    /// What is chosen of all elements of the tensor, a [`stride`] a model; zeroed before the first run.
    pub chosen: u64,
    /// The stride.
    pub stride: u64,
}

/// Chooses among the elements of a run of whole rows.
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
pub fn choose(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    m: &Measured,
    wide: bool,
    stages: Stages,
    sources: &DeviceSources<'_>,
    places: Places,
) -> Result<()> {
    let Sparsify::Ranked { density, slopes, restore, keys } = &m.sparsify else {
        return Err(Error::internal("elements are ranked that are not chosen by rank"));
    };
    let row = m.geometry.last;
    if sources.len == 0 || row == 0 {
        return Ok(());
    }
    let params = Params {
        load: Load::new(sources, m.geometry, stages)?,
        density: spread(density.iter().copied(), 0.0),
        least: spread(slopes.iter().map(|slope| slope.least), 0.0),
        rise: spread(slopes.iter().map(|slope| slope.rise), 0.0),
        random: spread(keys.iter().copied(), [0; 2]),
        keys: places.scratch[0],
        order: places.scratch[1],
        chosen: places.chosen,
        stride: places.stride,
        row_elems: row,
        scales: u32::from(*restore == Restore::Inverse),
        pad: 0,
    };
    let (models, kind) = (params.load.sources.count, sources.kind(wide));
    let (threads, shared_bytes) = slots(kernels, models, kind.value_bytes(), 0, 0)?;
    let shape = Shape { grid: (sources.len.div_ceil(VECTOR * u64::from(threads)), 1), threads, shared_bytes };
    kernels.launch(stream, "ranks", of_two(kind, ["ranks_keys_any", "ranks_keys_f64"]), shape, &[arg(&params)])?;
    let shape = Shape { grid: (sources.len / row, models), threads: THREADS, shared_bytes: 0 };
    kernels.launch(stream, "ranks", of_two(kind, ["ranks_choose_any", "ranks_choose_f64"]), shape, &[arg(&params)])
}
