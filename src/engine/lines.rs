//! Weights for each line of a tensor: their products in order, and what follows from them.

use std::ops::Range;

use super::sources::with_sources;
use crate::backend::cpu::lines::add_products;
use crate::backend::cpu::prune::Scratch;
use crate::backend::cpu::stored::Widen;
use crate::error::Result;
use crate::ops::{Combine, Fit, Gram, Lines, Measured, SEGMENT};
use crate::plan::graph::LINES_AT_ONCE;
use crate::plan::{Plan, TensorPlan};

/// The weights of some lines, by model, and what there is to say of them.
#[derive(Debug)]
pub(super) struct Weights {
    pub by_model: Vec<Vec<f64>>,
    pub remark: Option<&'static str>,
}

impl Weights {
    pub fn new(models: usize) -> Self {
        Self { by_model: vec![Vec::new(); models], remark: None }
    }

    /// What follows from the products of consecutive lines, by line and pair.
    pub fn settle(&mut self, fit: &Fit, combine: &Combine, vectors: usize, totals: &[f64]) {
        let mut combine = combine.clone();
        for products in totals.chunks(Gram::len(vectors)) {
            let remark = (fit.settle)(&Gram::new(vectors, products.to_vec()), &fit.parameters, &mut combine);
            self.remark = self.remark.or(remark);
            self.by_model.iter_mut().zip(&combine.weights).for_each(|(all, weight)| all.push(*weight));
        }
    }
}

/// The weights of some lines of a tensor, read from its sources.
pub(super) fn weights<C: Widen>(
    (plan, tensor): (&Plan, &TensorPlan),
    measured: &Measured,
    lines: Range<u64>,
    raw: &mut [Vec<u8>],
    scratch: &mut Scratch<C>,
) -> Result<Weights> {
    let (fit, of, vectors) = (tensor.fit()?, tensor.lines(), tensor.fitted_vectors());
    let mut found = Weights::new(tensor.models.len());
    // As many whole lines as a segment holds, where their elements follow each other; of a longer one a segment at a time.
    let at_once = if of.is_contiguous() { SEGMENT as u64 / of.len.max(1) } else { LINES_AT_ONCE };
    let at_once = at_once.clamp(1, LINES_AT_ONCE);
    for first in lines.clone().step_by(at_once as usize) {
        let last = (first + at_once).min(lines.end);
        let mut totals = vec![0.0; (last - first) as usize * Gram::len(vectors)];
        for run in runs(of, first..last) {
            with_sources(plan, tensor, run.start, run.end, raw, |sources| {
                let (geometry, stages) = (measured.geometry, &measured.stages);
                add_products(fit.of, of, first, geometry, stages, sources, &mut totals, scratch);
            })?;
        }
        found.settle(fit, &measured.combine, vectors, &totals);
    }
    Ok(found)
}

/// Runs of elements of some lines, none longer than a segment.
fn runs(of: Lines, lines: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let segment = SEGMENT as u64;
    let (start, end, step, width) = if of.is_contiguous() {
        (lines.start * of.len, lines.end * of.len, segment, segment)
    } else {
        (lines.start, lines.start + of.len * of.stride, of.stride, lines.end - lines.start)
    };
    (start..end).step_by(step.max(1) as usize).map(move |at| at..(at + width).min(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Along;

    #[test]
    fn runs_cover_their_lines_and_nothing_else() {
        for shape in [&[7, 5][..], &[3, 2, 4], &[2, 100_000], &[1, 9]] {
            for along in [Along::Last, Along::First] {
                let of = Lines::of(shape, along);
                let mut seen = vec![0; shape.iter().product::<u64>() as usize];
                for first in 0..of.count {
                    for run in runs(of, first..first + 1) {
                        assert!(run.end - run.start <= SEGMENT as u64);
                        for element in run {
                            assert_eq!(of.line_of(element), first);
                            seen[element as usize] += 1;
                        }
                    }
                }
                assert!(seen.iter().all(|times| *times == 1), "{shape:?} {along:?}");
            }
        }
    }
}
