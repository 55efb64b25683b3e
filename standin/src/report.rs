//! What happens when the process ends: the counts are written, and a misuse makes the process fail whatever it thought itself.

use std::fmt::Write;

use crate::order::Verdict;
use crate::world;

/// Exit status of a process that misused the driver.
const MISUSED: i32 = 86;

/// Has [`finish`] called at the end.
pub fn at_exit() {
    // SAFETY: `finish` lives as long as the process: the library is linked so that it is never unloaded.
    unsafe {
        libc::atexit(finish);
    }
}

/// Ends the process, which broke a rule.
pub fn stop() -> ! {
    // SAFETY: ends the process; nothing of it is needed any more.
    unsafe { libc::_exit(MISUSED) }
}

extern "C" fn finish() {
    let Some(world) = world::try_lock() else { return };
    if let Some(path) = &world.config.report {
        let mut text = String::from("{");
        for (name, count) in world.config.failures.counts() {
            let _ = write!(text, "\"{name}\": {count}, ");
        }
        for (name, count) in world.config.sabotage.counts() {
            let _ = write!(text, "\"{name}s\": {count}, ");
        }
        let names = |waits: &[Verdict]| waits.iter().map(|wait| wait.name()).collect::<Vec<_>>();
        let removed = world.config.sabotage.removed + world.kernels.removals();
        let peaks: Vec<_> = world.devices.iter().map(|device| device.peak_bytes).collect();
        let contexts: Vec<_> = world.devices.iter().map(|device| device.retained).collect();
        let left: Vec<_> = world.devices.iter().map(|device| device.used_bytes).collect();
        let _ = writeln!(
            text,
            "\"host_to_device_bytes\": {}, \"device_to_host_bytes\": {}, \"peak_bytes\": {peaks:?}, \"left_bytes\": {left:?}, \
             \"product_operations\": {:?}, \"eigen_matrices\": {}, \"eigen_calls\": {}, \"eigen_cubes\": {}, \
             \"left_handles\": {}, \"left_contexts\": {contexts:?}, \"timed_events\": {}, \"misuses\": {}, \
             \"removed\": {removed}, \"orders\": {:?}, \"host_orders\": {:?}}}",
            world.copied_bytes[0],
            world.copied_bytes[1],
            world.product_operations,
            world.eigen[0],
            world.eigen[1],
            world.eigen[2],
            world.left(),
            world.timed_events,
            world.misuses,
            names(&world.order.waits),
            names(&world.order.host_waits)
        );
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("standin: {}: {error}", path.display());
        }
    }
    if world.misuses > 0 {
        eprintln!("standin: {} misuse(s) of the driver; the process fails", world.misuses);
        stop()
    }
}
