//! Dividing by one number: a product with its inverse and one step of correction, where that is faster and has the same bits.

use super::lanes::Lanes;

/// Significant bits of a divisor that quotients by products are right for; see [`Divisor::of`].
const SHORT_BITS: u32 = 21;
/// Magnitudes between which the residue of a quotient by a [`Divisor`] is exact: 2⁻¹⁰⁰ and 2¹⁰⁰, as bits.
pub(super) const EXACT: (u32, u32) = ((127 - 100) << 23, (127 + 100) << 23);

/// What sums are divided by.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Divisor {
    by: f32,
    /// 1 / `by`, rounded; `None` where quotients are not to be had by a product.
    inverse: Option<f32>,
}

impl Divisor {
    /// Takes the inverse where three operations give the quotient, as [`Lanes::div_by_products`] does.
    ///
    /// Let q be x times the rounded inverse, rounded: it is within 3/2 units in its last place of x / d. The residue
    /// r = x - q·d is exact in a fused operation, and q + r / d, with the rounded inverse again, is within 3/2 · 2⁻²⁴ units of
    /// x / d before it is rounded. A quotient by an integer below 2ⁿ, times a power of two, is at least 2⁻ⁿ⁻¹ units away from
    /// where rounding changes, as it never lies there: more than that for n of at most 21.
    pub fn of(by: f32) -> Self {
        let is_short = by.to_bits() << (32 - (f32::MANTISSA_DIGITS - SHORT_BITS)) == 0;
        let inverse = (is_short && (1.0..=1_048_576.0).contains(&by.abs())).then(|| by.recip());
        Self { by, inverse }
    }
}

/// Divides `U` vectors, rounding correctly.
#[inline(always)]
pub(super) fn divide<L: Lanes, const U: usize>(l: L, sums: &mut [L::F; U], divisor: Divisor) {
    if divisor.by == 1.0 {
        return;
    }
    if let Some(inverse) = divisor.inverse
        && l.div_by_products(sums, divisor.by, inverse)
    {
        return;
    }
    let by = l.splat(divisor.by);
    for x in sums {
        *x = l.div(*x, by);
    }
}
