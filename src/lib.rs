//! merganser merges model checkpoints.

pub mod backend;
pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod linalg;
pub mod methods;
pub mod recipe;
pub mod units;

pub use error::{Error, Result};
