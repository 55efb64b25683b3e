//! How far some work is: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, ValueEnum};
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use serde_json::json;

use super::log::{self, Log, LogFormat};
use super::print::safe_json;
use crate::error::Result;
use crate::units::format_bytes;

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
/// The least and the most seconds between two lines.
const SECONDS: (f64, f64) = (0.05, 86_400.0);

/// `--progress` and `--progress-interval`.
#[derive(Debug, Clone, Args)]
pub(super) struct ProgressArgs {
    /// How progress shows on stderr; auto: a bar on a terminal, lines elsewhere, nothing with -q
    #[arg(long, value_enum, default_value_t, value_name = "HOW", help_heading = "Log")]
    progress: How,
    /// Seconds between two lines of progress
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = seconds, help_heading = "Log")]
    #[arg(allow_negative_numbers = true)]
    progress_interval: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum How {
    #[default]
    Auto,
    Bar,
    Lines,
    None,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<f64>() {
        Ok(seconds) if (SECONDS.0..=SECONDS.1).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("expected seconds from {} to {}", SECONDS.0, SECONDS.1)),
    }
}

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

impl ProgressArgs {
    /// What is shown, once it is known where stderr goes.
    fn how(&self, log: &Log) -> How {
        match self.progress {
            How::Auto if log.quiet => How::None,
            How::Auto if log.log_format == LogFormat::Text && io::stderr().is_terminal() => How::Bar,
            How::Auto => How::Lines,
            // Nothing but JSON stands among lines of JSON.
            How::Bar if log.log_format == LogFormat::Json => How::Lines,
            how => how,
        }
    }

    /// Whether anything is shown at all, so that what `state` needs is worth finding out.
    pub fn is_shown(&self, log: &Log) -> bool {
        self.how(log) != How::None
    }

    /// Runs `work` while stderr shows what `state` says of it. A bar is gone when this returns.
    pub fn during<T>(
        &self,
        log: &Log,
        state: impl Fn() -> State + Sync,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        match self.how(log) {
            How::Bar => with_bar(state, work),
            How::Lines => with_lines(log.log_format, self.progress_interval, state, work),
            _ => work(),
        }
    }
}

/// A line every `interval`; of JSON also one before the work and, once that is done, one after it.
fn with_lines<T>(
    format: LogFormat,
    interval: Duration,
    state: impl Fn() -> State + Sync,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let show = |state: &State| log::write_line(&line(format, state, started.elapsed().as_secs_f64()));
    let ends = format == LogFormat::Json;
    if ends {
        show(&State { bytes: 0, ..state() });
    }
    let is_over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let ticker = scope.spawn(|| {
            let mut next = started + interval;
            while !is_over.load(Ordering::Relaxed) {
                let now = Instant::now();
                if now < next {
                    std::thread::park_timeout(next - now);
                } else {
                    show(&state());
                    next = now + interval;
                }
            }
        });
        // Also where the work panics: the scope waits for the ticker.
        let _end = Over { is_over: &is_over, ticker: ticker.thread() };
        work()
    })?;
    if ends {
        let State { of, note, .. } = state();
        show(&State { bytes: of, of, note });
    }
    Ok(done)
}

/// One line of progress, `seconds` after the start.
fn line(format: LogFormat, state: &State, seconds: f64) -> String {
    let done = state.bytes.min(state.of);
    let left = (done > 0).then(|| seconds * (state.of - done) as f64 / done as f64);
    if format == LogFormat::Json {
        let line = json!({
            "timestamp": crate::report::time::rfc3339(SystemTime::now()),
            "level": "INFO",
            "message": "progress",
            "done": done,
            "total": state.of,
            "seconds": thousandths(seconds),
            "left_seconds": left.map(thousandths),
        });
        return safe_json(line.to_string()) + "\n";
    }
    let percent = if state.of == 0 { 0.0 } else { 100.0 * done as f64 / state.of as f64 };
    let note = if state.note.is_empty() { String::new() } else { format!(", {}", state.note) };
    let left = left.map_or(String::new(), |left| format!(", {} left", span(left)));
    let (bytes, of) = (format_bytes(done), format_bytes(state.of));
    log::labelled(log::Label::Info, &format!("{percent:.0} % after {}: {bytes} of {of}{note}{left}", span(seconds)))
}

fn thousandths(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// `45 s`, `12 min`, `3.4 h`.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 99.5 => format!("{s:.0} s"),
        s if s < 99.5 * 60.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Runs `work` under a bar, which is gone when this returns.
fn with_bar<T>(state: impl Fn() -> State + Sync, work: impl FnOnce() -> T) -> T {
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
        let _bar = Cleared(&bar);
        let _end = Over { is_over: &is_over, ticker: ticker.thread() };
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

/// Ends the ticker.
struct Over<'a> {
    is_over: &'a AtomicBool,
    ticker: &'a Thread,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.ticker.unpark();
    }
}

/// Clears the bar, so that log lines are written plainly again.
struct Cleared<'a>(&'a ProgressBar);

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        log::set_bar(None);
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_under_a_bar_comes_through_and_leaves_nothing_waiting() {
        let panicked = std::panic::catch_unwind(|| with_bar(State::default, || panic!("under the bar")));
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"under the bar"));
    }

    #[test]
    fn lines_say_how_far_it_is_and_how_long_it_will_take() {
        let state = State { bytes: 250_000_000, of: 1_000_000_000, note: "3 of 9 tensors".into() };
        let text = line(LogFormat::Text, &state, 40.0);
        assert!(text.ends_with("25 % after 40 s: 250 MB of 1.00 GB, 3 of 9 tensors, 2 min left\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, &state, 40.0)).unwrap();
        assert_eq!((&json["done"], &json["total"]), (&250_000_000.into(), &1_000_000_000.into()));
        assert_eq!((&json["seconds"], &json["left_seconds"]), (&40.0.into(), &120.0.into()));
        let nothing: serde_json::Value = serde_json::from_str(&line(LogFormat::Json, &State::default(), 0.0)).unwrap();
        assert_eq!((&nothing["total"], &nothing["left_seconds"]), (&0.into(), &serde_json::Value::Null));
        assert_eq!([span(99.4), span(100.0), span(7200.0)], ["99 s", "2 min", "2.0 h"]);
    }
}
