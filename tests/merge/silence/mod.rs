//! Nothing slips through in silence: each kind of `docs/guarantees.md` by its smallest case and its neighbours.

mod kin;
mod overwrite;
mod tied;
mod told;
mod wholeness;
