//! Names from strangers' files in messages: quoted, with control characters escaped, and never longer than a line.

use std::borrow::Cow;
use std::path::Path;

/// Longest name, in characters, that a message shows in full.
const LONGEST: usize = 200;

/// A name in backticks, safe to print: control characters escaped, the middle of very long names left out.
///
/// Terminals act on escape sequences and headers may hold names of many megabytes, so every name that comes out of a file
/// goes through here on its way into a message.
pub fn quoted(name: &str) -> String {
    format!("`{}`", plain(name, LONGEST))
}

/// A path in backticks, safe to print as [`quoted`] is.
pub fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A name for a column of a table: [`quoted`] without the backticks.
pub fn escaped(name: &str) -> String {
    plain(name, LONGEST)
}

/// A whole text of several lines, safe to print: what is left of control characters in it is escaped, but for the ends of
/// its lines and tabs.
///
/// The command line's last gate: names are escaped where they are put into a text, and whatever was forgotten is here.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_safe = |c: char| matches!(c, '\n' | '\t') || !is_unsafe(c);
    if text.chars().all(is_safe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_safe(c) { out.push(c) } else { out.extend(c.escape_unicode()) }
    }
    Cow::Owned(out)
}

/// Characters on which terminals act, and those that reverse or hide text, which are as good for deceiving a reader.
pub fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// [`quoted`] without the backticks and of another length, for text that is more than one name.
pub(super) fn plain(text: &str, longest: usize) -> String {
    let mut out = String::new();
    let count = text.chars().take(longest + 1).count();
    if count <= longest {
        escape(text.chars(), &mut out);
    } else {
        escape(text.chars().take(longest.saturating_sub(40)), &mut out);
        out.push_str(" … ");
        let tail: Vec<char> = text.chars().rev().take(30).collect();
        escape(tail.into_iter().rev(), &mut out);
    }
    out
}

fn escape(chars: impl Iterator<Item = char>, out: &mut String) {
    for c in chars {
        if is_unsafe(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_other_scripts_are_not() {
        assert_eq!(quoted("a\u{1b}[2Jb"), "`a\\u{1b}[2Jb`");
        assert_eq!(quoted("größe.権重"), "`größe.権重`");
    }

    #[test]
    fn whole_texts_keep_their_lines_and_lose_what_terminals_act_on() {
        assert_eq!(printable("a\tb\n…\n"), "a\tb\n…\n");
        assert_eq!(printable("a\u{1b}]0;x\u{7}\r\u{9b}2J\u{202e}\n"), "a\\u{1b}]0;x\\u{7}\\u{d}\\u{9b}2J\\u{202e}\n");
    }

    #[test]
    fn long_names_keep_their_ends() {
        let name = format!("begin.{}.end", "x".repeat(100_000));
        let shown = quoted(&name);
        assert!(shown.starts_with("`begin.") && shown.ends_with(".end`") && shown.contains(" … "), "{shown}");
        assert!(shown.chars().count() < 220);
    }
}
