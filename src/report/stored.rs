//! The headers of stored outputs, read for verification: independent of the code that wrote them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::dtype::Dtype;

/// The longest header that readers of safetensors accept, in bytes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor as a file's header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// Offset of its first byte from the start of the file.
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The tensors of a safetensors file in the order of their places; they fill its data without gap or overlap.
/// Otherwise what is wrong with it, in words.
pub(super) fn read_header(file: &File) -> Result<Vec<StoredTensor>, String> {
    let file_bytes = file.metadata().map_err(|e| format!("cannot be looked at: {e}"))?.len();
    let mut word = [0; 8];
    file.read_exact_at(&mut word, 0).map_err(|e| format!("has no header: {e}"))?;
    let header_bytes = u64::from_le_bytes(word);
    if header_bytes == 0 {
        return Err("was never completed: its header has length 0".into());
    }
    let start = header_bytes.checked_add(8).filter(|&s| s <= file_bytes && header_bytes <= MAX_HEADER_BYTES);
    let start = start.ok_or_else(|| format!("states a header of {header_bytes} bytes in a file of {file_bytes}"))?;
    // Bounded by the size of the file that really is there.
    let mut text = vec![0; header_bytes as usize];
    file.read_exact_at(&mut text, 8).map_err(|e| format!("cannot be read: {e}"))?;
    let map: Map<String, Value> = serde_json::from_slice(&text).map_err(|e| format!("has a damaged header: {e}"))?;
    let mut tensors = Vec::with_capacity(map.len());
    for (name, value) in map {
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry =
            serde_json::from_value(value).map_err(|e| format!("has a damaged header at tensor `{name}`: {e}"))?;
        let [begin, end] = entry.data_offsets;
        let elems = entry.shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d));
        let bits = elems.and_then(|n| n.checked_mul(entry.dtype.bitsize() as u64));
        let bytes = end.checked_sub(begin).filter(|n| bits.is_some_and(|b| b % 8 == 0 && b / 8 == *n));
        let (Some(bytes), Some(offset)) = (bytes, start.checked_add(begin)) else {
            return Err(format!("places tensor `{name}` at {begin}..{end}, which is not the size of its shape"));
        };
        tensors.push(StoredTensor { name, dtype: entry.dtype, shape: entry.shape, offset, bytes });
    }
    tensors.sort_by_key(|t| (t.offset, t.bytes));
    let mut next = start;
    for tensor in &tensors {
        if tensor.offset != next {
            return Err(format!("has a gap or an overlap in front of tensor `{}`", tensor.name));
        }
        next = next.checked_add(tensor.bytes).ok_or("states more than 2^64 bytes")?;
    }
    if next != file_bytes {
        return Err(format!("has {file_bytes} bytes, its header describes {next}"));
    }
    Ok(tensors)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(header: &[u8], length: u64, data: usize) -> Result<Vec<StoredTensor>, String> {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        bytes.resize(bytes.len() + data, 0);
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, bytes).unwrap();
        read_header(&File::open(&path).unwrap())
    }

    fn read_json(header: &str, data: usize) -> Result<Vec<StoredTensor>, String> {
        read(header.as_bytes(), header.len() as u64, data)
    }

    #[test]
    fn a_sound_header_gives_its_tensors_by_place() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]},
            "empty":{"dtype":"F32","shape":[0],"data_offsets":[8,8]},
            "a":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}  "#;
        let tensors = read_json(header, 11).unwrap();
        let found: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.bytes)).collect();
        assert_eq!(found, [("a", 8), ("empty", 0), ("b", 3)]);
        assert_eq!(tensors[2].offset, 8 + header.len() as u64 + 8);
    }

    #[test]
    fn every_unsound_header_is_told() {
        let one = |shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"U8","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        for (header, data, expected) in [
            (one("[3]", "[0,3]"), 4, "describes"),
            (one("[3]", "[0,3]"), 2, "describes"),
            (one("[3]", "[1,4]"), 4, "gap"),
            (one("[3]", "[3,0]"), 3, "size of its shape"),
            (one("[4294967296,4294967296]", "[0,0]"), 0, "size of its shape"),
            (one("[3]", "[18446744073709551612,18446744073709551615]"), 3, "size of its shape"),
            (one("[-1]", "[0,3]"), 3, "damaged header at tensor `a`"),
            ("[]".into(), 0, "damaged header"),
            ("{".into(), 0, "damaged header"),
        ] {
            let message = read_json(&header, data).unwrap_err();
            assert!(message.contains(expected), "{header}: {message}");
        }
        assert!(read(b"", 0, 100).unwrap_err().contains("never completed"));
        assert!(read(b"{}", u64::MAX, 0).unwrap_err().contains("states a header"));
        assert!(read(b"{}", 3, 0).unwrap_err().contains("states a header"));
    }
}
