//! Names of checkpoints in a recipe: paths, resolved against its folder and looked up.

use std::path::{Component, Path, PathBuf};

use super::ModelRef;
use super::reader::{Reader, text};
use super::yaml::{Data, Entry, Node, quote};
use crate::error::{Cause, Error, Result};
use crate::hub;
use crate::suggest::nearest;

/// Reads a checkpoint's name. The second path tells the same checkpoint under two names apart from two checkpoints.
pub(super) fn read(reader: &Reader, node: &Node, key: &str) -> Result<(ModelRef, PathBuf)> {
    if let Data::Map(entries) = &node.data {
        return read_name(reader, &reference(reader, entries, key)?, node.line, key);
    }
    let Data::Scalar { text: written, .. } = &node.data else {
        let error = reader.error(node.line, format_args!("`{key}` must be a path, found {}", node.describe()));
        return Err(error.hint("write the path of a checkpoint: a folder, or one .safetensors file"));
    };
    read_name(reader, if node.is_null() { "" } else { written }, node.line, key)
}

/// A name as mergekit writes it out: `{model: {path, revision}, lora: {path, revision}}`.
fn reference(reader: &Reader, entries: &[Entry], key: &str) -> Result<String> {
    let mut written = String::new();
    let mut adapter = None;
    let known = ["model", "lora", "path", "revision", "override_architecture"];
    for entry in entries.iter().filter(|entry| !entry.value.is_null()) {
        let inner = || match &entry.value.data {
            Data::Map(inner) => reference(reader, inner, key),
            _ => text(reader, entry).map(Option::unwrap_or_default),
        };
        match entry.key.as_str() {
            "model" | "path" => written = inner()? + &written,
            "revision" => written = format!("{written}@{}", inner()?),
            "lora" => adapter = Some(inner()?),
            "override_architecture" => {
                reader.warn(entry.line, "`override_architecture` has no effect: layouts are read from tensors' names");
            }
            other => {
                let message = format!("unknown key {} in `{key}`", quote(other));
                return Err(reader.unknown_key(entry.line, message, other, &known));
            }
        }
    }
    Ok(match adapter {
        Some(adapter) => format!("{written}+{adapter}"),
        None => written,
    })
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
    if reader.names.iter().any(|name| name == written) {
        let path = PathBuf::from(written);
        return Ok((
            ModelRef { written: written.to_owned(), path: path.clone(), adapters: Vec::new(), is_made: true },
            path,
        ));
    }
    let whole = reader.folder.join(written);
    if !reader.on_disk {
        let identity = lexical(&whole);
        return Ok((
            ModelRef { written: written.to_owned(), path: whole, adapters: Vec::new(), is_made: false },
            identity,
        ));
    }
    // A path that is there whole is that path, whatever signs it holds.
    if whole.exists() || !written.contains('+') {
        let path = locate(reader, line, written, "model")?;
        let identity = path.canonicalize().unwrap_or_else(|_| path.clone());
        return Ok((ModelRef { written: written.to_owned(), path, adapters: Vec::new(), is_made: false }, identity));
    }
    let mut parts = written.split('+');
    let path = locate(reader, line, parts.next().unwrap_or_default(), "model")?;
    let mut identity = path.canonicalize().unwrap_or_else(|_| path.clone()).into_os_string();
    let mut adapters = Vec::new();
    for part in parts {
        let adapter = locate(reader, line, part, "adapter")?;
        identity.push("+");
        identity.push(adapter.canonicalize().unwrap_or_else(|_| adapter.clone()));
        adapters.push(adapter);
    }
    Ok((ModelRef { written: written.to_owned(), path, adapters, is_made: false }, identity.into()))
}

/// Where a checkpoint or an adapter is: a path, else a name in the Hub's cache.
fn locate(reader: &Reader, line: usize, written: &str, what: &str) -> Result<PathBuf> {
    let at = |error: Error| {
        let mut told = reader.error(line, &error);
        for hint in error.hints() {
            told = told.hint(hint.clone());
        }
        told.input_is(Cause::Checkpoint)
    };
    let path = reader.folder.join(written);
    match path.canonicalize() {
        Ok(_) => hub::within(&path).map_err(at),
        Err(error) => {
            let find = |cache: PathBuf| hub::find_or_fetch(written, &cache, reader.fetcher);
            let cached = hub::cache().map(find).transpose().map_err(at)?.flatten();
            cached.ok_or_else(|| absent(reader, line, written, what, &path, &error).input_is(Cause::Checkpoint))
        }
    }
}

/// Why a checkpoint cannot be reached, and what its name may have meant.
fn absent(reader: &Reader, line: usize, written: &str, what: &str, path: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    let shown = quote(written);
    if !matches!(error.kind(), NotFound | NotADirectory) {
        return Error::io(format_args!("reach the {what} {shown} ({}:{line})", reader.file), error)
            .on_line(reader.file, line);
    }
    let missing = |why: &str| reader.error(line, format_args!("{what} {shown} is not on this machine{why}"));
    if written.starts_with('~') {
        return missing("").hint("`~` is not expanded in a recipe: write the path in full");
    }
    let mut error = missing(&format!(": there is no {}", quote(&path.to_string_lossy())));
    if let Some(near) = sibling(path) {
        error = error.hint(format!("did you mean {}?", quote(&near)));
    }
    if !Path::new(written).is_absolute() {
        error = error.hint("a relative path starts at the recipe's folder");
    }
    if let Some((name, revision)) = hub::name(written).filter(|_| written.contains('/') || written.contains('@')) {
        let revision = if written.contains('@') { format!(" --revision {revision}") } else { String::new() };
        error = error.hint(format!(
            "a model of the Hugging Face Hub is looked for in its cache, and is not there: --download, or `hf download \
             {name}{revision}`, fetches it"
        ));
    }
    error
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
}
