//! Blocks of data files that several parts have bytes in.
//!
//! Where two machines write into one page of a file, network file systems may keep either's view of the whole page. So no two
//! parts write into one block: what a part has in a block with bytes of another part, or of the header, it keeps in a file of its
//! own, and whoever finishes the output puts such blocks together. Which blocks these are follows from the layout alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Result as IoResult;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::names::Role;
use crate::output::layout::Layout;

/// Bytes of a block: whole pages of every machine.
const BLOCK_BYTES: u64 = 64 << 10;
/// Stands for the header among parts.
const HEADER: usize = usize::MAX;

/// Which blocks are shared.
#[derive(Debug, Clone, Default)]
pub(in crate::output) struct SharedBlocks {
    /// By file: who has bytes in each shared block.
    by_file: Vec<BTreeMap<u64, BTreeSet<usize>>>,
}

impl SharedBlocks {
    /// `owners` names the part of each tensor.
    pub fn new(layout: &Layout, owners: &[usize]) -> Self {
        let by_file = layout.files().iter().map(|file| {
            let mut blocks: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
            let mut note = |bytes: Range<u64>, who: usize| {
                // Those in between are one's own.
                for block in [bytes.start / BLOCK_BYTES, (bytes.end - 1) / BLOCK_BYTES] {
                    blocks.entry(block).or_default().insert(who);
                }
            };
            note(0..file.header.len() as u64, HEADER);
            for &tensor in &file.tensors {
                let place = layout.placement(tensor);
                if place.bytes > 0 {
                    note(place.offset..place.offset + place.bytes, owners[tensor]);
                }
            }
            blocks.retain(|_, who| who.len() > 1);
            blocks
        });
        Self { by_file: by_file.collect() }
    }

    /// Places of a part's bytes in its own file, by file and block.
    fn slots(&self, part: usize) -> BTreeMap<(usize, u64), u64> {
        let all = self.by_file.iter().enumerate().flat_map(|(file, blocks)| {
            blocks.iter().filter(|(_, who)| who.contains(&part)).map(move |(block, _)| (file, *block))
        });
        all.zip(0..).map(|(at, slot)| (at, slot * BLOCK_BYTES)).collect()
    }

    /// Puts every shared block together from the parts' files in `folder`, and writes each at once into the data file that
    /// `files` opens.
    pub fn put_together(
        &self,
        layout: &Layout,
        owners: &[usize],
        folder: &Path,
        file_at: impl Fn(usize) -> IoResult<File>,
    ) -> IoResult<()> {
        let parts: BTreeSet<usize> = self.by_file.iter().flat_map(BTreeMap::values).flatten().copied().collect();
        let mut edges = BTreeMap::new();
        for part in parts.into_iter().filter(|part| *part != HEADER) {
            let file = File::open(folder.join(Role::Part(part).edges()))?;
            edges.insert(part, Edges { file, slots: self.slots(part) });
        }
        for (at, planned) in layout.files().iter().enumerate().filter(|(at, _)| !self.by_file[*at].is_empty()) {
            let data = file_at(at)?;
            // A file's tensors are listed in the order of their places.
            let places: Vec<_> = planned.tensors.iter().map(|t| (layout.placement(*t), owners[*t])).collect();
            for &block in self.by_file[at].keys() {
                let (start, end) = (block * BLOCK_BYTES, ((block + 1) * BLOCK_BYTES).min(planned.bytes));
                let mut bytes = vec![0; (end - start) as usize];
                if let Some(header) = planned.header.get(start as usize..) {
                    let len = header.len().min(bytes.len());
                    bytes[..len].copy_from_slice(&header[..len]);
                }
                let first = places.partition_point(|(place, _)| place.offset + place.bytes <= start);
                for (place, part) in places[first..].iter().take_while(|(place, _)| place.offset < end) {
                    let within = place.offset.max(start)..(place.offset + place.bytes).min(end);
                    if within.start < within.end
                        && let Some(edges) = edges.get(part)
                    {
                        let to = (within.start - start) as usize..(within.end - start) as usize;
                        edges.read_at(at, within.start, &mut bytes[to])?;
                    }
                }
                data.write_all_at(&bytes, start)?;
            }
        }
        Ok(())
    }
}

/// A part's bytes in shared blocks.
#[derive(Debug)]
pub(in crate::output) struct Edges {
    file: File,
    slots: BTreeMap<(usize, u64), u64>,
}

