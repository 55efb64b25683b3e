//! Where tests find files, and where they put them.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

/// The folder in which `tests/` lies: where this was compiled, or where `MERGANSER_TEST_ROOT` says, as compiled tests may run
/// on another machine.
pub fn root() -> PathBuf {
    std::env::var_os("MERGANSER_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A folder for this test: in memory where the system has a file system there, for many merges that each wait for the disk.
pub fn quick_folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}

/// Copies a folder with all that it holds.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
