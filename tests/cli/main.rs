//! The program as it is run: what it is given, what it says, how it ends.
#![allow(clippy::unwrap_used)]

#[path = "../support/files.rs"]
mod files;
mod place;

mod arguments;
mod bench;
mod cost;
mod documentation;
mod panic;
mod progress;
mod readme;
mod scheduler;
mod schema;
mod snapshots;
mod terminal;
mod writes_itself;
