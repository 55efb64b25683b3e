//! How far a run is: counters that threads add to and the command line's bar reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a run; all only grow.
#[derive(Debug, Default)]
pub struct Progress {
    read: AtomicU64,
    first_read: AtomicU64,
    written: AtomicU64,
    skipped: AtomicU64,
    unplanned: AtomicU64,
    tensors: AtomicU64,
}

impl Progress {
    pub(crate) fn add_read(&self, bytes: u64, is_first_pass: bool) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        if is_first_pass {
            self.add_first_read(bytes);
        }
    }

    /// Bytes that a first pass over a tensor has gone past, whether it read all of them or a sample.
    pub(crate) fn add_first_read(&self, bytes: u64) {
        self.first_read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_tensor(&self) {
        self.tensors.fetch_add(1, Ordering::Relaxed);
    }

    /// A tensor that an earlier run finished, and the bytes that reading its sources and writing it would have been.
    pub(crate) fn skip(&self, bytes: u64) {
        self.skipped.fetch_add(bytes, Ordering::Relaxed);
        self.add_tensor();
    }

    /// Bytes that will be read and that the plan does not count: float32 had no certificate.
    pub(crate) fn add_unplanned(&self, bytes: u64) {
        self.unplanned.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that a plan counts and that need not be moved here: a device still has them, or another process makes what they
    /// belong to.
    pub(crate) fn spare(&self, bytes: u64) {
        self.skipped.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back some of [`Self::spare`]: they must be read after all.
    pub(crate) fn owe(&self, bytes: u64) {
        self.skipped.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Of the bytes read, those that a first pass over a tensor read: what readahead keeps ahead of.
    pub(crate) fn first_read_bytes(&self) -> u64 {
        self.first_read.load(Ordering::Relaxed)
    }

    /// Bytes of sources that steps have read.
    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes of output that this run has written.
    pub fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that this run need neither read nor write, as an earlier one finished what they belong to.
    pub fn skipped_bytes(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Bytes that are read beyond those that the plan counts, as far as is known yet.
    pub fn unplanned_bytes(&self) -> u64 {
        self.unplanned.load(Ordering::Relaxed)
    }

    /// Finished tensors, earlier runs' among them.
    pub fn tensors(&self) -> u64 {
        self.tensors.load(Ordering::Relaxed)
    }
}
