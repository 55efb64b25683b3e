//! The rule of RAM (arXiv 2601.13572): the mean of the task vectors that changed an element, and what one alone changed, scaled.

use super::{Arith, Numbers, Rule, changed};

/// θ₀ + the mean of the τ with |τ| > ε; the only one of them times its weight.
#[derive(Debug, Clone, Copy)]
pub struct Reinforced {
    epsilon: f64,
}

/// What an element is of the models.
#[derive(Debug, Clone, Copy)]
pub struct Active<F> {
    /// Σ τ of those that changed it, or the only one times its weight.
    sum: F,
    /// How many did.
    count: F,
}

impl Rule for Reinforced {
    const WORDS: &'static str = "mean of what changed";
    const READS_BASE: bool = true;
    const TASK_VECTORS: bool = true;
    const WEIGHTED: bool = false;
    const TWICE: bool = true;
    type Acc<F: Copy> = Active<F>;

    fn of(numbers: &Numbers) -> Self {
        Self { epsilon: numbers.threshold }
    }

    #[inline(always)]
    fn start<L: Arith>(self, l: L, _: L::F) -> Active<L::F> {
        Active { sum: l.number(0.0), count: l.number(0.0) }
    }

    #[inline(always)]
    fn take<L: Arith>(self, l: L, acc: &mut Active<L::F>, x: L::F) {
        // By bits, so that a NaN is a change.
        let is_none = l.larger(l.number(self.epsilon), x);
        acc.sum = l.select(is_none, acc.sum, l.add(acc.sum, x));
        acc.count = l.select(is_none, acc.count, l.add(acc.count, l.number(1.0)));
    }

    #[inline(always)]
    fn take_again<L: Arith>(self, l: L, acc: &mut Active<L::F>, x: L::F, weight: L::F) {
        let alone = l.select(l.equal(acc.count, l.number(1.0)), l.mul(weight, x), acc.sum);
        acc.sum = l.select(l.larger(l.number(self.epsilon), x), acc.sum, alone);
    }

    #[inline(always)]
    fn sum<L: Arith>(self, l: L, acc: Active<L::F>) -> L::F {
        l.select(l.less(l.number(1.0), acc.count), l.div(acc.sum, acc.count), acc.sum)
    }

    #[inline(always)]
    fn finish<L: Arith>(self, l: L, sum: L::F, base: L::F) -> L::F {
        changed(l, sum, base, 1.0)
    }
}
