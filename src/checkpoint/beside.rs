//! Small JSON files beside a checkpoint's weights.

use std::path::Path;

use serde_json::{Map, Value};

/// The largest small file that is read, in bytes.
pub const MAX_SMALL_BYTES: u64 = 64 << 20;

/// A JSON object in a file of a folder, if there is one that can be read.
pub(crate) fn json_in(folder: &Path, name: &str) -> Option<Map<String, Value>> {
    let path = folder.join(name);
    let is_small = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_SMALL_BYTES);
    match serde_json::from_slice(&std::fs::read(path).ok().filter(|_| is_small)?).ok()? {
        Value::Object(object) => Some(object),
        _ => None,
    }
}
