//! The wish to stop: set by a signal, read by every thread between two units of work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Error;

/// Set to a signal's number to stop a run after the units in hand. Clones share the wish.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// The number that a signal handler sets.
    pub fn flag(&self) -> &Arc<AtomicUsize> {
        &self.0
    }

    /// Asks to stop, as signal `signal` would.
    pub fn set(&self, signal: i32) {
        self.0.store(signal.unsigned_abs() as usize, Ordering::Relaxed);
    }

    /// The signal, once there was one.
    pub fn signal(&self) -> Option<i32> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }

    /// The error that ends a run, once there was a signal.
    pub(crate) fn error(&self) -> Option<Error> {
        let signal = self.signal()?;
        let name = match signal {
            libc::SIGINT => "SIGINT".into(),
            libc::SIGTERM => "SIGTERM".into(),
            libc::SIGHUP => "SIGHUP".into(),
            libc::SIGUSR1 => "SIGUSR1".into(),
            libc::SIGUSR2 => "SIGUSR2".into(),
            other => format!("signal {other}"),
        };
        Some(Error::interrupted(signal, format!("stopped by {name}")))
    }
}
