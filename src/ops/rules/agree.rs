//! The fusion of SCE (arXiv 2408.07990): a sign for each element, and the weighted mean of what has it.

use super::{Arith, Numbers, Rule, changed};

/// θ₀ + (Σ w τ) / (Σ w) of the τ that have the sign of Σ τ, which is not weighted; NaN where no sign can be elected.
#[derive(Debug, Clone, Copy)]
pub struct Agree;

/// What an election keeps of the models.
#[derive(Debug, Clone, Copy)]
pub struct Agreeing<F> {
    /// Σ τ
    elected: F,
    /// Its sign: a negative zero where signs are turned, so that what agrees is above zero everywhere.
    turn: F,
    /// Σ w τ of those that agree.
    sum: F,
    /// Their weights.
    weights: F,
}

/// Weights that sum to less count as this, as in mergekit.
const LEAST_WEIGHTS: f64 = 1e-6;

impl Rule for Agree {
    const WORDS: &'static str = "mean of what agrees";
    const READS_BASE: bool = true;
    const TASK_VECTORS: bool = true;
    const WEIGHTED: bool = false;
    const TWICE: bool = true;
    type Acc<F: Copy> = Agreeing<F>;

    fn of(_: &Numbers) -> Self {
        Self
    }

    #[inline(always)]
    fn start<L: Arith>(self, l: L, _: L::F) -> Agreeing<L::F> {
        let zero = l.number(0.0);
        Agreeing { elected: zero, turn: zero, sum: zero, weights: zero }
    }

    #[inline(always)]
    fn take<L: Arith>(self, l: L, acc: &mut Agreeing<L::F>, x: L::F) {
        acc.elected = l.add(acc.elected, x);
    }

    #[inline(always)]
    fn turn<L: Arith>(self, l: L, acc: &mut Agreeing<L::F>) {
        acc.turn = l.signs(l.less(acc.elected, l.number(0.0)));
    }

    #[inline(always)]
    fn take_again<L: Arith>(self, l: L, acc: &mut Agreeing<L::F>, x: L::F, weight: L::F) {
        let agrees = l.less(l.number(0.0), l.xor(x, acc.turn));
        acc.sum = l.select(agrees, l.add(acc.sum, l.mul(weight, x)), acc.sum);
        acc.weights = l.select(agrees, l.add(acc.weights, weight), acc.weights);
    }

    #[inline(always)]
    fn sum<L: Arith>(self, l: L, acc: Agreeing<L::F>) -> L::F {
        let least = l.number(LEAST_WEIGHTS);
        let weights = l.select(l.less(acc.weights, least), least, acc.weights);
        l.select(l.is_nan(acc.elected), acc.elected, l.div(acc.sum, weights))
    }

    #[inline(always)]
    fn finish<L: Arith>(self, l: L, sum: L::F, base: L::F) -> L::F {
        changed(l, sum, base, 1.0)
    }
}
