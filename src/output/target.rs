//! OUT and the names beside it: what stands there now, and what must never be put in its place.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use crate::error::{Error, Result};

/// What the work folder's name adds to OUT's.
pub(super) const PARTIAL_SUFFIX: &str = ".merganser-partial";
/// What a replaced output's name adds to OUT's while it is being deleted.
const OLD_SUFFIX: &str = ".merganser-old";

/// The resolved paths of one output.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// OUT as the user wrote it, for messages.
    pub shown: PathBuf,
    /// OUT itself: absolute, links resolved.
    pub path: PathBuf,
    /// The folder that OUT is in.
    pub parent: PathBuf,
    /// The folder the output is built in, beside OUT so that a rename can finish it.
    pub partial: PathBuf,
    /// Where a replaced output goes before it is deleted.
    pub old: PathBuf,
}

/// What stands at OUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutState {
    Absent,
    EmptyDir,
    FilledDir,
}

impl Target {
    /// Resolves OUT, creates the folder it is to be in, and refuses every place where finishing could destroy one of
    /// `sources` or could not be done by a rename.
    pub fn resolve(out: &Path, sources: &[PathBuf]) -> Result<Self> {
        let shown = out.display();
        if out.file_name().is_none() {
            return Err(Error::input(format!("`{shown}` cannot be the output folder: it has no name of its own"))
                .hint("name a folder to be made, such as `-o merged`"));
        }
        let path = match fs::symlink_metadata(out) {
            Ok(_) => fs::canonicalize(out).map_err(|e| match e.kind() {
                ErrorKind::NotFound => Error::input(format!("`{shown}` is a symbolic link that leads nowhere"))
                    .hint("remove the link or create the folder it names"),
                _ => Error::io(format_args!("resolve `{shown}`"), &e),
            })?,
            Err(e) if e.kind() == ErrorKind::NotFound => resolve_new(out)?,
            Err(e) => return Err(Error::io(format_args!("look at `{shown}`"), &e)),
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::input(format!("`{shown}` is the root of the file system and cannot be the output")));
        };
        let beside = |suffix: &str| {
            let mut name = OsString::from(name);
            name.push(suffix);
            parent.join(name)
        };
        let (partial, old) = (beside(PARTIAL_SUFFIX), beside(OLD_SUFFIX));
        let target = Self { shown: out.to_owned(), parent: parent.to_owned(), partial, old, path };
        target.protect(sources)?;
        Ok(target)
    }

    /// What stands at OUT now. A file, or a place where no rename can end the work, is an error.
    pub fn state(&self) -> Result<OutState> {
        let shown = self.shown.display();
        let looking = |e: &std::io::Error| Error::io(format_args!("look into `{shown}`"), e);
        match fs::metadata(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(OutState::Absent),
            Err(e) => return Err(looking(&e)),
            Ok(m) if !m.is_dir() => {
                return Err(Error::input(format!("`{shown}` is a file; the output is a folder"))
                    .hint("give the name of a folder to `-o`"));
            }
            Ok(_) => {}
        }
        if is_mount_point(&self.path) {
            return Err(Error::input(format!(
                "`{shown}` is a mount point, which no rename can replace, so the output could not appear in one step"
            ))
            .hint(format!("name a folder inside it, such as `-o {}`", self.shown.join("merged").display())));
        }
        let mut entries = fs::read_dir(&self.path).map_err(|e| looking(&e))?;
        match entries.next() {
            None => Ok(OutState::EmptyDir),
            Some(Ok(_)) => Ok(OutState::FilledDir),
            Some(Err(e)) => Err(looking(&e)),
        }
    }

    fn protect(&self, sources: &[PathBuf]) -> Result<()> {
        let shown = self.shown.display();
        for source in sources {
            let Ok(real) = fs::canonicalize(source) else { continue };
            for (place, what) in
                [(&self.path, "is"), (&self.partial, "is built in"), (&self.old, "is replaced by way of")]
            {
                if real.starts_with(place) {
                    return Err(Error::input(format!(
                        "the output `{shown}` {what} `{}`, which is or contains `{}`, a file or folder that this merge reads",
                        place.display(),
                        source.display()
                    ))
                    .hint("give another folder to `-o`: the output never replaces what it is made of"));
                }
            }
        }
        // Replacing the folder that the user stands in would leave their shell in a deleted one.
        if std::env::current_dir().and_then(fs::canonicalize).is_ok_and(|cwd| cwd.starts_with(&self.path)) {
            return Err(Error::input(format!(
                "`{shown}` is, or contains, the current folder and cannot be the output"
            ))
            .hint("name a folder to be made, such as `-o merged`"));
        }
        Ok(())
    }
}

