//! Mean scores of columns: `kernels/columns.cu`. CPU twin: [`crate::backend::cpu::stats::add_column_scores`].

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, Shape, arg};
use super::params::{DeviceSources, Load, Place, of_two, score_code};
use super::shape::{VECTOR, by_threads, slots};
use super::stages::Stages;
use crate::error::{Error, Result};
use crate::ops::{Geometry, Gram, Score, Vectors};

/// `Columns` of columns.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    totals: u64,
    score: u32,
    pad: u32,
}

const _: () = assert!(size_of::<Params>() == 672);

/// Columns that a block takes.
const COLUMNS: u64 = 64;

/// Bytes of the totals.
pub fn totals_bytes(geometry: Geometry, models: usize) -> u64 {
    geometry.columns * models as u64 * 8
}

/// Adds the scores of a run of whole rows to the totals of the columns, `f64[models][columns]`, zeroed before the first run. Runs
/// of one tensor follow each other in order. Of a vector, whose columns are its elements, the run is the whole of it.
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn add_column_scores(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    score: Score,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    totals: u64,
) -> Result<()> {
    if sources.len == 0 {
        return Ok(());
    }
    let params = Params { load: Load::new(sources, geometry, stages)?, totals, score: score_code(score), pad: 0 };
    let (models, kind) = (params.load.sources.count, sources.kind(wide));
    let (threads, shared_bytes) = slots(kernels, models, kind.value_bytes(), 0, 0)?;
    let (names, blocks) = if geometry.inner <= 1 {
        (["columns_rows_any", "columns_rows_f64"], geometry.columns.div_ceil(COLUMNS))
    } else {
        (["columns_inner_any", "columns_inner_f64"], geometry.columns.div_ceil(threads.into()))
    };
    let shape = Shape { grid: (blocks, 1), threads, shared_bytes };
    kernels.launch(stream, "columns", of_two(kind, names), shape, &[arg(&params)])
}

/// Bytes of the totals of [`add_products`], of so many lines.
pub fn products_bytes(lines: u64, vectors: usize) -> u64 {
    lines * Gram::len(vectors) as u64 * 8
}

/// Adds the products of every two vectors, in the order of [`Gram::pairs`], of a run of whole rows to the totals of its lines along the
/// first dimension, `f64[elements of a row][pairs]`, zeroed before the first run. Runs of one tensor follow each other in order. Twin:
/// [`crate::backend::cpu::lines::add_products`].
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn add_products(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    wide: bool,
    of: Vectors,
    geometry: Geometry,
    stages: Stages,
    sources: &DeviceSources<'_>,
    totals: u64,
) -> Result<()> {
    if sources.len == 0 {
        return Ok(());
    }
    let all: Vec<Place> = sources.base.iter().chain(sources.models).copied().collect();
    let (stages, taken) = match of {
        Vectors::TaskVectors => (stages, *sources),
        // Parameters, measured from nothing.
        Vectors::Parameters => (Stages::default(), DeviceSources { base: None, models: &all, ..*sources }),
        Vectors::BaseAndTaskVectors => {
            return Err(Error::internal("no products of the base are summed along the first dimension"));
        }
    };
    let params = Params { load: Load::new(&taken, geometry, stages)?, totals, score: 0, pad: 0 };
    let (models, kind) = (params.load.sources.count, taken.kind(wide));
    let (threads, shared_bytes) = slots(kernels, models, kind.value_bytes(), 0, 0)?;
    let blocks = geometry.row_elems.div_ceil(VECTOR * u64::from(threads));
    let shape = Shape { grid: (blocks, 1), threads, shared_bytes };
    kernels.launch(
        stream,
        "columns",
        of_two(kind, ["columns_products_any", "columns_products_f64"]),
        shape,
        &[arg(&params)],
    )
}

/// Turns totals of all rows into means.
///
/// # Errors
/// `Environment` if it cannot be launched.
pub fn finish_columns(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    geometry: Geometry,
    models: usize,
    totals: u64,
) -> Result<()> {
    let (count, elems) = (geometry.columns * models as u64, geometry.column_elems() as f64);
    if count == 0 {
        return Ok(());
    }
    kernels.launch(stream, "columns", "columns_finish", by_threads(count), &[arg(&totals), arg(&count), arg(&elems)])
}
