//! How far the rows of a model, as distributions, lie from the base's.

use super::BLOCK;
use super::blend::load_pruned;
use super::prune::{Scratch, Sources};
use super::stored::Widen;
use super::vector::lane_sum;
use crate::ops::Measured;

/// What is added to every probability.
const LEAST: f64 = 1e-8;

/// The Kullback-Leibler divergence Σ p ln(p/q) of each whole row along the last dimension: p of the softmax of the first model behind stages,
/// q of the base's, 1e-8 added to each. Sums run in f64, lane by lane within a block and block by block.
pub fn rows<C: Widen>(m: &Measured, sources: &Sources<'_>, scratch: &mut Scratch<C>) -> Vec<f64> {
    let row = (m.geometry.last as usize).max(1);
    let mut found = Vec::with_capacity(sources.len / row);
    for start in (0..sources.len).step_by(row) {
        // Each round goes over the row: the largest values, the sums of exponentials, the divergence.
        let mut each_block = |take: &mut dyn FnMut(&[C], &[C])| {
            for at in (0..row).step_by(BLOCK) {
                let n = BLOCK.min(row - at);
                load_pruned(m.geometry, &m.stages, sources, start + at, n, scratch);
                take(&scratch.base[..n], &scratch.tau[0][..n]);
            }
        };
        let [mut max_q, mut max_p] = [f64::NEG_INFINITY; 2];
        each_block(&mut |base, tau| {
            for (b, t) in base.iter().zip(tau) {
                let (q, p) = (b.f64(), (*b + *t).f64());
                max_q = if q > max_q { q } else { max_q };
                max_p = if p > max_p { p } else { max_p };
            }
        });
        let [mut sum_q, mut sum_p] = [0.0; 2];
        each_block(&mut |base, tau| {
            sum_q += lane_sum(base.len(), |i| exp(base[i].f64() - max_q));
            sum_p += lane_sum(base.len(), |i| exp((base[i] + tau[i]).f64() - max_p));
        });
        let mut divergence = 0.0;
        each_block(&mut |base, tau| {
            divergence += lane_sum(base.len(), |i| {
                let q = exp(base[i].f64() - max_q) / sum_q + LEAST;
                let p = exp((base[i] + tau[i]).f64() - max_p) / sum_p + LEAST;
                p * ln(p / q)
            });
        });
        // It is not negative but for rounding. A NaN stays.
        found.push(if divergence < 0.0 { 0.0 } else { divergence });
    }
    found
}

/// ln 2 in two parts, of which the first has zeros at its end.
const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];

/// eˣ of x ≤ 0, to a unit or two in the last place, 0 below e⁻⁷⁰⁸. In operations that every device rounds alike; twin: kernels/elementary.cuh.
fn exp(x: f64) -> f64 {
    if x < -708.0 {
        return 0.0;
    }
    let n = (x * std::f64::consts::LOG2_E - 0.5) as i64;
    let r = (x - n as f64 * LN_2[0]) - n as f64 * LN_2[1];
    // 1 + r (1 + r/2 (1 + r/3 (…)))
    let mut sum = 1.0;
    let mut k = 14.0;
    while k > 0.0 {
        sum = 1.0 + r * sum / k;
        k -= 1.0;
    }
    sum * f64::from_bits(((n + 1023).clamp(1, 1023) as u64) << 52)
}

/// The natural logarithm of a positive number that is not subnormal, as [`exp`].
fn ln(x: f64) -> f64 {
    if !(x > 0.0 && x < f64::INFINITY) {
        return f64::NAN;
    }
    let bits = x.to_bits();
    let exponent = (bits >> 52) as i64 - 1023;
    let mantissa = f64::from_bits(bits & 0x000F_FFFF_FFFF_FFFF | 0x3FF0_0000_0000_0000);
    let above = mantissa > std::f64::consts::SQRT_2;
    let (m, e) = if above { (mantissa * 0.5, exponent + 1) } else { (mantissa, exponent) };
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    // 2 (s + s³/3 + s⁵/5 + …)
    let mut sum = 0.0;
    let mut k = 23.0;
    while k > 0.0 {
        sum = sum * square + 1.0 / k;
        k -= 2.0;
    }
    e as f64 * LN_2[0] + (2.0 * s * sum + e as f64 * LN_2[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_and_logarithms_are_near_the_librarys() {
        for i in 0..200_000 {
            let x = -f64::from(i) * 0.0035;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 4.0 * f64::EPSILON * expected, "e^{x}: {found:e}, {expected:e}");
            let y = 1e-8 * (1.0 + f64::from(i)).powi(3);
            let (found, expected) = (ln(y), y.ln());
            assert!((found - expected).abs() <= 4.0 * f64::EPSILON * expected.abs().max(1e-3), "ln {y}");
        }
        assert_eq!((exp(0.0), ln(1.0), exp(-1000.0)), (1.0, 0.0, 0.0));
        assert!(exp(f64::NAN).is_nan() && ln(f64::NAN).is_nan() && exp(f64::NEG_INFINITY) == 0.0);
    }
}
