//! The data files of an unfinished output: made at their full size, written in place, completed by their headers.
//!
//! Until the header is written, a file's first eight bytes are zero, a length that no reader of safetensors accepts:
//! an unfinished file is never mistaken for a finished one.

use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, statfs, statvfs};
use rustix::io::{Errno, retry_on_intr};

use super::direct::{self, DirectFile};
use super::disk;
use super::layout::{FileLayout, Layout};
use super::parts::{Edges, SharedBlocks, draft_name};
use crate::error::{Error, Result};

/// From this size on, a write through the page cache asks the kernel to begin at once with bringing it to the disk: on Linux `DontNeed` starts
/// the write-back of dirty pages (and, being dirty, they stay cached). The wait at the end of a merge then overlaps
/// with its work: writing 1 GiB and waiting for it took half as long.
const WRITE_BACK_BYTES: u64 = 1 << 20;

/// The open data files, in the order of [`Layout::files`].
#[derive(Debug)]
pub(super) struct DataFiles {
    files: Vec<DataFile>,
    /// Where bytes go that lie in blocks which other parts write into as well; `None` where no other process writes.
    edges: Option<Edges>,
    resume_hint: String,
}

#[derive(Debug)]
struct DataFile {
    file: File,
    direct: DirectFile,
    path: PathBuf,
    header_bytes: u64,
    bytes: u64,
}

impl DataFiles {
    /// The files' names.
    pub fn names(layout: &Layout) -> impl Iterator<Item = String> {
        layout.files().iter().map(|f| f.name.clone())
    }

    /// Which files of `layout` stand in `folder` with their full size.
    pub fn existing(folder: &Path, layout: &Layout) -> Vec<bool> {
        let is_whole = |f: &FileLayout| {
            std::fs::symlink_metadata(folder.join(&f.name)).is_ok_and(|m| m.is_file() && m.len() == f.bytes)
        };
        layout.files().iter().map(is_whole).collect()
    }

    /// Opens the files of `layout` in `folder`, each made at its full size; with `keep`, files that have that size
    /// already stay as they are. Tells for each file whether it was kept.
    ///
    /// # Errors
    ///
    /// No space, or a folder that cannot be written. No space is left taken then by files without content.
    pub fn open(folder: &Path, layout: &Layout, keep: bool, resume_hint: &str) -> Result<(Self, Vec<bool>)> {
        let mut files = Vec::with_capacity(layout.files().len());
        let mut kept = Vec::with_capacity(layout.files().len());
        for planned in layout.files() {
            let path = folder.join(&planned.name);
            let (file, is_kept) = make_folder(&path, folder)
                .and_then(|()| open_one(&path, planned, keep))
                .map_err(|e| write_error(&e, &path, format_args!("create `{}`", path.display()), resume_hint))?;
            kept.push(is_kept);
            let direct = DirectFile::open(&path);
            files.push(DataFile {
                file,
                direct,
                path,
                header_bytes: planned.header.len() as u64,
                bytes: planned.bytes,
            });
        }
        let new = || files.iter().zip(&kept).filter(|(_, kept)| !**kept).map(|(f, _)| f);
        let memory = MemoryFolder::of(folder);
        // Pages that kept files have no content for yet are still to be had.
        let is_memory = memory.is_some();
        let lacks =
            |f: &DataFile| f.file.metadata().map_or(0, |m| f.bytes.saturating_sub(m.blocks().saturating_mul(512)));
        let lacking =
            files.iter().zip(&kept).filter(|(_, kept)| is_memory && **kept).map(|(f, _)| lacks(f)).sum::<u64>();
        let needed = || new().fold(lacking, |sum, f| sum.saturating_add(f.bytes));
        if let Some(Err(e)) = memory.as_ref().map(|memory| memory.promise(lacking)) {
            return Err(no_space(folder, needed(), &e, resume_hint));
        }
        let mut promised = lacking;
        for data in new() {
            promised = promised.saturating_add(data.bytes);
            let allocated = match &memory {
                Some(memory) => {
                    memory.promise(promised).and_then(|()| disk::set_len(&data.file, &data.path, data.bytes))
                }
                None => allocate(&data.file, &data.path, data.bytes),
            };
            if let Err(e) = allocated {
                // What was taken has no content yet: give it back.
                new().for_each(|f| drop(disk::set_len(&f.file, &f.path, 0)));
                return Err(if is_full(&e) {
                    no_space(folder, needed(), &e, resume_hint)
                } else {
                    write_error(&e, &data.path, format_args!("allocate `{}`", data.path.display()), resume_hint)
                });
            }
        }
        Ok((Self { files, edges: None, resume_hint: resume_hint.into() }, kept))
    }

