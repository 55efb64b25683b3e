//! How a command ends badly: the error and its hints on stderr, with `--json` also as one document on stdout, and the exit
//! code. The one place that prints errors.

use std::any::Any;
use std::ffi::OsString;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde_json::{Value, json};

use super::document::{self, Failed, Frame};
use super::log;
use super::print;
use crate::checkpoint::is_unsafe;
use crate::error::{Cause, Error};

/// Exit code of a usage error or a bug.
const EXIT_UNEXPECTED: u8 = 2;

/// How failures are told, as the arguments ask for it: known before they are parsed, since parsing may fail.
static TELL: OnceLock<Tell> = OnceLock::new();

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tell {
    /// One JSON document on stdout.
    document: bool,
    /// stderr as JSON lines.
    json_lines: bool,
    /// The command, where the arguments name one.
    command: Option<&'static str>,
    /// An argument holds what terminals act on, which clap would print as it is.
    is_unsafe: bool,
}

impl Tell {
    /// What raw arguments ask for; `--` ends the options.
    fn of(args: &[OsString]) -> Self {
        let has_unsafe = |arg: &OsString| arg.to_string_lossy().contains(is_unsafe);
        let mut tell = Self { is_unsafe: args.iter().any(has_unsafe), ..Self::default() };
        let options = args.iter().skip(1).take_while(|arg| *arg != "--");
        tell.command = super::command_in(args);
        let mut previous = None;
        for option in options {
            tell.document |= option == "--json";
            tell.json_lines |= option == "--log-format=json" || (previous == Some("--log-format") && option == "json");
            previous = option.to_str();
        }
        tell
    }
}

/// Notes from a program's raw arguments how failures are to be told. The first call counts.
#[doc(hidden)]
pub fn tell_failures_as(args: impl Iterator<Item = OsString>) {
    let _ = TELL.set(Tell::of(&args.collect::<Vec<_>>()));
}

/// A failure, ready to be told.
struct Failure<'a> {
    kind: &'static str,
    message: String,
    hints: &'a [String],
    exit_code: u8,
    /// File, line and tensor are told by an error alone.
    error: Option<&'a Error>,
}

/// Tells an error and gives its exit code.
pub(super) fn tell(error: &Error) -> u8 {
    let kind = error.cause().name();
    Failure { kind, message: error.to_string(), hints: error.hints(), exit_code: error.exit_code(), error: Some(error) }
        .tell(None)
}

/// Tells what clap says of the arguments (an error, help or the version) and gives the exit code.
pub(super) fn tell_usage(error: &clap::Error) -> u8 {
    let exit_code = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nothing can be done where even this cannot be printed.
            let _ = error.print();
            return 0;
        }
        ErrorKind::InvalidValue if is_missing(error) => EXIT_UNEXPECTED,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => 1,
        _ => EXIT_UNEXPECTED,
    };
    let text = error.to_string();
    // What is wrong stands first; then come tips, and how the command is used.
    let message = text.split("\n\n").next().unwrap_or(&text).trim_end();
    let message = message.strip_prefix("error: ").unwrap_or(message).to_owned();
    let hints: Vec<String> =
        text.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).map(Into::into).collect();
    let failure = Failure { kind: Cause::Usage.name(), message, hints: &hints, exit_code, error: None };
    // clap colours its own text, where stderr is a terminal.
    let own = || drop(error.print());
    let is_unsafe = TELL.get().is_some_and(|tell| tell.is_unsafe);
    failure.tell(if is_unsafe { None } else { Some(&own) })
}

/// clap says of an option without its value that the value is empty.
fn is_missing(error: &clap::Error) -> bool {
    matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(value)) if value.is_empty())
}

impl Failure<'_> {
    /// Tells it; `text` prints it for people in a way of its own.
    fn tell(&self, text: Option<&dyn Fn()>) -> u8 {
        let tell = TELL.get().copied().unwrap_or_default();
        match text {
            _ if tell.json_lines => log::write_line(&format!("{}\n", print::safe_json(self.line().to_string()))),
            Some(text) => text(),
            None => log::write_line(&self.text()),
        }
        if tell.document {
            // If stdout is gone too, the exit code is what is left.
            let _ = print::print_json(&self.document());
        }
        self.exit_code
    }

    fn text(&self) -> String {
        let mut text = log::labelled(log::Label::Error, &self.message);
        for hint in self.hints {
            text += &log::labelled(log::Label::Hint, hint);
        }
        text
    }

    /// The last line of a log of JSON lines, in the shape of the others.
    fn line(&self) -> Value {
        json!({
            "timestamp": crate::report::time::rfc3339(SystemTime::now()),
            "level": "ERROR",
            "message": self.message,
            "hints": self.hints,
            "kind": self.kind,
            "exit_code": self.exit_code,
            "file": self.error.and_then(Error::file),
            "line": self.error.and_then(Error::line),
            "tensor": self.error.and_then(Error::tensor),
        })
    }

    fn document(&self) -> Frame<Failed> {
        let command = TELL.get().and_then(|tell| tell.command);
        let error = document::Failure {
            kind: self.kind,
            message: self.message.clone(),
            hints: self.hints.to_vec(),
            exit_code: self.exit_code,
            file: self.error.and_then(Error::file).map(Into::into),
            line: self.error.and_then(Error::line),
            tensor: self.error.and_then(Error::tensor).map(Into::into),
        };
        Frame::new(command, Vec::new(), Failed { error })
    }
}

/// Makes a panic, which is a bug, say so in the way of every other failure. For `main`, before anything else.
pub fn install_panic_hook() {
    static TOLD: AtomicBool = AtomicBool::new(false);
    panic::set_hook(Box::new(|info| {
        // One panic brings others with it as threads wait for each other; the first is the one to know.
        if !TOLD.swap(true, Ordering::SeqCst) {
            bug(info).tell(None);
        }
    }));
}

fn bug(info: &PanicHookInfo<'_>) -> Failure<'static> {
    let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
    let backtrace = std::backtrace::Backtrace::capture();
    let trace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => String::new(),
    };
    static HINTS: OnceLock<[String; 1]> = OnceLock::new();
    let hints = HINTS.get_or_init(|| {
        ["this is a bug in merganser, not in your input: please report it with the command, the recipe and the version \
          (`merganser --version`); RUST_BACKTRACE=1 adds where it happened"
            .into()]
    });
    let message = format!("merganser failed unexpectedly: {}{place}{trace}", said(info.payload()));
    Failure { kind: Cause::Internal.name(), message, hints, exit_code: EXIT_UNEXPECTED, error: None }
}

fn said(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

/// Runs a command; a panic in it ends with the exit code of a bug, once what it had in hand is cleared away.
#[doc(hidden)]
pub fn catching_panics(command: impl FnOnce() -> u8) -> u8 {
    // Nothing that the command borrowed is looked at afterwards.
    panic::catch_unwind(AssertUnwindSafe(command)).unwrap_or(EXIT_UNEXPECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(args: &[&str]) -> (bool, bool) {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let tell = Tell::of(&args);
        (tell.document, tell.json_lines)
    }

    #[test]
    fn how_failures_are_told_is_known_before_arguments_are_parsed() {
        assert_eq!(tell(&["merganser", "plan", "x", "--json"]), (true, false));
        assert_eq!(tell(&["merganser", "--log-format", "json", "plan"]), (false, true));
        assert_eq!(tell(&["merganser", "--log-format=json", "--json"]), (true, true));
        assert_eq!(tell(&["merganser", "--log-format", "text", "json"]), (false, false));
        assert_eq!(tell(&["--json", "plan", "--", "--json"]), (false, false));
    }
}
