//! Tensors of a source that no file holds as they are merged, made as they are read: a base with its adapter, and the rows of
//! another vocabulary. Each is a [`crate::checkpoint::Made`], which a checkpoint holds in the place of a file.

mod adapter;
mod lora;
mod rows;

pub(crate) use adapter::apply;
pub(crate) use rows::{Held, Row, Rows};
