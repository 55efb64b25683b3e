//! Signals, and what a command may use of the machine.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::engine::Stop;
use crate::error::{Error, Result};

/// Lets SIGINT and SIGTERM stop the merge after the tensors in hand; a second one ends the process at once.
pub(super) fn signals() -> Result<Stop> {
    let stop = Stop::default();
    let again = Arc::new(AtomicBool::new(false));
    let register = || -> std::io::Result<()> {
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
            flag::register(signal, Arc::clone(&again))?;
            flag::register_usize(signal, Arc::clone(stop.flag()), signal as usize)?;
        }
        // A file size limit then shows as an error of the write, which can be reported and resumed from.
        flag::register(SIGXFSZ, Arc::default())?;
        Ok(())
    };
    register().map_err(|e| Error::environment(format!("cannot handle signals: {e}")))?;
    Ok(stop)
}

/// Processors that this process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
