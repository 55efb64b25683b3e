//! stdout: text and JSON documents, safe for a terminal, and tables.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};

use crate::checkpoint::{is_unsafe, printable};
use crate::error::{Error, Result};

/// Prints to stdout; a reader that has gone away is not an error.
pub(super) fn print(text: &str) -> Result<()> {
    write(&printable(text))
}

/// Prints a JSON document, indented, with a newline.
pub(super) fn print_json(document: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(document).map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?;
    write(&(safe_json(text) + "\n"))
}

fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::environment(format!("cannot write to stdout: {e}"))
            .hint("check the disk that stdout is redirected to")),
        _ => Ok(()),
    }
}

/// The same JSON with the characters that [`printable`] escapes in text as `\u` escapes, of which JSON itself asks only for
/// a part. They can only stand inside strings.
pub(super) fn safe_json(text: String) -> String {
    if text.chars().all(|c| c == '\n' || !is_unsafe(c)) {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !is_unsafe(c) {
            out.push(c);
        } else {
            // None of them lies outside the first plane. Writing to a String cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        }
    }
    out
}

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows of cells in aligned columns with a header.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(Align, usize)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[(&str, Align)]) -> Self {
        let mut table = Self { columns: header.iter().map(|(_, align)| (*align, 0)).collect(), rows: Vec::new() };
        table.row(header.iter().map(|(name, _)| (*name).to_owned()).collect());
        table
    }

    /// Adds a row; its cells are made safe to print and stay one line.
    pub fn row(&mut self, cells: Vec<String>) {
        let cells: Vec<String> = cells.into_iter().map(one_line).collect();
        for ((_, width), cell) in self.columns.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count());
        }
        self.rows.push(cells);
    }

    /// The table, each line with `indent` before it.
    pub fn render(&self, indent: &str) -> String {
        let mut out = String::new();
        for row in &self.rows {
            let start = out.len();
            out += indent;
            for (i, (cell, (align, width))) in row.iter().zip(&self.columns).enumerate() {
                let gap = if i == 0 { "" } else { "  " };
                // Writing to a String cannot fail.
                let _ = match align {
                    Align::Left => write!(out, "{gap}{cell:<width$}"),
                    Align::Right => write!(out, "{gap}{cell:>width$}"),
                };
            }
            let end = out[start..].trim_end().len();
            out.truncate(start + end);
            out.push('\n');
        }
        out
    }
}

fn one_line(cell: String) -> String {
    match printable(&cell) {
        Cow::Borrowed(_) if !cell.contains(['\n', '\t']) => cell,
        safe => safe.replace('\n', "\\n").replace('\t', "\\t"),
    }
}

/// `1 tensor`, `2 tensors`.
pub(super) fn count(n: impl TryInto<u64>, what: &str) -> String {
    let n = n.try_into().unwrap_or(u64::MAX);
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `[4096, 128]`, `[]` for a scalar.
pub(super) fn shape(dims: &[u64]) -> String {
    format!("{dims:?}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters_and_lines_end_without_blanks() {
        let mut table = Table::new(&[("name", Align::Left), ("n", Align::Right), ("what", Align::Left)]);
        table.row(vec!["größe".into(), "7".into(), "x".into()]);
        table.row(vec!["a\u{1b}[2J\nb".into(), "1234".into(), String::new()]);
        let expected = "\
            > name              n  what\n\
            > größe             7  x\n\
            > a\\u{1b}[2J\\nb  1234\n";
        assert_eq!(table.render("> "), expected);
    }

    #[test]
    fn json_holds_nothing_that_a_terminal_acts_on_and_means_the_same() {
        let value = serde_json::json!({"a\u{9b}2J": "\u{7f}\u{202e}x\u{1b}\n", "ß": 1});
        let text = safe_json(serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|c| c == '\n' || !is_unsafe(c)), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
