//! The two computing types: f32, and f64 for tensors that are stored as F64.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// f32 or f64.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// Bits of [`Real::key`].
    const KEY_BITS: u32;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Rounds to nearest even.
    fn of(value: f64) -> Self;
    /// Widens exactly.
    fn f64(self) -> f64;
    /// |x|
    fn abs(self) -> Self;
    /// The bits of |x| as a number: ordered as magnitudes are, with NaN above infinity.
    fn key(self) -> u64;
    /// Whether the key is at or above the first bound, and whether it is below the second (bounds of a range of keys).
    fn beyond(self, hi: u64, lo: u64) -> (bool, bool);
    /// The value of a key.
    fn from_key(key: u64) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// NaN.
    fn is_nan(self) -> bool;
    /// Exclusive or of the bits.
    fn xor(self, other: Self) -> Self;
}

macro_rules! real {
    ($t:ty, $bits:ty, $key_bits:literal) => {
        impl Real for $t {
            const KEY_BITS: u32 = $key_bits;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn of(value: f64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn key(self) -> u64 {
                u64::from(self.to_bits() & (<$bits>::MAX >> 1))
            }
            #[inline(always)]
            fn beyond(self, hi: u64, lo: u64) -> (bool, bool) {
                // In the key's own width, so that a vector holds as many keys as values. A bound past the last key fits too.
                let key = self.to_bits() & (<$bits>::MAX >> 1);
                (key >= hi.min(1 << $key_bits) as $bits, key < lo as $bits)
            }
            #[inline(always)]
            fn from_key(key: u64) -> Self {
                <$t>::from_bits(key as $bits)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                <$t>::is_finite(self)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                <$t>::is_nan(self)
            }
            #[inline(always)]
            fn xor(self, other: Self) -> Self {
                <$t>::from_bits(self.to_bits() ^ other.to_bits())
            }
        }
    };
}
real!(f32, u32, 31);
real!(f64, u64, 63);
