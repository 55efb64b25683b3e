//! What a loop needs of an instruction set, and where its elements come from.

use crate::backend::cpu::stored::Stored;
use crate::dtype::Dtype;
use crate::ops::rules::Arith;

/// The vectors of an instruction set: N f32 and N flags. A value of the type is proof that the processor has it.
pub(super) trait Lanes: Arith {
    /// Elements of a vector.
    const N: usize;
    /// N f64.
    type D: Copy;
    /// N counters.
    type C: Copy;
    /// N / 2 words, each in the low half of 64 bits; what is in the high halves does not matter.
    type W: Copy;

    /// Asks for the line of memory that holds this byte, which may lie outside the slice.
    fn prefetch(self, bytes: &[u8], at: usize);
    fn splat(self, x: f32) -> Self::F;
    /// Elements `at..at + N` of bfloat16.
    fn bf16(self, bytes: &[u8], at: usize) -> Self::F;
    /// Elements `at..at + 2 N` of bfloat16: those at even places, then those at odd ones, which is how they come fastest.
    fn bf16_pairs(self, bytes: &[u8], at: usize) -> [Self::F; 2];
    /// Elements `at..at + N` of float16.
    fn f16(self, bytes: &[u8], at: usize) -> Self::F;
    /// Elements `at..at + N` of float32.
    fn f32(self, bytes: &[u8], at: usize) -> Self::F;
    /// Rounds to bfloat16 at elements `at..at + N`; which results are NaN or infinite.
    fn to_bf16(self, x: Self::F, bytes: &mut [u8], at: usize) -> Self::M;
    /// Rounds what [`Lanes::bf16_pairs`] took apart, and puts it together; not [`Lanes::none`] if a result is NaN or
    /// infinite. A NaN among `x` has zeros in the bits that go, as one has that arithmetic made, or passed on from bfloat16.
    fn to_bf16_pairs(self, x: [Self::F; 2], bytes: &mut [u8], at: usize) -> Self::M;
    /// Rounds to float16, likewise.
    fn to_f16(self, x: Self::F, bytes: &mut [u8], at: usize) -> Self::M;
    /// Stores float32, likewise.
    fn to_f32(self, x: Self::F, bytes: &mut [u8], at: usize) -> Self::M;

    /// Divides by a number of which [`super::Divisor`] has the inverse, by products, if that is faster here and every element's
    /// magnitude allows it; else nothing is changed. Whether it was done.
    fn div_by_products<const U: usize>(self, _x: &mut [Self::F; U], _by: f32, _inverse: f32) -> bool {
        false
    }
    /// Whether the bits of |x| are at least `key`, which is at most 2³¹.
    fn reaches(self, x: Self::F, key: u32) -> Self::M;
    /// Of the bits of |x|: which are at least `lo`, which of those are below `hi`, and which of those are not `pivot`. Bounds are at most
    /// 2³¹.
    fn sift(self, x: Self::F, lo: u32, hi: u32, pivot: u32) -> [Self::M; 3];
    /// Which of the bytes `at..at + N` are not 0.
    fn flags(self, bytes: &[u8], at: usize) -> Self::M;
    /// The same of the bytes `at..at + 2 N`, in the order of [`Lanes::bf16_pairs`].
    fn flag_pairs(self, bytes: &[u8], at: usize) -> [Self::M; 2];
    /// Which of the bits `at..at + N` are 1; `at` is a multiple of N.
    fn bits(self, bits: &[u8], at: usize) -> Self::M;
    /// The same of the bits `at..at + 2 N`, in the order of [`Lanes::bf16_pairs`].
    fn bit_pairs(self, bits: &[u8], at: usize) -> [Self::M; 2];

    /// The N / 2 counters from this one on, in the order that [`Lanes::below`] takes: their low words, and their high words.
    fn counter(self, first: u64) -> (Self::W, Self::W);
    fn word(self, x: u32) -> Self::W;
    /// The product, 64 bits.
    fn word_mul(self, a: Self::W, b: Self::W) -> Self::W;
    /// The high half of 64 bits as a word.
    fn word_high(self, x: Self::W) -> Self::W;
    fn word_xor(self, a: Self::W, b: Self::W, c: Self::W) -> Self::W;
    /// Four words of each counter are the words of four elements: writes which of the 2 N are below the threshold as bits from
    /// element `at` on, a multiple of 2 N.
    fn below(self, words: [Self::W; 4], threshold: u32, bits: &mut [u8], at: usize);
    fn none(self) -> Self::M;
    fn or(self, a: Self::M, b: Self::M) -> Self::M;
    fn count(self, m: Self::M) -> u32;
    fn counters(self) -> Self::C;
    /// Adds what is flagged in several vectors.
    fn tally<const U: usize>(self, counters: Self::C, m: [Self::M; U]) -> Self::C;
    /// The sum of all counters.
    fn total(self, counters: Self::C) -> u32;
    /// Writes the bits of |x| of flagged elements to `out[at..]`, which must have room for N; how many they are.
    fn keys(self, x: Self::F, m: Self::M, out: &mut [u32], at: usize) -> usize;

