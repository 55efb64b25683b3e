//! What a CUDA device moves and computes, and how near a merge's paths on it come to that. Times are those of events on the
//! device, but for what several lanes do together and for whole merges, which the host's clock times.

mod copies;
mod device;
mod kernels;
mod matrices;
mod streamed;
mod tensor;

use super::{Suite, merges};

pub(super) use copies::{DEVICE_COPY, TO_DEVICE};
pub(super) use matrices::F64;

/// Measurements of a device, limits first, by the names that `--only` takes.
pub(super) const SUITES: &[(&str, Suite)] = &[
    ("copies", copies::all),
    ("products", matrices::products),
    ("eigenvectors", matrices::eigenvectors),
    ("kernels", kernels::all),
    ("streamed", streamed::all),
    ("cart", merges::cart),
];
