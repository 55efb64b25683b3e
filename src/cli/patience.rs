//! A signal ends a command within two seconds, whatever it computes: what is finished is in the journal by then.
//!
//! Threads look at the wish to stop between two units of work. A decomposition of a large matrix is one unit, and may take minutes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::failure;
use crate::engine::Stop;
use crate::error::{Error, Result};

/// How long threads may take to end by themselves.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often the wish is looked at.
const INTERVAL: Duration = Duration::from_millis(100);
const STACK_BYTES: usize = 1 << 17;

/// Ends the process if a signal has come and this still lives after [`PATIENCE`]. What has been written is what a killed process
/// leaves, which `--resume` goes on from.
pub(super) struct Patience(Arc<AtomicBool>);

impl Patience {
    /// Starts to look.
    ///
    /// # Errors
    /// Environment, if no thread can be started.
    pub fn with(stop: &Stop) -> Result<Self> {
        let waits = Arc::new(AtomicBool::new(true));
        let (watched, stop) = (Arc::clone(&waits), stop.clone());
        let watch = move || {
            let mut since = None;
            while watched.load(Ordering::Relaxed) {
                std::thread::sleep(INTERVAL);
                let Some(error) = stop.error() else { continue };
                let asked = *since.get_or_insert_with(Instant::now);
                // Who takes the flag away ends the process: this, or the command by itself.
                if asked.elapsed() >= PATIENCE && watched.swap(false, Ordering::AcqRel) {
                    let hint = "what was in hand is given up, what is finished is kept: go on with `--resume`";
                    signal_hook::low_level::exit(failure::tell(&error.hint(hint)).into());
                }
            }
        };
        let thread = std::thread::Builder::new().name("patience".into()).stack_size(STACK_BYTES);
        thread.spawn(watch).map_err(|e| Error::environment(format!("cannot start a thread: {e}")))?;
        Ok(Self(waits))
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        if !self.0.swap(false, Ordering::AcqRel) {
            // The other thread is telling the end and ends the process.
            std::thread::sleep(Duration::from_secs(60));
        }
    }
}
