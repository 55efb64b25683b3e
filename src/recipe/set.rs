//! Settings put into a recipe from outside: a value at a path, `parameters.lambda` or `task_vector_stages.0.parameters.keep`.

use std::rc::Rc;

use super::scalar;
use super::yaml::{Data, Entry, Node};

/// The tree with `value`, as YAML reads it in one word, at `path`: its keys, and places in lists from 0, joined by dots. A mapping
/// without the last key gets it; so does a mapping that is not there.
///
/// # Errors
/// What stands in the way, as a sentence.
pub(super) fn set(root: &Rc<Node>, path: &str, value: &str) -> Result<Rc<Node>, String> {
    let keys: Vec<&str> = path.split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err("it has an empty part".into());
    }
    at(Some(root), &keys, value, root.line)
}

fn at(node: Option<&Rc<Node>>, keys: &[&str], value: &str, line: usize) -> Result<Rc<Node>, String> {
    let Some((key, rest)) = keys.split_first() else {
        return Ok(Rc::new(Node::new(line, Data::Scalar { text: value.into(), quoted: false })));
    };
    let empty = Data::Map(Vec::new());
    let (line, data) = node.map_or((line, &empty), |n| (n.line, if n.is_null() { &empty } else { &n.data }));
    let data = match data {
        Data::Map(entries) => {
            let mut entries = entries.clone();
            match entries.iter_mut().find(|entry| entry.key == *key) {
                Some(entry) => entry.value = at(Some(&entry.value), rest, value, entry.line)?,
                None => entries.push(Entry { key: (*key).into(), line, value: at(None, rest, value, line)? }),
            }
            Data::Map(entries)
        }
        Data::List(items) => {
            let mut items = items.clone();
            let n = items.len();
            let item = key.parse::<usize>().ok().and_then(|i| items.get_mut(i));
            let item = item.ok_or_else(|| format!("`{key}` is no place in a list of {n}, which count from 0"))?;
            *item = at(Some(item), rest, value, line)?;
            Data::List(items)
        }
        Data::Scalar { text, .. } => return Err(format!("`{key}` is asked of `{text}`, which holds nothing")),
    };
    Ok(Rc::new(Node::new(line, data)))
}

/// The tree as YAML text.
pub(super) fn text(root: &Node) -> String {
    let mut out = String::new();
    write(root, 0, &mut out);
    out
}

fn write(node: &Node, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match &node.data {
        Data::Map(entries) if !entries.is_empty() => {
            for entry in entries {
                out.push_str(&format!("{pad}{}:", word(&entry.key, false)));
                below(&entry.value, indent, out);
            }
        }
        Data::List(items) if !items.is_empty() => {
            for item in items {
                out.push_str(&format!("{pad}-"));
                below(item, indent, out);
            }
        }
        _ => out.push_str(&format!("{pad}{}\n", short(node))),
    }
}

/// What stands behind a key or a dash: on the same line if it is one word.
fn below(node: &Node, indent: usize, out: &mut String) {
    match &node.data {
        Data::Map(entries) if !entries.is_empty() => {
            out.push('\n');
            write(node, indent + 2, out);
        }
        Data::List(items) if !items.is_empty() => {
            out.push('\n');
            write(node, indent + 2, out);
        }
        _ => out.push_str(&format!(" {}\n", short(node))),
    }
}

fn short(node: &Node) -> String {
    match &node.data {
        Data::Map(_) => "{}".into(),
        Data::List(_) => "[]".into(),
        Data::Scalar { text, quoted } => word(text, *quoted),
    }
}

/// A scalar, in quotes where plain text would say something else.
fn word(text: &str, quoted: bool) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '+' | '-');
    let is_word = text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/'))
        || (text.len() > 1 && text.starts_with('-') && !text.starts_with("--"));
    let is_text = scalar::is_null(text) || scalar::boolean(text).is_some() || scalar::number(text).is_ok();
    if is_word && text.chars().all(is_plain) && !(quoted && is_text) {
        return text.into();
    }
    // JSON's strings are YAML's, in double quotes.
    if !quoted && is_text { text.into() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::recipe::yaml;

    const TEXT: &str = "merge_method: ties # as ever\nbase_model: 'org/base model'\nmodels:\n- model: a\n  parameters: {weight: 1.5}\n\
                        - {model: \"b: c\"}\nparameters:\ntask_vector_stages: [{stage: lwptv, parameters: {keep: [0.1, .5]}}]\ncopy: ['1', ~, yes, '.*\\d']\n";

    fn tree(text: &str) -> Rc<Node> {
        yaml::parse(text, "r.yaml").unwrap().remove(0)
    }

    fn shown(node: &Node) -> serde_json::Value {
        match &node.data {
            Data::Map(entries) => {
                entries.iter().map(|e| (e.key.clone(), shown(&e.value))).collect::<serde_json::Map<_, _>>().into()
            }
            Data::List(items) => items.iter().map(|n| shown(n)).collect(),
            // Quotes say something where the text would be a number, a truth value or nothing without them.
            Data::Scalar { text, quoted } => {
                let is_text = scalar::is_null(text) || scalar::boolean(text).is_some() || scalar::number(text).is_ok();
                serde_json::json!([text, *quoted && is_text])
            }
        }
    }

    #[test]
    fn values_come_to_their_places_and_nothing_else_changes() {
        let root = tree(TEXT);
        for (path, pointer) in [
            ("parameters.lambda", "/parameters/lambda"),
            ("models.0.parameters.weight", "/models/0/parameters/weight"),
            ("models.1.parameters.weight", "/models/1/parameters/weight"),
            ("task_vector_stages.0.parameters.keep", "/task_vector_stages/0/parameters/keep"),
            ("merge_method", "/merge_method"),
        ] {
            let changed = shown(&set(&root, path, "0.3").unwrap());
            assert_eq!(changed.pointer(pointer), Some(&serde_json::json!(["0.3", false])), "{path}");
            let (before, after) = (shown(&root), changed);
            let other = if path.starts_with("models") { "/base_model" } else { "/models" };
            assert_eq!(before.pointer(other), after.pointer(other));
        }
        for (path, why) in [
            ("models.2.model", "no place in a list of 2"),
            ("models.x", "no place in a list"),
            ("merge_method.x", "which holds nothing"),
            ("a..b", "empty part"),
        ] {
            let error = set(&root, path, "1").unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_text_of_a_tree_reads_back_as_the_tree() {
        let hard = "a: '- x'\nb: \"--\"\nc: -1\nd: {e: {}, f: []}\ng: '#'\nh: \"tab\\t\\u00e9\\n\"\ni: ''\nj: '-'\nk: -\u{e9}x\nl: {m: [[1, 2], {n: o}]}\np: null\n'q r': 0x1F\n";
        for text in [TEXT, hard] {
            let root = tree(text);
            let written = super::text(&root);
            assert_eq!(shown(&tree(&written)), shown(&root), "{written}");
        }
    }
}
