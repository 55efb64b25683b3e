//! What every part of the reader shares: where the recipe is, its warnings, and the shapes of YAML it asks for.

use std::fmt::Display;
use std::path::Path;

use super::yaml::{self, Data, Entry, Node};
use crate::error::{Error, Result};
use crate::suggest::nearest;

/// A recipe being read.
pub(super) struct Reader<'a> {
    /// How errors name the recipe.
    pub file: &'a str,
    /// What its relative paths are relative to.
    pub folder: &'a Path,
    /// Whether the models must exist.
    pub on_disk: bool,
    pub warnings: Vec<String>,
}

impl Reader<'_> {
    pub fn error(&self, line: usize, message: impl Display) -> Error {
        yaml::error_at(self.file, line, message)
    }

    pub fn warn(&mut self, line: usize, message: impl Display) {
        self.warnings.push(format!("{}:{line}: {message}", self.file));
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
