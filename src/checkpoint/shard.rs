//! One file of a checkpoint: open, its header validated, its bytes at hand; or a tensor that is made as it is read.

use super::header::{self, Header, LENGTH_BYTES, Tensor};
use super::made::{Made, Origin};
use super::map::LazyMap;
use super::pickle::{self, Found};
use super::text::quoted_path;
use crate::dtype::DtypeExt;
use crate::{Error, Result};
use rustix::fs::Advice;
use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of one readahead request. The kernel cuts a request silently at what the device takes in one, which is never
/// less than this (a single request for 256 MiB was seen to read 8 MiB); small requests cost nothing measurable.
const READAHEAD_BYTES: u64 = 128 << 10;

/// Tensors of a file that must be gathered, with their places among its tensors.
pub(super) type Scattered = Vec<(usize, Found)>;

/// One file, open for reading, or one tensor that is made.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    data: Data,
    size: u64,
    modified: (i64, i64),
    header_bytes: u64,
    header_digest: u128,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
enum Data {
    File { file: File, map: LazyMap },
    Made(Arc<dyn Made>),
}

impl Shard {
    /// Opens a file and reads its header and nothing else. `index` is put into the tensors as their shard.
    pub(super) fn open(path: PathBuf, index: usize, mapped: bool) -> Result<(Self, Vec<Tensor>)> {
        let (file, facts) = open_regular(&path)?;
        let size = facts.size();
        let label = quoted_path(&path);
        if size < LENGTH_BYTES {
            return Err(header::too_short(&label, size));
        }
        let mut first = [0; LENGTH_BYTES as usize];
        read(&file, &path, &mut first, 0)?;
        let json = header::json_bytes(&label, first, size)?;
        // At most 100 MB and no more than the file holds: both checked just now.
        let mut raw = vec![0; (LENGTH_BYTES + json) as usize];
        read(&file, &path, &mut raw, 0)?;
        if raw[..LENGTH_BYTES as usize] != first {
            return Err(changed(&path, "its header changed while it was being read"));
        }
        let Header { tensors, metadata, bytes } = header::parse(&label, &raw[LENGTH_BYTES as usize..], size, index)?;
        let shard = Self {
            path,
            data: Data::File { file, map: LazyMap::new(mapped) },
            size,
            modified: (facts.mtime(), facts.mtime_nsec()),
            header_bytes: bytes,
            header_digest: twox_hash::XxHash3_128::oneshot(&raw),
            metadata,
        };
        Ok((shard, tensors))
    }

    /// Opens a file of PyTorch's and reads its directory and its pickle. `index` is put into the tensors as their shard; those
    /// that must be gathered are given apart, with their places among the tensors.
    pub(super) fn open_archive(path: PathBuf, index: usize, mapped: bool) -> Result<(Self, Vec<Tensor>, Scattered)> {
        let (file, facts) = open_regular(&path)?;
        let size = facts.size();
        let read_at = |at: u64, bytes: u64| -> std::result::Result<Vec<u8>, String> {
            if at.checked_add(bytes).is_none_or(|end| end > size) {
                return Err("it was cut off".into());
            }
            // At most what the file holds.
            let mut into = vec![0; bytes as usize];
            read(&file, &path, &mut into, at).map(|()| into).map_err(|e| e.to_string())
        };
        let (found, described) = pickle::tensors(size, &read_at).map_err(|why| {
            Error::input(format!("{} cannot be read as a checkpoint of PyTorch's: {why}", quoted_path(&path)))
                .hint("save it as safetensors (`safetensors.torch.save_file`, or `save_pretrained` in transformers)")
        })?;
        let tensor = |found: &Found| {
            let size = found.dtype.size_bytes().unwrap_or(1);
            Tensor {
                name: found.name.clone(),
                dtype: found.dtype,
                shape: found.shape.clone(),
                elems: found.elems(),
                shard: index,
                begin: found.storage.0 + found.offset * size,
                bytes: found.elems() * size,
            }
        };
        let tensors = found.iter().map(tensor).collect();
        let shard = Self {
            path,
            data: Data::File { file, map: LazyMap::new(mapped) },
            size,
            modified: (facts.mtime(), facts.mtime_nsec()),
            header_bytes: described.len() as u64,
            header_digest: twox_hash::XxHash3_128::oneshot(&described),
            metadata: BTreeMap::new(),
        };
        let scattered = found.into_iter().enumerate().filter(|(_, found)| !found.is_contiguous() && found.elems() > 0);
        Ok((shard, tensors, scattered.collect()))
    }

