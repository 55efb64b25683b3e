//! merganser merges model checkpoints.

pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod methods;
pub mod output;
pub mod recipe;
pub mod report;

pub use error::{Error, Result};
