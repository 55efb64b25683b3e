//! What a merge says of itself: the manifest, its verification, and the model card.

pub mod card;
pub mod manifest;
mod stored;
pub mod time;
pub mod verify;
