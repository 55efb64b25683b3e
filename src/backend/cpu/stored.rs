//! Stored elements: widening them to the computing type, and rounding results once, to nearest even, to what is stored.

use half::f16;
use half::slice::HalfFloatSliceExt;
use multiversion::multiversion;

use crate::dtype::Dtype;
use crate::ops::Real;

/// A run of stored elements, of any alignment.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// A mergeable float type.
    pub dtype: Dtype,
    /// Little-endian elements.
    pub bytes: &'a [u8],
}

impl Stored<'_> {
    /// Widens elements `start..start + out.len()` of this run; exact whenever `C` holds the dtype.
    ///
    /// # Panics
    /// If the run is shorter, or the dtype is not a mergeable float.
    pub fn widen<C: Widen>(&self, start: usize, out: &mut [C]) {
        let size = self.dtype.bitsize() / 8;
        C::widen(self.dtype, &self.bytes[start * size..(start + out.len()) * size], out);
    }
}

/// A computing type that stored elements widen to and results are rounded from.
pub trait Widen: Real {
    /// Widens `bytes`, which hold exactly `out.len()` elements.
    fn widen(dtype: Dtype, bytes: &[u8], out: &mut [Self]);
    /// Rounds once to `dtype`; returns whether any stored result is NaN or infinite.
    fn narrow(values: &[Self], dtype: Dtype, bytes: &mut [u8]) -> bool;
    /// The values, if they are f32: the type that has loops of its own.
    fn f32s(values: &[Self]) -> Option<&[f32]>;
    /// The same, to be written to.
    fn f32s_mut(values: &mut [Self]) -> Option<&mut [f32]>;
}

impl Widen for f32 {
    fn f32s(values: &[f32]) -> Option<&[f32]> {
        Some(values)
    }

    fn f32s_mut(values: &mut [f32]) -> Option<&mut [f32]> {
        Some(values)
    }

    fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
        match dtype {
            Dtype::F32 => widen_f32(bytes, out),
            Dtype::BF16 => widen_bf16(bytes, out),
            Dtype::F16 => widen_f16(bytes, out),
            Dtype::F8_E4M3 => widen_table(bytes, &E4M3, out),
            Dtype::F8_E5M2 => widen_table(bytes, &E5M2, out),
            // Only reached for mixed sources when the job was planned in f32, which never holds an F64 source.
            Dtype::F64 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *o = f64::from_le_bytes(*b) as f32;
                }
            }
            other => unreachable!("{other} is not a mergeable float"),
        }
    }

    fn narrow(values: &[f32], dtype: Dtype, bytes: &mut [u8]) -> bool {
        match dtype {
            Dtype::F32 => narrow_f32(values, bytes),
            Dtype::BF16 => narrow_bf16(values, bytes),
            Dtype::F16 => narrow_f16(values, bytes),
            Dtype::F8_E4M3 => narrow_f8(values, bytes, round_e4m3, |b| b & 0x7F == 0x7F),
            Dtype::F8_E5M2 => narrow_f8(values, bytes, round_e5m2, |b| b & 0x7C == 0x7C),
            Dtype::F64 => {
                for (v, b) in values.iter().zip(bytes.as_chunks_mut::<8>().0) {
                    *b = f64::from(*v).to_le_bytes();
                }
                values.iter().any(|v| !v.is_finite())
            }
            other => unreachable!("{other} is not a mergeable float"),
        }
    }
}

impl Widen for f64 {
    fn f32s(_values: &[f64]) -> Option<&[f32]> {
        None
    }

    fn f32s_mut(_values: &mut [f64]) -> Option<&mut [f32]> {
        None
    }

    fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f64]) {
        if dtype == Dtype::F64 {
            for (o, b) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *o = f64::from_le_bytes(*b);
            }
            return;
        }
        let size = dtype.bitsize() / 8;
        let mut narrow = [0f32; 256];
        for (o, b) in out.chunks_mut(256).zip(bytes.chunks(256 * size)) {
            f32::widen(dtype, b, &mut narrow[..o.len()]);
            for (o, n) in o.iter_mut().zip(&narrow) {
                *o = f64::from(*n);
            }
        }
    }

    fn narrow(values: &[f64], dtype: Dtype, bytes: &mut [u8]) -> bool {
        match dtype {
            Dtype::F64 => {
                for (v, b) in values.iter().zip(bytes.as_chunks_mut::<8>().0) {
                    *b = v.to_le_bytes();
                }
                values.iter().any(|v| !v.is_finite())
            }
            Dtype::F32 => {
                let mut bad = false;
                for (v, b) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                    let r = *v as f32;
                    bad |= !r.is_finite();
                    *b = r.to_le_bytes();
                }
                bad
            }
            _ => {
                // To odd first: rounding f64 → f32 to odd and then to nearest is a single correct rounding.
                let size = dtype.bitsize() / 8;
                let mut odd = [0f32; 256];
                let mut bad = false;
                for (v, b) in values.chunks(256).zip(bytes.chunks_mut(256 * size)) {
                    for (o, v) in odd.iter_mut().zip(v) {
                        *o = round_to_odd(*v);
                    }
                    bad |= f32::narrow(&odd[..v.len()], dtype, b);
                }
                bad
            }
        }
    }
}