    /// Opens the files of `layout` in `folder` beside other processes, which have written into them maybe: so nothing is ever made
    /// smaller. Once they `are_ready`, they have their full size. `beside` is a folder for a file to try with.
    ///
    /// # Errors
    ///
    /// No space, a folder that cannot be written; a file that is ready and not there (input).
    pub fn open_shared(
        folder: &Path,
        layout: &Layout,
        beside: &Path,
        are_ready: bool,
        edges: Option<Edges>,
        resume_hint: &str,
    ) -> Result<Self> {
        let is_direct = direct::works(&draft_name(beside));
        let memory = MemoryFolder::of(folder);
        let mut files = Vec::with_capacity(layout.files().len());
        let mut promised = 0_u64;
        for planned in layout.files() {
            let path = folder.join(&planned.name);
            let making = |e: &IoError| write_error(e, &path, format_args!("create `{}`", path.display()), resume_hint);
            let open = || {
                make_folder(&path, folder)?;
                let file = disk::open(&path)?;
                let bytes = file.metadata()?.len();
                Ok((file, bytes))
            };
            let (file, bytes) = open().map_err(|e| making(&e))?;
            if bytes != planned.bytes {
                if are_ready || bytes > planned.bytes {
                    return Err(lost(&path, folder, bytes, planned.bytes));
                }
                promised = promised.saturating_add(planned.bytes);
                let allocated = match &memory {
                    Some(memory) => memory.promise(promised).and_then(|()| disk::set_len(&file, &path, planned.bytes)),
                    None => allocate(&file, &path, planned.bytes),
                };
                allocated.map_err(|e| match is_full(&e) {
                    true => no_space(folder, layout.file_bytes(), &e, resume_hint),
                    false => making(&e),
                })?;
            }
            let direct = if is_direct { DirectFile::open(&path) } else { DirectFile::none() };
            files.push(DataFile {
                file,
                direct,
                path,
                header_bytes: planned.header.len() as u64,
                bytes: planned.bytes,
            });
        }
        Ok(Self { files, edges, resume_hint: resume_hint.into() })
    }

    /// Puts the blocks together that parts share, from what they left in `folder`.
    ///
    /// # Errors
    ///
    /// A part's bytes cannot be read, or the disk is full or failing.
    pub fn put_together(&self, blocks: &SharedBlocks, layout: &Layout, owners: &[usize], folder: &Path) -> Result<()> {
        // Opened anew, so that nothing is known of the file that another machine has changed since.
        let open = |file: usize| OpenOptions::new().write(true).open(&self.files[file].path);
        blocks.put_together(layout, owners, folder, open).map_err(|e| {
            let what = format_args!("put together what parts left in `{}`", folder.display());
            write_error(&e, folder, what, &self.resume_hint)
        })
    }

    /// Waits until a part's bytes in shared blocks are on the disk.
    pub fn sync_edges(&self) -> Result<()> {
        let Some(edges) = &self.edges else { return Ok(()) };
        edges
            .sync()
            .map_err(|e| Error::environment(format!("cannot bring a part's bytes to the disk: {e}")).because_of_io(&e))
    }

