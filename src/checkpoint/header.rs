//! A safetensors header, validated wholly: after this, a tensor's place in its file can be trusted.
//!
//! The format: eight bytes (little-endian length), that many bytes of JSON, then the data of all tensors without a gap.

use super::fields::{self, Entry, Fault};
use super::text::{plain, quoted};
use crate::dtype::Dtype;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Longest header JSON in bytes that is read, which is safetensors' own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most dimensions a tensor may have, which is PyTorch's own limit.
pub const MAX_RANK: usize = 64;

/// Largest dimension: above it, numbers are not exact in every program that reads JSON.
const MAX_DIM: u64 = 1 << 53;

/// Bytes of the length that stands before the JSON.
pub(super) const LENGTH_BYTES: u64 = 8;

const DAMAGED: &str = "the file is damaged or was written by a faulty program; download or save it again";

/// One tensor of a checkpoint and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, neither empty nor with control characters.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions; none for a scalar, and any of them may be 0.
    pub shape: Vec<u64>,
    /// Number of its elements: the product of the dimensions.
    pub elems: u64,
    /// Which of [`Checkpoint::shards`](super::Checkpoint::shards) holds it.
    pub shard: usize,
    /// Offset of its first byte in that shard's file. Not necessarily a multiple of the element's size.
    pub begin: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Tensor {
    /// Where its bytes are in its shard's file.
    pub fn range(&self) -> Range<u64> {
        self.begin..self.begin + self.bytes
    }
}

/// What a file's header says, checked against itself and against the file's size.
#[derive(Debug)]
pub struct Header {
    /// The tensors in the order of their data.
    pub tensors: Vec<Tensor>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Bytes before the data: the eight of the length and the JSON.
    pub bytes: u64,
}

/// Reads and validates the header of a safetensors file that is wholly in memory; for tests and fuzzing.
///
/// # Errors
/// `Input` for anything but a valid file.
#[doc(hidden)]
pub fn read_header(file: &[u8]) -> Result<Header> {
    let size = file.len() as u64;
    let label = "`in memory`";
    let first = file.first_chunk::<8>().ok_or_else(|| too_short(label, size))?;
    let json = json_bytes(label, *first, size)?;
    parse(label, &file[8..8 + json as usize], size, 0)
}

pub(super) fn too_short(label: &str, size: u64) -> Error {
    Error::input(format!("{label} is not a safetensors file: it has {size} bytes, expected at least {LENGTH_BYTES}"))
        .hint(if size == 0 { "the file is empty; download or save it again" } else { DAMAGED })
}

/// The length in bytes of the header's JSON, from the file's first eight bytes and its size.
pub(super) fn json_bytes(label: &str, first: [u8; 8], size: u64) -> Result<u64> {
    let json = u64::from_le_bytes(first);
    let room = size.saturating_sub(LENGTH_BYTES);
    if json <= MAX_HEADER_BYTES.min(room) {
        return Ok(json);
    }
    let error = |message: String| Error::input(format!("{label} {message}"));
    if json <= MAX_HEADER_BYTES {
        let expected = json + LENGTH_BYTES;
        return Err(error(format!("is truncated: found {size} bytes, expected at least {expected} for the header"))
            .hint("the download or copy was cut off; get the file again"));
    }
    // Other formats read as an absurd length; name those that people meet.
    match &first {
        b"version " => Err(error("is a Git LFS pointer, not the checkpoint itself".into())
            .hint("fetch the real file: run `git lfs pull` in its repository, or download it again")),
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => {
            Err(error("is a pickle (PyTorch), not a safetensors file".into())
                .hint("pickles can run code and are never loaded; convert it with `safetensors.torch.save_file`"))
        }
        [b'G', b'G', b'U', b'F', ..] => Err(error("is a GGUF file, not a safetensors file".into())
            .hint("merge the unquantised safetensors checkpoint and convert the result to GGUF")),
        _ => Err(error(format!(
            "is not a safetensors file: its header would have {json} bytes, the most allowed is {MAX_HEADER_BYTES}"
        ))
        .hint(DAMAGED)),
    }
}

/// Validates the header whose JSON is `json` in a file of `size` bytes. `label` begins every message.
pub(super) fn parse(label: &str, json: &[u8], size: u64, shard: usize) -> Result<Header> {
    let text = std::str::from_utf8(json).map_err(|error| {
        Error::input(format!("{label}: the header is not UTF-8 text: byte {} is not", error.valid_up_to()))
            .hint(DAMAGED)
    })?;
    let fields = fields::read(text).map_err(|fault| describe(label, &fault))?;
    let header = LENGTH_BYTES + json.len() as u64;
    let mut entries = fields.entries;
    entries.iter().try_for_each(|entry| check_entry(label, entry))?;
    check_names(label, &entries)?;
    // Stable, so that empty tensors at one offset keep the header's order.
    entries.sort_by_key(|entry| (entry.begin, entry.end));
    check_layout(label, &entries, header, size)?;
    let tensors = entries.into_iter().map(|entry| Tensor {
        elems: entry.shape.iter().product(),
        begin: header + entry.begin,
        bytes: entry.end - entry.begin,
        name: entry.name,
        dtype: entry.dtype,
        shape: entry.shape,
        shard,
    });
    Ok(Header { tensors: tensors.collect(), metadata: fields.metadata, bytes: header })
}

