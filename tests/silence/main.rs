//! Nothing slips through in silence: each kind of `docs/guarantees.md` by its smallest case and its neighbours.
#![allow(clippy::unwrap_used)]

#[path = "../merge_support/mod.rs"]
mod merge_support;
mod overwrite;
mod told;
mod wholeness;