    /// Writes into the data section of a file, at an offset from the file's start.
    pub fn write_at(&self, file: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let data = self.within(file, offset, bytes.len())?;
        let cut = self.edges.as_ref().map(|edges| (edges, edges.cut(file, offset, bytes.len())));
        let write = || match cut {
            None => data.write_at(offset, bytes),
            Some((edges, cut)) => {
                for at in cut.shared.into_iter().filter(|at| !at.is_empty()) {
                    edges.write_at(file, offset + at.start as u64, &bytes[at])?;
                }
                data.write_at(offset + cut.own.start as u64, &bytes[cut.own])
            }
        };
        write().map_err(|e| {
            let what = format_args!("write {} bytes at offset {offset} of `{}`", bytes.len(), data.path.display());
            write_error(&e, &data.path, what, &self.resume_hint)
        })
    }

    /// Reads from the data section of a file, at an offset from the file's start.
    pub fn read_at(&self, file: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let data = self.within(file, offset, bytes.len())?;
        let cut = self.edges.as_ref().map(|edges| (edges, edges.cut(file, offset, bytes.len())));
        let read = || match cut {
            None => data.file.read_exact_at(bytes, offset),
            Some((edges, cut)) => {
                for at in cut.shared.into_iter().filter(|at| !at.is_empty()) {
                    edges.read_at(file, offset + at.start as u64, &mut bytes[at])?;
                }
                data.file.read_exact_at(&mut bytes[cut.own.clone()], offset + cut.own.start as u64)
            }
        };
        read().map_err(|e| Error::environment(format!("cannot read back `{}`: {e}", data.path.display())))
    }

    /// Writes a file's header, which makes it a valid one.
    pub fn write_header(&self, file: usize, header: &[u8]) -> Result<()> {
        let Some(data) = self.files.get(file).filter(|d| d.header_bytes == header.len() as u64) else {
            return Err(Error::internal(format!("the header of output file {file} is not the planned one")));
        };
        disk::write_all_at(&data.file, &data.path, header, 0).map_err(|e| {
            let what = format_args!("write the header of `{}`", data.path.display());
            write_error(&e, &data.path, what, &self.resume_hint)
        })
    }

    /// Waits until a file is on the disk. If that fails, nothing written to it before can be believed: the kernel
    /// reports a failed write-back once and then takes the pages for clean.
    pub fn sync(&self, file: usize) -> Result<()> {
        let Some(data) = self.files.get(file) else {
            return Err(Error::internal(format!("there is no output file {file}")));
        };
        disk::sync_data(&data.file, &data.path).map_err(|e| {
            let what = format_args!("bring `{}` to the disk", data.path.display());
            write_error(&e, &data.path, what, &self.resume_hint)
        })
    }

    fn within(&self, file: usize, offset: u64, len: usize) -> Result<&DataFile> {
        let end = offset.checked_add(len as u64);
        self.files
            .get(file)
            .filter(|f| offset >= f.header_bytes && end.is_some_and(|end| end <= f.bytes))
            .ok_or_else(|| Error::internal(format!("{len} bytes at {offset} are outside output file {file}'s data")))
    }
}

impl DataFile {
    /// Writes around the page cache what can be, and the rest through it.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let direct = self.direct.write(offset, bytes)?;
        if !direct.is_empty() {
            disk::written(&self.path, offset + direct.start as u64, &bytes[direct.clone()]);
        }
        for part in [0..direct.start, direct.end..bytes.len()].into_iter().filter(|part| !part.is_empty()) {
            let offset = offset + part.start as u64;
            disk::write_all_at(&self.file, &self.path, &bytes[part.clone()], offset)?;
            if let Some(len) = NonZeroU64::new(part.len() as u64).filter(|n| n.get() >= WRITE_BACK_BYTES) {
                // Only a hint, so that it may fail.
                let _ = fadvise(&self.file, offset, Some(len), Advice::DontNeed);
            }
        }
        Ok(())
    }
}

