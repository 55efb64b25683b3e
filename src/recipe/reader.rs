//! What every part of the reader shares: where the recipe is, its warnings, and the shapes of YAML it asks for.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::Path;

use super::yaml::{self, Data, Entry, Node};
use crate::error::{Error, Kind, Result};
use crate::hub::Fetcher;
use crate::suggest::nearest;

/// A recipe being read.
pub(super) struct Reader<'a> {
    /// How errors name the recipe.
    pub file: &'a str,
    /// What its relative paths are relative to.
    pub folder: &'a Path,
    /// Whether the models must exist.
    pub on_disk: bool,
    /// What may be downloaded, if anything.
    pub fetcher: Option<&'a Fetcher>,
    /// Names of documents, which are models of the others.
    pub names: Vec<String>,
    /// Lines and texts.
    pub warnings: RefCell<Vec<(usize, String)>>,
    /// Mistakes so far: all of them are told at once.
    pub mistakes: RefCell<Vec<Error>>,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a str, folder: &'a Path, on_disk: bool, fetcher: Option<&'a Fetcher>) -> Self {
        let (warnings, mistakes) = (RefCell::default(), RefCell::default());
        Self { file, folder, on_disk, fetcher, names: Vec::new(), warnings, mistakes }
    }

    /// What was read; `None` for a mistake, which is noted so that reading can go on.
    pub fn keep<T>(&self, read: Result<T>) -> Option<T> {
        read.map_err(|mistake| self.mistakes.borrow_mut().push(mistake)).ok()
    }

    /// The warnings, by line.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.take();
        warnings.sort_by_key(|(line, _)| *line);
        warnings.into_iter().map(|(_, text)| text).collect()
    }

    /// How many mistakes were noted so far.
    pub fn found(&self) -> usize {
        self.mistakes.borrow().len()
    }

    /// The value, unless any mistake was noted: then all of them as one error.
    pub fn finish<T>(&self, value: Option<T>) -> Result<T> {
        let mut mistakes = self.mistakes.take();
        mistakes.sort_by_key(|mistake| mistake.line().unwrap_or_default());
        match (mistakes.len(), value) {
            (0, Some(value)) => Ok(value),
            (0, None) => Err(Error::internal(format!("{}: nothing was read, and no mistake was found", self.file))),
            (1, _) => Err(mistakes.remove(0)),
            _ => Err(all_at_once(&mistakes).in_file(self.file)),
        }
    }
    pub fn error(&self, line: usize, message: impl Display) -> Error {
        yaml::error_at(self.file, line, message)
    }

    pub fn warn(&self, line: usize, message: impl Display) {
        self.warnings.borrow_mut().push((line, format!("{}:{line}: {message}", self.file)));
    }

    /// The error for a key that is none of `known`, with the nearest of them.
    pub fn unknown_key(&self, line: usize, message: impl Display, key: &str, known: &[&str]) -> Error {
        let mut error = self.error(line, message);
        if let Some(near) = nearest(key, known.iter().copied()) {
            error = error.hint(format!("did you mean `{near}`?"));
        }
        error.hint(format!("known keys: {}", list_of_names(known.iter().copied(), "and")))
    }

    /// The entries of a mapping; null is an empty one.
    pub fn map<'n>(&self, node: &'n Node, what: &str) -> Result<&'n [Entry]> {
        match &node.data {
            Data::Map(entries) => Ok(entries),
            _ if node.is_null() => Ok(&[]),
            _ => Err(self.error(node.line, format_args!("{what} must be a mapping, found {}", node.describe()))),
        }
    }

    /// The items of a list; null is an empty one.
    pub fn list<'n>(&self, node: &'n Node, what: &str) -> Result<&'n [std::rc::Rc<Node>]> {
        match &node.data {
            Data::List(items) => Ok(items),
            _ if node.is_null() => Ok(&[]),
            _ => Err(self.error(node.line, format_args!("{what} must be a list, found {}", node.describe()))),
        }
    }
}

/// Several mistakes as one error: a line each, and each hint once.
fn all_at_once(mistakes: &[Error]) -> Error {
    // Not the reader's place to call a missing disk the user's mistake: the first that is none decides.
    let environment = mistakes.iter().any(|m| m.kind() == Kind::Environment);
    let message = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let mut error = if environment { Error::environment(message) } else { Error::input(message) };
    if let [first, rest @ ..] = mistakes
        && rest.iter().all(|other| other.cause() == first.cause())
    {
        error = error.input_is(first.cause());
    }
    for mistake in mistakes {
        for hint in mistake.hints() {
            let place = mistake.line().map(|line| format!("line {line}: ")).unwrap_or_default();
            let hint = format!("{place}{hint}");
            if !error.hints().contains(&hint) {
                error = error.hint(hint);
            }
        }
    }
    error
}

/// The text of a key's scalar; `None` if it is null.
pub(super) fn text(reader: &Reader, entry: &Entry) -> Result<Option<String>> {
    match &entry.value.data {
        Data::Scalar { .. } if entry.value.is_null() => Ok(None),
        Data::Scalar { text, .. } => Ok(Some(text.clone())),
        _ => {
            let message = format!("`{}` must be a word, found {}", entry.key, entry.value.describe());
            Err(reader.error(entry.value.line, message))
        }
    }
}

/// Names in a sentence: `a`, `b` and `c`.
pub(super) fn list_of_names<'a>(names: impl IntoIterator<Item = &'a str>, last: &str) -> String {
    let names: Vec<_> = names.into_iter().map(|n| format!("`{n}`")).collect();
    match names.as_slice() {
        [first @ .., end] if !first.is_empty() => format!("{} {last} {end}", first.join(", ")),
        _ => names.concat(),
    }
}
