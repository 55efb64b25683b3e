//! Names of the Hugging Face Hub: `org/name`, `name@revision`, found in the Hub's local cache. Nothing is downloaded but by
//! a [`Fetcher`], which the user allows.
//!
//! The cache has a folder `models--org--name` for each model, with `refs/REVISION` files that name a commit, and
//! `snapshots/COMMIT` folders of links to the files.

mod fetch;
mod remote;

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::checkpoint::{quoted, quoted_path};
use crate::error::{Error, Result};

pub(crate) use fetch::{Extent, Fetcher};

/// What a missing model is answered with.
const ALLOW: &str = "--download fetches it (merge), or its headers alone (plan)";
/// The revision where none is named.
const MAIN: &str = "main";
/// A reference is a commit's number; more is none.
const LONGEST_REFERENCE: u64 = 256;

/// Where the cache is: the folder that the Hub's own programs use.
pub(crate) fn cache() -> Option<PathBuf> {
    cache_of(&|name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn cache_of(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from);
    path("HF_HUB_CACHE")
        .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(path("HF_HOME")?.join("hub")))
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(path("HOME")?.join(".cache/huggingface/hub")))
}

/// A model's name with its revision; `None` for a text that is a path and no name of the Hub.
pub(crate) fn name(written: &str) -> Option<(&str, &str)> {
    let (name, revision) = written.split_once('@').unwrap_or((written, MAIN));
    let part = |p: &str| {
        p.starts_with(|c: char| c.is_ascii_alphanumeric())
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !p.contains("..")
    };
    let is_name = match name.split_once('/') {
        Some((owner, name)) => part(owner) && part(name),
        None => part(name),
    };
    let is_revision = !revision.is_empty() && revision.split('/').all(part);
    (is_name && is_revision).then_some((name, revision))
}

/// The snapshot of a model in the cache; `None` if the cache has nothing of it.
///
/// # Errors
/// Input, if the cache has the model but not that revision, or refers outside itself.
pub(crate) fn find(written: &str, cache: &Path) -> Result<Option<PathBuf>> {
    let Some((name, revision)) = name(written) else { return Ok(None) };
    let folder = cache.join(folder_of(name));
    if !folder.is_dir() {
        return Ok(None);
    }
    snapshot(&folder, revision).map(Some)
}

/// The folder of a model in the cache.
fn folder_of(name: &str) -> String {
    format!("models--{}", name.replace('/', "--"))
}

/// Refuses a snapshot that a download did not finish: with links that lead nowhere, or without shards that its index names.
fn check_whole(snapshot: &Path) -> Result<()> {
    let partly = |file: &str| {
        let shown = quoted_path(snapshot);
        Error::input(format!("{shown} is only partly in the cache: {} is missing", quoted(file))).hint(ALLOW)
    };
    let listing = |e: &std::io::Error| Error::io(format_args!("list the folder {}", quoted_path(snapshot)), e);
    for entry in std::fs::read_dir(snapshot).map_err(|e| listing(&e))? {
        let entry = entry.map_err(|e| listing(&e))?;
        if !entry.path().exists() {
            return Err(partly(&entry.file_name().to_string_lossy()));
        }
    }
    let index = crate::checkpoint::json_in(snapshot, "model.safetensors.index.json");
    let shards = index.as_ref().and_then(|index| index.get("weight_map")?.as_object());
    let mut names = shards.into_iter().flat_map(|map| map.values().filter_map(serde_json::Value::as_str));
    match names.find(|name| !snapshot.join(name).exists()) {
        Some(missing) => Err(partly(missing)),
        None => Ok(()),
    }
}

/// Whether a snapshot holds more than small files.
fn has_weights(snapshot: &Path) -> bool {
    let ends = [".safetensors", ".bin", ".pt", ".pth"];
    let is_weights = |name: &std::ffi::OsStr| ends.iter().any(|end| name.to_string_lossy().ends_with(end));
    std::fs::read_dir(snapshot).is_ok_and(|entries| entries.flatten().any(|entry| is_weights(&entry.file_name())))
}

/// The snapshot of a model: in the cache, whole, or else fetched where that is allowed. `None` for what is no name of the Hub,
/// and for what is neither there nor fetched.
///
/// # Errors
/// As [`find`] where nothing may be fetched, and as [`Fetcher::fetch`].
pub(crate) fn find_or_fetch(written: &str, cache: &Path, fetcher: Option<&Fetcher>) -> Result<Option<PathBuf>> {
    let found = find(written, cache);
    match (&found, fetcher) {
        (Ok(Some(snapshot)), Some(_)) if has_weights(snapshot) => found,
        (_, Some(fetcher)) => fetcher.fetch(written, cache),
        (_, None) => found,
    }
}

