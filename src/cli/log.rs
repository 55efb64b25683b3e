//! stderr: the log as lines for people or as JSON, beside a progress bar that it must not tear.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::sync::{Mutex, PoisonError};

use clap::{ArgAction, Args, ValueEnum};
use indicatif::ProgressBar;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::print::safe_json;
use crate::checkpoint::printable;

/// What is said on stderr, and how.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Log")]
    pub verbose: u8,
    /// Say nothing but errors (and data that was asked for)
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Log")]
    pub quiet: bool,
    /// How log lines look on stderr
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Log")]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    // Lines for people.
    #[default]
    Text,
    // One object a line.
    Json,
}

impl Log {
    /// Sends the log to stderr.
    pub fn start(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::ERROR,
            (_, 0) => LevelFilter::INFO,
            (_, 1) => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        let format = self.log_format;
        let lines = tracing_subscriber::fmt().with_max_level(level).with_target(false);
        let lines = lines.with_writer(move || Stderr(format));
        // A second call, as in tests within one process, changes nothing.
        let _ = match self.log_format {
            LogFormat::Text => tracing::subscriber::set_global_default(lines.event_format(Lines).finish()),
            LogFormat::Json => tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish()),
        };
    }
}

/// The bar on the terminal's last line, if there is one.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Makes log lines go above this bar, or be written plainly again.
pub(super) fn set_bar(bar: Option<ProgressBar>) {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// Writes whole lines to stderr; where stderr is gone there is nobody to tell.
pub(super) fn write_line(text: &str) {
    let write = || drop(io::stderr().lock().write_all(text.as_bytes()));
    // Not waited for: the thread that holds it may be the one that panicked.
    match BAR.try_lock().ok().as_deref() {
        Some(Some(bar)) => bar.suspend(write),
        _ => write(),
    }
}

/// A writer that the subscriber gives one whole line at a time.
struct Stderr(LogFormat);

impl io::Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Lines for people are safe already.
        let text = String::from_utf8_lossy(line);
        let text = if self.0 == LogFormat::Json { safe_json(text.into_owned()) } else { text.into_owned() };
        // Where stderr is full or gone the line is lost. An error would end the process: the subscriber tells it on stderr.
        let write = || drop(io::stderr().lock().write_all(text.as_bytes()));
        match BAR.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        drop(io::stderr().flush());
        Ok(())
    }
}

/// What stands before a line for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    Error,
    Hint,
    Warning,
    Info,
    Debug,
}

/// A line with its label, safe to print, coloured where people look at a terminal and do not object.
pub(super) fn labelled(label: Label, message: &str) -> String {
    let (word, colour) = match label {
        Label::Error => ("error", "1;31"),
        Label::Hint => ("hint", "1;36"),
        Label::Warning => ("warning", "1;33"),
        Label::Info => ("info", "1;32"),
        Label::Debug => ("debug", "2"),
    };
    let message = printable(message);
    if has_colour() { format!("\x1b[{colour}m{word}:\x1b[0m {message}\n") } else { format!("{word}: {message}\n") }
}

fn has_colour() -> bool {
    let refuses = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    io::stderr().is_terminal() && !refuses("NO_COLOR") && !is_dumb
}

/// Events as people read them: `warning: message (field = value)`.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let label = match *event.metadata().level() {
            Level::ERROR => Label::Error,
            Level::WARN => Label::Warning,
            Level::INFO => Label::Info,
            Level::DEBUG | Level::TRACE => Label::Debug,
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let rest = if fields.rest.is_empty() { String::new() } else { format!(" ({})", fields.rest) };
        out.write_str(&labelled(label, &(fields.message + &rest)))
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            let comma = if self.rest.is_empty() { "" } else { ", " };
            write!(self.rest, "{comma}{}: {value:?}", field.name())
        };
    }
}