    fn wide(self, x: Self::F) -> Self::D;
    /// Rounds to the nearest f32, to even.
    fn wide_rounded(self, x: Self::D) -> Self::D;
    fn wide_zero(self) -> Self::D;
    fn wide_load(self, values: &[f64], at: usize) -> Self::D;
    fn wide_store(self, x: Self::D, values: &mut [f64], at: usize);
    fn wide_add(self, a: Self::D, b: Self::D) -> Self::D;
    fn wide_sub(self, a: Self::D, b: Self::D) -> Self::D;
    fn wide_abs(self, x: Self::D) -> Self::D;
    /// x / n, correctly rounded, for a count `n`.
    ///
    /// By a product with 1/n and one step of correction: the sum before the last rounding is within 2⁻¹⁰⁵ of the quotient,
    /// and a quotient by a number of a few bits is never that near to where rounding changes.
    fn wide_div(self, x: Self::D, n: f64) -> Self::D;
}

/// Float types that are widened and rounded in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kind {
    Bf16,
    F16,
    F32,
}

impl Kind {
    /// `None` for other types.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::BF16 => Some(Kind::Bf16),
            Dtype::F16 => Some(Kind::F16),
            Dtype::F32 => Some(Kind::F32),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        if self == Kind::F32 { 4 } else { 2 }
    }

    /// Rounds vectors to elements `at..` of `bytes`; not [`Lanes::none`] if a result is NaN or infinite. `PAIRED`: as
    /// [`Source::load`] gave them.
    #[inline(always)]
    pub(super) fn store<L: Lanes, const U: usize, const PAIRED: bool>(
        self,
        l: L,
        x: &[L::F; U],
        bytes: &mut [u8],
        at: usize,
    ) -> L::M {
        let size = self.size();
        let bytes = &mut bytes[at * size..(at + U * L::N) * size];
        let mut bad = l.none();
        if PAIRED {
            debug_assert_eq!(self, Kind::Bf16);
            let bytes = &mut bytes[..2 * U * L::N];
            for (pair, x) in x.as_chunks::<2>().0.iter().enumerate() {
                bad = l.or(bad, l.to_bf16_pairs(*x, bytes, 2 * pair * L::N));
            }
            return bad;
        }
        match self {
            Kind::Bf16 => {
                let bytes = &mut bytes[..2 * U * L::N];
                for (u, x) in x.iter().enumerate() {
                    bad = l.or(bad, l.to_bf16(*x, bytes, u * L::N));
                }
            }
            Kind::F16 => {
                let bytes = &mut bytes[..2 * U * L::N];
                for (u, x) in x.iter().enumerate() {
                    bad = l.or(bad, l.to_f16(*x, bytes, u * L::N));
                }
            }
            Kind::F32 => {
                let bytes = &mut bytes[..4 * U * L::N];
                for (u, x) in x.iter().enumerate() {
                    bad = l.or(bad, l.to_f32(*x, bytes, u * L::N));
                }
            }
        }
        bad
    }
}

/// A run of elements of a type that is widened in registers.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Source<'a> {
    kind: Kind,
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    /// `None` for other types.
    pub fn stored(stored: &Stored<'a>) -> Option<Self> {
        Some(Self { kind: Kind::of(stored.dtype)?, bytes: stored.bytes })
    }

    /// Values that have been widened already.
    pub fn values(values: &'a [f32]) -> Self {
        Self { kind: Kind::F32, bytes: bytemuck::cast_slice(values) }
    }

    /// A part of the run.
    pub fn part(&self, at: usize, n: usize) -> Self {
        let size = self.kind.size();
        Self { kind: self.kind, bytes: &self.bytes[at * size..(at + n) * size] }
    }

    /// Asks for the memory of `U` vectors of elements from `at` on, which may lie outside the run: what follows it in its file.
    #[inline(always)]
    pub(super) fn prefetch<L: Lanes, const U: usize, const PAIRED: bool>(&self, l: L, at: usize) {
        const LINE: usize = 64;
        // A number that the compiler knows, so that there is no loop.
        let size = if PAIRED { Kind::Bf16.size() } else { self.kind.size() };
        for line in (0..U * L::N * size).step_by(LINE) {
            l.prefetch(self.bytes, at * size + line);
        }
    }

    /// Whether its elements can be loaded in pairs.
    pub(super) fn has_pairs(&self) -> bool {
        self.kind == Kind::Bf16
    }

    /// `U` vectors of elements from `at` on. Several at once, so that the type is looked at and the bounds are checked once
    /// for all of them. `PAIRED`: every two vectors in the order of [`Lanes::bf16_pairs`], of a run that has pairs.
    #[inline(always)]
    pub(super) fn load<L: Lanes, const U: usize, const PAIRED: bool>(&self, l: L, at: usize) -> [L::F; U] {
        let size = self.kind.size();
        let bytes = &self.bytes[at * size..(at + U * L::N) * size];
        let mut x = [l.splat(0.0); U];
        if PAIRED {
            debug_assert!(self.has_pairs());
            let bytes = &bytes[..2 * U * L::N];
            for (pair, x) in x.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *x = l.bf16_pairs(bytes, 2 * pair * L::N);
            }
            return x;
        }
        match self.kind {
            Kind::Bf16 => {
                let bytes = &bytes[..2 * U * L::N];
                for (u, x) in x.iter_mut().enumerate() {
                    *x = l.bf16(bytes, u * L::N);
                }
            }
            Kind::F16 => {
                let bytes = &bytes[..2 * U * L::N];
                for (u, x) in x.iter_mut().enumerate() {
                    *x = l.f16(bytes, u * L::N);
                }
            }
            Kind::F32 => {
                let bytes = &bytes[..4 * U * L::N];
                for (u, x) in x.iter_mut().enumerate() {
                    *x = l.f32(bytes, u * L::N);
                }
            }
        }
        x
    }
}
