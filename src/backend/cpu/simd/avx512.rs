//! AVX-512: sixteen f32, or twice eight f64.

use std::arch::x86_64::*;

use super::divide::EXACT;
use super::lanes::Lanes;
use crate::instructions::Instructions;
use crate::ops::rules::Arith;

/// Proof that the processor has AVX-512 F, BW, DQ and VL, and what comes with them.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        Instructions::Avx512.is_here().then_some(Self(()))
    }
}

macro_rules! operations {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: (1) `self` is only made where the processor has these instructions; (2) those that read or write
            // memory are given a slice of exactly the bytes that they touch, and need no alignment.
            unsafe { $body }
        })*
    };
}

/// Bits of |x|.
#[inline(always)]
fn key(x: __m512) -> __m512i {
    // SAFETY: only reached through `Avx512`, which is proof of these instructions; no memory is touched.
    unsafe { _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX)) }
}

/// Rounds to bfloat16, in the high half of each element; what is in the low half does not matter. A NaN with zeros there
/// stays one.
#[inline(always)]
fn nearest_bf16(x: __m512) -> __m512i {
    // SAFETY: only reached through `Avx512`, which is proof of these instructions; no memory is touched.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << 16));
        let below = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
        _mm512_mask_sub_epi32(below, is_odd, below, _mm512_set1_epi32(-1))
    }
}

impl Arith for Avx512 {
    type F = __m512;
    type M = __mmask16;

