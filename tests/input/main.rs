//! What comes from outside: checkpoints and recipes, sound and unsound.
#![allow(clippy::unwrap_used)]

#[path = "../support/files.rs"]
mod files;

mod allocated;

mod checkpoint;
mod recipe;
