//! Signals, and what a command may use of the machine.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::flag;

use super::failure;
use super::scheduler::Grant;
use crate::backend::cpu::ram;
use crate::engine::Stop;
use crate::error::{Error, Result};
use crate::units::format_bytes;

/// What asks a command to stop. Batch systems send the two of users, and a terminal that goes away sends SIGHUP.
const STOPS: [i32; 5] = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2];

/// Lets signals stop the merge after the tensors in hand; a second one ends the process at once. A signal that was ignored
/// when the program started, as `nohup` and shells in the background have it, stays ignored.
pub(super) fn signals() -> Result<Stop> {
    let stop = Stop::default();
    let again = Arc::new(AtomicBool::new(false));
    let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let register = || -> std::io::Result<()> {
        for signal in STOPS.into_iter().filter(|signal| !is_in(ignored, *signal)) {
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

/// Has a mapped file that shrinks told as every other failure is, instead of by the default action of SIGBUS.
pub(super) fn bus_errors() -> Result<()> {
    crate::checkpoint::install_bus_handler()?;
    crate::checkpoint::tell_bus_errors(|error| signal_hook::low_level::exit(failure::tell(error).into()))
}

/// The signals that a process ignores, a bit each from the lowest, as the kernel states them.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

fn is_in(mask: u64, signal: i32) -> bool {
    u32::try_from(signal - 1).is_ok_and(|bit| mask.checked_shr(bit).is_some_and(|rest| rest & 1 == 1))
}

/// Processors that this process may use: the least of what its affinity, its control group and a batch system leave it.
pub(super) fn cores() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Grant::find().threads.map_or(cores, |(granted, _)| cores.min(granted))
}

/// Memory that this process may use, in bytes: the least of the machine's, its control group's and a batch system's.
fn usable_bytes() -> u64 {
    Grant::find().memory.map_or_else(ram::usable_bytes, |(granted, _)| granted.min(ram::usable_bytes()))
}

/// The memory budget where none is given, in bytes.
pub(super) fn default_budget() -> u64 {
    usable_bytes() / 4
}

/// What bounds threads and memory where no option does, and who says so.
pub(super) fn bounds_in_words() -> String {
    let grant = Grant::find();
    let by = |name: Option<&str>| name.map(|name| format!(" (by {name})")).unwrap_or_default();
    format!(
        "{} threads{} and {} of memory{}",
        cores(),
        by(grant.threads.filter(|(n, _)| *n == cores()).map(|(_, name)| name)),
        format_bytes(default_budget()),
        by(grant.memory.filter(|(bytes, _)| *bytes == usable_bytes()).map(|(_, name)| name)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_ignores_is_read_from_the_kernels_mask() {
        let mask = ignored("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001006\nSigCgt:\t0\n");
        let found: Vec<i32> = (1..=64).filter(|signal| is_in(mask, *signal)).collect();
        assert_eq!(found, [2, 3, 13]);
        assert_eq!(ignored("SigIgn:\tnonsense\n"), 0);
        assert_eq!(ignored(""), 0);
    }
}
