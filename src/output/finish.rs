//! The end of a merge: the small files, the manifest, and the rename that makes the work folder OUT.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::copy::{Content, MAX_BYTES, SmallFile};
use super::disk;
use super::files::write_error;
use super::fingerprint::Fingerprint;
use super::found::{JOURNAL_NAME, PLAN_NAME, check_replaceable, check_work_folder};
use super::layout::INDEX_NAME;
use super::lock::{LOCK_NAME, Lock};
use super::ours::Ours;
use super::target::Target;
use super::workdir::{Hold, WorkDir};
use crate::error::{Error, Result};
use crate::output::manifest::{MANIFEST_NAME, Manifest, OutputFile};

/// The model card's name in an output.
pub const CARD_NAME: &str = "README.md";

/// A finished output.
#[derive(Debug)]
pub struct Finished {
    /// Where it is.
    pub path: PathBuf,
    /// Its manifest, complete.
    pub manifest: Manifest,
    /// What went wrong without harm to it.
    pub warnings: Vec<String>,
}

impl WorkDir {
    /// The plan as the work folder notes it.
    fn noted(&self) -> Fingerprint {
        match &self.options.part {
            Some(share) => share.noted(&self.options.fingerprint),
            None => self.options.fingerprint.clone(),
        }
    }

    /// Completes the output and renames it to OUT. The manifest's `files` and `fingerprint` are filled in here.
    ///
    /// # Errors
    ///
    /// A tensor is missing (internal), the disk failed (environment), OUT was filled by someone else meanwhile, or
    /// something that is not ours lies in it or in the work folder (input). Everything is kept for `--resume` then, and OUT is as it was.
    pub fn finish(self, mut manifest: Manifest, card: &str, files: &[SmallFile]) -> Result<Finished> {
        self.sync()?;
        let folder = self.folder().to_owned();
        let mut listed = Vec::new();
        for file in self.layout.files() {
            listed.push(OutputFile { name: file.name.clone(), bytes: file.bytes, digest: None });
        }
        let index = self
            .layout
            .index_json()?
            .map(|text| SmallFile { name: INDEX_NAME.into(), content: Content::Bytes(text.into_bytes()) });
        let mut taken: BTreeSet<&str> = self.layout.files().iter().map(|f| f.name.as_str()).collect();
        let adapters: BTreeSet<&str> = taken.iter().filter_map(|name| Some(name.split_once('/')?.0)).collect();
        taken.extend([CARD_NAME, MANIFEST_NAME, LOCK_NAME, PLAN_NAME, JOURNAL_NAME]);
        taken.extend(&adapters);
        let mut is_folder = adapters.clone();
        let small = || index.iter().chain(files);
        self.announce(small().map(|f| f.name.clone()).chain([CARD_NAME.into(), MANIFEST_NAME.into()]).collect())?;
        check_work_folder(&folder, &self.noted(), &self.layout)?;
        let ours = Ours::of_work(&folder, Some(&self.layout));
        for file in small() {
            // In OUT itself or in a folder of it.
            let (within, plain) = match file.name.split_once('/') {
                Some((within, name)) => (Some(within), name),
                None => (None, file.name.as_str()),
            };
            let is_plain = |name: &str| Path::new(name).file_name() == Some(OsStr::new(name));
            let is_new = within.is_some_and(|within| taken.insert(within));
            if let Some(within) = within
                && (is_new || is_folder.contains(within))
                && is_plain(within)
            {
                is_folder.insert(within);
                match disk::create_dir(&folder.join(within)) {
                    Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                        return Err(Error::io(format_args!("make the folder `{within}` of the output"), &e));
                    }
                    _ => {}
                }
            } else if within.is_some() {
                return Err(Error::internal(format!("`{}` cannot be the name of a copied file", file.name)));
            }
            if !taken.insert(&file.name) || !is_plain(plain) {
                return Err(Error::internal(format!("`{}` cannot be the name of a copied file", file.name)));
            }
            listed.push(write_small(&folder, &file.name, &file.content, self.resume_hint())?);
        }
        is_folder.iter().chain(&adapters).try_for_each(|within| sync_folder(&folder.join(within)))?;
        listed.push(write_small(&folder, CARD_NAME, &Content::Bytes(card.into()), self.resume_hint())?);
        manifest.fingerprint = self.options.fingerprint.digest().to_owned();
        manifest.files = listed;
        // Last: a folder with a manifest is a complete output.
        let text = Content::Bytes(manifest.to_text()?.into_bytes());
        write_small(&folder, MANIFEST_NAME, &text, self.resume_hint())?;
        sync_folder(&folder)?;
        taken.remove(PLAN_NAME);
        taken.remove(JOURNAL_NAME);
        let Self { target, hold, options, data, .. } = self;
        drop(data);
        let lock = match hold {
            Hold::Whole(mut lock) => {
                lock.leave_folder();
                Some(lock)
            }
            Hold::Part(part) => {
                part.claim.forget();
                None
            }
        };
        // What an earlier attempt left that has no place in this output, and what parts knew of each other.
        ours.remove(&folder, &taken)?;
        sync_folder(&folder)?;
        let warnings = place(&target, lock, options.overwrite)?;
        Ok(Finished { path: target.path, manifest, warnings })
    }
}

