//! merganser merges model checkpoints.

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod linalg;
pub mod methods;
pub mod output;
pub mod plan;
pub mod recipe;
pub mod report;
mod suggest;
pub mod units;

pub use error::{Error, Result};
