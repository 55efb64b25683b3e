//! The progress bar on a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::engine::Progress;
use crate::plan::Plan;

/// How often the bar is drawn anew.
const INTERVAL: Duration = Duration::from_millis(100);

/// Runs `work` while a bar on stderr shows how far it is; without a terminal there is none.
pub(super) fn with_bar<T>(plan: &Plan, progress: &Progress, quiet: bool, work: impl FnOnce() -> T) -> T {
    if quiet || !std::io::stderr().is_terminal() {
        return work();
    }
    let total = plan.layout.data_bytes();
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {msg}  {binary_bytes_per_sec}  {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ticker = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                bar.set_position(progress.written_bytes() + progress.skipped_bytes());
                bar.set_message(format!("{}/{} tensors", progress.tensors(), plan.tensors.len()));
                std::thread::park_timeout(INTERVAL);
            }
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        ticker.thread().unpark();
        bar.finish_and_clear();
        result
    })
}
