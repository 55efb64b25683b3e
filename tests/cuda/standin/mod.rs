//! What the stand-in driver proves of the CUDA backend as it is, in processes of their own: that the backend needs what it asks for
//! (`mistakes`: each wait, copy, memset and barrier is taken away in turn, and the result is wrong), that whatever call fails
//! ends in a clean error that can be gone on from (`failures`), what it does when memory runs out in the midst (`memory`), and
//! that it does without what an older library lacks (`libraries`).
//!
//! Skipped without the stand-in. Samples by default; `MERGANSER_STANDIN_SWEEP=all` (`scripts/cuda/standin sabotage`) takes every
//! call of every case.

mod audits;
mod cases;
mod failures;
mod frozen;
mod going_on;
mod libraries;
mod memory;
mod mistakes;
mod reach;

/// Where the stand-in lies without `XsyevBatched`, as the loader is told it.
fn without_batched() -> std::path::PathBuf {
    libraries_of("unbatched")
}

/// Where the stand-in lies with other libraries, as the loader is told it.
fn libraries_of(name: &str) -> std::path::PathBuf {
    let path = std::env::var("LD_LIBRARY_PATH").unwrap();
    let folder = std::path::PathBuf::from(format!("{}-{name}", path.split(':').next().unwrap()));
    assert!(folder.is_dir(), "no {}: scripts/cuda/standin build makes it", folder.display());
    folder
}

/// Whether everything is swept, or a sample.
fn sweeps_all() -> bool {
    std::env::var("MERGANSER_STANDIN_SWEEP").is_ok_and(|value| value == "all")
}
