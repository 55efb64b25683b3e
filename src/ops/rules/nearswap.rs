//! mergekit's nearswap: θ₀ + τ · clamp(t / |τ|, 0, 1).

use super::{Arith, Numbers, Rule, changed};

/// θ₀ + Σ τ · clamp(t / max(|τ|, 1e-6), 0, 1).
#[derive(Debug, Clone, Copy)]
pub struct Near {
    t: f64,
}

impl Rule for Near {
    const WORDS: &'static str = "step towards the other model";
    const READS_BASE: bool = true;
    const TASK_VECTORS: bool = true;
    const WEIGHTED: bool = false;
    type Acc<F: Copy> = F;

    fn of(numbers: &Numbers) -> Self {
        Self { t: numbers.threshold }
    }

    #[inline(always)]
    fn start<L: Arith>(self, l: L, _: L::F) -> L::F {
        l.number(0.0)
    }

    #[inline(always)]
    fn take<L: Arith>(self, l: L, acc: &mut L::F, x: L::F) {
        let (zero, one, least) = (l.number(0.0), l.number(1.0), l.number(1e-6));
        let size = l.xor(x, l.signs(l.less(x, zero)));
        // Comparisons that a NaN passes by leave it one.
        let size = l.select(l.less(size, least), least, size);
        let share = l.div(l.number(self.t), size);
        let share = l.select(l.less(one, share), one, share);
        let share = l.select(l.less(share, zero), zero, share);
        *acc = l.add(*acc, l.mul(share, x));
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