/// Where a checkpoint that is named on the command line is: a path, else a name in the cache.
///
/// # Errors
/// Input, for what is neither, and as [`find`].
pub(crate) fn locate(written: &str) -> Result<PathBuf> {
    let path = Path::new(written);
    if path.exists() {
        return within(path);
    }
    let cached = cache().map(|cache| find(written, &cache)).transpose()?.flatten();
    cached.ok_or_else(|| {
        Error::input(format!("{} is not on this machine, and not in the Hub's cache", quoted(written)))
            .hint("give the path of a checkpoint (a folder, or one .safetensors file), or a cached `owner/name`")
    })
}

/// The snapshot that a folder of the cache means, where it is one (`models--org--name`); else the folder itself.
///
/// # Errors
/// As [`find`].
pub(crate) fn within(folder: &Path) -> Result<PathBuf> {
    let is_cached = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("models--"));
    if is_cached && folder.join("snapshots").is_dir() && folder.join("refs").is_dir() {
        return snapshot(folder, MAIN);
    }
    Ok(folder.to_owned())
}

fn snapshot(folder: &Path, revision: &str) -> Result<PathBuf> {
    let reference = folder.join("refs").join(revision);
    let commit = match std::fs::metadata(&reference) {
        Ok(facts) if facts.is_file() && facts.len() <= LONGEST_REFERENCE => {
            let text = std::fs::read_to_string(&reference)
                .map_err(|e| Error::io(format_args!("read {}", quoted_path(&reference)), &e))?;
            text.trim().to_owned()
        }
        // A commit's number is a revision too.
        _ => revision.to_owned(),
    };
    let is_inside = matches!(Path::new(&commit).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    if !is_inside {
        let message = format!("{} refers to {}, outside the cache", quoted_path(&reference), quoted(&commit));
        return Err(Error::input(message));
    }
    let snapshot = folder.join("snapshots").join(&commit);
    if snapshot.is_dir() {
        check_whole(&snapshot)?;
        return Ok(snapshot);
    }
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.trim_start_matches("models--").replace("--", "/");
    Err(Error::input(format!("{} is in the cache, but its revision {} is not", quoted(&name), quoted(revision)))
        .hint(format!("{ALLOW}, or `hf download {name} --revision {revision}`")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_first_variable_that_is_set_says() {
        let all = [
            ("HF_HUB_CACHE", "/1", "/1"),
            ("HUGGINGFACE_HUB_CACHE", "/2", "/2"),
            ("HF_HOME", "/3", "/3/hub"),
            ("XDG_CACHE_HOME", "/4", "/4/huggingface/hub"),
            ("HOME", "/5", "/5/.cache/huggingface/hub"),
        ];
        for first in 0..all.len() {
            let set = &all[first..];
            let find = |name: &str| set.iter().find(|(known, _, _)| *known == name).map(|(_, value, _)| value.into());
            assert_eq!(cache_of(&find).unwrap(), Path::new(all[first].2));
        }
        assert_eq!(cache_of(&|_| None), None);
    }

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        assert_eq!(name("org/name"), Some(("org/name", "main")));
        assert_eq!(name("gpt2@refs/pr/3"), Some(("gpt2", "refs/pr/3")));
        for path in ["./org/name", "a/b/c", "/a/b", "a/", "a/b c", "", "a@", "a/../b", "a@..", "a@../x", "~/a"] {
            assert_eq!(name(path), None, "{path}");
        }
    }

    fn cached() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--org--name");
        for folder in ["refs/pr", "snapshots/abc", "snapshots/def"] {
            std::fs::create_dir_all(model.join(folder)).unwrap();
        }
        std::fs::write(model.join("refs/main"), "abc").unwrap();
        std::fs::write(model.join("refs/pr/1"), "def\n").unwrap();
        (dir, model)
    }

    #[test]
    fn a_name_is_its_revisions_snapshot() {
        let (dir, model) = cached();
        for (written, snapshot) in
            [("org/name", "abc"), ("org/name@main", "abc"), ("org/name@pr/1", "def"), ("org/name@def", "def")]
        {
            assert_eq!(
                find(written, dir.path()).unwrap().unwrap(),
                model.join("snapshots").join(snapshot),
                "{written}"
            );
        }
        assert_eq!(find("org/other", dir.path()).unwrap(), None);
        assert_eq!(within(&model).unwrap(), model.join("snapshots/abc"));
        assert_eq!(within(dir.path()).unwrap(), dir.path());
    }

    #[test]
    fn what_is_not_there_or_leads_out_of_the_cache_is_refused() {
        let (dir, model) = cached();
        let error = find("org/name@ghi", dir.path()).unwrap_err();
        assert_eq!(error.to_string(), "`org/name` is in the cache, but its revision `ghi` is not");
        for reference in ["../../../etc", "/etc", "", "a/b", ".."] {
            std::fs::write(model.join("refs/main"), reference).unwrap();
            assert!(find("org/name", dir.path()).is_err(), "{reference}");
        }
    }
}
