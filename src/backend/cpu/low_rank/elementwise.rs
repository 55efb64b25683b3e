//! Loops over the elements of panels, with sums in f64 in a fixed order.

use multiversion::multiversion;

use crate::ops::Real;

const LANES: usize = 8;

/// Σ x²
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn squares<C: Real>(values: &[C]) -> f64 {
    let mut lanes = [0.0; LANES];
    for values in values.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(values) {
            *lane += x.f64() * x.f64();
        }
    }
    lanes.iter().sum()
}

/// merged ← merged + c·low; returns (Σ (a − low)², Σ a²). What low has no part in keeps its sign of zero.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn add_low_rank<C: Real>(merged: &mut [f64], low: &[C], a: &[C], c: f64) -> [f64; 2] {
    let (mut left, mut whole) = ([0.0; LANES], [0.0; LANES]);
    for ((merged, low), a) in merged.chunks_mut(LANES).zip(low.chunks(LANES)).zip(a.chunks(LANES)) {
        for ((((merged, low), a), left), whole) in merged.iter_mut().zip(low).zip(a).zip(&mut left).zip(&mut whole) {
            let (l, a) = (low.f64(), a.f64());
            let change = c * l;
            *merged = if change == 0.0 { *merged } else { *merged + change };
            *left += (a - l) * (a - l);
            *whole += a * a;
        }
    }
    [left.iter().sum(), whole.iter().sum()]
}

/// merged ← merged + c·low, as [`add_low_rank`] has it.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn add_again<C: Real>(merged: &mut [f64], low: &[C], c: f64) {
    for (merged, low) in merged.iter_mut().zip(low) {
        let change = c * low.f64();
        *merged = if change == 0.0 { *merged } else { *merged + change };
    }
}

/// part ← x − mean, rounded to the part's type.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn centre<P: Real>(part: &mut [P], x: &[f64], mean: &[f64]) {
    for ((p, x), mean) in part.iter_mut().zip(x).zip(mean) {
        *p = P::of(x - mean);
    }
}

/// sum ← sum + w·x
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn add_weighted(sum: &mut [f64], x: &[f64], w: f64) {
    for (sum, x) in sum.iter_mut().zip(x) {
        *sum += w * x;
    }
}
