//! How fast cuBLAS multiplies matrices, and how fast cuSOLVER finds the eigenvectors that a merge of matrices takes.

use super::device::Open;
use crate::backend::cuda::cublas::{Operand, Sides};
use crate::backend::cuda::cusolver;
use crate::backend::cuda::lane::place;
use crate::backend::cuda::rates::{self, Clock};
use crate::bench::data::normals;
use crate::bench::matrices::side;
use crate::bench::{Bench, Row, Unit, rounds};
use crate::cost::cards::Card;
use crate::cost::rates as cost;
use crate::error::{Error, Result};

/// Names of the limits.
const F32: &str = "matrix product, f32 without TF32";
pub const F64: &str = "matrix product, f64";

const LONGEST_PRODUCT: usize = 8192;
/// Matrices that are decomposed together, and the longest side of theirs and of one by itself: those of eight ViT-L/14, and of
/// an 8 B parameter model.
const BATCH: usize = 8;
const LONGEST_OF_BATCH: usize = 1024;
const LONGEST_ALONE: usize = 4096;
/// Operations of all eigenvalues and eigenvectors of a symmetric matrix of side n, as usually counted: so many n³.
const EIGEN_OPERATIONS: f64 = 9.0;

fn noise<T: bytemuck::Pod + From<f32>>(elems: usize) -> Vec<T> {
    normals(elems).into_iter().map(T::from).collect()
}

/// A square product in f32, and one in f64.
pub(super) fn products(bench: &mut Bench<'_>) -> Result<()> {
    // Two matrices in f64.
    let side = side(bench.settings.size_bytes as usize / 16, LONGEST_PRODUCT);
    let elems = side * side;
    let (mut open, spans) = Open::with_spans(bench.settings, &[8 * elems as u64; 2], true)?;
    let (gpu, lane) = open.first()?;
    let clock = Clock::new(gpu)?;
    let card = bench.card();
    let row = |name, peak: fn(&Card) -> f64| {
        let row = Row::new(name, 1, Unit::Operations, 2.0 * (side as f64).powi(3), None);
        row.predicted(card.map(|card| cost::products(peak(card))))
    };

    lane.put(gpu, spans[0], 0, bytemuck::cast_slice(&noise::<f32>(elems)))?;
    bench.measure(row(F32, |card| card.f32), |stop| {
        rounds::check(stop)?;
        clock.time(gpu, lane, |lane| rates::square_single(gpu, lane, side, spans[0], spans[1]))
    })?;
    lane.finish()?;
    lane.put(gpu, spans[0], 0, bytemuck::cast_slice(&noise::<f64>(elems)))?;
    let operand = |at: usize| -> Result<Operand> {
        Ok(Operand { ptr: place(gpu, spans[at], 0, 0)?, ld: side, stride: elems as u64, is_transposed: false })
    };
    let (a, c) = (operand(0)?, operand(1)?);
    let sides = Sides { m: side, n: side, k: side, batch: 1 };
    bench.measure(row(F64, |card| card.f64_products), |stop| {
        rounds::check(stop)?;
        clock.time(gpu, lane, |lane| lane.multiply(gpu, sides, a, a, c, false))
    })?;
    lane.finish()
}

/// Eigenvectors of one large matrix, and of several smaller ones in one call.
pub(super) fn eigenvectors(bench: &mut Bench<'_>) -> Result<()> {
    let size = bench.settings.size_bytes as usize;
    decompositions(bench, side(size / 32, LONGEST_ALONE), 1)?;
    decompositions(bench, side(size / 32 / BATCH, LONGEST_OF_BATCH), BATCH)
}

fn decompositions(bench: &mut Bench<'_>, side: usize, count: usize) -> Result<()> {
    let (elems, side_bytes) = (side * side * count, 8 * (side * count) as u64);
    // What the workspace takes is known to an open library alone.
    let (mut asked, _) = Open::with_spans(bench.settings, &[1], true)?;
    let eigen = &asked.first()?.1.solver()?.eigen;
    let at_once = eigen.batch(side, count);
    let workspace_bytes = eigen.workspace_bytes(side, at_once)?;
    drop(asked);

    let bytes = 8 * elems as u64;
    let sizes = [bytes, bytes, side_bytes, 4 * count as u64, workspace_bytes];
    let (mut open, spans) = Open::with_spans(bench.settings, &sizes, true)?;
    let (gpu, lane) = open.first()?;
    // Of a symmetric matrix one triangle is read: that of any matrix will do.
    lane.put(gpu, spans[0], 0, bytemuck::cast_slice(&noise::<f64>(elems)))?;
    let clock = Clock::new(gpu)?;
    let work = EIGEN_OPERATIONS * (side as f64).powi(3) * count as f64;
    let name = match count {
        1 => format!("eigenvectors, f64, side {side}"),
        _ => format!("eigenvectors, f64, {count} of side {side}, {at_once} a call"),
    };
    let mut infos = vec![0i32; count];
    let (n, calls) = (side as f64, count.div_ceil(at_once) as f64);
    let predicted = bench.card().map(|card| work / cost::eigen_seconds(card, n, count as f64, calls));
    bench.measure(Row::new(name, 1, Unit::Operations, work, None).predicted(predicted), |stop| {
        rates::copy_within(gpu, lane, spans[0], spans[1])?;
        let seconds = clock.time(gpu, lane, |lane| {
            for first in (0..count).step_by(at_once) {
                rounds::check(stop)?;
                let at = |span, each: usize| place(gpu, span, (first * each) as u64, 0);
                let at = cusolver::Place {
                    matrices: at(spans[1], 8 * side * side)?,
                    values: at(spans[2], 8 * side)?,
                    info: at(spans[3], 4)?,
                    workspace: place(gpu, spans[4], 0, 0)?,
                    workspace_bytes,
                };
                lane.decompose(gpu, side, at_once.min(count - first), at)?;
            }
            Ok(())
        })?;
        lane.get(gpu, spans[3], 0, bytemuck::cast_slice_mut(&mut infos))?;
        if infos.iter().all(|info| *info == 0) {
            return Ok(seconds);
        }
        Err(Error::device(format!("the eigenvectors of a {side}×{side} matrix did not converge on {}", gpu.label)))
    })?;
    lane.finish()
}
