//! AVX2: eight f32, or twice four f64. Flags are vectors of all ones or all zeros.

use std::arch::x86_64::*;

use super::lanes::Lanes;
use crate::instructions::Instructions;
use crate::ops::rules::Arith;

/// Proof that the processor has AVX2, FMA, F16C, BMI and POPCNT.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        Instructions::Avx2.is_here().then_some(Self(()))
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
fn key(x: __m256) -> __m256i {
    // SAFETY: only reached through `Avx2`, which is proof of these instructions; no memory is touched.
    unsafe { _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX)) }
}

/// Rounds to bfloat16, in the high half of each element; what is in the low half does not matter. A NaN with zeros there
/// stays one.
#[inline(always)]
fn nearest_bf16(x: __m256) -> __m256i {
    // SAFETY: only reached through `Avx2`, which is proof of these instructions; no memory is touched.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), last)
    }
}

impl Arith for Avx2 {
    type F = __m256;
    type M = __m256;

    operations! {
        fn number(x: f64) -> __m256 = _mm256_set1_ps(x as f32);
        fn add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        fn sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        fn mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fn div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        fn less(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LT_OQ>(a, b);
        fn equal(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b);
        fn is_nan(x: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        fn larger(x: __m256, y: __m256) -> __m256 = {
            let smaller = _mm256_cmpgt_epi32(key(y), key(x));
            _mm256_castsi256_ps(_mm256_xor_si256(smaller, _mm256_set1_epi32(-1)))
        };
        fn signs(m: __m256) -> __m256 = _mm256_and_ps(m, _mm256_set1_ps(-0.0));
        fn xor(a: __m256, b: __m256) -> __m256 = _mm256_xor_ps(a, b);
        fn select(m: __m256, a: __m256, b: __m256) -> __m256 = _mm256_blendv_ps(b, a, m);
    }
}

impl Lanes for Avx2 {
    const N: usize = 8;
    type D = (__m256d, __m256d);
    type C = __m256i;
    type W = __m256i;

    operations! {
        fn prefetch(bytes: &[u8], at: usize) = _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast());
        fn splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        fn bf16(bytes: &[u8], at: usize) -> __m256 = {
            let half = _mm_loadu_si128(bytes[2 * at..2 * at + 16].as_ptr().cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
        };
        fn bf16_pairs(bytes: &[u8], at: usize) -> [__m256; 2] = {
            let both = _mm256_loadu_si256(bytes[2 * at..2 * at + 32].as_ptr().cast());
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(!0xFFFF));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(odd)]
        };
        fn f16(bytes: &[u8], at: usize) -> __m256 =
            _mm256_cvtph_ps(_mm_loadu_si128(bytes[2 * at..2 * at + 16].as_ptr().cast()));
        fn f32(bytes: &[u8], at: usize) -> __m256 = _mm256_loadu_ps(bytes[4 * at..4 * at + 32].as_ptr().cast());
        fn to_bf16(x: __m256, bytes: &mut [u8], at: usize) -> __m256 = {
            let bits = _mm256_castps_si256(x);
            let high = _mm256_srli_epi32::<16>(bits);
            let half = _mm256_add_epi32(_mm256_set1_epi32(0x7FFF), _mm256_and_si256(high, _mm256_set1_epi32(1)));
            let nearest = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
            // A NaN must stay one, also where its payload sits in the bits that go.
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let rounded = _mm256_blendv_epi8(nearest, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(rounded, rounded));
            _mm_storeu_si128(bytes[2 * at..2 * at + 16].as_mut_ptr().cast(), _mm256_castsi256_si128(packed));
            let exponent = _mm256_set1_epi32(0x7F80);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(rounded, exponent), exponent))
        };
        fn to_bf16_pairs(x: [__m256; 2], bytes: &mut [u8], at: usize) -> __m256 = {
            let (even, odd) = (nearest_bf16(x[0]), nearest_bf16(x[1]));
            let mut both = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd);
            let exponent = _mm256_set1_epi16(0x7F80);
            let bad = _mm256_cmpeq_epi16(_mm256_and_si256(both, exponent), exponent);
            if _mm256_movemask_epi8(bad) != 0 {
                let key = _mm256_and_si256(both, _mm256_set1_epi16(0x7FFF));
                let quiet = _mm256_or_si256(both, _mm256_set1_epi16(0x40));
                both = _mm256_blendv_epi8(both, quiet, _mm256_cmpgt_epi16(key, exponent));
            }
            _mm256_storeu_si256(bytes[2 * at..2 * at + 32].as_mut_ptr().cast(), both);
            // A flag is a whole lane's.
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_setzero_si256(), _mm256_or_si256(bad, _mm256_slli_epi32::<16>(bad))))
        };
        fn to_f16(x: __m256, bytes: &mut [u8], at: usize) -> __m256 = {
            let rounded = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x);
            _mm_storeu_si128(bytes[2 * at..2 * at + 16].as_mut_ptr().cast(), rounded);
            let exponent = _mm256_set1_epi32(0x7C00);
            let wide = _mm256_and_si256(_mm256_cvtepu16_epi32(rounded), exponent);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(wide, exponent))
        };
        fn to_f32(x: __m256, bytes: &mut [u8], at: usize) -> __m256 = {
            _mm256_storeu_ps(bytes[4 * at..4 * at + 32].as_mut_ptr().cast(), x);
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(key(x), _mm256_set1_epi32(0x7F7F_FFFF)))
        };
        fn reaches(x: __m256, bound: u32) -> __m256 =
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(key(x), _mm256_set1_epi32(bound.wrapping_sub(1) as i32)));
        fn sift(x: __m256, lo: u32, hi: u32, pivot: u32) -> [__m256; 3] = {
            let key = key(x);
            let from = _mm256_cmpgt_epi32(key, _mm256_set1_epi32(lo.wrapping_sub(1) as i32));
            let past = _mm256_cmpgt_epi32(key, _mm256_set1_epi32(hi.wrapping_sub(1) as i32));
            let within = _mm256_andnot_si256(past, from);
            let inside = _mm256_andnot_si256(_mm256_cmpeq_epi32(key, _mm256_set1_epi32(pivot as i32)), within);
            [_mm256_castsi256_ps(from), _mm256_castsi256_ps(within), _mm256_castsi256_ps(inside)]
        };
        fn flags(bytes: &[u8], at: usize) -> __m256 = {
            let flags = _mm_loadl_epi64(bytes[at..at + 8].as_ptr().cast());
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(flags), _mm256_setzero_si256()))
        };
        fn flag_pairs(bytes: &[u8], at: usize) -> [__m256; 2] = {
            let flags = _mm_loadu_si128(bytes[at..at + 16].as_ptr().cast());
            let flags = _mm256_cvtepu16_epi32(flags);
            let even = _mm256_and_si256(flags, _mm256_set1_epi32(0xFF));
            let odd = _mm256_cmpgt_epi32(flags, _mm256_set1_epi32(0xFF));
            [_mm256_castsi256_ps(_mm256_cmpgt_epi32(even, _mm256_setzero_si256())), _mm256_castsi256_ps(odd)]
        };
        fn bit_pairs(bits: &[u8], at: usize) -> [__m256; 2] = {
            let bits = _mm256_set1_epi32(i32::from(u16::from_le_bytes([bits[at / 8], bits[at / 8 + 1]])));
            let even = _mm256_set_epi32(1 << 14, 1 << 12, 1 << 10, 1 << 8, 1 << 6, 1 << 4, 1 << 2, 1);
            let odd = _mm256_slli_epi32::<1>(even);
            let evens = _mm256_cmpeq_epi32(_mm256_and_si256(bits, even), even);
            let odds = _mm256_cmpeq_epi32(_mm256_and_si256(bits, odd), odd);
            [_mm256_castsi256_ps(evens), _mm256_castsi256_ps(odds)]
        };
        fn bits(bits: &[u8], at: usize) -> __m256 = {
            let places = _mm256_set_epi32(128, 64, 32, 16, 8, 4, 2, 1);
            let here = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits[at / 8])), places);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(here, places))
        };
        fn counters() -> __m256i = _mm256_setzero_si256();
        fn total(counters: __m256i) -> u32 = {
            let mut all = [0_u32; 8];
            _mm256_storeu_si256(all.as_mut_ptr().cast(), counters);
            all.iter().sum()
        };
        fn counter(first: u64) -> (__m256i, __m256i) = {
            let counter = _mm256_add_epi64(_mm256_set1_epi64x(first as i64), _mm256_set_epi64x(3, 1, 2, 0));
            (counter, _mm256_srli_epi64::<32>(counter))
        };
        fn word(x: u32) -> __m256i = _mm256_set1_epi64x(i64::from(x));
        fn word_mul(a: __m256i, b: __m256i) -> __m256i = _mm256_mul_epu32(a, b);
        fn word_high(x: __m256i) -> __m256i = _mm256_shuffle_epi32::<0b11_11_01_01>(x);
        fn word_xor(a: __m256i, b: __m256i, c: __m256i) -> __m256i = _mm256_xor_si256(_mm256_xor_si256(a, b), c);
        fn below(words: [__m256i; 4], threshold: u32, bits: &mut [u8], at: usize) = {
            let [a, b, c, d] = words;
            // Words 0 and 1 of a counter, and words 2 and 3.
            let front = _mm256_blend_epi32::<0b1010_1010>(a, _mm256_slli_epi64::<32>(b));
            let back = _mm256_blend_epi32::<0b1010_1010>(c, _mm256_slli_epi64::<32>(d));
            // Comparison is of signed numbers: the top bit of both sides is turned.
            let turn = _mm256_set1_epi32(i32::MIN);
            let bound = _mm256_xor_si256(_mm256_set1_epi32(threshold as i32), turn);
            // The order of the counters makes these the words of the first two counters and of the others.
            let first = _mm256_xor_si256(_mm256_unpacklo_epi64(front, back), turn);
            let second = _mm256_xor_si256(_mm256_unpackhi_epi64(front, back), turn);
            let first = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bound, first)));
            let second = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(bound, second)));
            bits[at / 8..at / 8 + 2].copy_from_slice(&[first as u8, second as u8]);
        };
        fn none() -> __m256 = _mm256_setzero_ps();
        fn or(a: __m256, b: __m256) -> __m256 = _mm256_or_ps(a, b);
        fn count(m: __m256) -> u32 = _mm256_movemask_ps(m).count_ones();
        fn keys(x: __m256, m: __m256, out: &mut [u32], at: usize) -> usize = {
            let mut flags = _mm256_movemask_ps(m) as u32;
            if flags == 0 {
                return 0;
            }
            let mut all = [0_u32; 8];
            _mm256_storeu_si256(all.as_mut_ptr().cast(), key(x));
            let mut n = 0;
            while flags != 0 {
                out[at + n] = all[flags.trailing_zeros() as usize & 7];
                flags &= flags - 1;
                n += 1;
            }
            n
        };
        fn wide(x: __m256) -> (__m256d, __m256d) =
            (_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(x)));
        fn wide_rounded(x: (__m256d, __m256d)) -> (__m256d, __m256d) =
            (_mm256_cvtps_pd(_mm256_cvtpd_ps(x.0)), _mm256_cvtps_pd(_mm256_cvtpd_ps(x.1)));
        fn wide_zero() -> (__m256d, __m256d) = (_mm256_setzero_pd(), _mm256_setzero_pd());
        fn wide_load(values: &[f64], at: usize) -> (__m256d, __m256d) = {
            let from = &values[at..at + 8];
            (_mm256_loadu_pd(from.as_ptr()), _mm256_loadu_pd(from[4..].as_ptr()))
        };
        fn wide_store(x: (__m256d, __m256d), values: &mut [f64], at: usize) = {
            let to = &mut values[at..at + 8];
            _mm256_storeu_pd(to.as_mut_ptr(), x.0);
            _mm256_storeu_pd(to[4..].as_mut_ptr(), x.1);
        };
        fn wide_add(a: (__m256d, __m256d), b: (__m256d, __m256d)) -> (__m256d, __m256d) =
            (_mm256_add_pd(a.0, b.0), _mm256_add_pd(a.1, b.1));
        fn wide_sub(a: (__m256d, __m256d), b: (__m256d, __m256d)) -> (__m256d, __m256d) =
            (_mm256_sub_pd(a.0, b.0), _mm256_sub_pd(a.1, b.1));
        fn wide_abs(x: (__m256d, __m256d)) -> (__m256d, __m256d) = {
            let sign = _mm256_set1_pd(-0.0);
            (_mm256_andnot_pd(sign, x.0), _mm256_andnot_pd(sign, x.1))
        };
        fn wide_div(x: (__m256d, __m256d), n: f64) -> (__m256d, __m256d) = {
            let (n, inverse) = (_mm256_set1_pd(n), _mm256_set1_pd(1.0 / n));
            let (q0, q1) = (_mm256_mul_pd(x.0, inverse), _mm256_mul_pd(x.1, inverse));
            let (r0, r1) = (_mm256_fnmadd_pd(q0, n, x.0), _mm256_fnmadd_pd(q1, n, x.1));
            // Of infinity and NaN the product is the quotient, and there is nothing to correct.
            let (m0, m1) = (_mm256_cmp_pd::<_CMP_ORD_Q>(r0, r0), _mm256_cmp_pd::<_CMP_ORD_Q>(r1, r1));
            let (c0, c1) = (_mm256_fmadd_pd(r0, inverse, q0), _mm256_fmadd_pd(r1, inverse, q1));
            (_mm256_blendv_pd(q0, c0, m0), _mm256_blendv_pd(q1, c1, m1))
        };
    }

    #[inline(always)]
    fn tally<const U: usize>(self, counters: __m256i, m: [__m256; U]) -> __m256i {
        let mut counters = counters;
        for m in m {
            // SAFETY: `self` is only made where the processor has these instructions; no memory is touched. A flag is -1.
            counters = unsafe { _mm256_sub_epi32(counters, _mm256_castps_si256(m)) };
        }
        counters
    }
}
