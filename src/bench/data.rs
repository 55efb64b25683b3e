//! Seeded data: noise that no disk can compress, and a family of models whose changes are as those of real fine-tunes.

use half::bf16;

use super::rounds;
use crate::backend::cpu::prune::Sources;
use crate::backend::cpu::stored::Stored;
use crate::dtype::Dtype;
use crate::engine::{sample_of, segments_of};
use crate::error::Result;

/// Fine-tunes in a [`Family`].
pub const MODELS: usize = 3;
/// Bytes of a bfloat16 element.
pub const ELEM_BYTES: usize = 2;

/// Deviation of the base's elements, and of a change over it: small enough that bfloat16 rounds some changes away.
const BASE: f32 = 0.03;
const CHANGE: f32 = 0.0128;

/// Numbers of one stream (xorshift); streams of different seeds differ from the first number on.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        // Never 0, from which xorshift would not get away.
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Nearly normal, of deviation 1: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        (0..4).map(|i| f32::from((bits >> (16 * i)) as u16) / 65536.0 - 0.5).sum::<f32>() * 3f32.sqrt()
    }
}

/// So many numbers, nearly normal, of deviation 1.
pub(super) fn normals(elems: usize) -> Vec<f32> {
    let mut noise = Noise::new(0);
    (0..elems).map(|_| noise.normal()).collect()
}

/// Fills memory with noise.
pub(super) fn fill_with_noise(block: &mut [u8], threads: usize) -> Result<()> {
    let part = block.len().div_ceil(threads.max(1)).max(1);
    rounds::in_parallel(block.chunks_mut(part).enumerate().collect(), |(seed, bytes)| {
        let mut noise = Noise::new(seed as u64);
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&noise.next().to_le_bytes()[..word.len()]);
        }
        Ok(())
    })
    .map(drop)
}

/// A base and [`MODELS`] fine-tunes in bfloat16, flat and one after the other in one block of memory, with room behind them
/// for what they are merged into.
#[derive(Debug)]
pub struct Family {
    block: Vec<u8>,
    elems: usize,
}

impl Family {
    /// Of `elems` elements a model.
    pub fn new(elems: usize) -> Self {
        let mut block = vec![0; (MODELS + 2) * elems * ELEM_BYTES];
        for mut part in parts_of(&mut block, elems, 1) {
            fill(&mut part, 0);
        }
        Self { block, elems }
    }

    /// As many elements as fit into a block of memory, made by several threads.
    pub(super) fn within(mut block: Vec<u8>, threads: usize) -> Result<Self> {
        let elems = block.len() / ((MODELS + 2) * ELEM_BYTES);
        let parts = parts_of(&mut block, elems, threads).into_iter().enumerate();
        rounds::in_parallel(parts.collect(), |(seed, mut part)| {
            fill(&mut part, seed as u64);
            Ok(())
        })?;
        Ok(Self { block, elems })
    }

    /// The block again.
    pub(super) fn into_block(self) -> Vec<u8> {
        self.block
    }

    /// Elements of a model.
    pub fn elems(&self) -> usize {
        self.elems
    }

    /// The models, and the room for the result.
    pub(super) fn parts(&mut self) -> (Models<'_>, &mut [u8]) {
        let bytes = self.elems * ELEM_BYTES;
        let (models, rest) = self.block.split_at_mut((MODELS + 1) * bytes);
        (Models { bytes: models, elems: self.elems }, &mut rest[..bytes])
    }

    /// Calls `take` with the sources of all elements.
    pub fn with<T>(&self, take: impl FnOnce(&Sources<'_>) -> T) -> T {
        self.with_run(0, self.elems, take)
    }

    /// Calls `take` with the sources of `len` elements from `start` on.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn with_run<T>(&self, start: usize, len: usize, take: impl FnOnce(&Sources<'_>) -> T) -> T {
        Models { bytes: &self.block, elems: self.elems }.with_run(start, len, take)
    }

