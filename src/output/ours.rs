//! What in a folder is of our own making. Nothing else is ever removed: a folder is replaced or emptied only if every
//! entry of it is listed, by the manifest of a finished output or by the journal of an unfinished one.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::io::{ErrorKind, Result as IoResult};
use std::path::{Path, PathBuf};

use super::disk;
use super::files::DataFiles;
use super::found::{JOURNAL_NAME, PLAN_DRAFT_NAME, PLAN_NAME};
use super::journal;
use super::layout::Layout;
use super::lock::LOCK_NAME;
use super::parts::names as parts;
use crate::error::{Error, Result};
use crate::output::manifest::{MANIFEST_NAME, Manifest};

/// What a deleted file is called on NFS for as long as a process has it open.
const NFS_DELETED: &str = ".nfs";

/// The files of a folder that merganser wrote, by their paths in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ours {
    listed: BTreeSet<String>,
    /// Whether what parts know of each other is ours, too: by names, since any of them may make more of it at any time.
    parts: bool,
}

impl Ours {
    /// What the manifest of the output in `folder` lists.
    ///
    /// # Errors
    ///
    /// There is no manifest, or it is damaged: nothing is known to be ours then.
    pub fn of_output(folder: &Path) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        let listed = manifest.files.into_iter().map(|f| f.name);
        Ok(Self { listed: listed.chain([MANIFEST_NAME.into(), LOCK_NAME.into()]).collect(), parts: false })
    }

    /// What the journal of the unfinished output in `folder` lists, and its manifest if all but the rename is done. `layout` is of the
    /// plan that `folder` is known to belong to, if it is.
    pub fn of_work(folder: &Path, layout: Option<&Layout>) -> Self {
        let mut ours = Self::of_output(folder).unwrap_or_default();
        ours.parts = true;
        ours.listed.extend([LOCK_NAME, PLAN_NAME, PLAN_DRAFT_NAME, JOURNAL_NAME].map(String::from));
        ours.listed.extend(journal::listed_files(&folder.join(JOURNAL_NAME)));
        for entry in fs::read_dir(folder.join(parts::FOLDER)).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(parts::is_journal) {
                ours.listed.extend(journal::listed_files(&entry.path()));
            }
        }
        ours.listed.extend(layout.into_iter().flat_map(DataFiles::names));
        ours
    }

    /// The first entry in `folder`, by name, that is not ours. A folder is ours if it holds something listed and
    /// nothing else.
    pub fn stranger(&self, folder: &Path) -> Result<Option<PathBuf>> {
        let mut strangers = BTreeSet::new();
        self.walk(folder, "", &mut |entry, listed| {
            if listed.is_none() {
                strangers.insert(entry.path());
            }
            Ok(())
        })
        .map_err(|e| Error::io(format_args!("look into `{}`", folder.display()), &e))?;
        Ok(strangers.pop_first())
    }

    /// Removes what is listed from `folder`, but for the files named in `keep`, and the folders in it that are empty then. What is
    /// not listed stays.
    pub fn remove(&self, folder: &Path, keep: &BTreeSet<&str>) -> Result<()> {
        let mut last = None;
        self.walk(folder, "", &mut |entry, listed| match listed {
            Some(name) if keep.contains(name) => Ok(()),
            // Last: what is left behind by a kill is known by it.
            Some(MANIFEST_NAME) => {
                last = Some(entry.path());
                Ok(())
            }
            Some(_) if entry.file_type()?.is_dir() => match disk::remove_dir(&entry.path()) {
                Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => Ok(()),
                removed => removed,
            },
            Some(_) => disk::remove_file(&entry.path()),
            None => Ok(()),
        })
        .and_then(|()| last.map_or(Ok(()), |last| disk::remove_file(&last)))
        .map_err(|e| cannot_remove(folder, &e))
    }

    /// Removes a whole output that was replaced, or what a kill left of it.
    ///
    /// # Errors
    ///
    /// Something in it is not ours, which stays, or cannot be removed.
    pub fn remove_output(folder: &Path) -> Result<()> {
        if !fs::symlink_metadata(folder).is_ok_and(|m| m.is_dir()) {
            return Err(not_ours(folder));
        }
        if !is_empty(folder) {
            let ours = Self::of_output(folder)?;
            if let Some(stranger) = ours.stranger(folder)? {
                return Err(not_ours(&stranger));
            }
            ours.remove(folder, &BTreeSet::new())?;
        }
        disk::remove_dir(folder).map_err(|e| cannot_remove(folder, &e))
    }

    /// Visits every entry with its listed path, or `None`; the entries of a folder before the folder itself.
    fn walk(
        &self,
        folder: &Path,
        within: &str,
        visit: &mut impl FnMut(&DirEntry, Option<&str>) -> IoResult<()>,
    ) -> IoResult<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            // A name that is no text is in no list.
            let Some(name) = name.to_str() else {
                visit(&entry, None)?;
                continue;
            };
            if name.starts_with(NFS_DELETED) {
                continue;
            }
            let path = format!("{within}{name}");
            let kind = entry.file_type()?;
            if kind.is_file() && self.has(&path) {
                visit(&entry, Some(&path))?;
            } else if kind.is_dir() && self.has_folder(&path) {
                self.walk(&entry.path(), &format!("{path}/"), visit)?;
                visit(&entry, Some(&path))?;
            } else {
                visit(&entry, None)?;
            }
        }
        Ok(())
    }

    fn has(&self, path: &str) -> bool {
        let of_parts = || path.strip_prefix(parts::FOLDER)?.strip_prefix('/').filter(|_| self.parts);
        self.listed.contains(path) || of_parts().is_some_and(parts::is_ours)
    }

    fn has_folder(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        (self.parts && path == parts::FOLDER)
            || self.listed.range(prefix.clone()..).next().is_some_and(|name| name.starts_with(&prefix))
    }
}