/// Resolves a path that does not exist yet, and makes the folder it is to be in.
fn resolve_new(out: &Path) -> Result<PathBuf> {
    let parent = match out.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let making = |e| Error::io(format_args!("create the folder `{}` for the output", parent.display()), &e);
    fs::create_dir_all(parent).map_err(making)?;
    let parent = fs::canonicalize(parent).map_err(making)?;
    Ok(parent.join(out.file_name().unwrap_or_default()))
}

/// Whether a file system is mounted at `path` itself, bind mounts included; `false` where the kernel cannot tell.
fn is_mount_point(path: &Path) -> bool {
    statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS)
        .is_ok_and(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn message(out: &Path, sources: &[PathBuf]) -> String {
        let error = Target::resolve(out, sources).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        error.to_string()
    }

    #[test]
    fn the_work_folder_stands_beside_out_whatever_way_out_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        for written in ["out", "out/", "./out/.", "new/../out"] {
            fs::create_dir_all(dir.path().join("new")).unwrap();
            let target = Target::resolve(&dir.path().join(written), &[]).unwrap();
            assert_eq!(target.path, real.join("out"), "{written}");
            assert_eq!(target.partial, real.join("out.merganser-partial"));
        }
        let target = Target::resolve(&dir.path().join("a/b/out"), &[]).unwrap();
        assert!(real.join("a/b").is_dir(), "the parent is made");
        assert_eq!(target.state().unwrap(), OutState::Absent);
    }

    #[test]
    fn a_linked_out_is_the_folder_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(real.join("far/data")).unwrap();
        symlink(real.join("far/data"), real.join("out")).unwrap();
        let target = Target::resolve(&real.join("out"), &[]).unwrap();
        assert_eq!(target.path, real.join("far/data"));
        assert_eq!(target.partial, real.join("far/data.merganser-partial"));
        symlink(real.join("nowhere"), real.join("dangling")).unwrap();
        assert!(message(&real.join("dangling"), &[]).contains("leads nowhere"));
    }

    #[test]
    fn places_without_a_name_or_with_the_current_folder_in_them_are_refused() {
        for out in ["", "/", ".", "..", "./", "a/.."] {
            assert!(message(Path::new(out), &[]).contains("has no name"), "{out:?}");
        }
        assert!(message(&std::env::current_dir().unwrap(), &[]).contains("current folder"));
    }

    #[test]
    fn out_may_not_be_or_contain_a_source() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("models/base");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("model.safetensors"), "").unwrap();
        symlink(&source, dir.path().join("alias")).unwrap();
        for out in ["models", "models/base", "alias", "models/../alias/"] {
            for protected in [&source, &source.join("model.safetensors"), &dir.path().join("alias")] {
                let text = message(&dir.path().join(out), std::slice::from_ref(protected));
                assert!(text.contains("this merge reads"), "{out}: {text}");
            }
        }
        let inside = Target::resolve(&source.join("merged"), std::slice::from_ref(&source));
        assert!(inside.is_ok(), "a new folder inside a source harms nothing");
        let partial = dir.path().join("x.merganser-partial");
        fs::create_dir(&partial).unwrap();
        assert!(message(&dir.path().join("x"), &[partial]).contains("is built in"));
    }

    #[test]
    fn states_of_out_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let state = |name: &str| Target::resolve(&dir.path().join(name), &[]).unwrap().state();
        assert_eq!(state("none").unwrap(), OutState::Absent);
        fs::create_dir(dir.path().join("empty")).unwrap();
        assert_eq!(state("empty").unwrap(), OutState::EmptyDir);
        fs::create_dir_all(dir.path().join("full/x")).unwrap();
        assert_eq!(state("full").unwrap(), OutState::FilledDir);
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(state("file").unwrap_err().to_string().contains("is a file"));
        let under = Target::resolve(&dir.path().join("file/out"), &[]).unwrap_err();
        assert_eq!(under.exit_code(), 1);
        assert!(Target::resolve(Path::new("/proc"), &[]).unwrap().state().unwrap_err().to_string().contains("mount"));
    }
}