/// Makes the adapter's folder that a file is to be in, if it is to be in one.
fn make_folder(file: &Path, folder: &Path) -> std::io::Result<()> {
    match file.parent() {
        Some(parent) if parent != folder => match disk::create_dir(parent) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made,
        },
        _ => Ok(()),
    }
}

/// Opens or makes one file; whether it could be kept. Files that are not kept are emptied.
fn open_one(path: &Path, planned: &FileLayout, keep: bool) -> std::io::Result<(File, bool)> {
    let file = disk::open(path)?;
    let meta = file.metadata()?;
    let is_kept = keep && meta.is_file() && meta.len() == planned.bytes;
    if !is_kept {
        disk::set_len(&file, path, 0)?;
    }
    Ok((file, is_kept))
}

/// Gives an empty file its size: with blocks behind it, or, where the file system cannot promise them, without.
fn allocate(file: &File, path: &Path, bytes: u64) -> std::io::Result<()> {
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, bytes)) {
        Ok(()) => {
            disk::resized(path, bytes);
            Ok(())
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => disk::set_len(file, path, bytes),
        Err(e) => Err(e.into()),
    }
}

/// A folder whose files are memory (tmpfs). Blocks taken at once are pages that one thread clears before the first write, in
/// a third of a second a gigabyte; the writes take them without clearing them, by several threads.
struct MemoryFolder {
    /// `None` without a limit.
    free_bytes: Option<u64>,
}

impl MemoryFolder {
    /// `None` for a folder on a disk.
    fn of(folder: &Path) -> Option<Self> {
        const TMPFS: u64 = 0x0102_1994;
        let is_memory = statfs(folder).is_ok_and(|s| s.f_type as u64 == TMPFS);
        let stat = statvfs(folder).ok().filter(|_| is_memory)?;
        // A file system without a limit says that it has no blocks.
        let free_bytes = (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize));
        Some(Self { free_bytes })
    }

    /// Fails as an allocation would, if so many bytes do not fit.
    fn promise(&self, bytes: u64) -> std::io::Result<()> {
        if self.free_bytes.is_some_and(|free| free < bytes) { Err(Errno::NOSPC.into()) } else { Ok(()) }
    }
}