    operations! {
        fn number(x: f64) -> __m512 = _mm512_set1_ps(x as f32);
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn less(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
        fn equal(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b);
        fn is_nan(x: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        fn larger(x: __m512, y: __m512) -> __mmask16 = _mm512_cmpge_epu32_mask(key(x), key(y));
        fn signs(m: __mmask16) -> __m512 = _mm512_maskz_mov_ps(m, _mm512_set1_ps(-0.0));
        fn xor(a: __m512, b: __m512) -> __m512 = _mm512_xor_ps(a, b);
        fn select(m: __mmask16, a: __m512, b: __m512) -> __m512 = _mm512_mask_blend_ps(m, b, a);
    }
}

impl Lanes for Avx512 {
    const N: usize = 16;
    type D = (__m512d, __m512d);
    type C = u32;
    type W = __m512i;

    operations! {
        fn prefetch(bytes: &[u8], at: usize) = _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast());
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn bf16(bytes: &[u8], at: usize) -> __m512 = {
            let half = _mm256_loadu_si256(bytes[2 * at..2 * at + 32].as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        };
        fn bf16_pairs(bytes: &[u8], at: usize) -> [__m512; 2] = {
            let both = _mm512_loadu_si512(bytes[2 * at..2 * at + 64].as_ptr().cast());
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(!0xFFFF));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
        };
        fn f16(bytes: &[u8], at: usize) -> __m512 =
            _mm512_cvtph_ps(_mm256_loadu_si256(bytes[2 * at..2 * at + 32].as_ptr().cast()));
        fn f32(bytes: &[u8], at: usize) -> __m512 = _mm512_loadu_ps(bytes[4 * at..4 * at + 64].as_ptr().cast());
        fn to_bf16(x: __m512, bytes: &mut [u8], at: usize) -> __mmask16 = {
            let bits = _mm512_castps_si512(x);
            let high = _mm512_srli_epi32::<16>(bits);
            let half = _mm512_add_epi32(_mm512_set1_epi32(0x7FFF), _mm512_and_si512(high, _mm512_set1_epi32(1)));
            let nearest = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            // A NaN must stay one, also where its payload sits in the bits that go.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let rounded = _mm512_mask_or_epi32(nearest, nan, high, _mm512_set1_epi32(0x40));
            _mm256_storeu_si256(bytes[2 * at..2 * at + 32].as_mut_ptr().cast(), _mm512_cvtepi32_epi16(rounded));
            let exponent = _mm512_set1_epi32(0x7F80);
            _mm512_cmpeq_epi32_mask(_mm512_and_si512(rounded, exponent), exponent)
        };
        fn to_bf16_pairs(x: [__m512; 2], bytes: &mut [u8], at: usize) -> __mmask16 = {
            let (even, odd) = (nearest_bf16(x[0]), nearest_bf16(x[1]));
            // The high halves of both: (odd and mask) or (even and not mask).
            let (even, mask) = (_mm512_srli_epi32::<16>(even), _mm512_set1_epi32(!0xFFFF));
            let mut both = _mm512_ternarylogic_epi32::<0xCA>(mask, odd, even);
            let exponent = _mm512_set1_epi16(0x7F80);
            let bad = _mm512_cmpeq_epi16_mask(_mm512_and_si512(both, exponent), exponent);
            if bad != 0 {
                let key = _mm512_and_si512(both, _mm512_set1_epi16(0x7FFF));
                let quiet = _mm512_or_si512(both, _mm512_set1_epi16(0x40));
                both = _mm512_mask_mov_epi16(both, _mm512_cmpgt_epi16_mask(key, exponent), quiet);
            }
            _mm512_storeu_si512(bytes[2 * at..2 * at + 64].as_mut_ptr().cast(), both);
            (bad | bad >> 16) as __mmask16
        };
        fn to_f16(x: __m512, bytes: &mut [u8], at: usize) -> __mmask16 = {
            let rounded = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(bytes[2 * at..2 * at + 32].as_mut_ptr().cast(), rounded);
            let exponent = _mm256_set1_epi16(0x7C00);
            _mm256_cmpeq_epi16_mask(_mm256_and_si256(rounded, exponent), exponent)
        };
        fn to_f32(x: __m512, bytes: &mut [u8], at: usize) -> __mmask16 = {
            _mm512_storeu_ps(bytes[4 * at..4 * at + 64].as_mut_ptr().cast(), x);
            _mm512_cmpge_epu32_mask(key(x), _mm512_set1_epi32(0x7F80_0000))
        };
        fn reaches(x: __m512, bound: u32) -> __mmask16 = _mm512_cmpge_epu32_mask(key(x), _mm512_set1_epi32(bound as i32));
        fn sift(x: __m512, lo: u32, hi: u32, pivot: u32) -> [__mmask16; 3] = {
            let key = key(x);
            let from = _mm512_cmpge_epu32_mask(key, _mm512_set1_epi32(lo as i32));
            let within = _mm512_mask_cmplt_epu32_mask(from, key, _mm512_set1_epi32(hi as i32));
            [from, within, _mm512_mask_cmpneq_epi32_mask(within, key, _mm512_set1_epi32(pivot as i32))]
        };
        fn flags(bytes: &[u8], at: usize) -> __mmask16 = {
            let flags = _mm_loadu_si128(bytes[at..at + 16].as_ptr().cast());
            _mm_test_epi8_mask(flags, flags)
        };
        fn flag_pairs(bytes: &[u8], at: usize) -> [__mmask16; 2] = {
            let flags = _mm256_loadu_si256(bytes[at..at + 32].as_ptr().cast());
            let (even, odd) = (_mm256_set1_epi16(0xFF), _mm256_set1_epi16(!0xFF));
            [_mm256_test_epi16_mask(flags, even), _mm256_test_epi16_mask(flags, odd)]
        };
        fn bit_pairs(bits: &[u8], at: usize) -> [__mmask16; 2] = {
            let bits = u32::from_le_bytes([bits[at / 8], bits[at / 8 + 1], bits[at / 8 + 2], bits[at / 8 + 3]]);
            [_pext_u32(bits, 0x5555_5555) as __mmask16, _pext_u32(bits, 0xAAAA_AAAA) as __mmask16]
        };
        fn counter(first: u64) -> (__m512i, __m512i) = {
            let order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
            let counter = _mm512_add_epi64(_mm512_set1_epi64(first as i64), order);
            (counter, _mm512_srli_epi64::<32>(counter))
        };
        fn word(x: u32) -> __m512i = _mm512_set1_epi64(i64::from(x));
        fn word_mul(a: __m512i, b: __m512i) -> __m512i = _mm512_mul_epu32(a, b);
        // By a shuffle: products and shifts share a port.
        fn word_high(x: __m512i) -> __m512i = _mm512_shuffle_epi32::<0b11_11_01_01>(x);
        fn word_xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i = _mm512_ternarylogic_epi64::<0x96>(a, b, c);
        fn below(words: [__m512i; 4], threshold: u32, bits: &mut [u8], at: usize) = {
            let [a, b, c, d] = words;
            // Words 0 and 1 of a counter, and words 2 and 3.
            let front = _mm512_mask_shuffle_epi32::<0b10_10_00_00>(a, 0xAAAA, b);
            let back = _mm512_mask_shuffle_epi32::<0b10_10_00_00>(c, 0xAAAA, d);
            let bound = _mm512_set1_epi32(threshold as i32);
            // The order of the counters makes these the words of the first four counters and of the others.
            let first = _mm512_cmplt_epu32_mask(_mm512_unpacklo_epi64(front, back), bound);
            let second = _mm512_cmplt_epu32_mask(_mm512_unpackhi_epi64(front, back), bound);
            let both = u32::from(first) | u32::from(second) << 16;
            bits[at / 8..at / 8 + 4].copy_from_slice(&both.to_le_bytes());
        };
        fn keys(x: __m512, m: __mmask16, out: &mut [u32], at: usize) -> usize = {
            let packed = _mm512_maskz_compress_epi32(m, key(x));
            _mm512_storeu_si512(out[at..at + 16].as_mut_ptr().cast(), packed);
            m.count_ones() as usize
        };
        fn wide(x: __m512) -> (__m512d, __m512d) =
            (_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x)));
        fn wide_rounded(x: (__m512d, __m512d)) -> (__m512d, __m512d) =
            (_mm512_cvtps_pd(_mm512_cvtpd_ps(x.0)), _mm512_cvtps_pd(_mm512_cvtpd_ps(x.1)));
        fn wide_zero() -> (__m512d, __m512d) = (_mm512_setzero_pd(), _mm512_setzero_pd());
        fn wide_load(values: &[f64], at: usize) -> (__m512d, __m512d) = {
            let from = &values[at..at + 16];
            (_mm512_loadu_pd(from.as_ptr()), _mm512_loadu_pd(from[8..].as_ptr()))
        };
        fn wide_store(x: (__m512d, __m512d), values: &mut [f64], at: usize) = {
            let to = &mut values[at..at + 16];
            _mm512_storeu_pd(to.as_mut_ptr(), x.0);
            _mm512_storeu_pd(to[8..].as_mut_ptr(), x.1);
        };
        fn wide_add(a: (__m512d, __m512d), b: (__m512d, __m512d)) -> (__m512d, __m512d) =
            (_mm512_add_pd(a.0, b.0), _mm512_add_pd(a.1, b.1));
        fn wide_sub(a: (__m512d, __m512d), b: (__m512d, __m512d)) -> (__m512d, __m512d) =
            (_mm512_sub_pd(a.0, b.0), _mm512_sub_pd(a.1, b.1));
        fn wide_abs(x: (__m512d, __m512d)) -> (__m512d, __m512d) = (_mm512_abs_pd(x.0), _mm512_abs_pd(x.1));
        fn wide_div(x: (__m512d, __m512d), n: f64) -> (__m512d, __m512d) = {
            let (n, inverse) = (_mm512_set1_pd(n), _mm512_set1_pd(1.0 / n));
            let (q0, q1) = (_mm512_mul_pd(x.0, inverse), _mm512_mul_pd(x.1, inverse));
            let (r0, r1) = (_mm512_fnmadd_pd(q0, n, x.0), _mm512_fnmadd_pd(q1, n, x.1));
            // Of infinity and NaN the product is the quotient, and there is nothing to correct.
            let (m0, m1) = (_mm512_cmp_pd_mask::<_CMP_ORD_Q>(r0, r0), _mm512_cmp_pd_mask::<_CMP_ORD_Q>(r1, r1));
            (_mm512_mask3_fmadd_pd(r0, inverse, q0, m0), _mm512_mask3_fmadd_pd(r1, inverse, q1, m1))
        };
    }
    // Divisions were a quarter of the samples of a profile of means. Not tried for AVX2, whose divisions are of half as many.
    #[inline(always)]
    fn div_by_products<const U: usize>(self, x: &mut [__m512; U], by: f32, inverse: f32) -> bool {
        let (lo, hi) = EXACT;
        // SAFETY: `self` is only made where the processor has these instructions; no memory is touched.
        unsafe {
            let mut above = _mm512_setzero_si512();
            for x in &*x {
                // What is below `lo` wraps round to more than 2³¹.
                above = _mm512_max_epu32(above, _mm512_sub_epi32(key(*x), _mm512_set1_epi32(lo as i32)));
            }
            if _mm512_cmpge_epu32_mask(above, _mm512_set1_epi32((hi - lo) as i32)) != 0 {
                return false;
            }
            let (by, inverse) = (_mm512_set1_ps(by), _mm512_set1_ps(inverse));
            for x in x {
                let quotient = _mm512_mul_ps(*x, inverse);
                let residue = _mm512_fnmadd_ps(quotient, by, *x);
                *x = _mm512_fmadd_ps(residue, inverse, quotient);
            }
        }
        true
    }

    #[inline(always)]
    fn bits(self, bits: &[u8], at: usize) -> __mmask16 {
        u16::from_le_bytes([bits[at / 8], bits[at / 8 + 1]])
    }

    // Scalar: the vector units are what these loops wait for.
    #[inline(always)]
    fn counters(self) -> u32 {
        0
    }

    #[inline(always)]
    fn tally<const U: usize>(self, counters: u32, m: [__mmask16; U]) -> u32 {
        let mut counters = counters;
        for four in m.chunks(4) {
            let mut flags = 0;
            for m in four {
                flags = flags << 16 | u64::from(*m);
            }
            counters += flags.count_ones();
        }
        counters
    }

    #[inline(always)]
    fn total(self, counters: u32) -> u32 {
        counters
    }

    #[inline(always)]
    fn none(self) -> __mmask16 {
        0
    }

    #[inline(always)]
    fn or(self, a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }

    #[inline(always)]
    fn count(self, m: __mmask16) -> u32 {
        m.count_ones()
    }
}
