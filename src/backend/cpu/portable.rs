//! Rules on blocks that have been widened: the vectors are arrays, and the compiler chooses instructions for them. For every
//! processor and type that [`super::simd`] does not cover.

use std::marker::PhantomData;

use multiversion::multiversion;

use crate::ops::Real;
use crate::ops::rules::{Arith, Numbers, Rule, RuleId, WithRule};

/// Numbers of a vector.
const N: usize = 16;

/// Vectors of [`N`] numbers.
#[derive(Debug, Clone, Copy)]
struct Arrays<C>(PhantomData<C>);

/// Loops instead of closures: these are compiled for the instruction set of the function around them.
macro_rules! each {
    ($($name:ident($($arg:ident: $ty:ident),*) -> $ret:ident($zero:expr) = |$i:ident| $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: Self::$ty),*) -> Self::$ret {
            let mut out = [$zero; N];
            for ($i, out) in out.iter_mut().enumerate() {
                *out = $body;
            }
            out
        })*
    };
}

impl<C: Real> Arith for Arrays<C> {
    type F = [C; N];
    type M = [bool; N];

    #[inline(always)]
    fn number(self, x: f64) -> [C; N] {
        [C::of(x); N]
    }

    each! {
        add(a: F, b: F) -> F(C::ZERO) = |i| a[i] + b[i];
        sub(a: F, b: F) -> F(C::ZERO) = |i| a[i] - b[i];
        mul(a: F, b: F) -> F(C::ZERO) = |i| a[i] * b[i];
        div(a: F, b: F) -> F(C::ZERO) = |i| a[i] / b[i];
        less(a: F, b: F) -> M(false) = |i| a[i] < b[i];
        equal(a: F, b: F) -> M(false) = |i| a[i] == b[i];
        is_nan(x: F) -> M(false) = |i| x[i].is_nan();
        larger(x: F, y: F) -> M(false) = |i| x[i].key() >= y[i].key();
        signs(m: M) -> F(C::ZERO) = |i| if m[i] { -C::ZERO } else { C::ZERO };
        xor(a: F, b: F) -> F(C::ZERO) = |i| a[i].xor(b[i]);
        select(m: M, a: F, b: F) -> F(C::ZERO) = |i| if m[i] { a[i] } else { b[i] };
    }
}

/// A block, and what becomes of it.
pub(super) struct Block<'a, C> {
    /// θ₀; not read where the rule does not read it.
    pub base: &'a [C],
    /// The models' parameters or task vectors, in order; at least the block's length each.
    pub models: &'a [Vec<C>],
    /// Weights, by model; 1 where there is none.
    pub weights: &'a [f64],
    /// The rule's other numbers.
    pub numbers: &'a Numbers,
    /// The merged elements.
    pub out: &'a mut [C],
}

impl<C: Real> Block<'_, C> {
    /// Merges the block by a rule.
    pub fn merge(self, rule: RuleId) {
        rule.visit(self);
    }
}

impl<C: Real> WithRule for Block<'_, C> {
    type Out = ();

    fn with<R: Rule>(self) {
        merge::<R, C>(self.base, self.models, self.weights, self.numbers, self.out);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn merge<R: Rule, C: Real>(base: &[C], models: &[Vec<C>], weights: &[f64], numbers: &Numbers, out: &mut [C]) {
    let (l, rule) = (Arrays::<C>(PhantomData), R::of(numbers));
    let divisor = C::of(numbers.divisor);
    let mut at = 0;
    while at < out.len() {
        let n = N.min(out.len() - at);
        let b = if R::READS_BASE { load(base, at, n) } else { l.number(0.0) };
        let mut acc = rule.start(l, b);
        for (t, model) in models.iter().enumerate() {
            let x = value::<R, C>(l, model, weights, t, at, n);
            rule.take(l, &mut acc, x);
        }
        if R::TWICE {
            rule.turn(l, &mut acc);
            for (t, model) in models.iter().enumerate() {
                let x = value::<R, C>(l, model, weights, t, at, n);
                rule.take_again(l, &mut acc, x, l.number(weight(weights, t)));
            }
        }
        let mut sum = rule.sum(l, acc);
        if divisor != C::ONE {
            sum = l.div(sum, [divisor; N]);
        }
        let merged = rule.finish(l, sum, b);
        out[at..at + n].copy_from_slice(&merged[..n]);
        at += n;
    }
}

/// A model's values from `at` on, as the rule takes them.
#[inline(always)]
fn value<R: Rule, C: Real>(l: Arrays<C>, model: &[C], weights: &[f64], t: usize, at: usize, n: usize) -> [C; N] {
    let x = load(model, at, n);
    if R::WEIGHTED { l.mul(l.number(weight(weights, t)), x) } else { x }
}

#[inline(always)]
fn weight(weights: &[f64], t: usize) -> f64 {
    weights.get(t).copied().unwrap_or(1.0)
}

/// `n` numbers from `at` on, and zeros behind them.
#[inline(always)]
fn load<C: Real>(values: &[C], at: usize, n: usize) -> [C; N] {
    let mut x = [C::ZERO; N];
    x[..n].copy_from_slice(&values[at..at + n]);
    x
}
