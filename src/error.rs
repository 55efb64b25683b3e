//! The one error type: what is wrong, who must act, and a hint that says how.

use std::fmt;

/// Result with merganser's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The exit code that asks for another try later, as `sysexits.h` has it (EX_TEMPFAIL).
const EXIT_BUSY: u8 = 75;

/// Who must act, which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The user's recipe, checkpoint or argument value is at fault (exit code 1).
    Input,
    /// A bug or an unexpected failure (exit code 2).
    Internal,
    /// The environment failed: no space, I/O error, device lost, out of memory (exit code 3).
    Environment,
    /// Another process works on the same output: the same command may be tried again later (exit code 75).
    Busy,
    /// Stopped by this signal number (exit code 128 + signal).
    Interrupted(i32),
}

/// What failed, in the words that programs tell failures apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The recipe.
    Recipe,
    /// A checkpoint, or an output that is read as one.
    Checkpoint,
    /// The arguments, or where they point to.
    Usage,
    /// merganser itself.
    Internal,
    /// A disk, a quota or a limit on files' sizes is full.
    NoSpace,
    /// A file or folder that this user may not use.
    Permission,
    /// Memory: too little of it, or a budget that cannot do.
    Memory,
    /// A device, its driver or its libraries.
    Device,
    /// Reading or writing.
    Io,
    /// Another merganser at work.
    Busy,
    /// A signal.
    Interrupted,
}

impl Cause {
    /// Every cause, in the order of the contract.
    pub const ALL: [Self; 11] = [
        Self::Recipe,
        Self::Checkpoint,
        Self::Usage,
        Self::Internal,
        Self::NoSpace,
        Self::Permission,
        Self::Memory,
        Self::Device,
        Self::Io,
        Self::Busy,
        Self::Interrupted,
    ];

    /// The word for it in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Recipe => "recipe",
            Self::Checkpoint => "checkpoint",
            Self::Usage => "usage",
            Self::Internal => "internal",
            Self::NoSpace => "no_space",
            Self::Permission => "permission",
            Self::Memory => "memory",
            Self::Device => "device",
            Self::Io => "io",
            Self::Busy => "busy",
            Self::Interrupted => "interrupted",
        }
    }

    /// What an error of the system is about, for errors that the environment is to blame for.
    fn of_io(kind: std::io::ErrorKind) -> Self {
        use std::io::ErrorKind as K;
        match kind {
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Self::NoSpace,
            K::PermissionDenied | K::ReadOnlyFilesystem => Self::Permission,
            K::OutOfMemory => Self::Memory,
            _ => Self::Io,
        }
    }
}

/// What an error is about, as far as it is known. The message says the same in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    file: Option<String>,
    line: Option<usize>,
    tensor: Option<String>,
}