/// Removes a finished output, if every entry of it is ours.
///
/// # Errors
///
/// Something in it is not ours, which stays, or cannot be removed.
pub(crate) fn remove_output(folder: &Path) -> Result<()> {
    Ours::remove_output(folder)
}

/// Every entry of the output in `folder`, by its path there, that its manifest does not list; a lock that a kill left behind is ours.
///
/// # Errors
///
/// The folder cannot be listed.
pub(crate) fn unlisted(folder: &Path, manifest: &Manifest) -> Result<Vec<String>> {
    let listed = manifest.files.iter().map(|f| f.name.clone());
    let ours = Ours { listed: listed.chain([MANIFEST_NAME.into(), LOCK_NAME.into()]).collect(), parts: false };
    let mut found = Vec::new();
    ours.walk(folder, "", &mut |entry, listed| {
        if listed.is_none() {
            let path = entry.path();
            found.push(path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned());
        }
        Ok(())
    })
    .map_err(|e| Error::io(format_args!("list the folder `{}`", folder.display()), &e))?;
    found.sort();
    Ok(found)
}

/// The error for a place that something lies in which merganser did not write.
pub(super) fn not_ours(stranger: &Path) -> Error {
    Error::input(format!(
        "`{}` was not written by merganser, which removes nothing but its own files",
        stranger.display()
    ))
    .hint("move it away if the rest may go, or give another folder to `-o`")
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn cannot_remove(path: &Path, e: &std::io::Error) -> Error {
    Error::environment(format!("cannot remove `{}`: {e}", path.display())).hint("remove it by hand")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::output::manifest::{OutputFile, tests::sample};
    use std::os::unix::fs::symlink;

    /// A folder of two files of ours, one of them in a folder of its own.
    fn output(folder: &Path) {
        let mut manifest = sample();
        for name in ["a.safetensors", "deep/b.json", "../escape"] {
            manifest.files.push(OutputFile { name: name.into(), bytes: 1, digest: None });
        }
        fs::create_dir_all(folder.join("deep")).unwrap();
        fs::write(folder.join("a.safetensors"), "a").unwrap();
        fs::write(folder.join("deep/b.json"), "b").unwrap();
        fs::write(folder.join(MANIFEST_NAME), manifest.to_text().unwrap()).unwrap();
    }

    #[test]
    fn every_kind_of_entry_that_is_not_listed_is_found_and_stays() {
        type Make = fn(&Path);
        let strangers: [(&str, Make); 7] = [
            ("photo.jpg", |p| fs::write(p, "x").unwrap()),
            (".hidden", |p| fs::write(p, "x").unwrap()),
            ("empty", |p| fs::create_dir(p).unwrap()),
            ("deep/photo.jpg", |p| fs::write(p, "x").unwrap()),
            ("deep/link", |p| symlink("b.json", p).unwrap()),
            ("a.safetensors", |p| {
                fs::remove_file(p).unwrap();
                fs::create_dir(p).unwrap();
            }),
            ("deep/b.json", |p| {
                fs::remove_file(p).unwrap();
                symlink("/etc/passwd", p).unwrap();
            }),
        ];
        for (name, make) in strangers {
            let dir = tempfile::tempdir().unwrap();
            output(dir.path());
            make(&dir.path().join(name));
            let ours = Ours::of_output(dir.path()).unwrap();
            assert_eq!(ours.stranger(dir.path()).unwrap(), Some(dir.path().join(name)), "{name}");
            let error = Ours::remove_output(dir.path()).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(dir.path().join(MANIFEST_NAME).exists(), "{name}: refused before anything is removed");
            ours.remove(dir.path(), &BTreeSet::new()).unwrap();
            assert!(fs::symlink_metadata(dir.path().join(name)).is_ok(), "{name} stays");
        }
    }

    #[test]
    fn an_output_that_is_ours_alone_is_removed_whole_and_nothing_outside_it() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        output(&out);
        fs::write(dir.path().join("escape"), "x").unwrap();
        fs::write(out.join(".nfs0001"), "").unwrap();
        assert_eq!(Ours::of_output(&out).unwrap().stranger(&out).unwrap(), None);
        fs::remove_file(out.join(".nfs0001")).unwrap();
        Ours::remove_output(&out).unwrap();
        assert!(!out.exists() && dir.path().join("escape").exists());
    }

    #[test]
    fn without_a_manifest_that_parses_nothing_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        output(dir.path());
        fs::write(dir.path().join(MANIFEST_NAME), "{").unwrap();
        assert!(Ours::remove_output(dir.path()).is_err());
        assert!(dir.path().join("a.safetensors").exists());
    }
}
