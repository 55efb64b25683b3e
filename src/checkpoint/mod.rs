//! Checkpoints in: safetensors files, their headers validated wholly before any tensor is touched.
//!
//! [`Checkpoint::open`] takes a `.safetensors` file or a folder as Hugging Face lays it out, reads the headers alone and
//! keeps every shard's file open. [`Shard::bytes`] then gives the bytes of tensors, from a map of the whole file where the
//! kernel grants one and by positioned reads where it does not. Nothing here knows arithmetic.

mod beside;
mod bus;
mod discover;
mod fields;
mod header;
mod index;
mod layers;
mod made;
mod map;
mod open;
mod pickle;
mod shard;
mod text;

pub use beside::MAX_SMALL_BYTES;
pub(crate) use beside::json_in;
pub use bus::{install_bus_handler, tell_bus_errors};
pub use header::{Header, MAX_HEADER_BYTES, MAX_RANK, Tensor, read_header};
pub use layers::{Layer, LayerMap};
pub use made::{Made, Origin, Part};
pub use open::Checkpoint;
pub use shard::Shard;
pub use text::{escaped, is_unsafe, printable, quoted, quoted_path};

/// Reads a file of PyTorch's that is wholly in memory, as far as its tensors' places; gives how many there are. For tests and
/// fuzzing.
///
/// # Errors
/// A text, for anything but such a file.
#[doc(hidden)]
pub fn read_archive(file: &[u8]) -> Result<usize, String> {
    pickle::read_bytes(file)
}
