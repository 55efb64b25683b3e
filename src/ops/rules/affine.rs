//! A linear combination of θ₀ and the task vectors: base · θ₀ + Σ w τ.

use super::{Arith, Numbers, Rule, changed};

/// θ₀ + ((base − 1) · θ₀ + Σ w τ) / divisor, with coefficients that are usually measured. Written as a change, so that it is θ₀
/// itself where nothing changed.
#[derive(Debug, Clone, Copy)]
pub struct Affine {
    more: f64,
}

impl Rule for Affine {
    const WORDS: &'static str = "mix";
    const READS_BASE: bool = true;
    const TASK_VECTORS: bool = true;
    const WEIGHTED: bool = true;
    type Acc<F: Copy> = F;

    fn of(numbers: &Numbers) -> Self {
        Self { more: numbers.base - 1.0 }
    }

    #[inline(always)]
    fn start<L: Arith>(self, l: L, base: L::F) -> L::F {
        l.mul(l.number(self.more), base)
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
        changed(l, sum, base, 1.0)
    }
}
