//! The digest of an output tensor: plain blake3 of its bytes, computed from pieces that finish in any order.
//!
//! blake3 is a binary tree over chunks of 1024 bytes, so pieces of a power of two are whole subtrees: each is hashed
//! by itself, and the few tree nodes above them are merged at the end. The result is [`blake3::hash`] of the whole.

use blake3::Hash;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::error::{Error, Result};

/// The smallest piece, in bytes: a chunk of blake3.
pub const MIN_PIECE_BYTES: u64 = blake3::CHUNK_LEN as u64;

/// What one piece contributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece(Part);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The piece is everything.
    Whole(Hash),
    /// The piece is a subtree of several.
    Subtree(ChainingValue),
}

/// Collects the pieces of one tensor.
#[derive(Debug, Clone)]
pub struct PieceDigests {
    total_bytes: u64,
    piece_bytes: u64,
    pieces: Vec<Option<Part>>,
}

impl PieceDigests {
    /// For `total_bytes` cut into pieces of `piece_bytes`; the last one may be shorter.
    ///
    /// # Errors
    ///
    /// A piece size that is not a power of two of at least [`MIN_PIECE_BYTES`].
    pub fn new(total_bytes: u64, piece_bytes: u64) -> Result<Self> {
        if !piece_bytes.is_power_of_two() || piece_bytes < MIN_PIECE_BYTES {
            return Err(Error::internal(format!("digest pieces of {piece_bytes} bytes are not subtrees of blake3")));
        }
        let count = usize::try_from(total_bytes.div_ceil(piece_bytes))
            .map_err(|_| Error::internal(format!("{total_bytes} bytes make too many digest pieces")))?;
        Ok(Self { total_bytes, piece_bytes, pieces: vec![None; count] })
    }

    /// How many pieces there are; 0 for an empty tensor.
    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of piece `index`; 0 past the end.
    pub fn len_of(&self, index: usize) -> u64 {
        let start = (index as u64).saturating_mul(self.piece_bytes);
        self.total_bytes.saturating_sub(start).min(self.piece_bytes)
    }

    /// The digest of piece `index` of `total_bytes` in pieces of `piece_bytes`; needs nothing of other pieces.
    ///
    /// # Errors
    ///
    /// There is no such piece, or `bytes` is not as long as it.
    pub fn hash_piece(total_bytes: u64, piece_bytes: u64, index: usize, bytes: &[u8]) -> Result<Piece> {
        let start = (index as u64).saturating_mul(piece_bytes);
        let len = total_bytes.saturating_sub(start).min(piece_bytes);
        if len == 0 || bytes.len() as u64 != len {
            return Err(Error::internal(format!("digest piece {index} has {} bytes, expected {len}", bytes.len())));
        }
        if total_bytes <= piece_bytes {
            return Ok(Piece(Part::Whole(blake3::hash(bytes))));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(start).update(bytes);
        Ok(Piece(Part::Subtree(hasher.finalize_non_root())))
    }

    /// The digest of piece `index` of this tensor. Errors as [`Self::hash_piece`].
    pub fn piece(&self, index: usize, bytes: &[u8]) -> Result<Piece> {
        Self::hash_piece(self.total_bytes, self.piece_bytes, index, bytes)
    }

    /// Notes the digest of piece `index`.
    ///
    /// # Errors
    ///
    /// There is no such piece.
    pub fn set(&mut self, index: usize, piece: Piece) -> Result<()> {
        let slot = self.pieces.get_mut(index).ok_or_else(|| Error::internal(format!("no digest piece {index}")))?;
        *slot = Some(piece.0);
        Ok(())
    }

    /// The digest of the whole.
    ///
    /// # Errors
    ///
    /// A piece was not [set](Self::set).
    pub fn finish(&self) -> Result<Hash> {
        let missing = || Error::internal("a digest piece is missing");
        match self.pieces.as_slice() {
            [] => Ok(blake3::hash(&[])),
            [one] => match one.ok_or_else(missing)? {
                Part::Whole(hash) => Ok(hash),
                Part::Subtree(_) => Err(Error::internal("a subtree's digest was set for a whole tensor")),
            },
            many => {
                let mut values = Vec::with_capacity(many.len());
                for part in many {
                    match part.ok_or_else(missing)? {
                        Part::Subtree(value) => values.push(value),
                        Part::Whole(_) => return Err(Error::internal("a whole digest was set for one of many pieces")),
                    }
                }
                let (left, right) = values.split_at(left_count(values.len()));
                Ok(merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash))
            }
        }
    }
}

/// How many of `n` > 1 pieces belong to the left subtree: the largest power of two below n. As every piece but the
/// last is full, this is blake3's own rule (the largest power of two of bytes that leaves something to the right).
fn left_count(n: usize) -> usize {
    1 << (n - 1).ilog2()
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [one] => *one,
        many => {
            let (left, right) = many.split_at(left_count(many.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_pieces(data: &[u8], piece: u64, order: impl Fn(usize) -> Vec<usize>) -> Hash {
        let mut digests = PieceDigests::new(data.len() as u64, piece).unwrap();
        for i in order(digests.count()) {
            let start = i * piece as usize;
            let value = digests.piece(i, &data[start..start + digests.len_of(i) as usize]).unwrap();
            digests.set(i, value).unwrap();
        }
        digests.finish().unwrap()
    }

    #[test]
    fn edge_sizes_hash_as_blake3_does() {
        let data: Vec<u8> = (0..40_000_u32).map(|i| (i % 251) as u8).collect();
        for len in [0, 1, 1023, 1024, 1025, 2047, 2048, 2049, 3072, 3073, 4096, 8191, 16384, 16385, 40_000] {
            for piece in [1024, 2048, 4096, 65536] {
                let found = by_pieces(&data[..len], piece, |n| (0..n).rev().collect());
                assert_eq!(found, blake3::hash(&data[..len]), "{len} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn misuse_is_an_error_and_never_a_wrong_digest() {
        assert!(PieceDigests::new(10, 1000).is_err());
        assert!(PieceDigests::new(10, 512).is_err());
        let mut digests = PieceDigests::new(3000, 1024).unwrap();
        assert!(digests.piece(0, &[0; 1000]).is_err());
        assert!(digests.piece(3, &[]).is_err());
        let piece = digests.piece(2, &[0; 952]).unwrap();
        digests.set(2, piece).unwrap();
        assert!(digests.set(3, piece).is_err());
        assert!(digests.finish().is_err());
    }

    proptest! {
        #[test]
        fn any_order_of_pieces_gives_blake3_of_the_whole(
            data in prop::collection::vec(any::<u8>(), 0..20_000),
            power in 10_u32..15,
            seed in any::<u64>(),
        ) {
            let order = |n: usize| {
                let mut all: Vec<usize> = (0..n).collect();
                all.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
                all
            };
            prop_assert_eq!(by_pieces(&data, 1 << power, order), blake3::hash(&data));
        }
    }
}
