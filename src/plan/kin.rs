//! Whether sources that have the same tensors belong together: what their configurations, tokenizers and preprocessors say.
//!
//! The output gets the reference's files. Where another source says something else, its weights were made for that, and the
//! difference is told with key and both values.

use std::collections::BTreeMap;
use std::path::Path;

use regex::RegexSet;
use serde_json::Value;

use super::{Source, TensorPlan};
use crate::checkpoint::{json_in, printable, quoted};
use crate::dtype::DtypeExt;
use crate::ops::Program;
use crate::output::copy::MAX_BYTES;
use crate::recipe::Recipe;
use crate::tokenizer::{FILE, Tokens};

/// Files that say how a model is run and what it is fed with, compared key by key.
const FILES: [&str; 4] =
    ["config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"];
/// Keys that say nothing of what a model computes: where it came from, what wrote it, in which type it is loaded, caches.
const IDLE: [&str; 11] = [
    "_name_or_path",
    "name_or_path",
    "torch_dtype",
    "dtype",
    "use_cache",
    "cache_implementation",
    "cache_dir",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "auto_map",
    "_commit_hash",
];
/// Keys that follow the vocabulary, which a recipe with a `tokenizer` makes anew.
const VOCABULARY: [&str; 5] = ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"];
/// How many differences of one file are named.
const NAMED: usize = 4;
/// How many levels of a file are compared.
const DEPTH: usize = 16;

/// Warnings about what differs between the reference (`sources[0]`) and the others.
pub(super) fn warnings(recipe: &Recipe, sources: &[Source]) -> Vec<String> {
    let Some((reference, others)) = sources.split_first() else { return Vec::new() };
    let Some(base) = reference.checkpoint.folder() else { return Vec::new() };
    let folders: Vec<(&str, &Path)> = others
        .iter()
        .filter_map(|s| Some((s.written.as_str(), s.checkpoint.folder()?)))
        .filter(|(_, f)| *f != base)
        .collect();
    let mut warnings = Vec::new();
    for file in FILES {
        let Some(expected) = json_in(base, file).map(Value::Object) else { continue };
        let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (written, folder) in &folders {
            let Some(own) = json_in(folder, file).map(Value::Object) else { continue };
            let mut apart = Vec::new();
            differences(&own, &expected, "", recipe.tokenizer.is_some(), DEPTH, &mut apart);
            if !apart.is_empty() {
                found.entry(in_words(&apart)).or_default().push(written);
            }
        }
        let told = found.into_iter().map(|(words, who)| {
            format!("`{file}` of {} and of {} differ: {words}", list(&who), quoted(&reference.written))
        });
        warnings.extend(told);
    }
    if recipe.tokenizer.is_none() {
        warnings.extend(tokenizers(&reference.written, base, &folders));
    }
    warnings
}

/// `key own and theirs`, the first few.
fn in_words(apart: &[(String, String, String)]) -> String {
    let mut words: Vec<String> =
        apart.iter().take(NAMED).map(|(key, own, other)| format!("{} is {own} and {other}", quoted(key))).collect();
    if apart.len() > NAMED {
        words.push(format!("and {} more", apart.len() - NAMED));
    }
    words.join(", ")
}

fn list(who: &[&str]) -> String {
    who.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
}

/// Keys, with both values, where two documents differ: absent is null, and numbers compare as numbers.
fn differences(
    own: &Value,
    other: &Value,
    path: &str,
    makes_vocabulary: bool,
    depth: usize,
    apart: &mut Vec<(String, String, String)>,
) {
    let (Value::Object(a), Value::Object(b), true) = (own, other, depth > 0) else {
        if !is_same(own, other) {
            apart.push((path.to_owned(), shown(own), shown(other)));
        }
        return;
    };
    let mut keys: Vec<&String> = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))).collect();
    keys.sort_unstable();
    for key in keys {
        let is_idle = IDLE.contains(&key.as_str())
            || key.ends_with("version")
            || (makes_vocabulary && VOCABULARY.contains(&key.as_str()));
        if is_idle {
            continue;
        }
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
        differences(a, b, &path, makes_vocabulary, depth - 1, apart);
    }
}

fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a == b,
            _ => a.as_f64() == b.as_f64(),
        },
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            let of = |map: &serde_json::Map<String, Value>, key: &str| map.get(key).cloned().unwrap_or(Value::Null);
            a.keys().chain(b.keys()).all(|key| is_same(&of(a, key), &of(b, key)))
        }
        _ => a == b,
    }
}

/// A value in a message.
fn shown(value: &Value) -> String {
    /// Longest value that is shown whole, in characters.
    const LONGEST: usize = 60;
    if value.is_null() {
        return "absent".into();
    }
    let text = value.to_string();
    let short: String = text.chars().take(LONGEST).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{}{dots}", printable(&short))
}

