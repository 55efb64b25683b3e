//! Readers of checkpoints, and safetensors files to read, sound and unsound.

mod bytes;
mod headers;
mod open;
mod pickles;

use std::path::Path;

/// A file with this header text and `data` bytes of data that count up.
pub fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend((0..data).map(|i| i as u8));
    out
}

/// A file of U8 tensors of these names and lengths.
pub fn bytes_file(tensors: &[(&str, usize)]) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, len)| {
            let begin = at;
            at += len;
            format!(r#""{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{begin},{at}]}}"#)
        })
        .collect();
    file(&format!("{{{}}}", entries.join(",")), at)
}

/// Writes a file into a folder.
pub fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(folder.join(name), content).unwrap();
}

/// An index of these tensors and shards.
pub fn index(weight_map: &[(&str, &str)]) -> String {
    let entries: Vec<String> = weight_map.iter().map(|(tensor, shard)| format!(r#""{tensor}":"{shard}""#)).collect();
    format!(r#"{{"metadata":{{"total_size":0}},"weight_map":{{{}}}}}"#, entries.join(","))
}