fn describe(label: &str, fault: &Fault) -> Error {
    let tensor = match fault.tensor.as_deref() {
        Some("__metadata__") => "`__metadata__`: ".to_owned(),
        Some(name) => format!("tensor {}: ", quoted(name)),
        None => String::new(),
    };
    let (line, column) = (fault.line, fault.column);
    let message = plain(&fault.message, 600);
    let error = Error::input(format!("{label}: {tensor}{message} (line {line}, column {column} of the header)"));
    match fault.tensor.as_deref() {
        Some(name) if name != "__metadata__" => error.of_tensor(name),
        _ => error,
    }
    .hint(DAMAGED)
}

/// One entry by itself: its name, and that its span of bytes is what its shape and dtype need.
fn check_entry(label: &str, entry: &Entry) -> Result<()> {
    let wrong = |message: String| {
        Err(Error::input(format!("{label}: tensor {}: {message}", quoted(&entry.name)))
            .of_tensor(&entry.name)
            .hint(DAMAGED))
    };
    if entry.name.is_empty() {
        return wrong("its name is empty".into());
    }
    if let Some(c) = entry.name.chars().find(|c| c.is_control()) {
        return wrong(format!("its name has the control character U+{:04X}", c as u32));
    }
    let Entry { dtype, shape, begin, end, .. } = entry;
    if begin > end {
        return wrong(format!("its data_offsets [{begin}, {end}] are reversed"));
    }
    if let Some(dim) = shape.iter().find(|dim| **dim > MAX_DIM) {
        return wrong(format!("dimension {dim} in its shape is above the largest allowed, {MAX_DIM}"));
    }
    let elems = shape.iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim));
    let Some(bits) = elems.and_then(|elems| elems.checked_mul(dtype.bitsize() as u64)) else {
        return wrong(format!("its shape {shape:?} of {dtype} overflows: no file is that large"));
    };
    if bits % 8 != 0 {
        return wrong(format!("its shape {shape:?} of {dtype} needs {bits} bits, which are not whole bytes"));
    }
    if end - begin != bits / 8 {
        let found = end - begin;
        return wrong(format!(
            "its shape {shape:?} of {dtype} needs {} bytes, but its data_offsets [{begin}, {end}] span {found}",
            bits / 8
        ));
    }
    Ok(())
}

fn check_names(label: &str, entries: &[Entry]) -> Result<()> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.array_windows::<2>().find(|[a, b]| a == b) {
        None => Ok(()),
        Some([name, _]) => Err(Error::input(format!("{label}: tensor {} stands twice in the header", quoted(name)))
            .of_tensor(name)
            .hint(DAMAGED)),
    }
}

/// Sorted entries against each other and the file: no overlap, no hole, and an end where the file ends.
fn check_layout(label: &str, entries: &[Entry], header: u64, size: u64) -> Result<()> {
    let data = size.saturating_sub(header);
    let mut at = 0_u64;
    let mut before = None::<&Entry>;
    let mut cut = None::<&Entry>;
    for entry in entries {
        let name = || quoted(&entry.name);
        if entry.begin < at {
            let other = before.map_or_else(String::new, |before| quoted(&before.name));
            return Err(Error::input(format!(
                "{label}: tensors {other} and {} overlap: one ends at byte {at} of the data, the next begins at {}",
                name(),
                entry.begin
            ))
            .of_tensor(&entry.name)
            .hint(DAMAGED));
        }
        if entry.begin > at {
            return Err(Error::input(format!(
                "{label}: bytes {at} to {} of the data, before tensor {}, belong to no tensor",
                entry.begin,
                name()
            ))
            .of_tensor(&entry.name)
            .hint(DAMAGED));
        }
        if entry.end > data && cut.is_none() {
            cut = Some(entry);
        }
        at = entry.end;
        before = Some(entry);
    }
    let Some(expected) = header.checked_add(at) else {
        return Err(Error::input(format!("{label}: its tensors' sizes overflow: no file is that large")).hint(DAMAGED));
    };
    if let Some(entry) = cut {
        return Err(Error::input(format!(
            "{label} is truncated: found {size} bytes, expected {expected}; the first tensor cut off is {}",
            quoted(&entry.name)
        ))
        .of_tensor(&entry.name)
        .hint("the download or copy was cut off; get the file again"));
    }
    if size > expected {
        return Err(Error::input(format!(
            "{label} has {} bytes after its last tensor: found {size} bytes, expected {expected}",
            size - expected
        ))
        .hint(DAMAGED));
    }
    Ok(())
}
