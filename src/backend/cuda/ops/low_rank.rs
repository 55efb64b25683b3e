//! What low-rank merges do beside matrix products: `kernels/centre.cu`, `dense.cu`. CPU twins: `src/backend/cpu/low_rank/`.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, Shape, arg};
use super::params::{DeviceSources, Kind, Load, MAX_MODELS, Place, code, of_two, spread};
use super::shape::{THREADS, VECTOR, by_threads, by_vectors, slots};
use super::stages::Stages;
use crate::error::{Error, Result};
use crate::ops::{Centre, Geometry, LowRank};

/// `Centre` of centre.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    weights: [f64; MAX_MODELS],
    scale: [f64; MAX_MODELS],
    parts: u64,
    sum: u64,
    origin: u64,
    stride: u64,
    whole: f64,
    first: u32,
    last: u32,
    part_dtype: u32,
    pad: u32,
}

const _: () = assert!(size_of::<Params>() == 1736);

/// Where a matrix's task vectors come from.
#[derive(Debug, Clone, Copy)]
pub struct Centring<'a> {
    /// The merge.
    pub work: &'a LowRank,
    /// Whether stages compute in f64.
    pub wide: bool,
    /// Rows and columns of the tensor.
    pub geometry: Geometry,
    /// Stages in front of the method, as measured.
    pub stages: Stages,
}

/// The number of f32 or f64 in the kernels.
fn float_code(double: bool) -> u32 {
    u32::from(!double)
}

/// Task vectors A_t of `tasks` of a run, row-major as the run is: that of task t at `parts` + (t − first)·`stride` values, f64 where
/// `double`, else f32. What they are measured from goes to `origin`, f64, unless that is 0.
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn centre(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    centring: &Centring<'_>,
    sources: &DeviceSources<'_>,
    tasks: Range<usize>,
    double: bool,
    parts: u64,
    stride: u64,
    origin: u64,
) -> Result<()> {
    let params = Params { parts, stride, origin, part_dtype: float_code(double), ..Params::zeroed() };
    launch_centre(kernels, stream, centring, sources, tasks, params)
}

/// Σ scale_t A_t of `tasks` of a run, in f64; `scale` is by task of the range.
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
pub fn weighted(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    centring: &Centring<'_>,
    sources: &DeviceSources<'_>,
    tasks: Range<usize>,
    scale: &[f64],
    out: u64,
) -> Result<()> {
    let mut params = Params { sum: out, ..Params::zeroed() };
    params.scale.iter_mut().skip(tasks.start).zip(scale).for_each(|(to, from)| *to = *from);
    launch_centre(kernels, stream, centring, sources, tasks, params)
}

fn launch_centre(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    centring: &Centring<'_>,
    sources: &DeviceSources<'_>,
    tasks: Range<usize>,
    params: Params,
) -> Result<()> {
    if sources.len == 0 {
        return Ok(());
    }
    let Centring { work, wide, geometry, stages } = *centring;
    if work.reads_base() && sources.base.is_none() {
        return Err(Error::internal("task vectors need the base"));
    }
    let params = Params {
        load: Load::new(sources, geometry, stages)?,
        weights: spread(work.weights.iter().copied(), 0.0),
        whole: if work.centre == Centre::Average { work.weights.iter().sum() } else { 0.0 },
        first: tasks.start as u32,
        last: tasks.end.min(sources.models.len()) as u32,
        ..params
    };
    let mut shape = by_vectors(sources.len);
    let mut kernel = "centre_plain";
    if stages.count > 0 {
        let kind = if wide { Kind::F64 } else { Kind::Any };
        let (threads, shared_bytes) = slots(kernels, params.load.sources.count, kind.value_bytes(), 0, 0)?;
        shape = Shape { grid: (sources.len.div_ceil(VECTOR * u64::from(threads)), 1), threads, shared_bytes };
        kernel = of_two(kind, ["centre_staged_any", "centre_staged_f64"]);
    }
    kernels.launch(stream, "centre", kernel, shape, &[arg(&params)])
}

/// Bytes of scratch of [`add_low_rank`] and [`squares`]: a pair of sums for each 2048 values.
pub fn add_scratch_bytes(len: u64) -> u64 {
    16 * by_vectors(len).grid.0
}

