//! What a merge says of itself: the manifest, its verification, and the model card; and how checkpoints compare.

pub mod card;
pub mod compare;
pub mod manifest;
mod stored;
pub mod time;
pub mod verify;
