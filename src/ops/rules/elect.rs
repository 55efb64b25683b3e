//! The election of TIES (arXiv 2306.01708): a sign for each element, and the sum or weighted mean of what has it.

use super::{Arith, Numbers, Rule, changed};

/// θ₀ + λ · (sum or weighted mean of the w τ that have the sign of Σ w τ); NaN where no sign can be elected. What agrees with
/// nothing is divided by nothing.
#[derive(Debug, Clone, Copy)]
pub struct Elect {
    lambda: f64,
    normalize: bool,
}

/// What an election keeps of the models.
#[derive(Debug, Clone, Copy)]
pub struct Votes<F> {
    /// Σ w τ
    elected: F,
    /// Its sign: a negative zero where signs are turned, so that what agrees is above zero everywhere.
    turn: F,
    /// Σ w τ of those that agree.
    sum: F,
    /// Their weights.
    weights: F,
}

impl Rule for Elect {
    const WORDS: &'static str = "elect signs";
    const READS_BASE: bool = true;
    const TASK_VECTORS: bool = true;
    const WEIGHTED: bool = true;
    const TWICE: bool = true;
    type Acc<F: Copy> = Votes<F>;

    fn of(numbers: &Numbers) -> Self {
        Self { lambda: numbers.lambda, normalize: numbers.normalize }
    }

    #[inline(always)]
    fn start<L: Arith>(self, l: L, _: L::F) -> Votes<L::F> {
        let zero = l.number(0.0);
        Votes { elected: zero, turn: zero, sum: zero, weights: zero }
    }

    #[inline(always)]
    fn take<L: Arith>(self, l: L, acc: &mut Votes<L::F>, x: L::F) {
        acc.elected = l.add(acc.elected, x);
    }

    #[inline(always)]
    fn turn<L: Arith>(self, l: L, acc: &mut Votes<L::F>) {
        acc.turn = l.signs(l.less(acc.elected, l.number(0.0)));
    }

    #[inline(always)]
    fn take_again<L: Arith>(self, l: L, acc: &mut Votes<L::F>, x: L::F, weight: L::F) {
        let agrees = l.less(l.number(0.0), l.xor(x, acc.turn));
        acc.sum = l.select(agrees, l.add(acc.sum, x), acc.sum);
        acc.weights = l.select(agrees, l.add(acc.weights, weight), acc.weights);
    }

    #[inline(always)]
    fn sum<L: Arith>(self, l: L, acc: Votes<L::F>) -> L::F {
        let mut sum = acc.sum;
        if self.normalize {
            sum = l.select(l.equal(acc.weights, l.number(0.0)), sum, l.div(sum, acc.weights));
        }
        l.select(l.is_nan(acc.elected), acc.elected, sum)
    }

    #[inline(always)]
    fn finish<L: Arith>(self, l: L, sum: L::F, base: L::F) -> L::F {
        changed(l, sum, base, self.lambda)
    }
}