/// An error with its hints. `Display` gives the message alone; hints are printed apart from it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    /// Where it is known; else it follows from the kind.
    cause: Option<Cause>,
    message: String,
    hints: Vec<String>,
    at: Box<Place>,
    /// Whether taking less of a device's memory may mend it.
    lacks_device_memory: bool,
    /// Whether a device computed wrongly, so that what it made cannot be kept.
    has_wrong_result: bool,
}

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            cause: None,
            message: message.into(),
            hints: Vec::new(),
            at: Box::default(),
            lacks_device_memory: false,
            has_wrong_result: false,
        }
    }

    /// A line of a file, counted from 1, is at fault; the message begins with both.
    pub fn at_line(file: &str, line: usize, message: impl fmt::Display) -> Self {
        Self::input(format!("{file}:{line}: {message}")).on_line(file, line)
    }

    /// The user's input is at fault.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }

    /// The environment failed; the work can be resumed.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(Kind::Environment, message)
    }

    /// A device, its driver or its libraries failed: the environment's.
    pub fn device(message: impl Into<String>) -> Self {
        Self::environment(message).because(Cause::Device)
    }

    /// Something that should not happen.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Another process is at work on the same output.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Kind::Busy, message)
    }

    /// Stopped by a signal.
    pub fn interrupted(signal: i32, message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted(signal), message)
    }

    /// An I/O error while `doing` something (a phrase such as "read `x`").
    ///
    /// A missing file or a wrong file type is the user's to mend; everything else is the environment's.
    pub fn io(doing: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let message = format!("cannot {doing}: {error}");
        match error.kind() {
            K::NotFound | K::IsADirectory | K::NotADirectory | K::InvalidInput | K::InvalidData => Self::input(message),
            kind => Self::environment(message).because(Cause::of_io(kind)),
        }
    }

    /// The same error, about `cause` unless it is known to be about something else.
    #[must_use]
    pub fn because(mut self, cause: Cause) -> Self {
        self.cause.get_or_insert(cause);
        self
    }

    /// The same error; if the user's input is at fault, that input is `cause` unless it is known to be something else.
    #[must_use]
    pub fn input_is(self, cause: Cause) -> Self {
        if self.kind == Kind::Input { self.because(cause) } else { self }
    }

    /// The same error, about what the system says of `error`.
    #[must_use]
    pub fn because_of_io(self, error: &std::io::Error) -> Self {
        self.because(Cause::of_io(error.kind()))
    }

    /// Adds a hint: one sentence that says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same error, said to be of `what`.
    #[must_use]
    pub fn within(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same error, as one of a device that had too little memory left.
    #[must_use]
    pub fn out_of_device_memory(mut self) -> Self {
        self.lacks_device_memory = true;
        self
    }

    /// Whether taking less of a device's memory may mend it.
    pub fn is_out_of_device_memory(&self) -> bool {
        self.lacks_device_memory
    }

    /// The same error, as one of a device that computed wrongly.
    #[must_use]
    pub fn of_wrong_result(mut self) -> Self {
        self.has_wrong_result = true;
        self
    }

    /// Whether a device computed wrongly, so that what it made cannot be kept.
    pub fn is_of_wrong_result(&self) -> bool {
        self.has_wrong_result
    }

    /// The same error, said to have come up at a tensor unless it is known to be about one.
    #[must_use]
    pub fn at_tensor(mut self, tensor: &str) -> Self {
        if self.at.tensor.is_none() {
            self.message = format!("at tensor `{tensor}`: {}", self.message);
        }
        self.of_tensor(tensor)
    }

    /// The same error, about a tensor that its message names, unless it is known to be about another.
    #[must_use]
    pub fn of_tensor(mut self, tensor: &str) -> Self {
        self.at.tensor.get_or_insert_with(|| tensor.to_owned());
        self
    }

    /// The same error, about a line of a file, both of which its message names, unless it is known to be about another.
    #[must_use]
    pub fn on_line(mut self, file: impl fmt::Display, line: usize) -> Self {
        if self.at.file.is_none() {
            self.at.line = Some(line);
        }
        self.in_file(file)
    }

    /// The same error, about a file that its message names, unless it is known to be about another.
    #[must_use]
    pub fn in_file(mut self, file: impl fmt::Display) -> Self {
        self.at.file.get_or_insert_with(|| file.to_string());
        self
    }

    /// The file that is at fault, where one is, as the message names it.
    pub fn file(&self) -> Option<&str> {
        self.at.file.as_deref()
    }

    /// The line of [`file`](Self::file), counted from 1, where one line is at fault.
    pub fn line(&self) -> Option<usize> {
        self.at.line
    }

    /// The tensor that the error came up at, where it did at one.
    pub fn tensor(&self) -> Option<&str> {
        self.at.tensor.as_deref()
    }

    /// Who must act.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What failed.
    pub fn cause(&self) -> Cause {
        match (self.kind, self.cause) {
            (Kind::Busy, _) => Cause::Busy,
            (Kind::Interrupted(_), _) => Cause::Interrupted,
            (Kind::Internal, _) => Cause::Internal,
            (_, Some(cause)) => cause,
            (Kind::Input, None) => Cause::Usage,
            (Kind::Environment, None) => Cause::Io,
        }
    }

    /// The hints, in the order in which they were added.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// The process's exit code for this error, as the command-line contract fixes it.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Input => 1,
            Kind::Internal => 2,
            Kind::Environment => 3,
            Kind::Busy => EXIT_BUSY,
            Kind::Interrupted(signal) => (128 + signal) as u8,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_told_once_and_by_its_whole_name() {
        // `q` is a part of the message's word, and of `q.weight`: neither names it.
        let error = Error::input("a quota").at_tensor("q").at_tensor("q.weight");
        assert_eq!(error.to_string(), "at tensor `q`: a quota");
        assert_eq!(error.tensor(), Some("q"));
        let named = Error::input("`q.weight` holds a NaN").of_tensor("q.weight").at_tensor("q");
        assert_eq!((named.to_string().as_str(), named.tensor()), ("`q.weight` holds a NaN", Some("q.weight")));
    }

    #[test]
    fn a_line_belongs_to_the_first_file_that_is_named() {
        let error = Error::at_line("a: b.yaml", 7, "unknown key").in_file("other.yaml");
        assert_eq!(error.to_string(), "a: b.yaml:7: unknown key");
        assert_eq!((error.file(), error.line()), (Some("a: b.yaml"), Some(7)));
        assert_eq!(Error::internal("x").line(), None);
    }
}
