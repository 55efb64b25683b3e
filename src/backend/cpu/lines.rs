//! Products of vectors for each line of a tensor, and weights by line.

use super::BLOCK;
use super::blend::load_pruned;
use super::prune::{self, Scratch, Sources};
use super::stored::Widen;
use super::vector::{self, dot};
use crate::ops::{Geometry, Gram, LineWeights, Lines, Prune, Real, StageState, Vectors};

/// Adds the products of every two vectors, in the order of [`Gram::pairs`], of a run to those of the lines from `first` on that it
/// touches: `totals` by line and pair. A run of contiguous lines begins and ends with a line, or at a multiple of [`BLOCK`] elements
/// within one; of others it lies within one index of the first dimension. Lines of contiguous elements are summed block by block, others
/// element by element, in order.
#[allow(clippy::too_many_arguments)]
pub fn add_products<C: Widen>(
    of: Vectors,
    lines: Lines,
    first: u64,
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    totals: &mut [f64],
    scratch: &mut Scratch<C>,
) {
    let has_base = of != Vectors::TaskVectors && sources.base.is_some();
    let vectors = sources.models.len() + usize::from(has_base);
    let pairs = Gram::len(vectors);
    let mut at = 0;
    while at < sources.len {
        let element = sources.start + at as u64;
        let line = lines.line_of(element);
        let left = sources.len - at;
        let n = if lines.is_contiguous() {
            let place = element % lines.len;
            let in_line = usize::try_from(lines.len - place).unwrap_or(usize::MAX);
            (BLOCK - (place % BLOCK as u64) as usize).min(in_line).min(left)
        } else {
            BLOCK.min(left)
        };
        match of {
            Vectors::Parameters => prune::load_parameters(sources, at, n, scratch),
            _ => load_pruned(geometry, stages, sources, at, n, scratch),
        }
        let Scratch { base, tau, .. } = &*scratch;
        let vector = |i: usize| match i.checked_sub(usize::from(has_base)) {
            Some(model) => &tau[model][..n],
            None => &base[..n],
        };
        let totals = &mut totals[(line - first) as usize * pairs..];
        for (pair, (a, b)) in Gram::pairs(vectors).enumerate() {
            let (a, b) = (vector(a), vector(b));
            if lines.is_contiguous() {
                totals[pair] += dot(a, b);
            } else {
                let totals = totals[pair..].iter_mut().step_by(pairs);
                totals.zip(a.iter().zip(b)).for_each(|(total, (a, b))| *total += a.f64() * b.f64());
            }
        }
        at += n;
    }
}

/// Multiplies `n` elements from element `first` of the tensor, of every model in `scratch`, by the weights of their lines.
pub(super) fn weigh<C: Real>(by: &LineWeights, first: u64, n: usize, scratch: &mut Scratch<C>) {
    let LineWeights { lines, weights } = by;
    for (x, weights) in scratch.tau.iter_mut().zip(weights) {
        let mut at = 0;
        while at < n {
            let element = first + at as u64;
            let line = lines.line_of(element);
            if lines.is_contiguous() {
                let in_line = usize::try_from(lines.len - element % lines.len).unwrap_or(usize::MAX);
                let end = n.min(at.saturating_add(in_line));
                vector::scale(&mut x[at..end], C::of(weights[line as usize]));
                at = end;
            } else {
                let end = n.min(at + (lines.stride - line) as usize);
                let weights = &weights[line as usize..];
                x[at..end].iter_mut().zip(weights).for_each(|(x, weight)| *x = *x * C::of(*weight));
                at = end;
            }
        }
    }
}
