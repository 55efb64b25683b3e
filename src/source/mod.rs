//! Tensors of a source that no file holds as they are merged: a base with its adapter, read tile by tile.

mod adapter;
mod lora;

pub(crate) use adapter::apply;
