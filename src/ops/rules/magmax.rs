//! MagMax (arXiv 2407.06322): θ₀ + λ · (the τ of largest magnitude).

use super::{Arith, Numbers, Rule, changed};

/// θ₀ + λ · (the τ of largest magnitude; on a tie the later; a NaN counts as the largest).
#[derive(Debug, Clone, Copy)]
pub struct MaxMagnitude {
    lambda: f64,
}

impl Rule for MaxMagnitude {
    const WORDS: &'static str = "largest magnitude";
    const READS_BASE: bool = true;
    const TASK_VECTORS: bool = true;
    const WEIGHTED: bool = false;
    type Acc<F: Copy> = F;

    fn of(numbers: &Numbers) -> Self {
        Self { lambda: numbers.lambda }
    }

    #[inline(always)]
    fn start<L: Arith>(self, l: L, _: L::F) -> L::F {
        l.number(0.0)
    }

    #[inline(always)]
    fn take<L: Arith>(self, l: L, acc: &mut L::F, x: L::F) {
        *acc = l.select(l.larger(x, *acc), x, *acc);
    }

    #[inline(always)]
    fn sum<L: Arith>(self, _: L, acc: L::F) -> L::F {
        acc
    }

    #[inline(always)]
    fn finish<L: Arith>(self, l: L, sum: L::F, base: L::F) -> L::F {
        changed(l, sum, base, self.lambda)
    }
}
