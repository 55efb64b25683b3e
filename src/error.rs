//! The one error type: what is wrong, who must act, and a hint that says how.

use std::fmt;

/// Result with merganser's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who must act, which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The user's recipe, checkpoint or argument value is at fault (exit code 1).
    Input,
    /// A bug or an unexpected failure (exit code 2).
    Internal,
    /// The environment failed: no space, I/O error, device lost, out of memory (exit code 3).
    Environment,
    /// Stopped by this signal number (exit code 128 + signal).
    Interrupted(i32),
}

/// An error with its hints. `Display` gives the message alone; hints are printed apart from it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hints: Vec<String>,
    /// Whether taking less of a device's memory may mend it.
    lacks_device_memory: bool,
}

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hints: Vec::new(), lacks_device_memory: false }
    }

    /// The user's input is at fault.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }

    /// The environment failed; the work can be resumed.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(Kind::Environment, message)
    }

    /// Something that should not happen.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
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
            _ => Self::environment(message),
        }
    }

    /// Adds a hint: one sentence that says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
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

    /// The same error, said to have come up at a tensor unless its message names it already.
    #[must_use]
    pub fn at_tensor(mut self, tensor: &str) -> Self {
        if !self.message.contains(tensor) {
            self.message = format!("at tensor `{tensor}`: {}", self.message);
        }
        self
    }

    /// Who must act.
    pub fn kind(&self) -> Kind {
        self.kind
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
