//! Which part of which tensor a unit of work is.

use std::ops::Range;

use crate::ops::{Geometry, SEGMENT};
use crate::plan::graph::{unit_columns, unit_rows};

/// Elements of a unit: whole segments, few enough that their results may wait.
pub(super) const UNIT_ELEMS: u64 = 8 * SEGMENT as u64;

/// The units of a list of tensors, one tensor after the other.
#[derive(Debug)]
pub(super) struct Jobs {
    /// Units before each tensor's first; the last entry: all of them.
    firsts: Vec<usize>,
}

/// One unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Job {
    /// The tensor's place in the list.
    pub at: usize,
    /// Which of the tensor's units.
    pub unit: u64,
    /// Whether it is the tensor's last.
    pub is_last: bool,
}

impl Jobs {
    /// Of tensors with so many units each.
    pub fn new(units: impl Iterator<Item = u64>) -> Self {
        let mut firsts = vec![0];
        for units in units {
            // A unit is at least a row, a column or a segment of a file that exists: far below what usize holds.
            firsts.push(firsts[firsts.len() - 1] + units as usize);
        }
        Self { firsts }
    }

    /// Units of all tensors.
    pub fn count(&self) -> usize {
        self.firsts[self.firsts.len() - 1]
    }

    /// The tensor and part that a unit is.
    pub fn get(&self, unit: usize) -> Job {
        let at = self.firsts.partition_point(|first| *first <= unit) - 1;
        Job { at, unit: (unit - self.firsts[at]) as u64, is_last: unit + 1 == self.firsts[at + 1] }
    }
}

/// Units of a tensor that is read run by run.
pub(super) fn runs_of(elems: u64) -> u64 {
    elems.div_ceil(UNIT_ELEMS)
}

/// The elements of such a unit.
pub(super) fn run_of(elems: u64, unit: u64) -> Range<u64> {
    unit * UNIT_ELEMS..((unit + 1) * UNIT_ELEMS).min(elems)
}

/// How a tensor whose rows or columns are scored is cut: units, and rows or columns of each.
pub(super) fn cut_rows(geometry: Geometry) -> (u64, u64) {
    let rows = unit_rows(geometry, UNIT_ELEMS);
    (geometry.rows.div_ceil(rows), rows)
}

/// See [`cut_rows`].
pub(super) fn cut_columns(geometry: Geometry) -> (u64, u64) {
    let columns = unit_columns(geometry);
    (geometry.columns.div_ceil(columns), columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_belong_to_the_tensor_that_they_are_part_of() {
        let jobs = Jobs::new([2, 0, 1, 3].into_iter());
        assert_eq!(jobs.count(), 6);
        let all: Vec<_> = (0..6).map(|u| jobs.get(u)).map(|j| (j.at, j.unit, j.is_last)).collect();
        let expected = [(0, 0, false), (0, 1, true), (2, 0, true), (3, 0, false), (3, 1, false), (3, 2, true)];
        assert_eq!(all, expected);
        assert_eq!(Jobs::new([].into_iter()).count(), 0);
    }
}
