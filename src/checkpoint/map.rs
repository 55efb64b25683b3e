//! A file mapped into memory on first use, whole and read-only; the one place where merganser maps files.
#![allow(unsafe_code)]

use super::bus;
use memmap2::{Mmap, MmapOptions, UncheckedAdvice};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

/// The map of a file, made when its bytes are first asked for, so that looking at headers never maps.
#[derive(Debug)]
pub(super) struct LazyMap {
    /// `None` inside once mapping was tried and refused, or is not wanted.
    cell: OnceLock<Option<Mapped>>,
}

#[derive(Debug)]
struct Mapped {
    // Before `map`, so that the address is forgotten before the kernel can give it to another map.
    _watch: bus::Watched,
    map: Mmap,
}

impl LazyMap {
    /// With `wanted` false the file is never mapped.
    pub fn new(wanted: bool) -> Self {
        let cell = OnceLock::new();
        if !wanted {
            // A fresh cell takes its first value.
            let _ = cell.set(None);
        }
        Self { cell }
    }

    /// The first `size` bytes of the file; `None` where the kernel refuses the map (an address-space limit, a file system
    /// that cannot map). `path` is for messages.
    pub fn get(&self, file: &File, size: u64, path: &Path) -> Option<&[u8]> {
        let mapped = self.cell.get_or_init(|| {
            let len = usize::try_from(size).ok()?;
            // SAFETY: (1) the map is read-only and shared, so nothing here can write through it; (2) `file` was checked
            // to be a regular file of `size` bytes and stays open in the shard that owns this map; (3) the slice never
            // outlives the map, being borrowed from `self`; (4) another process may still write to the file: the bytes
            // are then unspecified but are only ever read as plain numbers, with no invariant of Rust's hanging on them,
            // and `Shard::check_unchanged` refuses the result; (5) another process may truncate the file: access then
            // raises SIGBUS, which `bus` turns into a clean exit.
            let map = unsafe { MmapOptions::new().len(len).map(file) };
            match map {
                Ok(map) => Some(Mapped { _watch: bus::watch(map.as_ptr() as usize, map.len(), path), map }),
                Err(error) => {
                    tracing::debug!(file = %path.display(), %error, "cannot map, reading instead");
                    None
                }
            }
        });
        mapped.as_ref().map(|mapped| &mapped.map[..])
    }

    /// Takes the pages that touch `range` out of this process's resident memory, if the file is mapped. They stay in the
    /// page cache, and a later access brings them back.
    pub fn release(&self, range: Range<usize>) {
        let Some(Some(Mapped { map, .. })) = self.cell.get() else { return };
        if range.start >= range.end || range.end > map.len() {
            return;
        }
        // SAFETY: (1) the range lies inside the map (checked above; memmap2 rounds its start down and the kernel its end
        // up to whole pages of the same map); (2) the map is of a file, shared and never written through, so after
        // MADV_DONTNEED the same bytes come back from the page cache on the next access: slices that other threads hold
        // stay valid.
        let advised =
            unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.end - range.start) };
        if let Err(error) = advised {
            tracing::trace!(%error, "MADV_DONTNEED refused");
        }
    }
}
