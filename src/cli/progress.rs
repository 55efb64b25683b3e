//! The progress bar on a terminal.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

use super::log;

/// How often the bar is drawn anew.
const INTERVAL: Duration = Duration::from_millis(100);
/// Columns left free behind the bar. A terminal echoes Ctrl-C as `^C` at the cursor; there it goes away with the bar, while
/// behind a full line it would begin another one and leave the bar standing.
const FREE_COLUMNS: u16 = 8;
/// What the bar shows, by the columns that it needs.
const STYLES: [(u16, &str); 3] = [
    (76, "[{wide_bar}] {decimal_bytes} of {decimal_total_bytes}  {msg}{decimal_bytes_per_sec}  {eta} left"),
    (44, "{decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left"),
    (0, "{percent} %"),
];

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
    let terminal = Terminal(Term::buffered_stderr());
    let width = terminal.width();
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::term_like(Box::new(terminal)));
    // The last one fits everywhere.
    let fitting = STYLES.iter().find(|(columns, _)| *columns <= width).map_or("", |(_, template)| template);
    if let Ok(style) = ProgressStyle::with_template(fitting) {
        bar.set_style(style.progress_chars("=> "));
    }
    log::set_bar(Some(bar.clone()));
    let show = || {
        let State { bytes, of, note } = state();
        bar.set_length(of);
        bar.set_position(bytes.min(of));
        bar.set_message(if note.is_empty() { note } else { note + "  " });
    };
    // Before the work, which may be over before a thread has started.
    show();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ticker = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                show();
                std::thread::park_timeout(INTERVAL);
            }
        });
        // Also where the work panics: the scope waits for the ticker.
        let _end = End { is_over: &is_over, ticker: ticker.thread(), bar: &bar };
        work()
    })
}

/// stderr's terminal, but for its last columns.
#[derive(Debug)]
struct Terminal(Term);

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        self.0.size().1.saturating_sub(FREE_COLUMNS).max(1)
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.0.write_line(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
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