/// f64 → f32, inexact results to the neighbour with an odd significand (so a later rounding to fewer bits is exact).
fn round_to_odd(value: f64) -> f32 {
    let near = value as f32;
    let back = f64::from(near);
    if back == value || near.is_nan() || near.to_bits() & 1 == 1 {
        return near;
    }
    if near.is_infinite() {
        return if value.is_infinite() { near } else { f32::MAX.copysign(near) };
    }
    // `near` is even and inexact: the odd neighbour lies on the other side of `value`.
    let away = (value.abs() > back.abs()) as i32 * 2 - 1;
    f32::from_bits((near.to_bits() as i32 + away) as u32)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn widen_f32(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *o = f32::from_le_bytes(*b);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn widen_bf16(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

fn widen_f16(bytes: &[u8], out: &mut [f32]) {
    let mut aligned = [f16::ZERO; 256];
    for (o, b) in out.chunks_mut(256).zip(bytes.chunks(512)) {
        bytemuck::cast_slice_mut(&mut aligned)[..b.len()].copy_from_slice(b);
        if cfg!(target_endian = "big") {
            aligned.iter_mut().for_each(|h| *h = f16::from_bits(h.to_bits().swap_bytes()));
        }
        aligned[..o.len()].convert_to_f32_slice(o);
    }
}

fn widen_table(bytes: &[u8], table: &[f32; 256], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes) {
        *o = table[*b as usize];
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn narrow_f32(values: &[f32], bytes: &mut [u8]) -> bool {
    let mut bad = 0u32;
    for (v, b) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
        bad |= u32::from(v.to_bits() & 0x7F80_0000 == 0x7F80_0000);
        *b = v.to_le_bytes();
    }
    bad != 0
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn narrow_bf16(values: &[f32], bytes: &mut [u8]) -> bool {
    let mut bad = 0u32;
    for (v, b) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
        let x = v.to_bits();
        let nearest = x.wrapping_add(0x7FFF + ((x >> 16) & 1)) >> 16;
        // A NaN must stay one, also where its payload sits in the bits that go.
        let r = if x & 0x7FFF_FFFF > 0x7F80_0000 { (x >> 16) | 0x40 } else { nearest };
        bad |= u32::from(r & 0x7F80 == 0x7F80);
        *b = (r as u16).to_le_bytes();
    }
    bad != 0
}

fn narrow_f16(values: &[f32], bytes: &mut [u8]) -> bool {
    let mut aligned = [f16::ZERO; 256];
    let mut bad = false;
    for (v, b) in values.chunks(256).zip(bytes.chunks_mut(512)) {
        let aligned = &mut aligned[..v.len()];
        aligned.convert_from_f32_slice(v);
        for (h, b) in aligned.iter().zip(b.as_chunks_mut::<2>().0) {
            bad |= h.to_bits() & 0x7C00 == 0x7C00;
            *b = h.to_le_bytes();
        }
    }
    bad
}

fn narrow_f8(values: &[f32], bytes: &mut [u8], round: fn(f32) -> u8, is_bad: fn(u8) -> bool) -> bool {
    let mut bad = false;
    for (v, b) in values.iter().zip(bytes) {
        *b = round(*v);
        bad |= is_bad(*b);
    }
    bad
}

/// Values of the 256 codes of F8_E4M3 (no infinities; 0x7F and 0xFF are NaN).
static E4M3: [f32; 256] = table(4, 3, false);
/// Values of the 256 codes of F8_E5M2 (IEEE-like).
static E5M2: [f32; 256] = table(5, 2, true);

const fn table(exponent_bits: u32, mantissa_bits: u32, has_infinity: bool) -> [f32; 256] {
    let mut values = [0f32; 256];
    let bias = (1i32 << (exponent_bits - 1)) - 1;
    let mut code = 0;
    while code < 256 {
        let c = code as u32;
        let exponent = (c & 0x7F) >> mantissa_bits;
        let mantissa = c & ((1 << mantissa_bits) - 1);
        let top = exponent == (1 << exponent_bits) - 1;
        let magnitude = if top && has_infinity {
            if mantissa == 0 { f32::INFINITY } else { f32::NAN }
        } else if top && mantissa == (1 << mantissa_bits) - 1 {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 * power_of_two(1 - bias - mantissa_bits as i32)
        } else {
            (mantissa + (1 << mantissa_bits)) as f32 * power_of_two(exponent as i32 - bias - mantissa_bits as i32)
        };
        values[code] = if c & 0x80 != 0 { -magnitude } else { magnitude };
        code += 1;
    }
    values
}

const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Rounds to F8_E4M3 as PyTorch does: to nearest even, NaN beyond the largest finite value (448).
fn round_e4m3(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let code = round_small(value.abs(), 4, 3);
    sign | if value.is_nan() || code >= 0x7F { 0x7F } else { code as u8 }
}

/// Rounds to F8_E5M2: to nearest even, infinity beyond the largest finite value.
fn round_e5m2(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let code = round_small(value.abs(), 5, 2);
    sign | if value.is_nan() { 0x7F } else { code.min(0x7C) as u8 }
}

/// The code of the nearest value on an unbounded grid of this exponent bias and mantissa width (ties to even).
fn round_small(magnitude: f32, exponent_bits: u32, mantissa_bits: u32) -> u32 {
    let bias = (1i32 << (exponent_bits - 1)) - 1;
    let smallest_normal = power_of_two(1 - bias);
    if magnitude < smallest_normal {
        // Subnormal grid: the sum with a magic number rounds at its last place, to nearest even.
        let magic = power_of_two(1 - bias - mantissa_bits as i32 + 23);
        return (magnitude + magic).to_bits() - magic.to_bits();
    }
    let bits = magnitude.to_bits();
    let drop = 23 - mantissa_bits;
    let rounded = bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1);
    (rounded >> drop).saturating_sub(((127 - bias) as u32) << mantissa_bits)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    fn narrow_one<C: Widen>(v: C, dtype: Dtype) -> Vec<u8> {
        let mut b = vec![0; dtype.bitsize() / 8];
        C::narrow(&[v], dtype, &mut b);
        b
    }

    #[test]
    fn every_f8_code_survives_a_round_trip() {
        for (dtype, table) in [(Dtype::F8_E4M3, &E4M3), (Dtype::F8_E5M2, &E5M2)] {
            for code in 0..=255u8 {
                let v = table[code as usize];
                let back = narrow_one(v, dtype)[0];
                if v.is_nan() {
                    assert!(table[back as usize].is_nan());
                } else {
                    assert_eq!(back, code, "{dtype} {code:#x} = {v}");
                }
            }
        }
    }

    #[test]
    fn f8_values_between_codes_go_to_the_nearest_even() {
        for (dtype, table, largest) in [(Dtype::F8_E4M3, &E4M3, 0x7Eu8), (Dtype::F8_E5M2, &E5M2, 0x7B)] {
            for code in 0..largest {
                let (a, b) = (table[code as usize], table[code as usize + 1]);
                let middle = (a + b) / 2.0;
                assert_eq!(narrow_one(middle, dtype)[0], if code % 2 == 0 { code } else { code + 1 });
                assert_eq!(narrow_one(f32::from_bits(middle.to_bits() - 1), dtype)[0], code);
                assert_eq!(narrow_one(f32::from_bits(middle.to_bits() + 1), dtype)[0], code + 1);
            }
        }
        assert_eq!(narrow_one(448.0f32, Dtype::F8_E4M3)[0], 0x7E);
        assert_eq!(narrow_one(465.0f32, Dtype::F8_E4M3)[0], 0x7F);
        assert_eq!(narrow_one(f32::MAX, Dtype::F8_E4M3)[0], 0x7F);
        assert_eq!(narrow_one(f32::MAX, Dtype::F8_E5M2)[0], 0x7C);
        assert_eq!(narrow_one(f32::NEG_INFINITY, Dtype::F8_E5M2)[0], 0xFC);
    }

    /// Not by the half crate, which rounds twice itself: by every tie of two neighbouring codes, and the numbers next to it.
    #[test]
    fn f64_is_rounded_once() {
        for (dtype, infinity) in [(Dtype::BF16, 0x7F80_u16), (Dtype::F16, 0x7C00)] {
            let value = |code: u16| -> f64 {
                if dtype == Dtype::BF16 { bf16::from_bits(code).into() } else { f16::from_bits(code).into() }
            };
            for code in 0..infinity - 1 {
                // Exact: neighbours are apart by a power of two, and f64 has bits to spare.
                let tie = f64::midpoint(value(code), value(code + 1));
                let even = code + (code & 1);
                for (v, expected) in [(tie.next_down(), code), (tie, even), (tie.next_up(), code + 1)] {
                    for (v, expected) in [(v, expected), (-v, expected | 0x8000)] {
                        let found = u16::from_le_bytes(narrow_one(v, dtype).try_into().unwrap());
                        assert_eq!(found, expected, "{dtype}: {v:e}, beside {code:#06x}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn bf16_and_f16_round_as_the_half_crate_does(bits in any::<u32>()) {
            let v = f32::from_bits(bits);
            let b = u16::from_le_bytes(narrow_one(v, Dtype::BF16).try_into().unwrap());
            let h = u16::from_le_bytes(narrow_one(v, Dtype::F16).try_into().unwrap());
            if v.is_nan() {
                prop_assert!(bf16::from_bits(b).is_nan() && f16::from_bits(h).is_nan());
            } else {
                prop_assert_eq!(b, bf16::from_f32(v).to_bits());
                prop_assert_eq!(h, f16::from_f32(v).to_bits());
            }
        }

        #[test]
        fn widening_then_narrowing_gives_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64] {
                let size = dtype.bitsize() / 8;
                let bytes = &bytes[..bytes.len() / size * size];
                let run = Stored { dtype, bytes };
                let mut wide = vec![0f64; bytes.len() / size];
                run.widen(0, &mut wide);
                let mut back = vec![0; bytes.len()];
                let bad = f64::narrow(&wide, dtype, &mut back);
                prop_assert_eq!(bad, wide.iter().any(|v| !v.is_finite()));
                let nonfinite = wide.iter().filter(|v| !v.is_finite()).count() as u64;
                prop_assert_eq!(crate::output::nonfinite::count(dtype, bytes), nonfinite);
                for (i, v) in wide.iter().enumerate() {
                    if !v.is_nan() {
                        prop_assert_eq!(&bytes[i * size..][..size], &back[i * size..][..size]);
                    }
                }
            }
        }
    }
}
