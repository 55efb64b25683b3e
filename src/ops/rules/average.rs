//! The weighted average of parameters: Σ w θ / divisor.

use super::{Arith, Numbers, Rule};

/// Σ w θ / divisor, over all models.
#[derive(Debug, Clone, Copy)]
pub struct Average;

impl Rule for Average {
    const WORDS: &'static str = "average";
    const READS_BASE: bool = false;
    const TASK_VECTORS: bool = false;
    const WEIGHTED: bool = true;
    type Acc<F: Copy> = F;

    fn of(_: &Numbers) -> Self {
        Self
    }

    #[inline(always)]
    fn start<L: Arith>(self, l: L, _: L::F) -> L::F {
        // What is added to a negative zero stays what it is, a negative zero too.
        l.number(-0.0)
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