/// Renames a complete work folder to OUT; an OUT with content is replaced if `overwrite` says so, and only by the
/// rename itself. Gives warnings for what remained to be tidied up.
///
/// `lock` is `None` for parts, which hold nothing by now.
pub(super) fn place(target: &Target, lock: Option<Lock>, overwrite: bool) -> Result<Vec<String>> {
    let out = target.shown.display();
    // A plain rename replaces nothing but an empty folder.
    match disk::rename(&target.partial, &target.path) {
        Ok(()) => {}
        Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
            if !overwrite {
                return Err(Error::input(format!("`{out}` was filled by someone else while the merge ran"))
                    .hint("the merge is complete: `--resume --overwrite` replaces what is there"));
            }
            check_replaceable(target)?;
            exchange(target)?;
        }
        Err(e) => return Err(cannot_place(target, &e)),
    }
    sync_folder(&target.parent)?;
    let mut warnings = Vec::new();
    // The lock goes last and lies in OUT by now; until here, others found the work folder locked.
    if let Err(e) = disk::remove_file(&target.path.join(LOCK_NAME))
        && (lock.is_some() || e.kind() != ErrorKind::NotFound)
    {
        warnings.push(format!("cannot remove `{}`: {e}", target.path.join(LOCK_NAME).display()));
    }
    drop(lock);
    if fs::symlink_metadata(&target.old).is_ok()
        && let Err(e) = Ours::remove_output(&target.old)
    {
        warnings.push(format!("`{}` is left behind: {e}", target.old.display()));
    }
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    Ok(warnings)
}

/// Puts the work folder in OUT's place and OUT aside, in one step where the file system can.
fn exchange(target: &Target) -> Result<()> {
    let cannot = |e: &std::io::Error| cannot_place(target, e);
    // What an earlier replacement could not delete: OUT is complete, so nobody waits for it.
    if fs::symlink_metadata(&target.old).is_ok() {
        Ours::remove_output(&target.old)?;
    }
    match disk::exchange(&target.partial, &target.path) {
        Ok(()) => disk::rename(&target.partial, &target.old).map_err(|e| cannot(&e)),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => exchange_in_two_steps(target).map_err(|e| cannot(&e)),
        Err(e) => Err(cannot(&e.into())),
    }
}

/// For file systems that cannot exchange. Killed between the two steps, the old output is whole beside OUT's place
/// and the work folder is complete: `--resume` ends it.
fn exchange_in_two_steps(target: &Target) -> std::io::Result<()> {
    disk::rename(&target.path, &target.old)?;
    disk::rename(&target.partial, &target.path).inspect_err(|_| drop(disk::rename(&target.old, &target.path)))
}

fn cannot_place(target: &Target, e: &std::io::Error) -> Error {
    Error::environment(format!(
        "cannot rename the complete `{}` to `{}`: {e}",
        target.partial.display(),
        target.path.display()
    ))
    .because_of_io(e)
    .hint("the merge is complete: with the cause removed, the same command with `--resume` ends it")
}

