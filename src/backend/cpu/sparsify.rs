//! What a method drops of a block of task vectors before it combines them.

use super::prune::Scratch;
use super::stored::Widen;
use super::vector;
use crate::ops::{Chosen, Measured, Real, Sparsify, philox};

/// The spread over the models of a block's task vectors into `scratch.a` ([`crate::ops::search::Ranked::Spread`]).
pub(super) fn spread<C: Real>(models: usize, n: usize, scratch: &mut Scratch<C>) {
    let Scratch { tau, a, sum, magnitudes, .. } = scratch;
    let (sum, squares, first) = (&mut sum[..n], &mut magnitudes[..n], &tau[0][..n]);
    sum.fill(0.0);
    squares.fill(0.0);
    // Measured from the first, so that equal models have a spread of exactly 0.
    tau[..models].iter().for_each(|tau| vector::add_offsets(sum, &tau[..n], first));
    tau[..models].iter().for_each(|tau| vector::add_deviations(squares, &tau[..n], first, sum, models as f64));
    vector::score_spread(&mut a[..n], squares, models as f64);
}

/// |τ| of the first model times the number of its row into `scratch.a`, of elements from `first` of the tensor on.
pub(super) fn importance<C: Real>(rows: &[f64], row_elems: u64, first: u64, n: usize, scratch: &mut Scratch<C>) {
    let Scratch { tau, a, .. } = scratch;
    for (i, (a, x)) in a[..n].iter_mut().zip(&tau[0][..n]).enumerate() {
        let row = ((first + i as u64) / row_elems.max(1)) as usize;
        *a = C::of(x.abs().f64() * rows.get(row).copied().unwrap_or_default());
    }
}

/// Drops what the method drops of the task vectors of `n` elements from element `first` of the tensor, and scales what is kept;
/// counts what random words keep, by model.
pub(super) fn apply<C: Widen>(
    m: &Measured,
    models: usize,
    first: u64,
    n: usize,
    scratch: &mut Scratch<C>,
    kept: &mut [u64],
) {
    drop(m, models, first, n, scratch, kept);
    for (t, tau) in scratch.tau[..models].iter_mut().enumerate() {
        let factor = m.factor(t);
        if factor != 1.0 {
            vector::scale(&mut tau[..n], C::of(factor));
        }
    }
}

/// The same without scaling.
pub(super) fn drop<C: Widen>(
    m: &Measured,
    models: usize,
    first: u64,
    n: usize,
    scratch: &mut Scratch<C>,
    kept: &mut [u64],
) {
    match &m.sparsify {
        Sparsify::None => {}
        Sparsify::TopK { .. } => {
            for (tau, cut) in scratch.tau.iter_mut().zip(&m.cuts) {
                vector::trim(&mut tau[..n], *cut);
            }
        }
        Sparsify::Band { .. } => {
            for (tau, (cut, top)) in scratch.tau.iter_mut().zip(m.cuts.iter().zip(&m.tops)) {
                vector::trim_band(&mut tau[..n], *cut, *top);
            }
        }
        Sparsify::Spread { .. } => {
            spread(models, n, scratch);
            let cut = m.cuts.first().copied().unwrap_or_default();
            for tau in &mut scratch.tau[..models] {
                vector::drop_below(&mut tau[..n], &scratch.a[..n], cut);
            }
        }
        Sparsify::Importance => {
            importance(&m.rows, m.geometry.last, first, n, scratch);
            let cut = m.cuts.first().copied().unwrap_or_default();
            let Scratch { tau, a, .. } = scratch;
            vector::drop_below(&mut tau[0][..n], &a[..n], cut);
            kept[0] += a[..n].iter().map(|x| u64::from(x.key() >= cut)).sum::<u64>();
        }
        Sparsify::Ranked { .. } => {
            for ((tau, chosen), kept) in scratch.tau.iter_mut().zip(m.chosen.iter()).zip(kept) {
                *kept += keep_chosen(&mut tau[..n], chosen, first as usize);
            }
        }
        Sparsify::Random { density, keys, .. } => {
            for (t, (density, key)) in density.iter().zip(keys).enumerate() {
                let (tau, words) = (&mut scratch.tau[t][..n], &mut scratch.words[..n]);
                philox::fill(words, first, *key);
                kept[t] += vector::drop_random(tau, words, philox::threshold(*density));
            }
        }
    }
}

/// Keeps what was chosen of elements from `first` of the tensor on; returns how many.
fn keep_chosen<C: Real>(x: &mut [C], chosen: &Chosen, first: usize) -> u64 {
    let mut kept = 0;
    for (i, x) in x.iter_mut().enumerate() {
        match chosen.scale(first + i) {
            Some(scale) if scale != 1.0 => *x = *x * C::of(f64::from(scale)),
            Some(_) => {}
            None => *x = C::ZERO,
        }
        kept += u64::from(chosen.scale(first + i).is_some());
    }
    kept
}
