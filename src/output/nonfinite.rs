//! Counts elements that are NaN or infinite in stored bytes.

use crate::dtype::Dtype;

/// How many elements of `bytes` (little-endian, of type `dtype`, whole elements) are NaN or infinite.
///
/// Types that are only ever copied (integers, booleans, scaling exponents, sub-byte floats) count as finite.
/// F8_E4M3 has no infinity, its NaN is 0x7f with either sign; F8_E5M2 has both.
pub fn count(dtype: Dtype, bytes: &[u8]) -> u64 {
    match dtype {
        Dtype::F64 => count_by(bytes, |b: [u8; 8]| u64::from_le_bytes(b) & (0x7ff << 52) == 0x7ff << 52),
        Dtype::F32 => count_by(bytes, |b: [u8; 4]| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::BF16 => count_by(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        Dtype::F16 => count_by(bytes, |b: [u8; 2]| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        Dtype::F8_E4M3 => count_by(bytes, |[b]: [u8; 1]| b & 0x7f == 0x7f),
        Dtype::F8_E5M2 => count_by(bytes, |[b]: [u8; 1]| b & 0x7c == 0x7c),
        _ => 0,
    }
}

/// Whether all of these bytes' elements are zeros, of either sign. Types that are only ever copied count as if they had no sign.
pub fn is_zero(dtype: Dtype, bytes: &[u8]) -> bool {
    let is_sign = |byte: u8, at: usize, size: usize| byte == 0 || (byte == 0x80 && at % size == size - 1);
    let size = match dtype {
        Dtype::F64 => 8,
        Dtype::F32 => 4,
        Dtype::BF16 | Dtype::F16 => 2,
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => 1,
        _ => return bytes.iter().all(|byte| *byte == 0),
    };
    bytes.iter().enumerate().all(|(at, byte)| is_sign(*byte, at, size))
}

fn count_by<const N: usize>(bytes: &[u8], is_nonfinite: impl Fn([u8; N]) -> bool) -> u64 {
    bytes.as_chunks::<N>().0.iter().map(|&element| u64::from(is_nonfinite(element))).sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_pattern_is_judged_as_the_half_crate_judges_it() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            assert_eq!(count(Dtype::F16, &bytes) == 0, half::f16::from_bits(bits).is_finite(), "f16 {bits:#x}");
            assert_eq!(count(Dtype::BF16, &bytes) == 0, half::bf16::from_bits(bits).is_finite(), "bf16 {bits:#x}");
        }
    }

    #[test]
    fn wide_floats_are_judged_as_rust_judges_them() {
        let values = [0.0, -0.0, 1.5, f64::MAX, f64::MIN_POSITIVE, f64::NAN, -f64::NAN, f64::INFINITY, -f64::INFINITY];
        for v in values {
            assert_eq!(count(Dtype::F64, &v.to_le_bytes()) == 0, v.is_finite());
            assert_eq!(count(Dtype::F32, &(v as f32).to_le_bytes()) == 0, (v as f32).is_finite());
        }
        let all: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(count(Dtype::F64, &all), 4);
    }

    #[test]
    fn zeros_of_either_sign_are_zeros() {
        for (dtype, size) in [(Dtype::F64, 8), (Dtype::F32, 4), (Dtype::BF16, 2), (Dtype::F16, 2), (Dtype::F8_E4M3, 1)]
        {
            let mut bytes = vec![0; 3 * size];
            assert!(is_zero(dtype, &bytes), "{dtype}");
            bytes[2 * size - 1] = 0x80;
            assert!(is_zero(dtype, &bytes), "{dtype}");
            bytes[2 * size - 1] = 0x81;
            assert!(!is_zero(dtype, &bytes), "{dtype}");
            bytes[2 * size - 1] = 0;
            bytes[0] = 1;
            assert!(!is_zero(dtype, &bytes), "{dtype}");
        }
        assert!(!is_zero(Dtype::I32, &[0, 0, 0, 0x80]));
    }

    #[test]
    fn eight_bit_floats_have_the_nans_and_infinities_of_their_format() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(count(Dtype::F8_E4M3, &all), 2);
        assert_eq!(count(Dtype::F8_E5M2, &all), 8);
        assert_eq!(count(Dtype::U8, &all), 0);
    }
}
