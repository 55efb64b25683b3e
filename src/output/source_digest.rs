//! Digests of what was read: cheap enough to take of every source while it streams by (xxh3, 128 bits).
//!
//! They tell one version of a file from another; they are no defence against a forger. From the bottom: a *block* of
//! [`BLOCK_ELEMS`] elements is hashed by itself; a *tensor's* digest is the hash of its blocks' digests (little-endian,
//! in order); a *file's* digest is the hash of its header's digest and then those of the tensors that were read, in
//! the file's order. Blocks and tensors may come in any order and from any thread.

use std::collections::HashMap;

use twox_hash::{XxHash3_128, xxhash3_128::Hasher};

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Elements of one block.
pub const BLOCK_ELEMS: u64 = 65_536;

/// Bytes of one block of this element type.
pub fn block_bytes(dtype: Dtype) -> u64 {
    BLOCK_ELEMS / 8 * dtype.bitsize() as u64
}

/// The digest of one block's (or a header's) bytes.
pub fn block(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

/// A digest as 32 hexadecimal digits, as manifests and journals write it.
pub fn to_hex(digest: u128) -> String {
    format!("{digest:032x}")
}

/// What [`to_hex`] wrote.
pub fn from_hex(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// Collects the block digests of one source tensor.
#[derive(Debug, Clone)]
pub struct BlockDigests {
    blocks: Vec<Option<u128>>,
}

impl BlockDigests {
    /// For a tensor of `total_bytes` with elements of type `dtype`.
    ///
    /// # Errors
    ///
    /// More blocks than can be addressed.
    pub fn new(total_bytes: u64, dtype: Dtype) -> Result<Self> {
        let count = usize::try_from(total_bytes.div_ceil(block_bytes(dtype)))
            .map_err(|_| Error::internal(format!("{total_bytes} bytes make too many digest blocks")))?;
        Ok(Self { blocks: vec![None; count] })
    }

    /// How many blocks there are; 0 for an empty tensor.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Notes the digest of block `index`.
    ///
    /// # Errors
    ///
    /// There is no such block.
    pub fn set(&mut self, index: usize, digest: u128) -> Result<()> {
        let slot = self.blocks.get_mut(index).ok_or_else(|| Error::internal(format!("no digest block {index}")))?;
        *slot = Some(digest);
        Ok(())
    }

    /// The tensor's digest.
    ///
    /// # Errors
    ///
    /// A block was not [set](Self::set).
    pub fn finish(&self) -> Result<u128> {
        combine(self.blocks.iter().copied()).ok_or_else(|| Error::internal("a digest block is missing"))
    }
}

/// Collects the tensor digests of one source file.
#[derive(Debug, Clone)]
pub struct SourceDigests {
    header: u128,
    places: HashMap<String, usize>,
    tensors: Vec<Option<u128>>,
}

impl SourceDigests {
    /// For a file whose header has this digest and of which these tensors are read, in the file's order.
    pub fn new<S: Into<String>>(header: u128, tensors: impl IntoIterator<Item = S>) -> Self {
        let places: HashMap<_, _> = tensors.into_iter().enumerate().map(|(i, name)| (name.into(), i)).collect();
        Self { header, tensors: vec![None; places.len()], places }
    }

    /// Notes the digest of a tensor. A tensor read twice must give the same digest twice.
    ///
    /// # Errors
    ///
    /// The tensor is not among those named at first, or it changed between two readings.
    pub fn set(&mut self, tensor: &str, digest: u128) -> Result<()> {
        let place = self.places.get(tensor).and_then(|&i| self.tensors.get_mut(i));
        let slot =
            place.ok_or_else(|| Error::internal(format!("no digest is expected of source tensor `{tensor}`")))?;
        if slot.is_some_and(|before| before != digest) {
            return Err(Error::input(format!("source tensor `{tensor}` changed while the merge ran"))
                .of_tensor(tensor)
                .hint("leave the sources alone during a merge, then run it again with `--overwrite`"));
        }
        *slot = Some(digest);
        Ok(())
    }

    /// How many tensors have a digest.
    pub fn done(&self) -> usize {
        self.tensors.iter().flatten().count()
    }

    /// The file's digest.
    ///
    /// # Errors
    ///
    /// A tensor was not [set](Self::set).
    pub fn finish(&self) -> Result<u128> {
        combine(std::iter::once(Some(self.header)).chain(self.tensors.iter().copied()))
            .ok_or_else(|| Error::internal("the digest of a source tensor is missing"))
    }
}

fn combine(digests: impl Iterator<Item = Option<u128>>) -> Option<u128> {
    let mut hasher = Hasher::new();
    for digest in digests {
        hasher.write(&digest?.to_le_bytes());
    }
    Some(hasher.finish_128())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tensors_digest_is_that_of_its_blocks_in_order_whatever_order_they_come_in() {
        let data: Vec<u8> = (0..300_000_u32).map(|i| (i * 7 % 253) as u8).collect();
        let size = block_bytes(Dtype::BF16) as usize;
        assert_eq!(size, 131_072);
        let parts: Vec<u128> = data.chunks(size).map(block).collect();
        let mut digests = BlockDigests::new(data.len() as u64, Dtype::BF16).unwrap();
        assert_eq!(digests.count(), 3);
        for i in [2, 0, 1] {
            assert!(digests.finish().is_err());
            digests.set(i, parts[i]).unwrap();
        }
        let joined: Vec<u8> = parts.iter().flat_map(|p| p.to_le_bytes()).collect();
        assert_eq!(digests.finish().unwrap(), XxHash3_128::oneshot(&joined));
        assert!(digests.set(3, 0).is_err());
    }

    #[test]
    fn an_empty_tensor_has_the_digest_of_nothing() {
        assert_eq!(BlockDigests::new(0, Dtype::F32).unwrap().finish().unwrap(), XxHash3_128::oneshot(&[]));
    }

    #[test]
    fn a_files_digest_covers_its_header_and_its_tensors_in_file_order() {
        let mut file = SourceDigests::new(9, ["b", "a"]);
        file.set("a", 1).unwrap();
        assert!(file.finish().is_err());
        assert_eq!(file.done(), 1);
        file.set("b", 2).unwrap();
        file.set("a", 1).unwrap();
        let joined: Vec<u8> = [9_u128, 2, 1].iter().flat_map(|p| p.to_le_bytes()).collect();
        assert_eq!(file.finish().unwrap(), XxHash3_128::oneshot(&joined));
    }

    #[test]
    fn a_source_that_changes_between_two_readings_is_noticed() {
        let mut file = SourceDigests::new(9, ["a"]);
        file.set("a", 1).unwrap();
        assert!(file.set("a", 2).unwrap_err().to_string().contains("`a` changed"));
        assert!(file.set("other", 2).is_err());
    }

    #[test]
    fn hexadecimal_digests_read_back_and_nothing_else_does() {
        assert_eq!(from_hex(&to_hex(u128::MAX - 5)), Some(u128::MAX - 5));
        assert_eq!(to_hex(1).len(), 32);
        for bad in ["", "1", "+0000000000000000000000000000001", "g0000000000000000000000000000001"] {
            assert_eq!(from_hex(bad), None);
        }
    }
}
