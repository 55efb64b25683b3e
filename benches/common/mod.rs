//! A seeded family for benchmarks: a base and three fine-tunes in bfloat16, flat in memory.
#![allow(dead_code, reason = "no benchmark uses all of it")]

use half::bf16;
use merganser::backend::cpu::prune::Sources;
use merganser::backend::cpu::stored::Stored;
use merganser::dtype::Dtype;

/// Fine-tunes in a family.
pub const MODELS: usize = 3;
/// Bytes of a bfloat16 element.
pub const ELEM_BYTES: usize = 2;

/// Stored elements of the base and of the fine-tunes.
pub struct Family {
    base: Vec<u8>,
    models: [Vec<u8>; MODELS],
}

impl Family {
    /// `elems` elements a model: the base normal-ish around 0, changes a hundredth of it, so that some round away.
    pub fn new(elems: usize) -> Self {
        let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            // The sum of four uniform numbers in ±½.
            (0..4).map(|i| f32::from((bits >> (16 * i)) as u16) / 65536.0 - 0.5).sum::<f32>()
        };
        let base: Vec<f32> = (0..elems).map(|_| next() * 0.05).collect();
        let models = std::array::from_fn(|_| store(base.iter().map(|b| b + next() * 5e-4)));
        Self { base: store(base.iter().copied()), models }
    }

    /// Calls `take` with the sources of all elements.
    pub fn with<T>(&self, take: impl FnOnce(&Sources<'_>) -> T) -> T {
        self.with_run(0, self.base.len() / ELEM_BYTES, take)
    }

    /// Calls `take` with the sources of `len` elements from `start` on.
    pub fn with_run<T>(&self, start: usize, len: usize, take: impl FnOnce(&Sources<'_>) -> T) -> T {
        let run = start * ELEM_BYTES..(start + len) * ELEM_BYTES;
        let stored = |bytes| Stored { dtype: Dtype::BF16, bytes };
        let models: [_; MODELS] = std::array::from_fn(|t| stored(&self.models[t][run.clone()]));
        take(&Sources { base: Some(stored(&self.base[run.clone()])), models: &models, start: start as u64, len })
    }
}

fn store(values: impl Iterator<Item = f32>) -> Vec<u8> {
    values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect()
}
