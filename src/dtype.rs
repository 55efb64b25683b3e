//! Element types of stored tensors: safetensors' own enumeration, and what merganser needs to know of each.

pub use safetensors::Dtype;

/// What merganser asks of an element type beyond safetensors' own methods.
pub trait DtypeExt: Copy {
    /// Bytes of one element; `None` for types smaller than a byte (they can only be copied).
    fn size_bytes(self) -> Option<u64>;
    /// Whether elements are merged arithmetically: F64, F32, F16, BF16, F8_E4M3, F8_E5M2. All others are copied.
    fn is_mergeable_float(self) -> bool;
    /// The name used in recipes (`bfloat16`), as in PyTorch.
    fn recipe_name(self) -> Option<&'static str>;
}

/// Names that a recipe's `dtype` and `out_dtype` may take.
pub const RECIPE_DTYPES: [(&str, Dtype); 6] = [
    ("float64", Dtype::F64),
    ("float32", Dtype::F32),
    ("bfloat16", Dtype::BF16),
    ("float16", Dtype::F16),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
];

impl DtypeExt for Dtype {
    fn size_bytes(self) -> Option<u64> {
        let bits = self.bitsize() as u64;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    fn is_mergeable_float(self) -> bool {
        RECIPE_DTYPES.iter().any(|(_, d)| *d == self)
    }

    fn recipe_name(self) -> Option<&'static str> {
        RECIPE_DTYPES.iter().find(|(_, d)| *d == self).map(|(n, _)| *n)
    }
}
