//! What a merge says of itself: the verification of its manifest, and the model card; and how checkpoints compare.

pub mod card;
pub mod compare;
mod stored;
pub mod time;
pub mod verify;

pub use crate::output::manifest;
