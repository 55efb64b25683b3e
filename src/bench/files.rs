//! How fast a cached file is read and a file is written.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{Bench, Unit, rounds};
use crate::engine::Stop;
use crate::error::{Error, Result};
use crate::units::format_bytes;

/// Bytes of a read: they stay in a core's own cache.
const READ_BYTES: usize = 256 << 10;
/// Bytes of a write, and what direct writes are aligned to.
const WRITE_BYTES: usize = 2 << 20;
const ALIGN_BYTES: usize = 4096;

/// Names of the limits.
const READ: &str = "page cache read";
const WRITE: &str = "file write";
const SYNCED: &str = "file write, on the disk";
const DIRECT: &str = "direct write, on the disk";

/// Writes the block into a file, three ways, and reads it back from the page cache.
pub(super) fn all(bench: &mut Bench<'_>) -> Result<()> {
    let block = bench.take_block()?;
    let result = measure(bench, &block);
    bench.block = block;
    result
}

fn measure(bench: &mut Bench<'_>, block: &[u8]) -> Result<()> {
    let (dir, threads) = (bench.settings.dir.clone(), bench.settings.threads);
    let work = (1, Unit::Bytes, block.len() as f64);
    bench.limit(WRITE, work, |stop| write(&dir, block, stop, false).map(|(seconds, _)| seconds))?;
    bench.limit(SYNCED, work, |stop| write(&dir, block, stop, true).map(|(seconds, _)| seconds))?;
    let aligned = block.as_ptr().align_offset(ALIGN_BYTES).min(block.len());
    let aligned = &block[aligned..];
    let aligned = &aligned[..aligned.len() / ALIGN_BYTES * ALIGN_BYTES];
    match unlinked(&dir, libc::O_DIRECT).and_then(|file| file.write_all_at(&aligned[..ALIGN_BYTES], 0)) {
        Ok(()) => bench.limit(DIRECT, (1, Unit::Bytes, aligned.len() as f64), |stop| direct(&dir, aligned, stop))?,
        // Not every file system has them.
        Err(e) => bench.report.left_out.push(format!("{DIRECT}: `{}` refuses it: {e}", dir.display())),
    }
    let (_, file) = write(&dir, block, bench.stop, false)?;
    bench.limit(READ, (threads, Unit::Bytes, block.len() as f64), |stop| {
        rounds::in_parallel(rounds::split(block.len(), threads, READ_BYTES), |range| {
            let mut buffer = vec![0; READ_BYTES];
            for at in range.clone().step_by(READ_BYTES) {
                rounds::check(stop)?;
                let len = READ_BYTES.min(range.end - at);
                file.read_exact_at(&mut buffer[..len], at as u64).map_err(|e| failed("read", &dir, &e))?;
                std::hint::black_box(&buffer);
            }
            Ok(())
        })
    })
}

/// A new file in a folder, without a name: it is gone once it is closed, however that comes about.
fn unlinked(dir: &Path, flags: i32) -> std::io::Result<File> {
    let path = dir.join(format!(".merganser-bench-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// Writes everything into a new file, through the page cache; seconds, and the file.
fn write(dir: &Path, bytes: &[u8], stop: &Stop, sync: bool) -> Result<(f64, File)> {
    let file = unlinked(dir, 0).map_err(|e| failed("create", dir, &e))?;
    let seconds = written(&file, dir, bytes, stop, sync)?;
    Ok((seconds, file))
}

/// The same past the page cache.
fn direct(dir: &Path, bytes: &[u8], stop: &Stop) -> Result<f64> {
    let file = unlinked(dir, libc::O_DIRECT).map_err(|e| failed("create", dir, &e))?;
    written(&file, dir, bytes, stop, true)
}

fn written(file: &File, dir: &Path, bytes: &[u8], stop: &Stop, sync: bool) -> Result<f64> {
    rounds::in_parallel(vec![()], |()| {
        for (i, piece) in bytes.chunks(WRITE_BYTES).enumerate() {
            rounds::check(stop)?;
            let write = file.write_all_at(piece, (i * WRITE_BYTES) as u64);
            write.map_err(|e| failed(&format!("write {} into", format_bytes(bytes.len() as u64)), dir, &e))?;
        }
        if sync { file.sync_data().map_err(|e| failed("sync", dir, &e)) } else { Ok(()) }
    })
}

fn failed(doing: &str, dir: &Path, error: &std::io::Error) -> Error {
    Error::io(format_args!("{doing} a file in `{}`", dir.display()), error)
        .hint("name a folder on another disk with --dir, or give a smaller --size")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_no_name_while_it_is_used_and_keeps_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![7; WRITE_BYTES + 3];
        let (_, file) = write(dir.path(), &bytes, &Stop::default(), true).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut back = vec![0; bytes.len()];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back, bytes);
    }

    #[test]
    fn a_folder_that_is_missing_is_the_users_to_mend() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(&dir.path().join("none"), &[1], &Stop::default(), false).unwrap_err();
        assert_eq!((error.exit_code(), error.hints().len()), (1, 1));
    }
}
