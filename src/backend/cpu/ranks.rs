//! Which elements are kept at random by their rank in their row: a bit for each, or what it is multiplied by.

use super::BLOCK;
use super::blend::load_pruned;
use super::prune::{Scratch, Sources};
use super::stored::Widen;
use crate::ops::{Chosen, Measured, Restore, Sparsify, philox};

/// Buffers for the longest row.
#[derive(Debug, Default)]
pub struct Sorter {
    /// By model: keys, each above its place in the row.
    keys: Vec<Vec<u128>>,
    ranks: Vec<u32>,
}

impl Sorter {
    /// Bytes that rows of so many elements take, of so many models.
    pub fn bytes(row_elems: u64, models: u64) -> u64 {
        row_elems * (models * size_of::<u128>() as u64 + size_of::<u32>() as u64)
    }
}

/// Chooses among the elements of whole rows, into `chosen` by model, which stands for the run's elements alone.
pub fn choose<C: Widen>(
    m: &Measured,
    sources: &Sources<'_>,
    chosen: &mut [Chosen],
    sorter: &mut Sorter,
    scratch: &mut Scratch<C>,
) {
    let Sparsify::Ranked { density, slopes, restore, keys: streams } = &m.sparsify else { return };
    let (models, row) = (sources.models.len(), m.geometry.last as usize);
    sorter.keys.resize_with(models, Vec::new);
    sorter.ranks.resize(row, 0);
    let mut words = [0u32; BLOCK];
    for start in (0..sources.len).step_by(row.max(1)) {
        sorter.keys.iter_mut().for_each(Vec::clear);
        for at in (0..row).step_by(BLOCK) {
            let n = BLOCK.min(row - at);
            load_pruned(m.geometry, &m.stages, sources, start + at, n, scratch);
            for (keys, tau) in sorter.keys.iter_mut().zip(&scratch.tau) {
                keys.extend(tau[..n].iter().enumerate().map(|(i, x)| u128::from(x.key()) << 64 | (at + i) as u128));
            }
        }
        for (t, keys) in sorter.keys.iter_mut().enumerate() {
            let is_chosen = density[t] > 0.0 && density[t] < 1.0;
            if is_chosen {
                keys.sort_unstable();
                keys.iter().enumerate().for_each(|(rank, key)| sorter.ranks[*key as u64 as usize] = rank as u32);
            }
            for at in (0..row).step_by(BLOCK) {
                let words = &mut words[..BLOCK.min(row - at)];
                philox::fill(words, sources.start + (start + at) as u64, streams[t]);
                for (i, word) in words.iter().enumerate() {
                    let rank = u64::from(sorter.ranks[at + i]);
                    let p = if is_chosen { slopes[t].at(rank, row as u64) } else { density[t] };
                    if u64::from(*word) < philox::threshold(p) {
                        let scale = if *restore == Restore::Inverse && is_chosen { (1.0 / p) as f32 } else { 1.0 };
                        chosen[t].keep(start + at + i, scale);
                    }
                }
            }
        }
    }
}
