//! Tensors that no file holds as they are needed: made of stored ones as they are read.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use super::{Shard, Tensor};
use crate::Result;
use crate::dtype::Dtype;

/// A tensor that no file holds as it is needed: its bytes are made of stored ones when they are asked for.
pub trait Made: fmt::Debug + Send + Sync {
    /// Appends the bytes of `range`, which lies inside the tensor.
    ///
    /// # Errors
    /// As [`Shard::bytes`], of the files that it is made of.
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()>;

    /// The stored bytes that a range is mostly made of, for readahead and release.
    fn of(&self, range: Range<u64>) -> Option<(&Shard, Range<u64>)>;

    /// What it is made of, for people; of one element, where one is named.
    fn origin(&self, element: Option<u64>) -> Origin;
}

/// What a tensor is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// How: `W + s·B·A, with …`.
    pub how: String,
    /// Of what.
    pub parts: Vec<Part>,
}

/// A stored tensor that another is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What it is there: `W`, `A`.
    pub what: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// Its name there.
    pub tensor: String,
    /// Its stored type.
    pub dtype: Dtype,
    /// Its shape there.
    pub shape: Vec<u64>,
    /// Where its bytes begin, from the start of the file.
    pub begin: u64,
    /// How many they are.
    pub bytes: u64,
}

impl Part {
    /// A tensor of a file.
    pub fn of(what: impl Into<String>, shard: &Shard, tensor: &Tensor) -> Self {
        Self {
            what: what.into(),
            file: shard.path().to_owned(),
            tensor: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            begin: tensor.begin,
            bytes: tensor.bytes,
        }
    }
}