fn is_full(e: &IoError) -> bool {
    matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// The error for a file that other parts have written into and that is not there, or not whole.
fn lost(path: &Path, folder: &Path, bytes: u64, expected: u64) -> Error {
    Error::input(format!(
        "`{}` has {bytes} bytes instead of {expected}: what parts of this merge wrote there is lost",
        path.display()
    ))
    .hint(format!("once nobody is at work there, remove `{}` and run all parts again", folder.display()))
}

fn no_space(folder: &Path, needed: u64, e: &IoError, resume_hint: &str) -> Error {
    let free = statvfs(folder).map(|s| s.f_bavail.saturating_mul(s.f_frsize));
    let free = free.map_or_else(|_| "how many are free is unknown".into(), |n| format!("{n} are free"));
    Error::environment(format!(
        "not enough space in `{}`: the output needs {needed} more bytes, {free} ({e})",
        folder.display()
    ))
    .because(crate::Cause::NoSpace)
    .hint(format!("free some space, then run the same command with {resume_hint}"))
}

/// The error for a failed write: the environment's, with what to do about it.
pub(super) fn write_error(e: &IoError, path: &Path, doing: std::fmt::Arguments<'_>, resume_hint: &str) -> Error {
    let again = format!("then run the same command with {resume_hint}");
    let hint = match e.kind() {
        ErrorKind::StorageFull => {
            let folder = path.parent().unwrap_or(path);
            let free = statvfs(folder).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
            format!("{free} bytes are free in `{}`: free some space, {again}", folder.display())
        }
        ErrorKind::QuotaExceeded => format!("the disk quota is used up: free some space, {again}"),
        ErrorKind::FileTooLarge => {
            format!("the file system or `ulimit -f` forbids files of this size: raise the limit, {again}")
        }
        ErrorKind::ReadOnlyFilesystem => format!("the file system is read-only: mount it writable, {again}"),
        ErrorKind::PermissionDenied => format!("let this user write to it, {again}"),
        ErrorKind::NotFound => "the work folder was removed or renamed while the merge ran; run it again".into(),
        _ => format!("see the system's log for what is wrong with the disk, {again}"),
    };
    Error::environment(format!("cannot {doing}: {e}")).because_of_io(e).hint(hint)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::error::Kind;
    use crate::output::layout::TensorSpec;

    fn layout() -> Layout {
        let tensor =
            |name: &str| TensorSpec { name: name.into(), folder: None, dtype: Dtype::U8, shape: vec![100], bytes: 100 };
        Layout::new(&[tensor("a"), tensor("b")], 100).unwrap()
    }

    #[test]
    fn new_files_have_their_full_size_and_no_reader_takes_them_for_finished() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout();
        let (files, kept) = DataFiles::open(dir.path(), &layout, true, "`--resume`").unwrap();
        assert_eq!(kept, [false, false]);
        files.write_at(0, 4096, &[7; 100]).unwrap();
        let path = dir.path().join(&layout.files()[0].name);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 4196);
        assert!(safetensors::SafeTensors::deserialize(&bytes).is_err());
        files.write_header(0, &layout.files()[0].header).unwrap();
        files.sync(0).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("a").unwrap().data(), [7; 100]);
    }

    #[test]
    fn files_of_the_right_size_are_kept_and_others_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout();
        let (files, _) = DataFiles::open(dir.path(), &layout, false, "").unwrap();
        files.write_at(0, 4096, &[7; 100]).unwrap();
        files.write_at(1, 4096, &[8; 100]).unwrap();
        let second = dir.path().join(&layout.files()[1].name);
        File::options().write(true).open(&second).unwrap().set_len(4195).unwrap();
        assert_eq!(DataFiles::existing(dir.path(), &layout), [true, false]);
        let (files, kept) = DataFiles::open(dir.path(), &layout, true, "").unwrap();
        assert_eq!(kept, [true, false]);
        assert_eq!(DataFiles::existing(dir.path(), &layout), [true, true]);
        let mut bytes = [1; 100];
        files.read_at(0, 4096, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 100]);
        files.read_at(1, 4096, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 100], "nothing of the old content shows through");
        let (_, kept) = DataFiles::open(dir.path(), &layout, false, "").unwrap();
        assert_eq!(kept, [false, false]);
    }

    #[test]
    fn writes_outside_the_data_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (files, _) = DataFiles::open(dir.path(), &layout(), false, "").unwrap();
        for (file, offset, len) in [(0, 4095, 2), (0, 4097, 100), (2, 4096, 1), (0, u64::MAX, 2), (0, 0, 8)] {
            let error = files.write_at(file, offset, &vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), Kind::Internal, "{file} {offset} {len}");
        }
    }

    #[test]
    fn what_the_disk_refuses_is_the_environments_fault_and_says_what_to_do() {
        let wanted = [
            (Errno::NOSPC, "free some space"),
            (Errno::DQUOT, "quota"),
            (Errno::FBIG, "ulimit -f"),
            (Errno::IO, "system's log"),
            (Errno::ROFS, "read-only"),
            (Errno::ACCESS, "let this user write"),
            (Errno::NOENT, "removed or renamed"),
        ];
        for (errno, hint) in wanted {
            let error = write_error(&errno.into(), Path::new("/x/y"), format_args!("write `y`"), "`--resume`");
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().starts_with("cannot write `y`: "));
            assert!(error.hints()[0].contains(hint), "{errno:?}: {:?}", error.hints());
        }
    }
}
