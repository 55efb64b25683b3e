//! Asks the kernel for the sources of the next steps, a bounded distance ahead of what has been read.

use std::time::Duration;

use super::Engine;

/// How far ahead: enough to keep a fast disk busy while a unit is computed.
const WINDOW_BYTES: u64 = 128 << 20;
/// Bytes of one source asked for at a time.
const STEP_BYTES: u64 = 4 << 20;
/// How often to look whether the threads have caught up.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) fn run(engine: &Engine<'_>) {
    let mut asked = 0;
    let finished = engine.work.finished();
    // Only the first pass over a tensor: later ones find it in the page cache, or come too late to help.
    for tensor in engine.plan.tensors.iter().filter(|t| !finished.contains_key(&t.name)) {
        let sources: Vec<_> = tensor.reads().map(|at| engine.plan.stored(at)).collect();
        let longest = sources.iter().map(|(t, _)| t.bytes).max().unwrap_or_default();
        for at in (0..longest).step_by(STEP_BYTES as usize) {
            for (stored, shard) in &sources {
                let end = stored.bytes.min(at + STEP_BYTES);
                if at < end {
                    shard.will_need(stored.begin + at..stored.begin + end);
                    asked += end - at;
                }
            }
            while asked > engine.progress.first_read_bytes() + WINDOW_BYTES {
                if engine.schedule.is_over() {
                    return;
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}
