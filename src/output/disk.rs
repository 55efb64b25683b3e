//! Every change that a merge makes to files and folders, one function each: what tests record, cut off anywhere, and go on from
//! (`engine::power_cut`). Reading goes past it.
//!
//! Each function does what the one of the standard library does that it is named after.

use std::fs::{self, File};
use std::io::{Result, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

#[cfg(test)]
pub(crate) use record::{Op, begin, set_boot};

/// Without a recorder this is nothing.
macro_rules! note {
    ($path:expr, $op:expr) => {
        #[cfg(test)]
        record::note($path, || $op);
    };
}

/// Opens a file to read and write it, made if it is missing; its content stays.
pub(super) fn open(path: &Path) -> Result<File> {
    open_with(path, File::options().read(true).write(true).create(true).truncate(false))
}

/// Opens a file to append to it, made if it is missing.
pub(super) fn open_to_append(path: &Path) -> Result<File> {
    open_with(path, File::options().create(true).append(true))
}

fn open_with(path: &Path, options: &fs::OpenOptions) -> Result<File> {
    let file = options.open(path)?;
    note!(path, Op::Make { path: path.into(), is_folder: false });
    Ok(file)
}

/// Makes an empty file, or empties the one that is there.
pub(super) fn create(path: &Path) -> Result<File> {
    let file = File::create(path)?;
    note!(path, Op::Make { path: path.into(), is_folder: false });
    note!(path, Op::Resize { path: path.into(), bytes: 0 });
    Ok(file)
}

pub(super) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir(path)?;
    note!(path, Op::Make { path: path.into(), is_folder: true });
    Ok(())
}

/// Notes that a file has got another size.
#[cfg_attr(not(test), allow(unused_variables))]
pub(super) fn resized(path: &Path, bytes: u64) {
    note!(path, Op::Resize { path: path.into(), bytes });
}

pub(super) fn set_len(file: &File, path: &Path, bytes: u64) -> Result<()> {
    file.set_len(bytes)?;
    resized(path, bytes);
    Ok(())
}

/// Notes that bytes have been written around the page cache.
#[cfg_attr(not(test), allow(unused_variables))]
pub(super) fn written(path: &Path, offset: u64, bytes: &[u8]) {
    note!(path, Op::Write { path: path.into(), offset, bytes: bytes.into() });
}

pub(super) fn write_all_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(bytes, offset)?;
    written(path, offset, bytes);
    Ok(())
}

/// One write at the end, which is at `offset`; gives the bytes that were taken.
pub(super) fn append(file: &mut File, path: &Path, bytes: &[u8], offset: u64) -> Result<usize> {
    let taken = file.write(bytes)?;
    written(path, offset, &bytes[..taken.min(bytes.len())]);
    Ok(taken)
}

/// Waits until a file's content is on the disk.
#[cfg_attr(not(test), allow(unused_variables))]
pub(super) fn sync(file: &File, path: &Path) -> Result<()> {
    #[cfg(test)]
    let covers = record::len(path);
    file.sync_all()?;
    note!(path, Op::Sync { path: path.into(), covers });
    Ok(())
}

/// The same, without what only says when it was changed.
#[cfg_attr(not(test), allow(unused_variables))]
pub(super) fn sync_data(file: &File, path: &Path) -> Result<()> {
    #[cfg(test)]
    let covers = record::len(path);
    file.sync_data()?;
    note!(path, Op::Sync { path: path.into(), covers });
    Ok(())
}

/// Waits until a folder's entries are on the disk.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    sync(&File::open(path)?, path)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)?;
    note!(from, Op::Rename { from: from.into(), to: to.into() });
    Ok(())
}

/// Gives a file a second entry, unless there is one of that name.
pub(super) fn hard_link(from: &Path, to: &Path) -> Result<()> {
    fs::hard_link(from, to)?;
    note!(from, Op::Link { from: from.into(), to: to.into() });
    Ok(())
}

/// Lets two entries change places, in one step.
pub(super) fn exchange(a: &Path, b: &Path) -> std::result::Result<(), Errno> {
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?;
    note!(a, Op::Exchange { a: a.into(), b: b.into() });
    Ok(())
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path)?;
    note!(path, Op::Remove { path: path.into() });
    Ok(())
}

pub(super) fn remove_dir(path: &Path) -> Result<()> {
    fs::remove_dir(path)?;
    note!(path, Op::Remove { path: path.into() });
    Ok(())
}

/// What tells this boot of the machine from others; empty if the system does not say.
pub(super) fn boot_id() -> String {
    #[cfg(test)]
    if let Some(boot) = record::boot() {
        return boot;
    }
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod record {
    use std::cell::RefCell;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, PoisonError};

    /// One change, after it was made.
    #[derive(Debug, Clone)]
    pub(crate) enum Op {
        /// An entry that was there already stays as it is.
        Make {
            path: PathBuf,
            is_folder: bool,
        },
        Resize {
            path: PathBuf,
            bytes: u64,
        },
        Write {
            path: PathBuf,
            offset: u64,
            bytes: Vec<u8>,
        },
        /// What the record held of this file or folder when the wait began, so many changes, is on the disk.
        Sync {
            path: PathBuf,
            covers: usize,
        },
        Link {
            from: PathBuf,
            to: PathBuf,
        },
        Rename {
            from: PathBuf,
            to: PathBuf,
        },
        Exchange {
            a: PathBuf,
            b: PathBuf,
        },
        Remove {
            path: PathBuf,
        },
    }

    /// What was changed below a folder, in order.
    #[derive(Debug)]
    pub(crate) struct Record {
        root: PathBuf,
        ops: Mutex<Vec<Op>>,
    }

    static RECORDS: Mutex<Vec<Arc<Record>>> = Mutex::new(Vec::new());

    thread_local! {
        static BOOT: RefCell<Option<String>> = const { RefCell::new(None) };
    }

    /// Records what changes below this folder from now on.
    pub(crate) fn begin(root: &Path) -> Arc<Record> {
        let record = Arc::new(Record { root: root.into(), ops: Mutex::default() });
        records().push(record.clone());
        record
    }

    impl Record {
        /// What was recorded; nothing more is.
        pub(crate) fn end(self: Arc<Self>) -> Vec<Op> {
            records().retain(|other| !Arc::ptr_eq(other, &self));
            std::mem::take(&mut self.ops.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }

    fn records() -> std::sync::MutexGuard<'static, Vec<Arc<Record>>> {
        RECORDS.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(path: &Path) -> Option<Arc<Record>> {
        records().iter().find(|record| path.starts_with(&record.root)).cloned()
    }

    pub(super) fn note(path: &Path, op: impl FnOnce() -> Op) {
        if let Some(record) = of(path) {
            record.ops.lock().unwrap_or_else(PoisonError::into_inner).push(op());
        }
    }

    pub(super) fn len(path: &Path) -> usize {
        of(path).map_or(0, |record| record.ops.lock().unwrap_or_else(PoisonError::into_inner).len())
    }

    /// The boot that work folders opened by this thread find; the machine's own again with `None`.
    pub(crate) fn set_boot(boot: Option<&str>) {
        BOOT.set(boot.map(Into::into));
    }

    pub(super) fn boot() -> Option<String> {
        BOOT.with_borrow(Clone::clone)
    }
}
