//! Sums over runs of elements of two tensors.

use multiversion::multiversion;

use super::Way;
use crate::backend::cpu::BLOCK;
use crate::backend::cpu::stored::Stored;
use crate::dtype::{Dtype, DtypeExt};

/// Partial sums side by side, which fill the registers of every vector unit alike.
const LANES: usize = 8;

/// What is summed over a run of elements. Squares and products are of values times [`Scale`]'s powers of two.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// Of (a·s)².
    pub a2: f64,
    /// Of (b·s)².
    pub b2: f64,
    /// Of a·s · b·s.
    pub dot: f64,
    /// Of ((a − b)·s_d)².
    pub d2: f64,
    pub max_a: f64,
    pub max_b: f64,
    /// Of |a − b|.
    pub max_d: f64,
    pub differing: u64,
    pub nan_a: u64,
    pub nan_b: u64,
    pub inf_a: u64,
    pub inf_b: u64,
    pub scale: Scale,
}

/// Powers of two by which values are multiplied so that squares neither overflow nor vanish. 1 but for F64 of extreme size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// Of a and b.
    pub values: f64,
    /// Of a − b.
    pub difference: f64,
}

impl Default for Scale {
    fn default() -> Self {
        Self { values: 1.0, difference: 1.0 }
    }
}

impl Scale {
    /// Brings the largest values near 1.
    pub fn of(sums: &Sums) -> Self {
        let largest = sums.max_a.max(sums.max_b);
        // A difference of the largest values can itself be beyond f64.
        let difference = if sums.max_d.is_finite() { sums.max_d } else { largest };
        Self { values: power_near(largest), difference: power_near(difference) }
    }
}

/// The power of two that brings `value` near 1; 1 for 0.
pub(super) fn power_near(value: f64) -> f64 {
    // Subnormal numbers need more than the largest power; what it leaves of them is large enough.
    if value > 0.0 { 2_f64.powi(-(value.log2().floor() as i32).clamp(-1000, 1000)) } else { 1.0 }
}

impl Sums {
    /// ‖A‖, ‖B‖ and ‖A − B‖, times `unit`, a power of two that brings them near 1.
    pub fn norms(&self, unit: f64) -> [f64; 3] {
        let Scale { values, difference } = self.scale;
        [(self.a2, values), (self.b2, values), (self.d2, difference)].map(|(sum, scale)| sum.sqrt() * (unit / scale))
    }

    /// The cosine between A and B; NaN if one is all zeros.
    pub fn cosine(&self) -> f64 {
        self.dot / (self.a2.sqrt() * self.b2.sqrt())
    }

    /// Whether squares overflowed or vanished although every value is finite, so that another scale is needed.
    pub fn lost_size(&self) -> bool {
        const SMALL: f64 = 1e-280;
        let lost = |square: f64, max: f64| !square.is_finite() || (max > 0.0 && square < SMALL);
        let is_finite = self.nan_a + self.nan_b + self.inf_a + self.inf_b == 0;
        is_finite && (lost(self.a2, self.max_a) || lost(self.b2, self.max_b) || lost(self.d2, self.max_d))
    }

    /// Adds the sums of the elements that follow, of the same scale.
    pub fn add(&mut self, next: &Self) {
        self.a2 += next.a2;
        self.b2 += next.b2;
        self.dot += next.dot;
        self.d2 += next.d2;
        self.max_a = self.max_a.max(next.max_a);
        self.max_b = self.max_b.max(next.max_b);
        self.max_d = self.max_d.max(next.max_d);
        self.differing += next.differing;
        self.nan_a += next.nan_a;
        self.nan_b += next.nan_b;
        self.inf_a += next.inf_a;
        self.inf_b += next.inf_b;
    }
}

