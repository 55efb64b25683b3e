//! Whether a truncation computed in f32 is near enough to the exact one.
//!
//! For orthonormal Ritz vectors q_i of a Gram matrix G with values θ_i, i ≤ k, taken from a space of p > k dimensions, and
//! residuals e_i = ‖G q_i − θ_i q_i‖: what q_i lacks lies outside that space, where no eigenvalue exceeds λ_{p+1}, so that its
//! angle to the exact space is at most about e_i/(θ_i − λ_{p+1}) (Davis and Kahan 1970; Saad, Numerical Methods for Large
//! Eigenvalue Problems, chapter 3). Residuals are measured on what was computed, not estimated.

/// ‖L − exact‖/‖exact‖ that is allowed for: a third of the bound that is promised.
const DIRECTION: f64 = 3e-5;
/// Growth of ‖A − L‖² that is allowed for: a fifth of what is promised of its square.
const EXCESS: f64 = 4e-6;
/// Share of ‖A‖² that must be left over, or f32 has no digits left to tell it by.
const LEAST_TAIL: f64 = 1e-6;
/// How far off λ_{p+1} may be, relative to λ₁: it comes from a reduction in f32.
const VALUE_ERROR: f64 = 2e-6;
/// ‖A‖² per element and in all between which f32 neither underflows nor overflows in squares and their sums.
const RANGE: (f64, f64) = (1e-26, 1e34);

/// What was measured of a truncation.
pub struct Measured<'a> {
    /// θ_i, i ≤ k, descending.
    pub values: &'a [f64],
    /// e_i, i ≤ k.
    pub residuals: &'a [f64],
    /// λ_{p+1}; `None` if the p dimensions are all.
    pub beyond: Option<f64>,
    /// ‖A‖².
    pub whole: f64,
}

impl Measured<'_> {
    /// Whether both promises hold. NaN fails.
    pub fn holds(&self) -> bool {
        let kept: f64 = self.values.iter().sum();
        let tail = self.whole - kept;
        let most = self.values.first().copied().unwrap_or_default();
        let (mut turned, mut excess) = (0.0, 0.0);
        for (value, residual) in self.values.iter().zip(self.residuals) {
            let gap = self.beyond.map_or(*value, |beyond| value - beyond - VALUE_ERROR * most);
            let is_open = gap > 0.0;
            if !is_open {
                return false;
            }
            turned += value * (residual / gap).powi(2);
            excess += residual * residual / gap;
        }
        tail >= LEAST_TAIL * self.whole && turned <= DIRECTION.powi(2) * kept && excess <= EXCESS * tail
    }
}

/// Whether squares of a matrix of `elems` elements and squared norm `whole`, and sums of them, fit f32.
pub fn fits(whole: f64, elems: usize) -> bool {
    whole / elems as f64 >= RANGE.0 && whole <= RANGE.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_promise_is_checked() {
        let good = Measured { values: &[4.0, 3.0], residuals: &[1e-6, 1e-6], beyond: Some(1.0), whole: 10.0 };
        assert!(good.holds());
        assert!(!Measured { residuals: &[1e-6, 1e-3], ..good }.holds(), "a direction is off");
        assert!(!Measured { beyond: Some(3.0), ..good }.holds(), "nothing tells the spaces apart");
        assert!(!Measured { whole: 7.0 + 1e-8, ..good }.holds(), "too little is left over");
        assert!(!Measured { residuals: &[f64::NAN, 0.0], ..good }.holds());
        assert!(!Measured { whole: f64::NAN, ..good }.holds());
    }

    /// A direction's error is √(Σ θ (e/gap)²/Σ θ), the excess Σ e²/gap: the bounds lie where they are said to lie.
    #[test]
    fn each_bound_lies_where_it_is_promised() {
        for (tail, promised) in [
            // Much is left over: the direction decides. With θ = 4 and a gap of 2, its error is e/2.
            (1e6, 2.0 * 3e-5),
            // Little is: its growth by e²/2 decides.
            (1e-4, (2.0 * 4e-6_f64 * 1e-4).sqrt()),
        ] {
            let holds = |residual: f64| {
                let (values, residuals) = ([4.0], [residual]);
                // What the value may be off by closes the gap.
                let beyond = Some(2.0 - VALUE_ERROR * 4.0);
                Measured { values: &values, residuals: &residuals, beyond, whole: 4.0 + tail }.holds()
            };
            assert!(holds(0.999 * promised) && !holds(1.001 * promised), "{tail}");
        }
        let left = |tail: f64| Measured { values: &[1.0], residuals: &[0.0], beyond: None, whole: 1.0 + tail }.holds();
        assert!(left(1.01e-6) && !left(0.99e-6), "the least that must be left over");
        let gap = |gap: f64| {
            let beyond = Some(1.0 - gap);
            Measured { values: &[1.0], residuals: &[0.0], beyond, whole: 2.0 }.holds()
        };
        assert!(gap(2.01e-6) && !gap(1.99e-6), "what a value may be off by");
        assert!(fits(1.01e-26, 1) && !fits(0.99e-26, 1) && fits(0.99e34, 1) && !fits(1.01e34, 1));
    }

    #[test]
    fn the_ends_of_f32_do_not_fit() {
        assert!(fits(1e-4, 1000) && !fits(1e-30, 1000) && !fits(1e35, 1000) && !fits(f64::NAN, 10) && !fits(0.0, 10));
    }
}
