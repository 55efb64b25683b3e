//! Which files make up the checkpoint that a path names.

use super::index::Index;
use super::text::quoted_path;
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Names of a folder's files that a message lists.
const LISTED: usize = 12;

/// The files of a checkpoint.
#[derive(Debug)]
pub(super) struct Found {
    /// The folder, if one was given.
    pub folder: Option<PathBuf>,
    /// The shards, sorted by name.
    pub shards: Vec<PathBuf>,
    /// The index, where there is one.
    pub index: Option<Index>,
}

pub(super) fn find(path: &Path) -> Result<Found> {
    let facts = fs::metadata(path).map_err(|error| {
        let out = Error::io(format!("open the checkpoint {}", quoted_path(path)), &error);
        match error.kind() {
            std::io::ErrorKind::NotFound => out.hint(
                "give a local folder or .safetensors file; a model on the Hugging Face hub must be downloaded first \
                 (`hf download NAME --local-dir DIR`)",
            ),
            _ => out,
        }
    })?;
    if facts.is_dir() { find_in(path) } else { find_file(path) }
}

fn find_file(path: &Path) -> Result<Found> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if is_archive(path) {
        return Ok(Found { folder: None, shards: vec![path.to_owned()], index: None });
    }
    if is_pickle(&name) {
        return Err(Error::input(format!("{} is a pickle, not a safetensors file", quoted_path(path))).hint(CONVERT));
    }
    if name.ends_with(".index.json") {
        return Err(Error::input(format!("{} is an index, not a checkpoint", quoted_path(path)))
            .hint("give the folder that holds it"));
    }
    Ok(Found { folder: None, shards: vec![path.to_owned()], index: None })
}

fn find_in(folder: &Path) -> Result<Found> {
    let names = list(folder)?;
    let has = |name: &str| names.iter().any(|found| found == name);
    let found = |shards: Vec<PathBuf>, index| Ok(Found { folder: Some(folder.to_owned()), shards, index });
    let indexed = |name: &str| {
        let index = Index::read(&folder.join(name)).map_err(|e| e.in_file(folder.join(name).display()))?;
        let shards = index.shards.iter().map(|shard| folder.join(shard)).collect();
        found(shards, Some(index))
    };
    if has(INDEX) {
        let index = Index::read(&folder.join(INDEX)).map_err(|e| e.in_file(folder.join(INDEX).display()))?;
        // Programs differ in which of the two they take, so taking either in silence would surprise someone.
        if has(WEIGHTS) && !index.shards.iter().any(|shard| shard == WEIGHTS) {
            return Err(Error::input(format!(
                "{} holds both `{WEIGHTS}` and `{INDEX}`, and the index names other files",
                quoted_path(folder)
            ))
            .hint(format!("remove the one that is stale, or give `{WEIGHTS}` itself as the checkpoint")));
        }
        return indexed(INDEX);
    }
    if has(WEIGHTS) {
        return found(vec![folder.join(WEIGHTS)], None);
    }
    let ending = |end: &str| names.iter().filter(|name| name.ends_with(end)).collect::<Vec<_>>();
    if has("adapter_config.json") || has("adapter_model.safetensors") {
        return Err(Error::input(format!("{} is an adapter (LoRA), not a whole model", quoted_path(folder)))
            .hint("merge the adapter into its base model first, or give a folder with the whole model"));
    }
    match (&ending(".safetensors.index.json")[..], &ending(".safetensors")[..]) {
        ([index], _) => indexed(index),
        ([], [only]) => found(vec![folder.join(only)], None),
        ([], []) if has(ARCHIVE_INDEX) => indexed(ARCHIVE_INDEX),
        ([], []) if has(ARCHIVE) => found(vec![folder.join(ARCHIVE)], None),
        ([], []) if let [only] = &archives(&names)[..] => found(vec![folder.join(only)], None),
        (indexes, files) => Err(nothing(folder, &names, indexes.len(), files.len())),
    }
}

/// No checkpoint, or no single one: says what is there instead.
fn nothing(folder: &Path, names: &[String], indexes: usize, files: usize) -> Error {
    let shown = quoted_path(folder);
    if files > 1 || indexes > 1 {
        let ends = |name: &&String| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        let what = listing(names.iter().filter(ends));
        return Error::input(format!("{shown} holds {files} .safetensors files and {indexes} indexes: found {what}"))
            .hint(format!("expected `{WEIGHTS}` or `{INDEX}`; give one of the files itself as the checkpoint"));
    }
    let pickles: Vec<&String> = names.iter().filter(|name| is_pickle(name)).collect();
    if !pickles.is_empty() {
        let what = listing(pickles.into_iter());
        return Error::input(format!("{shown} holds no safetensors files, only pickles: found {what}")).hint(CONVERT);
    }
    let what = if names.is_empty() { "an empty folder".into() } else { listing(names.iter()) };
    Error::input(format!("{shown} holds no checkpoint: found {what}"))
        .hint(format!("expected `{WEIGHTS}`, or `{INDEX}` with its shards"))
}

/// A checkpoint of PyTorch's as transformers names it.
const ARCHIVE: &str = "pytorch_model.bin";
const ARCHIVE_INDEX: &str = "pytorch_model.bin.index.json";

/// Whether a file is read as an archive of PyTorch's, by its name.
pub(super) fn is_archive(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))
}

/// Files of a folder that may hold a model: not what a training run leaves beside it.
fn archives(names: &[String]) -> Vec<&String> {
    const BESIDE: [&str; 5] = ["training_args", "optimizer", "scheduler", "rng_state", "scaler"];
    let is_beside = |name: &str| BESIDE.iter().any(|start| name.starts_with(start));
    names.iter().filter(|name| is_archive(Path::new(name)) && !is_beside(name)).collect()
}

pub(super) const CONVERT: &str = "pickles can run code and are never loaded; convert them to safetensors \
                       (`safetensors.torch.save_file`, or `save_pretrained` in transformers)";

pub(super) fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"].iter().any(|end| name.ends_with(end))
}

fn listing<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.collect();
    let mut out: Vec<String> = names.iter().take(LISTED).map(|name| super::text::quoted(name)).collect();
    if names.len() > LISTED {
        out.push(format!("{} more", names.len() - LISTED));
    }
    out.join(", ")
}

/// The folder's names, sorted. Names that are not UTF-8 are shown as well as can be; none of those is looked for.
fn list(folder: &Path) -> Result<Vec<String>> {
    let doing = || format!("list the folder {}", quoted_path(folder));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(doing(), &e))? {
        let name = entry.map_err(|e| Error::io(doing(), &e))?.file_name();
        // Hidden files are editors' and copies' leavings (`._model.safetensors`).
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
