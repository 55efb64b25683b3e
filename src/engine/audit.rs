//! Audits of merges on devices: pieces of what a device has merged, chosen by the seed, are computed again on the CPU and compared.
//!
//! Of what is merged element by element a piece is a segment, and every bit counts but those of a NaN. What has been measured for a tensor (cuts, norms,
//! scores) is taken as the device measured it: `merganser devices --check` compares that. Of matrices one in 256 is
//! decomposed again, of those for which the budget has room and the CPU has time; the difference is held against the bound of
//! the method.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use twox_hash::XxHash3_64;

use crate::error::Error;
use crate::ops::{Program, SEGMENT};
use crate::plan::{Plan, TensorPlan};
use crate::report::manifest::Audit as Counts;

/// Of so many matrices one is audited.
const MATRICES: usize = 256;
/// A matrix that takes the CPU more operations than this is not audited: about ten seconds of one thread.
const MOST_OPERATIONS: f64 = 2e11;
/// How far the sum of low-rank parts may be from the CPU's, relative to it: what two decompositions of one matrix may differ by.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) const MATRIX_BOUND: f64 = 5e-3;

/// What is audited, and what has been.
#[derive(Debug)]
pub(super) struct Audit {
    /// Segments by tensor.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    segments: BTreeMap<usize, BTreeSet<u64>>,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    matrices: BTreeSet<usize>,
    counts: Mutex<Counts>,
    /// Held while a matrix is decomposed again: the budget has room for one.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    matrix: Mutex<()>,
}

impl Audit {
    /// Chooses `wanted` segments of all that devices merge, or all of them; none where nothing is to be audited.
    pub fn new(plan: &Plan, wanted: Option<u64>, is_done: &[bool]) -> Self {
        let on = plan.devices.as_ref().filter(|_| wanted.is_some_and(|n| n > 0));
        let there = |index: usize| on.is_some_and(|on| on.has(index)) && !is_done[index];
        let segments_of = |t: &TensorPlan| t.elems.div_ceil(SEGMENT as u64);
        let elementwise: Vec<usize> =
            (0..plan.tensors.len()).filter(|i| there(*i) && !is_matrix(&plan.tensors[*i])).collect();
        let all: u64 = elementwise.iter().map(|i| segments_of(&plan.tensors[*i])).sum();
        let places = choose(plan.options.seed, wanted.unwrap_or_default(), all);
        let (mut segments, mut begin) = (BTreeMap::<usize, BTreeSet<u64>>::new(), 0);
        for index in elementwise {
            let end = begin + segments_of(&plan.tensors[index]);
            let here: BTreeSet<u64> = places.range(begin..end).map(|place| place - begin).collect();
            if !here.is_empty() {
                segments.insert(index, here);
            }
            begin = end;
        }
        let matrices: Vec<usize> =
            (0..plan.tensors.len()).filter(|i| there(*i) && is_matrix(&plan.tensors[*i])).collect();
        let of_matrices = matrices.len();
        let room = plan.options.memory_budget.saturating_sub(plan.memory.total);
        let fits = |i: &usize| {
            let (tensor, (bytes, operations)) = (&plan.tensors[*i], plan.on_the_cpu(*i));
            // What the device sent is kept until then.
            bytes + tensor.elems * tensor.elem_bytes <= room && operations <= MOST_OPERATIONS
        };
        let candidates: Vec<usize> = matrices.into_iter().filter(fits).collect();
        let chosen = choose(plan.options.seed, of_matrices.div_ceil(MATRICES) as u64, candidates.len() as u64);
        let matrices = chosen.into_iter().map(|place| candidates[place as usize]).collect();
        let counts = Counts { of_segments: all, of_matrices: of_matrices as u64, ..Counts::default() };
        Self { segments, matrices, counts: Mutex::new(counts), matrix: Mutex::default() }
    }

    /// The chosen segments of a tensor.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub fn of(&self, tensor: usize) -> Option<&BTreeSet<u64>> {
        self.segments.get(&tensor)
    }

    /// Whether a matrix is decomposed again.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub fn has_matrix(&self, tensor: usize) -> bool {
        self.matrices.contains(&tensor)
    }

    /// Held while a matrix is decomposed again.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub fn one_matrix(&self) -> MutexGuard<'_, ()> {
        self.matrix.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a segment that came out the same.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub fn passed(&self, elements: u64) {
        let mut counts = self.lock();
        counts.segments += 1;
        counts.elements += elements;
    }

    /// Counts a matrix that came out the same.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    pub fn passed_matrix(&self) {
        self.lock().matrices += 1;
    }

    /// What has been audited.
    pub fn counts(&self) -> Counts {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_matrix(tensor: &TensorPlan) -> bool {
    matches!(tensor.program, Program::LowRank(_))
}

/// `wanted` of the numbers below `of`, or all of them, by the seed alone.
fn choose(seed: u64, wanted: u64, of: u64) -> BTreeSet<u64> {
    if wanted >= of {
        return (0..of).collect();
    }
    let mut chosen = BTreeSet::new();
    let mut draw = 0u64;
    while (chosen.len() as u64) < wanted {
        let number = XxHash3_64::oneshot_with_seed(seed, &draw.to_le_bytes());
        // The upper half of a product spreads a number evenly over so many places.
        chosen.insert(((u128::from(number) * u128::from(of)) >> 64) as u64);
        draw += 1;
    }
    chosen
}

/// What a device merged is not what it should be: nothing that it made is kept.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) fn differs(device: &str, tensor: &str, element: u64, found: f64, expected: f64) -> Error {
    Error::device(format!("{device} merged element {element} of `{tensor}` to {found:e}, the CPU to {expected:e}"))
        .of_wrong_result()
        .hint("this device, its driver or a library of it computes wrongly: `merganser devices --check` tries each operation")
        .hint("`--device cpu` merges without it; nothing of this merge was kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_places_as_wanted_are_chosen_by_the_seed_alone_and_all_of_them_where_there_are_no_more() {
        assert_eq!(choose(1, 5, 3), BTreeSet::from([0, 1, 2]));
        assert_eq!(choose(1, 0, 3).len(), 0);
        assert_eq!(choose(0, 7, 0).len(), 0);
        let (a, b, other) = (choose(7, 256, 100_000), choose(7, 256, 100_000), choose(8, 256, 100_000));
        assert_eq!((a.len(), &a), (256, &b));
        assert!(a != other && a.iter().all(|place| *place < 100_000));
        // Every tenth of the range has some.
        let tenths: BTreeSet<u64> = a.iter().map(|place| place / 10_000).collect();
        assert_eq!(tenths.len(), 10);
        assert_eq!(choose(3, 999_999, 1_000_000).len(), 999_999);
    }
}