/// Writes one small file and waits until it is on the disk.
fn write_small(folder: &Path, name: &str, content: &Content, resume_hint: &str) -> Result<OutputFile> {
    let path = folder.join(name);
    let writing = |e: &std::io::Error| write_error(e, &path, format_args!("write `{}`", path.display()), resume_hint);
    let file = disk::create(&path).map_err(|e| writing(&e))?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0_u64;
    let mut put = |part: &[u8]| {
        hasher.update(part);
        disk::write_all_at(&file, &path, part, bytes).map_err(|e| writing(&e))?;
        bytes += part.len() as u64;
        Ok(())
    };
    match content {
        Content::Bytes(all) => put(all)?,
        Content::Copy(source) => {
            let reading = |e: &std::io::Error| Error::io(format_args!("copy `{}`", source.display()), e);
            // Bounded, should the file have grown since it was chosen.
            let mut reader = File::open(source).map_err(|e| reading(&e))?.take(MAX_BYTES);
            let mut buffer = vec![0; 64 << 10];
            loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => put(&buffer[..n])?,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(reading(&e)),
                }
            }
        }
    }
    disk::sync(&file, &path).map_err(|e| writing(&e))?;
    Ok(OutputFile { name: name.into(), bytes, digest: Some(hasher.finalize().to_hex().to_string()) })
}

/// Waits until a folder's entries are on the disk, where the file system can.
fn sync_folder(folder: &Path) -> Result<()> {
    match disk::sync_folder(folder) {
        Err(e)
            if !matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied) =>
        {
            Err(Error::environment(format!("cannot bring the folder `{}` to the disk: {e}", folder.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn target(parent: &Path) -> Target {
        let target = Target::resolve(&parent.join("out"), &[]).unwrap();
        fs::create_dir_all(target.path.join("deep")).unwrap();
        fs::write(target.path.join("deep/old"), "old").unwrap();
        fs::create_dir(&target.partial).unwrap();
        fs::write(target.partial.join("new"), "new").unwrap();
        target
    }

    #[test]
    fn both_ways_of_replacing_leave_the_new_output_and_set_the_old_aside() {
        for replace in [exchange, |t: &Target| exchange_in_two_steps(t).map_err(|e| cannot_place(t, &e))] {
            let dir = tempfile::tempdir().unwrap();
            let target = target(dir.path());
            replace(&target).unwrap();
            assert_eq!(fs::read_to_string(target.path.join("new")).unwrap(), "new");
            assert_eq!(fs::read_to_string(target.old.join("deep/old")).unwrap(), "old");
            assert!(!target.partial.exists());
        }
    }

    #[test]
    fn a_replacement_that_fails_half_way_puts_the_old_output_back() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        fs::remove_dir_all(&target.partial).unwrap();
        assert!(exchange_in_two_steps(&target).is_err());
        assert_eq!(fs::read_to_string(target.path.join("deep/old")).unwrap(), "old");
    }

    #[test]
    fn what_an_earlier_replacement_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        fs::create_dir_all(&target.old).unwrap();
        let manifest = crate::output::manifest::tests::sample();
        fs::write(target.old.join(MANIFEST_NAME), manifest.to_text().unwrap()).unwrap();
        exchange(&target).unwrap();
        assert!(target.old.join("deep").exists() && !target.old.join(MANIFEST_NAME).exists());
    }

    #[test]
    fn what_is_set_aside_and_is_not_ours_stops_a_replacement_before_anything_moves() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        fs::create_dir_all(target.old.join("photos")).unwrap();
        assert!(exchange(&target).is_err());
        assert!(target.old.join("photos").exists() && target.path.join("deep/old").exists());
    }

    #[test]
    fn without_overwrite_a_filled_out_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        let lock = Lock::take(&target, "boot").unwrap();
        let error = place(&target, Some(lock), false).unwrap_err();
        assert!(error.to_string().contains("filled by someone else"));
        assert!(target.path.join("deep/old").exists() && target.partial.join("new").exists());
    }
}
