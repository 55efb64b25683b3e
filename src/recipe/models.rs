//! Names of checkpoints in a recipe: paths, resolved against its folder and looked up.

use std::path::{Component, Path, PathBuf};

use super::ModelRef;
use super::reader::Reader;
use super::yaml::{Data, Node, quote};
use crate::error::{Cause, Error, Result};
use crate::suggest::nearest;

/// Reads a checkpoint's name. The second path tells the same checkpoint under two names apart from two checkpoints.
pub(super) fn read(reader: &Reader, node: &Node, key: &str) -> Result<(ModelRef, PathBuf)> {
    let Data::Scalar { text: written, .. } = &node.data else {
        let error = match &node.data {
            Data::Map(_) => reader.error(node.line, format_args!("`{key}` as a mapping is not supported yet")),
            _ => reader.error(node.line, format_args!("`{key}` must be a path, found {}", node.describe())),
        };
        return Err(error.hint("write the path of a checkpoint: a folder, or one .safetensors file"));
    };
    read_name(reader, if node.is_null() { "" } else { written }, node.line, key)
}

/// Reads a checkpoint's name that stands on a line.
pub(super) fn read_name(reader: &Reader, written: &str, line: usize, key: &str) -> Result<(ModelRef, PathBuf)> {
    if written.trim().is_empty() {
        let error = reader.error(line, format_args!("`{key}` is empty"));
        return Err(error.hint("write the path of a checkpoint: a folder, or one .safetensors file"));
    }
    if written.contains('\0') {
        return Err(reader.error(line, format_args!("`{key}` holds a NUL character: {}", quote(written))));
    }
    let path = reader.folder.join(written);
    let identity = if reader.on_disk {
        std::fs::canonicalize(&path)
            .map_err(|e| absent(reader, line, written, &path, &e).input_is(Cause::Checkpoint))?
    } else {
        lexical(&path)
    };
    Ok((ModelRef { written: written.to_owned(), path }, identity))
}

/// Why a checkpoint cannot be reached, and what its name may have meant.
fn absent(reader: &Reader, line: usize, written: &str, path: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let shown = quote(written);
    if !matches!(error.kind(), NotFound | NotADirectory) {
        return Error::io(format_args!("reach the model {shown} ({}:{line})", reader.file), error);
    }
    let missing = |what: &str| reader.error(line, format_args!("model {shown} is not on this machine{what}"));
    if written.starts_with('~') {
        return missing("").hint("`~` is not expanded in a recipe: write the path in full");
    }
    if written.contains('+') {
        return missing(", and LoRA adapters (`model+adapter`) are not supported yet")
            .hint("merge the adapter into its model first, and name the result");
    }
    if written.contains('@') {
        return missing(", and revisions (`model@revision`) are not supported yet")
            .hint("download that revision, and name its folder");
    }
    let mut error = missing(&format!(": there is no {}", quote(&path.to_string_lossy())));
    if let Some(near) = sibling(path) {
        error = error.hint(format!("did you mean {}?", quote(&near)));
    }
    if !Path::new(written).is_absolute() {
        error = error.hint("a relative path starts at the recipe's folder");
    }
    if looks_like_hub_id(written) {
        let download = format!("hf download {written} --local-dir FOLDER");
        error = error.hint(format!(
            "a model of the Hugging Face hub must be downloaded first (`{download}`): then name that folder"
        ));
    }
    error
}

/// `org/name`, as the hub spells it.
fn looks_like_hub_id(written: &str) -> bool {
    let part = |p: &str| {
        p.starts_with(|c: char| c.is_ascii_alphanumeric())
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    written.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// The name most like the missing one in the same folder.
fn sibling(path: &Path) -> Option<String> {
    const MOST: usize = 1000;
    let name = path.file_name()?.to_str()?;
    let entries = std::fs::read_dir(path.parent()?).ok()?;
    let mut names: Vec<String> = entries.take(MOST).filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    nearest(name, names.iter().map(String::as_str)).map(str::to_string)
}

/// The path without `.` and `..`, for comparing paths that need not exist.
fn lexical(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_spellings_of_a_path_compare_as_one() {
        for same in ["models/a", "./models/a", "models/a/", "models/b/../a", "models/./a"] {
            assert_eq!(lexical(Path::new(same)), Path::new("models/a"), "{same}");
        }
        assert_eq!(lexical(Path::new("../../a")), Path::new("../../a"));
        assert_eq!(lexical(Path::new("/a/../b")), Path::new("/b"));
    }

    #[test]
    fn hub_names_are_an_owner_and_a_name() {
        for id in ["org/name", "meta-llama/Llama-3.1-8B", "a/b"] {
            assert!(looks_like_hub_id(id), "{id}");
        }
        for path in ["name", "./org/name", "../name", "a/b/c", "/a/b", "a/", "a/b c"] {
            assert!(!looks_like_hub_id(path), "{path}");
        }
    }
}
