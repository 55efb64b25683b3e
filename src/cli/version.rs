//! What `--version` says: the version, and what the program was built from and for.

/// The facts of this build, a line each, below the version.
pub(super) const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ntarget    ",
    env!("MERGANSER_TARGET"),
    "\ncompiler  ",
    env!("MERGANSER_RUSTC"),
    "\nprofile   ",
    env!("MERGANSER_PROFILE"),
    "\nCUDA      ",
    env!("MERGANSER_CUDA"),
);
