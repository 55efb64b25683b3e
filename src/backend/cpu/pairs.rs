//! How the task vectors of a tensor stand to each other: products and signs of every pair, and of each with the sum of the
//! others, in one pass.
//!
//! Sums run as in [`super::stats`]: lane by lane within a block, blocks in order within a segment of [`SEGMENT`] elements.
//! Segments added in order give the same bits on any number of threads.

use super::blend::load_pruned;
use super::prune::{Scratch, Sources};
use super::stats;
use super::stored::Widen;
use super::{BLOCK, vector};
use crate::ops::pairs::{Measures, Signs};
use crate::ops::{Geometry, SEGMENT, Sums};

/// Words of sign bits of a block.
const WORDS: usize = BLOCK.div_ceil(64);

/// Sign bits of one block: what a worker needs beside its [`Scratch`].
#[derive(Debug, Default)]
pub struct SignBits {
    /// By model: words of the elements above 0, then of those below.
    models: Vec<[[u64; WORDS]; 2]>,
}

impl SignBits {
    /// For up to this many models.
    pub fn new(models: usize) -> Self {
        Self { models: vec![[[0; WORDS]; 2]; models] }
    }

    /// Bytes that [`SignBits::new`] allocates.
    pub fn bytes(models: usize) -> u64 {
        (models * size_of::<[[u64; WORDS]; 2]>()) as u64
    }
}

/// Measures a run of at most [`SEGMENT`] elements that starts at a segment.
pub fn measure<C: Widen>(sources: &Sources<'_>, scratch: &mut Scratch<C>, bits: &mut SignBits) -> Measures {
    debug_assert!(sources.len <= SEGMENT && sources.start.is_multiple_of(SEGMENT as u64));
    let models = sources.models.len();
    let mut found = Measures::new(models);
    let mut sums = vec![Sums::default(); models];
    for at in (0..sources.len).step_by(BLOCK) {
        let n = BLOCK.min(sources.len - at);
        // Nothing is pruned yet, so that the shape does not matter.
        load_pruned(Geometry::of(&[]), &[], sources, at, n, scratch);
        stats::add_block(n, &mut sums, scratch);
        add_signs(n, &mut found, scratch, bits);
        let mut pairs = found.pairs.iter_mut();
        for s in 0..models {
            for (t, pair) in (s + 1..models).zip(&mut pairs) {
                pair.dot += vector::dot(&scratch.tau[s][..n], &scratch.tau[t][..n]);
                pair.signs.add(compare(&bits.models[s], &bits.models[t]));
            }
        }
    }
    for (task, sums) in found.tasks.iter_mut().zip(sums) {
        task.sums = sums;
    }
    found
}

/// Sign bits of every task vector of a block, and what follows from each alone.
fn add_signs<C: Widen>(n: usize, found: &mut Measures, scratch: &Scratch<C>, bits: &mut SignBits) {
    for ((task, tau), signs) in found.tasks.iter_mut().zip(&scratch.tau).zip(&mut bits.models) {
        let tau = &tau[..n];
        *signs = [[0; WORDS]; 2];
        let [above, below] = signs;
        vector::signs(above, below, tau);
        let mut rest = [[0; WORDS]; 2];
        let [above, below] = &mut rest;
        vector::signs_of_rest(above, below, tau, &scratch.sum[..n]);
        task.others.add(compare(signs, &rest));
        let nonfinite = tau.iter().map(|x| u64::from(!x.is_finite())).sum::<u64>();
        task.nonfinite += nonfinite;
        // What has a sign has changed; so has a NaN, which has none.
        task.changed += signs[0].iter().zip(&signs[1]).map(|(a, b)| u64::from((a | b).count_ones())).sum::<u64>();
        if nonfinite > 0 {
            task.changed += tau.iter().filter(|x| x.is_nan()).count() as u64;
        }
    }
}

fn compare([above_a, below_a]: &[[u64; WORDS]; 2], [above_b, below_b]: &[[u64; WORDS]; 2]) -> Signs {
    let mut signs = Signs::default();
    for i in 0..WORDS {
        signs.both += u64::from(((above_a[i] | below_a[i]) & (above_b[i] | below_b[i])).count_ones());
        signs.same += u64::from(((above_a[i] & above_b[i]) | (below_a[i] & below_b[i])).count_ones());
    }
    signs
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::stored::Stored;
    use super::*;
    use crate::dtype::Dtype;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn measured(models: &[&[f32]]) -> Measures {
        let stored: Vec<Vec<u8>> = models.iter().map(|m| bytes(m)).collect();
        let models: Vec<Stored<'_>> = stored.iter().map(|bytes| Stored { dtype: Dtype::F32, bytes }).collect();
        let sources = Sources { base: None, models: &models, start: 0, len: stored[0].len() / 4 };
        measure(&sources, &mut Scratch::<f32>::new(models.len()), &mut SignBits::new(models.len()))
    }

    #[test]
    fn every_pair_is_found_in_either_order() {
        let models: Vec<[f32; 1]> = (1..=5).map(|i| [i as f32]).collect();
        let found = measured(&models.iter().map(|m| &m[..]).collect::<Vec<_>>());
        for s in 0..5 {
            for t in (0..5).filter(|t| *t != s) {
                assert_eq!(found.pair(s, t).dot, ((s + 1) * (t + 1)) as f64);
            }
        }
    }

    #[test]
    fn signs_are_compared_where_both_are_not_zero() {
        let a = [1.0, -1.0, 0.0, 2.0, -0.0, f32::NAN, 3.0];
        let b = [2.0, 1.0, 5.0, 0.0, -1.0, 1.0, 4.0];
        let found = measured(&[&a, &b]);
        assert_eq!(found.pair(0, 1).signs, Signs { both: 3, same: 2 });
        assert_eq!(found.tasks[0].changed, 5);
        assert_eq!(found.tasks[0].nonfinite, 1);
        assert_eq!(found.tasks[1].nonfinite, 0);
        assert!(found.pair(0, 1).dot.is_nan());
    }

    #[test]
    fn blocks_and_their_ends_are_counted_once() {
        for n in [1, 63, 64, 65, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77] {
            let a: Vec<f32> = (0..n).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
            let b: Vec<f32> = (0..n).map(|i| if i % 2 == 0 { -2.0 } else { 2.0 }).collect();
            let found = measured(&[&a, &b]);
            let same = (0..n).filter(|i| (i % 3 == 0) == (i % 2 == 0)).count() as u64;
            assert_eq!(found.pair(0, 1).signs, Signs { both: n as u64, same }, "{n}");
            assert_eq!(found.pair(0, 1).dot, 2.0 * (2 * same) as f64 - 2.0 * n as f64);
            // With two tasks the others are the other one.
            assert_eq!(found.tasks[0].others, found.pair(0, 1).signs);
            assert_eq!(found.tasks[0].sums.dot, found.pair(0, 1).dot);
            assert_eq!(found.tasks[0].sums.squares, n as f64);
        }
    }

    #[test]
    fn one_model_has_no_pairs() {
        let found = measured(&[&[1.0, 2.0]]);
        assert!(found.pairs.is_empty());
        assert_eq!(found.tasks[0].others, Signs::default());
        assert_eq!(found.tasks[0].others.agreement(), None);
    }
}
