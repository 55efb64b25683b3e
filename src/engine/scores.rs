//! Mean scores of rows and columns of one tensor, from its sources: for a merge, and for whoever asks what it would prune.

use std::ops::Range;

use super::with_sources;
use crate::backend::cpu::prune::Scratch;
use crate::backend::cpu::stats;
use crate::backend::cpu::stored::Widen;
use crate::error::Result;
use crate::ops::{Geometry, Prune, SEGMENT, StageState};
use crate::plan::{Plan, TensorPlan};

/// Mean scores of some rows, by model, of the task vectors that `stages` leave.
pub(crate) fn of_rows<C: Widen>(
    (plan, tensor): (&Plan, &TensorPlan),
    prune: Prune,
    stages: &[(Prune, StageState)],
    rows: Range<u64>,
    raw: &mut [Vec<u8>],
    scratch: &mut Scratch<C>,
) -> Result<Vec<Vec<f64>>> {
    let geometry = Geometry::of(&tensor.shape);
    // Whole rows at a time, as many as a segment holds.
    let at_once = (SEGMENT as u64 / geometry.row_elems.max(1)).max(1);
    let mut scores = vec![Vec::new(); tensor.models.len()];
    for first in rows.clone().step_by(at_once as usize) {
        let last = (first + at_once).min(rows.end);
        with_sources(plan, tensor, first * geometry.row_elems, last * geometry.row_elems, raw, |sources| {
            let part = stats::row_scores(prune.score, geometry, stages, sources, scratch);
            scores.iter_mut().zip(part).for_each(|(all, part)| all.extend(part));
        })?;
    }
    Ok(scores)
}

/// Mean scores of some columns, by model, of the task vectors that `stages` leave.
pub(crate) fn of_columns<C: Widen>(
    (plan, tensor): (&Plan, &TensorPlan),
    prune: Prune,
    stages: &[(Prune, StageState)],
    columns: Range<u64>,
    raw: &mut [Vec<u8>],
    scratch: &mut Scratch<C>,
) -> Result<Vec<Vec<f64>>> {
    let geometry = Geometry::of(&tensor.shape);
    let width = (columns.end - columns.start) as usize;
    let (row, inner) = (geometry.columns * geometry.inner, geometry.inner);
    let mut totals = vec![vec![0.0; width]; tensor.models.len()];
    for first in (0..tensor.elems).step_by(row.max(1) as usize) {
        let (from, to) = (first + columns.start * inner, first + columns.end * inner);
        with_sources(plan, tensor, from, to, raw, |sources| {
            stats::add_column_scores(prune.score, geometry, stages, sources, columns.start, &mut totals, scratch);
        })?;
    }
    let elems = geometry.column_elems();
    totals.iter_mut().flatten().for_each(|total| *total /= elems as f64);
    Ok(totals)
}