    /// Calls `take` with the pieces that stand for all elements in a sample, as a merge does.
    pub fn with_sample(&self, mut take: impl FnMut(&Sources<'_>)) {
        for (segment, at) in segments_of(0, self.elems as u64) {
            for piece in sample_of(segment, at) {
                self.with_run(piece.start as usize, (piece.end - piece.start) as usize, &mut take);
            }
        }
    }
}

/// The stored models of a family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Models<'a> {
    bytes: &'a [u8],
    elems: usize,
}

impl Models<'_> {
    /// Stored elements of a model; 0 is the base.
    pub fn bytes_of(&self, model: usize, elems: std::ops::Range<usize>) -> &[u8] {
        &self.bytes[(model * self.elems + elems.start) * ELEM_BYTES..(model * self.elems + elems.end) * ELEM_BYTES]
    }

    /// As [`Family::with_run`].
    pub fn with_run<T>(&self, start: usize, len: usize, take: impl FnOnce(&Sources<'_>) -> T) -> T {
        let stored = |model: usize| {
            let first = (model * self.elems + start) * ELEM_BYTES;
            Stored { dtype: Dtype::BF16, bytes: &self.bytes[first..first + len * ELEM_BYTES] }
        };
        let models: [_; MODELS] = std::array::from_fn(|t| stored(t + 1));
        take(&Sources { base: Some(stored(0)), models: &models, start: start as u64, len })
    }
}

/// The stored elements of every model, cut into parts of the same elements of each.
fn parts_of(block: &mut [u8], elems: usize, parts: usize) -> Vec<Vec<&mut [u8]>> {
    let ranges = rounds::split(elems, parts, 1);
    let mut parts: Vec<Vec<&mut [u8]>> = ranges.iter().map(|_| Vec::new()).collect();
    for model in block.chunks_exact_mut((elems * ELEM_BYTES).max(1)).take(MODELS + 1) {
        let mut rest = model;
        for (part, range) in parts.iter_mut().zip(&ranges) {
            let (now, later) = rest.split_at_mut(range.len() * ELEM_BYTES);
            part.push(now);
            rest = later;
        }
    }
    parts
}

/// Fills the same elements of the base and of every fine-tune.
pub(super) fn fill(models: &mut [&mut [u8]], seed: u64) {
    let Some((base, tuned)) = models.split_first_mut() else { return };
    let mut noise = Noise::new(seed);
    for (i, stored) in base.as_chunks_mut::<ELEM_BYTES>().0.iter_mut().enumerate() {
        let start = bf16::from_f32(noise.normal() * BASE);
        *stored = start.to_le_bytes();
        for model in tuned.iter_mut() {
            let changed = bf16::from_f32(start.to_f32() + noise.normal() * BASE * CHANGE);
            model[i * ELEM_BYTES..][..ELEM_BYTES].copy_from_slice(&changed.to_le_bytes());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::cpu::stored::Widen;

    fn changes(family: &Family) -> Vec<f32> {
        family.with(|sources| {
            let mut wide = vec![vec![0f32; sources.len]; 2];
            f32::widen(Dtype::BF16, sources.base.unwrap().bytes, &mut wide[0]);
            f32::widen(Dtype::BF16, sources.models[2].bytes, &mut wide[1]);
            wide[1].iter().zip(&wide[0]).map(|(a, b)| a - b).collect()
        })
    }

    #[test]
    fn about_a_seventh_of_the_changes_are_rounded_away_as_in_real_fine_tunes() {
        let family = Family::within(vec![0; 10 * 100_000], 3).unwrap();
        assert_eq!(family.elems(), 100_000);
        let changes = changes(&family);
        let zeros = changes.iter().filter(|c| **c == 0.0).count() as f64 / changes.len() as f64;
        assert!((0.10..0.20).contains(&zeros), "{zeros}");
    }

    #[test]
    fn a_family_of_nothing_is_one_too() {
        let mut family = Family::new(0);
        assert_eq!(family.with(|sources| sources.len), 0);
        assert!(family.parts().1.is_empty());
        assert_eq!(Family::within(vec![0; 9], 2).unwrap().into_block().len(), 9);
    }
}
