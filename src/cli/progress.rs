//! The progress bar on a terminal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::log;

/// How often the bar is drawn anew.
const INTERVAL: Duration = Duration::from_millis(100);

/// How far some work is.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Bytes read and written so far.
    pub bytes: u64,
    /// Bytes read and written once it is done, as far as is known.
    pub of: u64,
    /// More, in a few words.
    pub note: String,
}

/// Runs `work` while, if `wanted`, a bar on stderr shows what `state` says of it. The bar is gone when this returns.
pub(super) fn with_bar<T>(wanted: bool, state: impl Fn() -> State + Sync, work: impl FnOnce() -> T) -> T {
    if !wanted {
        return work();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(
        "[{wide_bar}] {decimal_bytes} of {decimal_total_bytes}  {msg}{decimal_bytes_per_sec}  {eta} left",
    );
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    log::set_bar(Some(bar.clone()));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ticker = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let State { bytes, of, note } = state();
                bar.set_length(of);
                bar.set_position(bytes.min(of));
                bar.set_message(if note.is_empty() { note } else { note + "  " });
                std::thread::park_timeout(INTERVAL);
            }
        });
        // Also where the work panics: the scope waits for the ticker.
        let _end = End { is_over: &is_over, ticker: ticker.thread(), bar: &bar };
        work()
    })
}

/// Ends the ticker and clears the bar.
struct End<'a> {
    is_over: &'a AtomicBool,
    ticker: &'a Thread,
    bar: &'a ProgressBar,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        log::set_bar(None);
        self.is_over.store(true, Ordering::Relaxed);
        self.ticker.unpark();
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_under_a_bar_comes_through_and_leaves_nothing_waiting() {
        let panicked = std::panic::catch_unwind(|| with_bar(true, State::default, || panic!("under the bar")));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"under the bar"));
    }
}