/// Tokens whose rows mean something else in another source.
fn tokenizers(reference: &str, base: &Path, others: &[(&str, &Path)]) -> Vec<String> {
    let bytes = |folder: &Path, name: &str| {
        let path = folder.join(name);
        let is_small = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_BYTES);
        std::fs::read(path).ok().filter(|_| is_small)
    };
    let mut warnings = Vec::new();
    let Some(own) = bytes(base, FILE) else {
        // Forms that are not read here are compared whole.
        for name in ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model"] {
            let Some(own) = bytes(base, name) else { continue };
            let apart: Vec<&str> = others
                .iter()
                .filter(|(_, folder)| bytes(folder, name).is_some_and(|other| other != own))
                .map(|(written, _)| *written)
                .collect();
            if !apart.is_empty() {
                warnings.push(format!("`{name}` of {} and of {} differ", list(&apart), quoted(reference)));
            }
        }
        return warnings;
    };
    let mut vocabulary = None;
    for (written, folder) in others {
        let Some(other) = bytes(folder, FILE).filter(|other| *other != own) else { continue };
        let first = vocabulary.get_or_insert_with(|| Tokens::read(&own));
        let (Some(first), Some(other)) = (&*first, Tokens::read(&other)) else {
            warnings.push(format!(
                "the tokenizers of {} and {} differ, and cannot be compared",
                quoted(written),
                quoted(reference)
            ));
            continue;
        };
        warnings.extend(vocabularies(first, &other, reference, written));
    }
    warnings
}

fn vocabularies(ours: &Tokens, theirs: &Tokens, reference: &str, written: &str) -> Option<String> {
    let ids = ours.texts.keys().chain(theirs.texts.keys().filter(|id| !ours.texts.contains_key(id)));
    let mut apart: Vec<u32> = ids.copied().filter(|id| ours.texts.get(id) != theirs.texts.get(id)).collect();
    apart.sort_unstable();
    let token = |of: &Tokens, id: u32| of.texts.get(&id).map_or("no token".into(), |text| quoted(text));
    if let Some(id) = apart.first() {
        let count = apart.len();
        return Some(format!(
            "the tokenizers of {} and {} differ in {count} id{}, {id} first, which is {} and {}: their rows are merged all the same; \
             `tokenizer_source: union` merges them by token",
            quoted(written),
            quoted(reference),
            if count == 1 { "" } else { "s" },
            token(theirs, *id),
            token(ours, *id)
        ));
    }
    // The same tokens under the same ids: what is left is how added ones are found in a text.
    let absent = Value::Null;
    let entry = |of: &'_ Tokens, text: &str| of.added.get(text).cloned().unwrap_or_else(|| absent.clone());
    let texts = ours.added.keys().chain(theirs.added.keys().filter(|text| !ours.added.contains_key(*text)));
    let mut added = texts.filter(|text| !is_same(&entry(ours, text), &entry(theirs, text)));
    let token = added.next()?;
    let more = added.count();
    let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
    Some(format!(
        "the tokenizers of {} and {} treat the added token {}{more} differently",
        quoted(written),
        quoted(reference),
        quoted(token)
    ))
}

/// Tensors that are copied since they are no floats, and that another source has in another type or shape.
pub(super) fn other_forms(sources: &[Source], tensors: &[TensorPlan], copied: &RegexSet) -> Vec<String> {
    let mut warnings = Vec::new();
    for source in sources.iter().skip(1) {
        let differs = |tensor: &&TensorPlan| {
            let Some(from) = tensor.base.filter(|from| from.source == 0 && tensor.program == Program::Copy) else {
                return false;
            };
            let own = &sources[0].checkpoint.tensors()[from.tensor];
            let other = source.checkpoint.get(&own.name).filter(|_| !copied.is_match(&own.name));
            !own.dtype.is_mergeable_float() && other.is_some_and(|o| (o.dtype, &o.shape) != (own.dtype, &own.shape))
        };
        let mut apart = tensors.iter().filter(differs);
        let Some(first) = apart.next() else { continue };
        let more = apart.count();
        let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        warnings.push(format!(
            "{}{more} of {} has another type or shape: it is no float, and that of {} is kept",
            quoted(&first.name),
            quoted(&source.written),
            quoted(&sources[0].written)
        ));
    }
    warnings
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(a: Value, b: Value) -> String {
        let mut apart = Vec::new();
        differences(&a, &b, "", false, DEPTH, &mut apart);
        in_words(&apart)
    }

    #[test]
    fn configurations_are_compared_key_by_key_at_any_depth() {
        let a = json!({"rope_theta": 500000.0, "heads": 8, "text": {"rope_scaling": {"factor": 8.0}}});
        let b = json!({"rope_theta": 10000, "heads": 8.0, "text": {"rope_scaling": null}});
        assert_eq!(
            found(a, b),
            "`rope_theta` is 500000.0 and 10000, `text.rope_scaling` is {\"factor\":8.0} and absent"
        );
    }

    #[test]
    fn what_says_nothing_of_a_model_is_no_difference() {
        let a = json!({"_name_or_path": "a", "transformers_version": "4", "torch_dtype": "float16", "x": null, "n": 1e-5,
                       "list": [1, {"y": null}], "use_cache": true});
        let b = json!({"dtype": "bfloat16", "n": 0.00001, "list": [1.0, {}], "torch_dtype": "bfloat16"});
        assert_eq!(found(a, b), "");
        assert_eq!(
            found(json!({"n": 9007199254740993_i64}), json!({"n": 9007199254740992_i64})),
            "`n` is 9007199254740993 and 9007199254740992"
        );
        let many = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6});
        assert!(found(many, json!({})).ends_with("`d` is 4 and absent, and 2 more"));
    }
}
