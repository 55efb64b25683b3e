//! A linear combination of parameters, the base among them: (base · θ₀ + Σ w θ) / divisor.

use super::{Arith, Numbers, Rule};

/// (base · θ₀ + Σ w θ) / divisor, with coefficients that are usually measured.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    base: f64,
}

impl Rule for Mix {
    const WORDS: &'static str = "mix";
    const READS_BASE: bool = true;
    const TASK_VECTORS: bool = false;
    const WEIGHTED: bool = true;
    type Acc<F: Copy> = F;

    fn of(numbers: &Numbers) -> Self {
        Self { base: numbers.base }
    }

    #[inline(always)]
    fn start<L: Arith>(self, l: L, base: L::F) -> L::F {
        l.mul(l.number(self.base), base)
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
    fn finish<L: Arith>(self, _: L, sum: L::F, _: L::F) -> L::F {
        sum
    }
}
