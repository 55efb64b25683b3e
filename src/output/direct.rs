//! Direct I/O: whole pages go from a buffer to the disk without a copy through the page cache.
//!
//! Copying two gigabytes into the page cache and waiting for the kernel to write them back costs a thread half a second,
//! which a merge that is bound by moving bytes does not have; and the sources stay cached, which dirty pages would push out.
//! Pages that a piece shares with its neighbours, and everything on file systems that refuse, are written through the cache.

use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes of fewer bytes are not worth waiting for the disk.
const LEAST_BYTES: u64 = 256 << 10;

/// What places in memory and in files must be multiples of: the size of a page, which every disk's blocks divide. No page is
/// then written both directly and through the cache.
pub fn direct_alignment() -> u64 {
    static ALIGNMENT: LazyLock<u64> = LazyLock::new(|| (rustix::param::page_size() as u64).max(4096));
    *ALIGNMENT
}

/// A second way into a data file, around the page cache.
#[derive(Debug)]
pub(super) struct DirectFile {
    file: Option<File>,
    /// Set once the file system has refused a write.
    refused: AtomicBool,
}

impl DirectFile {
    /// Opens the file a second time; without effect where that is not possible.
    pub fn open(path: &Path) -> Self {
        let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::NOFOLLOW;
        let file = OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(path);
        if let Err(error) = &file {
            tracing::debug!(file = %path.display(), %error, "no direct I/O");
        }
        Self { file: file.ok(), refused: AtomicBool::new(false) }
    }

    /// None, where it was found not to work.
    pub fn none() -> Self {
        Self { file: None, refused: AtomicBool::new(false) }
    }

    /// Writes what can be written directly of `bytes`, which go to `offset`. Gives the part of `bytes` that is in its place;
    /// the rest is to be written through the cache.
    ///
    /// # Errors
    /// What the disk refuses, unless it is only direct I/O that it refuses.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<Range<usize>, IoError> {
        let Some(file) = self.file.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed)) else { return Ok(0..0) };
        let pages = whole_pages(offset, bytes);
        if (pages.len() as u64) < LEAST_BYTES {
            return Ok(0..0);
        }
        let mut at = pages.start;
        while at < pages.end {
            match file.write_at(&bytes[at..pages.end], offset + at as u64) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                    // A larger alignment than a page, or no direct writes here after all. After a write that ended in the
                    // middle of a block it is only this rest.
                    self.refused.fetch_or(at == pages.start, Ordering::Relaxed);
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(pages.start..at)
    }
}

/// Whether what is written directly into the file at `path`, which goes then, is what is read from it. Some file systems that
/// several machines share take direct writes and do not mean it.
pub(super) fn works(path: &Path) -> bool {
    let page = direct_alignment() as usize;
    let memory: Vec<u8> = (0..3 * page).map(|i| (i % 251) as u8).collect();
    let skip = (page - memory.as_ptr() as usize % page) % page;
    let pages = &memory[skip..skip + 2 * page];
    let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::NOFOLLOW;
    let write = || -> std::io::Result<bool> {
        let file = OpenOptions::new().write(true).create_new(true).custom_flags(flags.bits() as i32).open(path)?;
        file.write_all_at(pages, 0)?;
        file.sync_all()?;
        Ok(std::fs::read(path)? == *pages)
    };
    let works = write();
    if !works.as_ref().is_ok_and(|works| *works) {
        tracing::debug!(?works, "no direct I/O into `{}`", path.display());
    }
    let _ = std::fs::remove_file(path);
    works.unwrap_or(false)
}

/// The part of `bytes`, which go to `offset`, that fills whole pages of the file from whole pages of memory.
fn whole_pages(offset: u64, bytes: &[u8]) -> Range<usize> {
    let alignment = direct_alignment();
    let len = bytes.len() as u64;
    let head = (alignment - offset % alignment) % alignment;
    if head >= len || !(bytes.as_ptr() as u64 + head).is_multiple_of(alignment) {
        return 0..0;
    }
    head as usize..(len - (len - head) % alignment) as usize
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A slice that begins at this remainder of a page.
    fn at_phase(memory: &mut Vec<u8>, phase: u64, len: usize) -> &mut [u8] {
        let alignment = direct_alignment();
        memory.resize(len + alignment as usize, 0);
        let start = (phase + alignment - memory.as_ptr() as u64 % alignment) % alignment;
        &mut memory[start as usize..][..len]
    }

    #[test]
    fn only_whole_pages_at_places_alike_in_file_and_memory_are_written_directly() {
        let page = direct_alignment();
        let mut memory = Vec::new();
        let bytes = at_phase(&mut memory, 10, 3 * page as usize);
        assert_eq!(whole_pages(page + 10, bytes), page as usize - 10..3 * page as usize - 10);
        assert_eq!(whole_pages(page + 11, bytes), 0..0, "other places in memory");
        assert_eq!(whole_pages(page + 10, &bytes[..page as usize - 10]), 0..0, "no whole page");
        let bytes = at_phase(&mut memory, 0, 2 * page as usize);
        assert_eq!(whole_pages(0, bytes), 0..2 * page as usize);
        assert_eq!(whole_pages(0, &bytes[..0]), 0..0);
    }

    #[test]
    fn what_is_written_directly_and_what_is_left_make_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let page = direct_alignment();
        let len = LEAST_BYTES as usize + 2 * page as usize;
        file.set_len(len as u64 + 100).unwrap();
        let mut memory = Vec::new();
        let bytes = at_phase(&mut memory, 100, len);
        bytes.iter_mut().enumerate().for_each(|(i, b)| *b = (i * 31 % 251) as u8);
        let direct = DirectFile::open(&path);
        let done = direct.write(100, bytes).unwrap();
        // On a file system without direct I/O nothing is done, and everything is left.
        assert!(done.is_empty() || done == (page as usize - 100..len - 100), "{done:?}");
        file.write_all_at(&bytes[..done.start], 100).unwrap();
        file.write_all_at(&bytes[done.end..], 100 + done.end as u64).unwrap();
        let mut read = vec![0; len];
        file.read_exact_at(&mut read, 100).unwrap();
        assert!(read == bytes);
    }

    #[test]
    fn a_file_that_cannot_be_opened_leaves_everything_to_the_cache() {
        let direct = DirectFile::open(Path::new("/nowhere/at/all"));
        assert_eq!(direct.write(0, &[0; 1 << 20]).unwrap(), 0..0);
    }
}
