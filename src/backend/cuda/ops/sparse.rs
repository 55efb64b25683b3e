//! What a method drops, as `kernels/sparsify.cuh` takes it.

use bytemuck::{Pod, Zeroable};

use super::params::{MAX_MODELS, spread};
use crate::ops::{Measured, Restore, Sparsify, philox};

/// Where what was chosen element by element lies on the device, or what rows are weighed by; nowhere where neither is.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChosenAt {
    /// Its first byte.
    pub ptr: u64,
    /// Bytes of a model's ([`super::ranks::stride`]).
    pub stride: u64,
}

/// `Sparse` of sparsify.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct Sparse {
    limits: [u64; MAX_MODELS],
    tops: [u64; MAX_MODELS],
    keys: [[u32; 2]; MAX_MODELS],
    chosen: u64,
    stride: u64,
    rows: u64,
    row_elems: u64,
    kind: u32,
    pad: u32,
}

const _: () = assert!(size_of::<Sparse>() == 1576);

impl Sparse {
    /// What a measured merge drops. `chosen`: where what was chosen element by element lies.
    pub fn of(m: &Measured, chosen: ChosenAt) -> Self {
        let mut sparse = Self::zeroed();
        match &m.sparsify {
            Sparsify::None => {}
            Sparsify::TopK { .. } | Sparsify::Band { .. } => {
                sparse.kind = 1;
                sparse.limits = spread(m.cuts.iter().copied(), 0);
                sparse.tops = spread(m.tops.iter().copied(), u64::MAX);
            }
            Sparsify::Random { density, keys, .. } => {
                sparse.kind = 2;
                sparse.limits = spread(density.iter().map(|d| philox::threshold(*d)), 0);
                sparse.keys = spread(keys.iter().copied(), [0; 2]);
            }
            Sparsify::Ranked { restore, .. } => {
                sparse.kind = if *restore == Restore::Inverse { 6 } else { 4 };
                (sparse.chosen, sparse.stride) = (chosen.ptr, chosen.stride);
            }
            Sparsify::Importance => {
                sparse.kind = 5;
                sparse.limits = spread(m.cuts.iter().copied(), 0);
                (sparse.rows, sparse.row_elems) = (chosen.ptr, m.geometry.last.max(1));
            }
            Sparsify::Spread { .. } => {
                sparse.kind = 3;
                sparse.limits = spread(m.cuts.iter().copied(), 0);
            }
        }
        sparse
    }
}
