//! Regular expressions over tensor names, compiled when the recipe is read so that a wrong one is the recipe's error.

use regex::{RegexBuilder, RegexSet, RegexSetBuilder};

use super::reader::Reader;
use super::yaml::{Data, Node, quote};
use crate::error::{Error, Result};
use crate::ops::patterns::COMPILED_LIST_BYTES;

/// Most patterns of one list.
const MOST: usize = 256;
/// Largest compiled pattern, which also bounds the time that compiling takes.
const COMPILED_BYTES: usize = 1 << 20;

/// Compiles `copy` of a [`Recipe`](super::Recipe), whose patterns match *whole* tensor names: a plain name means itself.
///
/// # Errors
/// Internal, for patterns that did not come from a recipe and do not compile.
pub fn compile_names(patterns: &[String]) -> Result<RegexSet> {
    compile(patterns).map_err(|e| Error::internal(format!("patterns do not compile: {}", reason(&e))))
}

fn compile(patterns: &[String]) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(patterns.iter().map(|p| whole(p))).size_limit(COMPILED_LIST_BYTES).build()
}

/// A pattern that matches the whole of what `pattern` matches a part of.
fn whole(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

/// A list of patterns, or one alone.
pub(super) fn read(reader: &Reader, node: &Node, key: &str) -> Result<Vec<String>> {
    let one = |node: &Node| {
        let Data::Scalar { text, .. } = &node.data else {
            let message = format!("`{key}` takes regular expressions over tensor names, found {}", node.describe());
            return Err(reader.error(node.line, message));
        };
        if node.is_null() || text.is_empty() {
            return Err(reader.error(node.line, format_args!("a pattern of `{key}` is empty")));
        }
        check(text).map_err(|why| {
            let message = format!("pattern {} of `{key}` does not compile: {why}", quote(text));
            let hint = match key {
                "copy" => "a pattern matches a tensor's whole name; `.` is any character and `.*` any text",
                _ => "a pattern matches anywhere in a tensor's name; `.` is any character and `.*` any text",
            };
            reader.error(node.line, message).hint(hint)
        })?;
        Ok(text.clone())
    };
    match &node.data {
        Data::List(items) if items.len() > MOST => {
            Err(reader.error(node.line, format_args!("`{key}` has {} patterns, more than {MOST}", items.len())))
        }
        Data::List(items) => {
            let patterns = items.iter().map(|item| one(item)).collect::<Result<Vec<_>>>()?;
            match compile(&patterns) {
                Ok(_) => Ok(patterns),
                Err(e) => {
                    Err(reader.error(node.line, format_args!("the patterns of `{key}` together: {}", reason(&e))))
                }
            }
        }
        _ => Ok(vec![one(node)?]),
    }
}

fn check(pattern: &str) -> Result<(), String> {
    // Alone too: `a)|(b` would be one only inside the parentheses of `whole`.
    for pattern in [pattern.to_string(), whole(pattern)] {
        RegexBuilder::new(&pattern).size_limit(COMPILED_BYTES).build().map_err(|e| reason(&e))?;
    }
    Ok(())
}

/// The regex crate's explanation without its drawing of the pattern.
fn reason(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "too large when compiled".into(),
        other => {
            let text = other.to_string();
            let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
            last.trim().trim_start_matches("error: ").to_string()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ops::Patterns;

    #[test]
    fn names_match_as_a_whole_only() {
        let set = compile_names(&["lm_head".into(), r"a|.*\.bias".into()]).unwrap();
        for (name, expected) in [
            ("lm_head", true),
            ("lm_head.weight", false),
            ("model.lm_head", false),
            ("a", true),
            ("ab", false),
            ("x.bias", true),
            ("x.bias\n", false),
        ] {
            assert_eq!(set.is_match(name), expected, "{name}");
        }
        assert!(!compile_names(&[]).unwrap().is_match("a"));
    }

    #[test]
    fn patterns_match_anywhere_in_a_name() {
        let set = Patterns::new(vec!["mlp".into(), "^h\\.".into()]).unwrap();
        for (name, expected) in [("model.mlp.up", true), ("h.0.attn", true), ("x.h.0.attn", false), ("attn", false)] {
            assert_eq!(set.is_match(name), expected, "{name}");
        }
        assert!(!Patterns::new(Vec::new()).unwrap().is_match("a"));
    }

    #[test]
    fn a_pattern_that_is_whole_only_inside_our_parentheses_is_refused() {
        assert_eq!(check("a)|(b"), Err("unopened group".into()));
    }

    #[test]
    fn a_pattern_that_grows_without_bound_is_refused() {
        assert_eq!(check("((a{100}){100}){100}"), Err("too large when compiled".into()));
    }
}
