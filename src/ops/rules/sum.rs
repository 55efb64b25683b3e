//! Task arithmetic: θ₀ + λ (Σ w τ) / divisor.

use super::{Arith, Numbers, Rule, changed};

/// θ₀ + λ (Σ w τ) / divisor.
#[derive(Debug, Clone, Copy)]
pub struct Sum {
    lambda: f64,
}

impl Rule for Sum {
    const WORDS: &'static str = "add task vectors";
    const READS_BASE: bool = true;
    const TASK_VECTORS: bool = true;
    const WEIGHTED: bool = true;
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
        *acc = l.add(*acc, x);
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