    /// A tensor of so many bytes that is made as it is read; `label` stands for a path in messages.
    pub(super) fn made(label: PathBuf, size: u64, made: Arc<dyn Made>) -> Self {
        Self {
            path: label,
            data: Data::Made(made),
            size,
            modified: (0, 0),
            header_bytes: 0,
            header_digest: 0,
            metadata: BTreeMap::new(),
        }
    }

    /// What lies in the file, from a map or from positioned reads; `None` for a tensor that is made.
    fn map(&self) -> Option<&[u8]> {
        match &self.data {
            Data::File { file, map } => map.get(file, self.size, &self.path),
            Data::Made(_) => None,
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's size in bytes, as validated.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When the file was last modified as it was opened: seconds since 1970 and nanoseconds.
    pub fn modified(&self) -> (i64, i64) {
        self.modified
    }

    /// Bytes before the data: the eight of the length and the header's JSON.
    pub fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    /// XXH3 (128 bits) of the first [`header_bytes`](Self::header_bytes) bytes.
    pub fn header_digest(&self) -> u128 {
        self.header_digest
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// What it is made of, as a whole or at one element; `None` for a file.
    pub fn origin(&self, element: Option<u64>) -> Option<Origin> {
        match &self.data {
            Data::File { .. } => None,
            Data::Made(made) => Some(made.origin(element)),
        }
    }

    /// Whether [`bytes`](Self::bytes) gives a view of the mapped file. If not, it reads into its caller's scratch, and
    /// that is memory to count. Maps the file if that was not tried yet.
    pub fn is_mapped(&self) -> bool {
        self.map().is_some()
    }

    /// The bytes of `range` (offsets in the file), which must lie inside the file as validated.
    ///
    /// They come from a map of the whole file, made at the first call, or are read into `scratch` where the kernel refuses
    /// the map. `scratch` then grows to the range's length and keeps its capacity, so that one buffer serves many calls.
    /// Alignment is that of the file: none.
    ///
    /// # Errors
    /// `Internal` for a range outside the file, `Input` if the file has shrunk, `Environment` if it cannot be read or
    /// memory is short.
    pub fn bytes<'a>(&'a self, range: Range<u64>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        if range.start > range.end || range.end > self.size {
            let path = quoted_path(&self.path);
            return Err(Error::internal(format!("bytes {range:?} asked of {path}, which has {} bytes", self.size)));
        }
        if range.start == range.end {
            return Ok(&[]);
        }
        if let Some(map) = self.map() {
            // A mapped file's offsets fit into usize.
            return Ok(&map[range.start as usize..range.end as usize]);
        }
        let wanted = range.end - range.start;
        let no_memory = || {
            Error::environment(format!("no memory for {wanted} bytes of {}", quoted_path(&self.path)))
                .because(crate::Cause::Memory)
                .hint("lower --memory-budget or lift the limit on address space (`ulimit -v`)")
        };
        let len = usize::try_from(wanted).map_err(|_| no_memory())?;
        scratch.clear();
        scratch.try_reserve_exact(len).map_err(|_| no_memory())?;
        match &self.data {
            Data::File { file, .. } => {
                scratch.resize(len, 0);
                read(file, &self.path, scratch, range.start)?;
            }
            Data::Made(made) => {
                made.make(range, scratch)?;
                if scratch.len() != len {
                    let path = quoted_path(&self.path);
                    return Err(Error::internal(format!("{path} was made of {} bytes, not {len}", scratch.len())));
                }
            }
        }
        Ok(scratch)
    }

    /// Asks the kernel to read `range` ahead into its cache. Returns at once or nearly so; never fails.
    pub fn will_need(&self, range: Range<u64>) {
        let end = range.end.min(self.size);
        let mut at = range.start;
        let file = match &self.data {
            Data::File { file, .. } => file,
            Data::Made(made) => {
                if let Some((shard, range)) = made.of(at..end) {
                    shard.will_need(range);
                }
                return;
            }
        };
        while at < end {
            let step = READAHEAD_BYTES.min(end - at);
            if let Err(error) = rustix::fs::fadvise(file, at, NonZeroU64::new(step), Advice::WillNeed) {
                tracing::trace!(%error, "readahead refused");
                return;
            }
            at += step;
        }
    }

    /// Takes the pages that touch `range` out of resident memory, if the file is mapped. They stay in the kernel's cache;
    /// slices of them stay valid.
    ///
    /// Pages that `range` shares with its neighbours go too: reading them again costs a minor fault, while keeping them
    /// would leave a page resident for every piece of a large tensor.
    pub fn release(&self, range: Range<u64>) {
        let end = range.end.min(self.size);
        match &self.data {
            Data::File { map, .. } => {
                if let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(end)) {
                    map.release(start..end);
                }
            }
            Data::Made(made) => {
                if let Some((shard, range)) = made.of(range.start..end) {
                    shard.release(range);
                }
            }
        }
    }

    /// Checks that the open file has the size and modification time that it had when it was opened.
    ///
    /// # Errors
    /// `Input`, naming the file and what changed.
    pub fn check_unchanged(&self) -> Result<()> {
        // The files that a tensor is made of are checked as shards of their own.
        let Data::File { file, .. } = &self.data else { return Ok(()) };
        let facts = file.metadata().map_err(|e| Error::io(format!("stat {}", quoted_path(&self.path)), &e))?;
        if facts.size() != self.size {
            return Err(changed(&self.path, &format!("it had {} bytes, now it has {}", self.size, facts.size())));
        }
        let now = (facts.mtime(), facts.mtime_nsec());
        if now != self.modified {
            let ((s, n), (s2, n2)) = (self.modified, now);
            return Err(changed(
                &self.path,
                &format!("it was modified at {s2}.{n2:09} (seconds since 1970), having been opened as of {s}.{n:09}"),
            ));
        }
        Ok(())
    }
}

fn changed(path: &Path, what: &str) -> Error {
    Error::input(format!("{} changed while it was in use: {what}", quoted_path(path)))
        .hint("do not write to a checkpoint while it is being merged; start again once it is complete")
}

/// Opens a regular file for reading, following links; a pipe or device is refused without waiting for it.
pub(super) fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let shown = quoted_path(path);
    let regular = |facts: &Metadata| {
        if facts.is_file() {
            return Ok(());
        }
        let kind = if facts.is_dir() { "a directory" } else { "a pipe, socket or device" };
        Err(Error::input(format!("{shown} is {kind}, expected a file")).hint("give a regular .safetensors file"))
    };
    // Asked before opening because opening a device can act on it, and after because the name may point elsewhere by then.
    regular(&std::fs::metadata(path).map_err(|e| cannot_open(path, &e))?)?;
    let flags = (rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits();
    let file =
        OpenOptions::new().read(true).custom_flags(flags as i32).open(path).map_err(|e| cannot_open(path, &e))?;
    let facts = file.metadata().map_err(|e| Error::io(format!("stat {shown}"), &e))?;
    regular(&facts)?;
    Ok((file, facts))
}

fn cannot_open(path: &Path, error: &std::io::Error) -> Error {
    let out = Error::io(format!("open {}", quoted_path(path)), error);
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::NotFound, _) if path.is_symlink() => {
            out.hint("it is a link to a file that is not there; download the checkpoint again")
        }
        (ErrorKind::NotFound, _) => out.hint("check the name; an incomplete download lacks files"),
        (ErrorKind::PermissionDenied, _) => out.hint("make the file readable for this user"),
        (_, Some(libc::EMFILE)) => out.hint("raise the limit on open files (`ulimit -n`): every shard stays open"),
        _ => out,
    }
}

fn read(file: &File, path: &Path, into: &mut [u8], at: u64) -> Result<()> {
    file.read_exact_at(into, at).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => changed(path, "it shrank"),
        _ => Error::environment(format!("cannot read {}: {error}", quoted_path(path)))
            .hint("check the disk, then run the same command with --resume"),
    })
}
