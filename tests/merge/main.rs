//! Whole merges, and what they leave: bytes, identities, states of OUT, bad input, interruptions, parts, warnings.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod cuts;
mod environment;
mod factors;
mod goldens;
mod identities;
mod interrupted;
mod lines;
mod operations;
mod output;
mod parts;
mod published;
mod recipes;
mod saliency;
mod same_bytes;
mod silence;
mod sources;
