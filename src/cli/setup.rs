//! Logging, signals, and what the machine has.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use tracing_subscriber::filter::LevelFilter;

use super::{Log, LogFormat};
use crate::engine::Stop;
use crate::error::{Error, Result};

/// Sends the log to stderr.
pub(super) fn log(log: &Log) {
    let level = match (log.quiet, log.verbose) {
        (true, _) => LevelFilter::ERROR,
        (_, 0) => LevelFilter::INFO,
        (_, 1) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    // A second call, as in tests within one process, changes nothing.
    let _ = match log.log_format {
        LogFormat::Text => {
            tracing::subscriber::set_global_default(lines.with_ansi(colour).without_time().compact().finish())
        }
        LogFormat::Json => tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish()),
    };
}

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

/// Physical memory, in bytes.
pub(super) fn ram_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}