impl Edges {
    /// Opens a part's file in `folder`, made if missing.
    pub fn open(folder: &Path, part: usize, blocks: &SharedBlocks) -> IoResult<Self> {
        let path = folder.join(Role::Part(part).edges());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, slots: blocks.slots(part) })
    }

    /// Cuts a run of bytes at the borders of shared blocks: what of it lies in them, and the rest, which is one's own.
    pub fn cut(&self, file: usize, offset: u64, len: usize) -> Cut {
        let end = offset + len as u64;
        let is_shared = |byte: u64| self.slots.contains_key(&(file, byte / BLOCK_BYTES));
        if len == 0 {
            return Cut { own: 0..0, shared: [0..0, 0..0] };
        }
        let head = if is_shared(offset) { (offset / BLOCK_BYTES + 1) * BLOCK_BYTES } else { offset }.min(end);
        let tail = if is_shared(end - 1) { (end - 1) / BLOCK_BYTES * BLOCK_BYTES } else { end }.max(head);
        let at = |byte: u64| (byte - offset) as usize;
        Cut { own: at(head)..at(tail), shared: [0..at(head), at(tail)..len] }
    }

    /// Writes bytes of one shared block.
    pub fn write_at(&self, file: usize, offset: u64, bytes: &[u8]) -> IoResult<()> {
        self.file.write_all_at(bytes, self.place(file, offset)?)
    }

    /// Reads bytes of one shared block.
    pub fn read_at(&self, file: usize, offset: u64, bytes: &mut [u8]) -> IoResult<()> {
        self.file.read_exact_at(bytes, self.place(file, offset)?)
    }

    /// Waits until all is on the disk.
    pub fn sync(&self) -> IoResult<()> {
        self.file.sync_all()
    }

    fn place(&self, file: usize, offset: u64) -> IoResult<u64> {
        let slot = self.slots.get(&(file, offset / BLOCK_BYTES));
        slot.map(|slot| slot + offset % BLOCK_BYTES).ok_or_else(|| std::io::Error::other("not a shared block"))
    }
}

/// A run of bytes by whose block they lie in.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::output) struct Cut {
    /// In blocks of this part alone.
    pub own: Range<usize>,
    /// In the shared blocks at either end; empty where there is none.
    pub shared: [Range<usize>; 2],
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::output::TensorSpec;
    use proptest::prelude::*;

    fn layout(sizes: &[u64], shard: u64) -> Layout {
        let spec = |(i, size): (usize, &u64)| TensorSpec {
            name: format!("t{i}"),
            folder: None,
            dtype: Dtype::U8,
            shape: vec![*size],
            bytes: *size,
        };
        Layout::new(&sizes.iter().enumerate().map(spec).collect::<Vec<_>>(), shard).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Each part writes its bytes in pieces, and no part writes into a block of a data file that another one does.
        #[test]
        fn files_written_by_parts_hold_every_byte_and_no_block_is_written_twice(
            tensors in prop::collection::vec((0_u64..300_000, 0_usize..4), 1..12),
            shard in 200_000_u64..2_000_000,
            piece in 1_usize..150_000,
        ) {
            let (sizes, owners): (Vec<u64>, Vec<usize>) = tensors.into_iter().unzip();
            let layout = layout(&sizes, shard);
            let folder = tempfile::tempdir().unwrap();
            let path = |file: usize| folder.path().join(&layout.files()[file].name);
            for (i, file) in layout.files().iter().enumerate() {
                File::create(path(i)).unwrap().set_len(file.bytes).unwrap();
            }
            let open = |file: usize| File::options().write(true).open(path(file));
            let blocks = SharedBlocks::new(&layout, &owners);
            let content = |t: usize| (0..sizes[t]).map(move |i| (i * 31 + t as u64 * 7 + 1) as u8);
            let mut written: BTreeMap<(usize, u64), usize> = BTreeMap::new();
            for part in 0..4 {
                let edges = Edges::open(folder.path(), part, &blocks).unwrap();
                for t in (0..sizes.len()).filter(|t| owners[*t] == part) {
                    let (place, bytes): (_, Vec<u8>) = (layout.placement(t), content(t).collect());
                    for (i, bytes) in bytes.chunks(piece).enumerate() {
                        let offset = place.offset + (i * piece) as u64;
                        let Cut { own, shared } = edges.cut(place.file, offset, bytes.len());
                        for at in shared.into_iter().filter(|at| !at.is_empty()) {
                            edges.write_at(place.file, offset + at.start as u64, &bytes[at]).unwrap();
                        }
                        if !own.is_empty() {
                            let (from, to) = (offset + own.start as u64, offset + own.end as u64);
                            for block in from / BLOCK_BYTES..=(to - 1) / BLOCK_BYTES {
                                let other = written.insert((place.file, block), part);
                                prop_assert!(other.is_none_or(|other| other == part));
                                prop_assert!(block > (layout.files()[place.file].header.len() as u64 - 1) / BLOCK_BYTES);
                            }
                            open(place.file).unwrap().write_all_at(&bytes[own], from).unwrap();
                        }
                    }
                }
            }
            for (i, file) in layout.files().iter().enumerate() {
                open(i).unwrap().write_all_at(&file.header, 0).unwrap();
            }
            blocks.put_together(&layout, &owners, folder.path(), open).unwrap();
            for (i, file) in layout.files().iter().enumerate() {
                let bytes = std::fs::read(path(i)).unwrap();
                prop_assert!(bytes.starts_with(&file.header));
                for &t in &file.tensors {
                    let place = layout.placement(t);
                    let found = &bytes[place.offset as usize..(place.offset + place.bytes) as usize];
                    prop_assert!(found.iter().copied().eq(content(t)), "tensor {t}");
                }
            }
        }
    }
}