/// Integers and booleans, which are compared as whole numbers.
pub(super) fn is_integer(dtype: Dtype) -> bool {
    use Dtype::*;
    matches!(dtype, BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// Sums over two runs of `elems` stored elements.
pub(super) fn sums(way: Way, elems: usize, a: Stored<'_>, b: Stored<'_>, scale: Scale) -> Sums {
    match way {
        Way::Floats => float_sums(elems, a, b, scale),
        Way::Integers => {
            let is_same = a.dtype == b.dtype && a.bytes == b.bytes;
            let differing = if is_same { 0 } else { integers(a).zip(integers(b)).filter(|(x, y)| x != y).count() };
            Sums { differing: differing as u64, scale, ..Sums::default() }
        }
        Way::Bits => {
            let bits = a.dtype.bitsize();
            let differs = |i: &usize| element_bits(a.bytes, *i, bits) != element_bits(b.bytes, *i, bits);
            let differing = if a.bytes == b.bytes { 0 } else { (0..elems).filter(differs).count() };
            Sums { differing: differing as u64, scale, ..Sums::default() }
        }
    }
}

/// The stored bits of element `i`, of at most 64 bits.
fn element_bits(bytes: &[u8], i: usize, bits: usize) -> u64 {
    let mut out = 0;
    for bit in i * bits..(i + 1) * bits {
        let is_set = bytes.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1);
        out = out << 1 | u64::from(is_set);
    }
    out
}

/// Whole numbers of at most 64 bits.
fn integers(stored: Stored<'_>) -> impl Iterator<Item = i128> + '_ {
    let size = stored.dtype.size_bytes().unwrap_or(1) as usize;
    let is_signed = matches!(stored.dtype, Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
    stored.bytes.chunks_exact(size).map(move |element| {
        let mut word = [0; 8];
        word[..size].copy_from_slice(element);
        let shift = 64 - 8 * size as u32;
        let value = u64::from_le_bytes(word) << shift;
        if is_signed { i128::from(value.cast_signed() >> shift) } else { i128::from(value >> shift) }
    })
}

fn float_sums(elems: usize, a: Stored<'_>, b: Stored<'_>, scale: Scale) -> Sums {
    let (mut wide_a, mut wide_b) = ([0.0; BLOCK], [0.0; BLOCK]);
    let mut lanes = Lanes::default();
    for start in (0..elems).step_by(BLOCK) {
        let len = BLOCK.min(elems - start);
        widen(a, start, &mut wide_a[..len]);
        widen(b, start, &mut wide_b[..len]);
        // Zeros up to a whole number of lanes change no sum.
        let whole = len.next_multiple_of(LANES);
        wide_a[len..whole].fill(0.0);
        wide_b[len..whole].fill(0.0);
        add_block(&wide_a[..whole], &wide_b[..whole], scale, &mut lanes);
    }
    lanes.sums(scale)
}

fn widen(stored: Stored<'_>, start: usize, out: &mut [f64]) {
    if stored.dtype.is_mergeable_float() {
        stored.widen::<f64>(start, out);
        return;
    }
    let size = stored.dtype.size_bytes().unwrap_or(1) as usize;
    let run = Stored { bytes: &stored.bytes[start * size..(start + out.len()) * size], ..stored };
    for (out, value) in out.iter_mut().zip(integers(run)) {
        *out = value as f64;
    }
}

#[derive(Default)]
struct Lanes {
    a2: [f64; LANES],
    b2: [f64; LANES],
    dot: [f64; LANES],
    d2: [f64; LANES],
    max_a: [f64; LANES],
    max_b: [f64; LANES],
    max_d: [f64; LANES],
    differing: [u64; LANES],
    nan_a: [u64; LANES],
    nan_b: [u64; LANES],
    inf_a: [u64; LANES],
    inf_b: [u64; LANES],
}

impl Lanes {
    fn sums(&self, scale: Scale) -> Sums {
        let sum = |lanes: &[f64; LANES]| lanes.iter().sum();
        let max = |lanes: &[f64; LANES]| lanes.iter().fold(0.0, |m: f64, v| m.max(*v));
        let count = |lanes: &[u64; LANES]| lanes.iter().sum();
        Sums {
            a2: sum(&self.a2),
            b2: sum(&self.b2),
            dot: sum(&self.dot),
            d2: sum(&self.d2),
            max_a: max(&self.max_a),
            max_b: max(&self.max_b),
            max_d: max(&self.max_d),
            differing: count(&self.differing),
            nan_a: count(&self.nan_a),
            nan_b: count(&self.nan_b),
            inf_a: count(&self.inf_a),
            inf_b: count(&self.inf_b),
            scale,
        }
    }
}

/// Adds a block, whose length is a multiple of [`LANES`]. The order of additions is the same in every form of the loop.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn add_block(a: &[f64], b: &[f64], scale: Scale, lanes: &mut Lanes) {
    // Down before the difference is taken, which may be beyond f64; up after it, when nothing can be lost any more.
    let (down, up) = (scale.difference.min(1.0), scale.difference.max(1.0));
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let (x, y) = (a[i], b[i]);
            let d = (x * down - y * down) * up;
            let (sx, sy) = (x * scale.values, y * scale.values);
            lanes.a2[i] += sx * sx;
            lanes.b2[i] += sy * sy;
            lanes.dot[i] += sx * sy;
            lanes.d2[i] += d * d;
            // Comparisons with NaN are false: a maximum stays what it is.
            let (ax, ay, ad) = (x.abs(), y.abs(), (x - y).abs());
            lanes.max_a[i] = if ax > lanes.max_a[i] { ax } else { lanes.max_a[i] };
            lanes.max_b[i] = if ay > lanes.max_b[i] { ay } else { lanes.max_b[i] };
            lanes.max_d[i] = if ad > lanes.max_d[i] { ad } else { lanes.max_d[i] };
            #[allow(clippy::float_cmp)]
            let differs = x != y;
            lanes.differing[i] += u64::from(differs);
            lanes.nan_a[i] += u64::from(x.is_nan());
            lanes.nan_b[i] += u64::from(y.is_nan());
            lanes.inf_a[i] += u64::from(ax == f64::INFINITY);
            lanes.inf_b[i] += u64::from(ay == f64::INFINITY);
        }
    }
}
