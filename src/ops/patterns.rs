//! Regular expressions over tensor names, compiled once.

use regex::{RegexSet, RegexSetBuilder};

use crate::error::{Error, Result};

/// Largest compiled list of patterns, in bytes; it also bounds the time that compiling takes.
pub(crate) const COMPILED_LIST_BYTES: usize = 1 << 24;

/// Regular expressions, each of which matches anywhere in a tensor's name.
#[derive(Debug, Clone)]
pub struct Patterns {
    texts: Vec<String>,
    set: RegexSet,
}

impl Patterns {
    /// Compiles a list of patterns.
    ///
    /// # Errors
    /// Internal, where one does not compile: whoever reads a recipe checks each before, and says where it stands.
    pub fn new(texts: Vec<String>) -> Result<Self> {
        let set = RegexSetBuilder::new(&texts)
            .size_limit(COMPILED_LIST_BYTES)
            .build()
            .map_err(|e| Error::internal(format!("patterns do not compile: {e}")))?;
        Ok(Self { texts, set })
    }

    /// The patterns as written.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Whether one of them matches a part of the name.
    pub fn is_match(&self, name: &str) -> bool {
        self.set.is_match(name)
    }

    /// All of them, compiled together; positions are those in [`Patterns::texts`].
    pub fn set(&self) -> &RegexSet {
        &self.set
    }
}

impl PartialEq for Patterns {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}