/// `merged` (f64) ← merged + c·`low`, unchanged where c·low is 0. Where `a` is not 0: `norms[0]` += Σ (a − low)², `norms[1]` += Σ a²
/// (f64), summed in an order that `len` fixes. `low` and `a` are f64 where `double`, else f32.
///
/// # Errors
/// `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn add_low_rank(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    merged: u64,
    low: u64,
    a: u64,
    double: bool,
    c: f64,
    len: u64,
    scratch: u64,
    norms: u64,
) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let dtype = float_code(double);
    let args = [arg(&merged), arg(&low), arg(&a), arg(&dtype), arg(&c), arg(&len), arg(&scratch)];
    kernels.launch(stream, "dense", "dense_add", by_vectors(len), &args)?;
    if a == 0 { Ok(()) } else { fold(kernels, stream, len, scratch, norms, 2, true) }
}

/// `out[0]` (f64) ← Σ x² of f64 where `double`, else f32, summed in an order that `len` fixes.
///
/// # Errors
/// `Environment` if it cannot be launched.
pub fn squares(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    x: u64,
    double: bool,
    len: u64,
    scratch: u64,
    out: u64,
) -> Result<()> {
    if len > 0 {
        let dtype = float_code(double);
        let args = [arg(&x), arg(&dtype), arg(&len), arg(&scratch)];
        kernels.launch(stream, "dense", "dense_squares", by_vectors(len), &args)?;
    }
    fold(kernels, stream, len, scratch, out, 1, false)
}

fn fold(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    len: u64,
    scratch: u64,
    out: u64,
    width: u32,
    add: bool,
) -> Result<()> {
    let (tiles, add) = (by_vectors(len).grid.0, u32::from(add));
    let shape = Shape { grid: (1, 1), threads: THREADS, shared_bytes: 0 };
    let args = [arg(&scratch), arg(&tiles), arg(&out), arg(&width), arg(&add)];
    kernels.launch(stream, "dense", "dense_fold", shape, &args)
}

/// Rounds `merged` (f64) once to `out`; `facts[0]` (u64) += results that are NaN or infinite.
///
/// # Errors
/// `Internal` if `out` cannot be, `Environment` if it cannot be launched.
pub fn round(kernels: &Kernels, stream: &Arc<CudaStream>, merged: u64, out: Place, len: u64, facts: u64) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let dtype = u32::from(code(out)?);
    let args = [arg(&merged), arg(&out.ptr), arg(&dtype), arg(&len), arg(&facts)];
    kernels.launch(stream, "dense", "dense_round", by_vectors(len), &args)
}

/// `to` ← `from`, each f64 or f32, rounded to nearest even.
///
/// # Errors
/// `Environment` if it cannot be launched.
pub fn convert(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    from: u64,
    from_double: bool,
    to: u64,
    to_double: bool,
    len: u64,
) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let (from_dtype, to_dtype) = (float_code(from_double), float_code(to_double));
    let args = [arg(&from), arg(&from_dtype), arg(&to), arg(&to_dtype), arg(&len)];
    kernels.launch(stream, "dense", "dense_convert", by_vectors(len), &args)
}

/// `out[j]` (f64) ← ‖back_j − values_j·basis_j‖ of column-major matrices of `rows`×`cols`.
///
/// # Errors
/// `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn residuals(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    back: u64,
    basis: u64,
    double: bool,
    values: u64,
    rows: u64,
    cols: u64,
    out: u64,
) -> Result<()> {
    if cols == 0 {
        return Ok(());
    }
    let dtype = float_code(double);
    let shape = Shape { grid: (cols, 1), threads: THREADS, shared_bytes: 0 };
    let args = [arg(&back), arg(&basis), arg(&dtype), arg(&values), arg(&rows), arg(&out)];
    kernels.launch(stream, "dense", "dense_residuals", shape, &args)
}

/// Column j of a column-major matrix of `rows`×`cols` times `scale[j]` (f64).
///
/// # Errors
/// `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn scale_columns(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    x: u64,
    double: bool,
    scale: u64,
    rows: u64,
    cols: u64,
) -> Result<()> {
    let (len, dtype) = (rows * cols, float_code(double));
    if len == 0 {
        return Ok(());
    }
    let args = [arg(&x), arg(&dtype), arg(&scale), arg(&rows), arg(&len)];
    kernels.launch(stream, "dense", "dense_scale", by_threads(len), &args)
}

/// `out[0]` (u64) += values that are NaN or infinite.
///
/// # Errors
/// `Environment` if it cannot be launched.
pub fn count_nonfinite(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    x: u64,
    double: bool,
    len: u64,
    out: u64,
) -> Result<()> {
    if len == 0 {
        return Ok(());
    }
    let dtype = float_code(double);
    kernels.launch(stream, "dense", "dense_nonfinite", by_vectors(len), &[arg(&x), arg(&dtype), arg(&len), arg(&out)])
}
