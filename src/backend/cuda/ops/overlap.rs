//! Elements that task vectors change alone and together: `kernels/overlap.cu`. CPU twin: [`crate::backend::cpu::overlap`].

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, Shape, arg};
use super::params::{DeviceSources, Load, of_two};
use super::shape::{VECTOR, slots};
use super::stages::Stages;
use crate::error::Result;
use crate::ops::Geometry;

/// `Overlap` of overlap.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    counts: u64,
    threshold: f64,
}

const _: () = assert!(size_of::<Params>() == 672);

/// Bytes of the counts: `u64[models][2]`, elements changed alone and shared ones.
pub fn counts_bytes(models: usize) -> u64 {
    models as u64 * 16
}

/// Adds the counts of a run to those at `counts` ([`counts_bytes`], zeroed before the first run).
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn overlap(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    threshold: f64,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    counts: u64,
) -> Result<()> {
    if sources.len == 0 {
        return Ok(());
    }
    let params = Params { load: Load::new(sources, geometry, stages)?, counts, threshold };
    let kind = sources.kind(wide);
    let (threads, shared_bytes) = slots(kernels, params.load.sources.count, kind.value_bytes(), 0, 0)?;
    let grid = (sources.len.div_ceil(VECTOR * u64::from(threads)), 1);
    let shape = Shape { grid, threads, shared_bytes };
    kernels.launch(stream, "overlap", of_two(kind, ["overlap_any", "overlap_f64"]), shape, &[arg(&params)])
}
