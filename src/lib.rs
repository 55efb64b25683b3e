//! merganser merges model checkpoints.

pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod methods;
pub mod recipe;
pub mod suggest;

pub use error::{Error, Result};
