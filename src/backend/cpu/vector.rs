//! Vector loops over blocks. Each is compiled for several instruction sets and chosen at run time; since no operation is
//! fused or reordered, every one of them gives the same bits.

use crate::ops::Real;
use multiversion::multiversion;

macro_rules! vectorised {
    ($($(#[$doc:meta])* fn $name:ident<C: Real>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {
        $($(#[$doc])*
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
        pub(super) fn $name<C: Real>($($arg: $ty),*) $(-> $ret)? $body)*
    };
}

vectorised! {
    /// x ← x − b
    fn subtract<C: Real>(x: &mut [C], b: &[C]) {
        for (x, b) in x.iter_mut().zip(b) {
            *x = *x - *b;
        }
    }

    /// x ← c·x
    fn scale<C: Real>(x: &mut [C], c: C) {
        for x in x {
            *x = *x * c;
        }
    }

    /// x ← 0 where |x| lies below the cut; a NaN counts as the largest magnitude.
    fn trim<C: Real>(x: &mut [C], cut: u64) {
        for x in x {
            *x = if x.key() >= cut { *x } else { C::ZERO };
        }
    }

    /// x ← 0 where |x| lies below the cut or above the top; a NaN counts as the largest magnitude.
    fn trim_band<C: Real>(x: &mut [C], cut: u64, top: u64) {
        for x in x {
            let key = x.key();
            *x = if (key >= cut) & (key <= top) { *x } else { C::ZERO };
        }
    }

    /// x ← 0 where the word is not below the threshold; returns how many were kept.
    fn drop_random<C: Real>(x: &mut [C], words: &[u32], threshold: u64) -> u64 {
        let mut kept = 0;
        for (x, w) in x.iter_mut().zip(words) {
            let keep = u64::from(*w) < threshold;
            kept += u64::from(keep);
            *x = if keep { *x } else { C::ZERO };
        }
        kept
    }

    /// count ← count + 1 where the key of x lies above `none`.
    fn count_changes<C: Real>(counts: &mut [u32], x: &[C], none: u64) {
        for (count, x) in counts.iter_mut().zip(x) {
            *count += u32::from(x.key() > none);
        }
    }

    /// How many x have a key above `none`: those with a count of 1, and those with more.
    fn overlap<C: Real>(counts: &[u32], x: &[C], none: u64) -> [u32; 2] {
        let (mut alone, mut shared) = (0, 0);
        for (count, x) in counts.iter().zip(x) {
            let is_change = x.key() > none;
            alone += u32::from(is_change & (*count == 1));
            shared += u32::from(is_change & (*count > 1));
        }
        [alone, shared]
    }

    /// x ← 0 where the mask is 0.
    fn mask<C: Real>(x: &mut [C], mask: &[u8]) {
        for (x, m) in x.iter_mut().zip(mask) {
            *x = if *m == 0 { C::ZERO } else { *x };
        }
    }

    /// x ← 0 where the score lies below the cut, or above it where the lowest are kept.
    fn mask_by_score<C: Real>(x: &mut [C], scores: &[C], cut: u64, lowest: bool) {
        for (x, s) in x.iter_mut().zip(scores) {
            let keep = if lowest { s.key() <= cut } else { s.key() >= cut };
            *x = if keep { *x } else { C::ZERO };
        }
    }

    /// sum ← sum + x and magnitudes ← magnitudes + |x|, in f64.
    fn add_sums<C: Real>(sum: &mut [f64], magnitudes: &mut [f64], x: &[C]) {
        for ((s, m), x) in sum.iter_mut().zip(magnitudes).zip(x) {
            *s += x.f64();
            *m += x.abs().f64();
        }
    }

    /// sum ← sum + (x − first), in f64.
    fn add_offsets<C: Real>(sum: &mut [f64], x: &[C], first: &[C]) {
        for ((s, x), first) in sum.iter_mut().zip(x).zip(first) {
            *s += x.f64() - first.f64();
        }
    }

    /// squares ← squares + (x − first − sum/n)², in f64.
    fn add_deviations<C: Real>(squares: &mut [f64], x: &[C], first: &[C], sum: &[f64], n: f64) {
        for (((q, x), first), s) in squares.iter_mut().zip(x).zip(first).zip(sum) {
            let off = (x.f64() - first.f64()) - *s / n;
            *q += off * off;
        }
    }

    /// (squares/n)^½
    fn score_spread<C: Real>(out: &mut [C], squares: &[f64], n: f64) {
        for (o, q) in out.iter_mut().zip(squares) {
            *o = C::of((*q / n).sqrt());
        }
    }

    /// x ← 0 where the score lies below the cut; a NaN counts as the largest.
    fn drop_below<C: Real>(x: &mut [C], scores: &[C], cut: u64) {
        for (x, s) in x.iter_mut().zip(scores) {
            *x = if s.key() >= cut { *x } else { C::ZERO };
        }
    }

    /// |x|
    fn score_magnitude<C: Real>(out: &mut [C], x: &[C]) {
        for (o, x) in out.iter_mut().zip(x) {
            *o = x.abs();
        }
    }

    /// |x| / (|b| + ε)
    fn score_relative<C: Real>(out: &mut [C], x: &[C], b: &[C], epsilon: C) {
        for ((o, x), b) in out.iter_mut().zip(x).zip(b) {
            *o = x.abs() / (b.abs() + epsilon);
        }
    }

    /// |x − sum/n|
    fn score_deviation<C: Real>(out: &mut [C], x: &[C], sum: &[f64], n: f64) {
        for ((o, x), s) in out.iter_mut().zip(x).zip(sum) {
            *o = C::of((x.f64() - *s / n).abs());
        }
    }

    /// (1 + sign(x)·R/Q)/2, R and Q the sums of the other tasks and of their magnitudes; ½ where Q or x is 0.
    fn score_agreement<C: Real>(out: &mut [C], x: &[C], sum: &[f64], magnitudes: &[f64]) {
        for (((o, x), s), m) in out.iter_mut().zip(x).zip(sum).zip(magnitudes) {
            let v = x.f64();
            let (r, q) = (*s - v, *m - v.abs());
            let signed = if v > 0.0 { r / q } else { -r / q };
            // NaN stays NaN: only a true zero means that nobody else has an opinion.
            let score = if q == 0.0 || v == 0.0 { 0.5 } else { (1.0 + signed) * 0.5 };
            *o = C::of(score);
        }
    }

    /// |x| / (|x| + |R|), R the sum of the other tasks; 0 where both are 0.
    fn score_tall<C: Real>(out: &mut [C], x: &[C], sum: &[f64]) {
        for ((o, x), s) in out.iter_mut().zip(x).zip(sum) {
            let v = x.f64();
            let whole = v.abs() + (*s - v).abs();
            *o = C::of(if whole == 0.0 { 0.0 } else { v.abs() / whole });
        }
    }

    /// Σ |x|, Σ x², Σ (x − s·mean)², Σ x·(s − x) and Σ (s − x)² in f64, each in the order of [`lane_sum`].
    fn task_sums<C: Real>(x: &[C], sum: &[f64], mean: f64) -> [f64; 5] {
        let mut lanes = [[0f64; 8]; 5];
        let ((eights, tail), (sum_eights, sum_tail)) = (x.as_chunks::<8>(), sum.as_chunks::<8>());
        for (x, s) in eights.iter().zip(sum_eights) {
            for j in 0..8 {
                let (x, s) = (x[j].f64(), s[j]);
                let (own, rest) = (x - s * mean, s - x);
                lanes[0][j] += x.abs();
                lanes[1][j] += x * x;
                lanes[2][j] += own * own;
                lanes[3][j] += x * rest;
                lanes[4][j] += rest * rest;
            }
        }
        for (j, (x, s)) in tail.iter().zip(sum_tail).enumerate() {
            let (x, s) = (x.f64(), *s);
            let (own, rest) = (x - s * mean, s - x);
            lanes[0][j] += x.abs();
            lanes[1][j] += x * x;
            lanes[2][j] += own * own;
            lanes[3][j] += x * rest;
            lanes[4][j] += rest * rest;
        }
        lanes.map(add_lanes)
    }

    /// Σ x·y in f64, in the order of [`lane_sum`].
    fn dot<C: Real>(x: &[C], y: &[C]) -> f64 {
        let mut lanes = [0f64; 8];
        let n = x.len().min(y.len());
        let ((x, x_tail), (y, y_tail)) = (x[..n].as_chunks::<8>(), y[..n].as_chunks::<8>());
        for (x, y) in x.iter().zip(y) {
            for j in 0..8 {
                lanes[j] += x[j].f64() * y[j].f64();
            }
        }
        for (lane, (x, y)) in lanes.iter_mut().zip(x_tail.iter().zip(y_tail)) {
            *lane += x.f64() * y.f64();
        }
        add_lanes(lanes)
    }

    /// Bits of the elements above 0 and of those below, 64 a word; NaN is neither.
    fn signs<C: Real>(above: &mut [u64], below: &mut [u64], x: &[C]) {
        for ((above, below), x) in above.iter_mut().zip(below).zip(x.chunks(64)) {
            (*above, *below) = (0, 0);
            for (i, x) in x.iter().enumerate() {
                *above |= u64::from(*x > C::ZERO) << i;
                *below |= u64::from(*x < C::ZERO) << i;
            }
        }
    }

    /// The same of R, the sum of the other tasks.
    fn signs_of_rest<C: Real>(above: &mut [u64], below: &mut [u64], x: &[C], sum: &[f64]) {
        for (((above, below), x), sum) in above.iter_mut().zip(below).zip(x.chunks(64)).zip(sum.chunks(64)) {
            (*above, *below) = (0, 0);
            for (i, (x, sum)) in x.iter().zip(sum).enumerate() {
                let rest = *sum - x.f64();
                *above |= u64::from(rest > 0.0) << i;
                *below |= u64::from(rest < 0.0) << i;
            }
        }
    }
}

/// Σ f(i) over a block, in eight lanes that are added in a fixed order.
#[inline(always)]
pub(super) fn lane_sum(n: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut lanes = [0f64; 8];
    let whole = n / 8 * 8;
    let mut i = 0;
    while i < whole {
        for (j, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + j);
        }
        i += 8;
    }
    for (j, lane) in lanes.iter_mut().enumerate().take(n - whole) {
        *lane += f(whole + j);
    }
    add_lanes(lanes)
}

/// Eight partial sums, added in a fixed order.
#[inline(always)]
fn add_lanes(lanes: [f64; 8]) -> f64 {
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_taken_together_have_the_bits_of_sums_taken_one_by_one() {
        for n in [0, 1, 7, 8, 9, 64, 1001] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let sum: Vec<f64> = (0..n).map(|i| ((i * 53 % 97) as f64 - 48.0) / 3.0).collect();
            let of = |f: &dyn Fn(f64, f64) -> f64| lane_sum(n, |i| f(x[i].f64(), sum[i]));
            let expected = [
                of(&|x, _| x.abs()),
                of(&|x, _| x * x),
                of(&|x, s| (x - s * 0.2) * (x - s * 0.2)),
                of(&|x, s| x * (s - x)),
                of(&|x, s| (s - x) * (s - x)),
            ];
            assert_eq!(task_sums(&x, &sum, 0.2).map(f64::to_bits), expected.map(f64::to_bits), "{n}");
            assert_eq!(dot(&sum, &sum).to_bits(), of(&|_, s| s * s).to_bits(), "{n}");
        }
    }
}
