//! A tensor whose elements do not lie one behind the other in its storage, gathered as it is read.

use std::ops::Range;
use std::sync::Arc;

use super::super::made::{Made, Origin, Part};
use super::super::shard::Shard;
use super::Found;
use crate::dtype::DtypeExt;
use crate::error::Result;

/// A strided view of a storage.
#[derive(Debug)]
pub(in super::super) struct Strided {
    pub file: Arc<Shard>,
    pub found: Found,
}

impl Made for Strided {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let Found { dtype, shape, strides, storage: (begin, _), offset, .. } = &self.found;
        let size = dtype.size_bytes().unwrap_or(1);
        let mut scratch = Vec::new();
        // The whole extent of the view was checked against its storage when it was found.
        for element in range.start / size..range.end / size {
            let mut rest = element;
            let mut place = *offset;
            for (dim, stride) in shape.iter().zip(strides).rev() {
                place += rest % dim * stride;
                rest /= dim;
            }
            let at = begin + place * size;
            out.extend_from_slice(self.file.bytes(at..at + size, &mut scratch)?);
        }
        Ok(())
    }

    fn of(&self, _: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        let (begin, bytes) = self.found.storage;
        Some((&self.file, begin..begin + bytes))
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        let Found { name, dtype, shape, strides, storage: (begin, bytes), offset } = &self.found;
        Origin {
            how: format!("elements of a storage, {offset} behind its start, in strides of {strides:?}"),
            parts: vec![Part {
                what: "storage".into(),
                file: self.file.path().to_owned(),
                tensor: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
                begin: *begin,
                bytes: *bytes,
            }],
        }
    }
}
