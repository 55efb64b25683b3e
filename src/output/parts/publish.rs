//! Files that appear at once with all they hold, on file systems that several machines share.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Result as IoResult, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::names::DRAFT;
use crate::output::disk;

/// Gives `path` this content unless there is a file already; whether it did. `drafts` is a folder of the same file system.
///
/// Only exclusive creation and links are used, which network file systems do as one step.
pub(in crate::output) fn publish_new(drafts: &Path, path: &Path, content: &[u8]) -> IoResult<bool> {
    let draft = write_draft(drafts, content)?;
    publish_draft(&draft, path, content)
}

/// The same with the content of a draft, which goes.
pub(in crate::output) fn publish_draft(draft: &Path, path: &Path, content: &[u8]) -> IoResult<bool> {
    let linked = disk::hard_link(draft, path);
    // An answer that got lost is asked for again, and the second one says that the file exists: the count of links knows.
    let is_linked = fs::metadata(draft).is_ok_and(|m| m.nlink() > 1);
    let _ = disk::remove_file(draft);
    match linked {
        Ok(()) => Ok(true),
        Err(_) if is_linked => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) if has_no_links(&e) => create_new(path, content),
        Err(e) => Err(e),
    }
}

/// Gives `path` this content, whatever was there.
pub(super) fn publish_over(drafts: &Path, path: &Path, content: &[u8]) -> IoResult<()> {
    let draft = write_draft(drafts, content)?;
    fs::rename(&draft, path).inspect_err(|_| drop(fs::remove_file(&draft)))
}

/// The time of the clock that sets times of files in `folder`, which may be another machine's.
pub(super) fn time_there(folder: &Path) -> IoResult<SystemTime> {
    let draft = write_draft(folder, b"t")?;
    let time = File::open(&draft).and_then(|file| file.metadata()?.modified());
    let _ = fs::remove_file(&draft);
    time
}

/// A name for a file in `folder` that nobody else takes.
pub(in crate::output) fn draft_name(folder: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("{DRAFT}{:x}-{count:x}-{clock:x}", std::process::id()))
}

/// Makes a file of such a name, and brings its content to the disk.
pub(super) fn write_draft(folder: &Path, content: &[u8]) -> IoResult<PathBuf> {
    loop {
        let path = draft_name(folder);
        let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        };
        let written = file.write_all(content).and_then(|()| file.sync_all());
        return written.map(|()| path.clone()).inspect_err(|_| drop(fs::remove_file(&path)));
    }
}

/// The way without links: the file exists before its content does, so that readers look again at one that is not whole.
fn create_new(path: &Path, content: &[u8]) -> IoResult<bool> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => file.write_all(content).and_then(|()| file.sync_all()).map(|()| true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

fn has_no_links(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied)
        || matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EMLINK | libc::EOPNOTSUPP | libc::EPERM))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn of_many_that_publish_one_name_one_does_and_all_find_its_content_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("name");
        let firsts: usize = std::thread::scope(|scope| {
            let all: Vec<_> = (0..16_u8)
                .map(|i| {
                    let path = &path;
                    scope.spawn(move || {
                        let is_first = publish_new(path.parent().unwrap(), path, &[i; 3000]).unwrap();
                        let found = fs::read(path).unwrap();
                        assert!(found.len() == 3000 && found.iter().all(|b| *b == found[0]));
                        usize::from(is_first)
                    })
                })
                .collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(firsts, 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }
}
