//! Tensors of a source that no file holds as they are merged, made as they are read: a base with its adapter, the rows of
//! another vocabulary, fp8 codes times their scales, experts side by side. Each is a [`crate::checkpoint::Made`], which a checkpoint holds in the place of a file.

mod adapter;
pub(crate) mod core;
mod cut;
pub(crate) mod experts;
mod lora;
mod rows;
mod scaled;

pub(crate) use adapter::apply;
pub(crate) use cut::cut_embeddings;
pub(crate) use rows::{Held, Row, Rows};
pub(crate) use scaled::{CONFIG_KEYS, dequantise, quantisation};
