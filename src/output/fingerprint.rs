//! The fingerprint of a plan: what must be equal for an interrupted merge to be gone on with.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// How many differences an error message lists.
const SHOWN_DIFFERENCES: usize = 4;
/// How many characters of a differing value an error message shows.
const SHOWN_CHARS: usize = 80;

/// Named components of a plan (recipe, sources with size, time and header digest, seed, layout, version) and the
/// digest of them all. The order of keys does not count.
#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint {
    components: Map<String, Value>,
    digest: String,
}

impl Fingerprint {
    /// From the components; their values are compared, and shown to the user where they differ.
    pub fn new(components: Map<String, Value>) -> Self {
        let canonical = sorted(&Value::Object(components.clone())).to_string();
        Self { components, digest: blake3::hash(canonical.as_bytes()).to_hex().to_string() }
    }

    /// The same with one more component.
    #[must_use]
    pub fn with(&self, key: &str, value: Value) -> Self {
        let mut components = self.components.clone();
        components.insert(key.into(), value);
        Self::new(components)
    }

    /// blake3 of the components, hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The components.
    pub fn components(&self) -> &Map<String, Value> {
        &self.components
    }

    /// Where `earlier` differs, in words; at most a few, the rest counted. Empty if they are equal.
    pub fn differences(&self, earlier: &Self) -> Vec<String> {
        let mut found = Vec::new();
        compare("", &Value::Object(earlier.components.clone()), &Value::Object(self.components.clone()), &mut found);
        let more = found.len().saturating_sub(SHOWN_DIFFERENCES);
        found.truncate(SHOWN_DIFFERENCES);
        if more > 0 {
            found.push(format!("and {more} more"));
        }
        found
    }

    /// The text of the file that keeps a fingerprint.
    pub(super) fn to_file(&self) -> String {
        json!({"schema": 1, "digest": self.digest, "components": self.components}).to_string()
    }

    /// Reads what [`Self::to_file`] wrote; `None` if it is damaged.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let text = std::fs::read(path).map_err(|e| Error::io(format_args!("read `{}`", path.display()), &e))?;
        let Ok(Value::Object(mut file)) = serde_json::from_slice(&text) else { return Ok(None) };
        let Some(Value::Object(components)) = file.remove("components") else { return Ok(None) };
        let read = Self::new(components);
        Ok((file.get("digest").and_then(Value::as_str) == Some(read.digest())).then_some(read))
    }
}

/// The same value with the keys of every object in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| key.as_str());
            Value::Object(pairs.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn compare(place: &str, before: &Value, now: &Value, found: &mut Vec<String>) {
    match (before, now) {
        (Value::Object(b), Value::Object(n)) => {
            let gone = b.keys().filter(|key| !n.contains_key(*key));
            for key in n.keys().chain(gone) {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                compare(&place, b.get(key).unwrap_or(&Value::Null), n.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(b), Value::Array(n)) if b.len() == n.len() => {
            for (i, (b, n)) in b.iter().zip(n).enumerate() {
                compare(&format!("{place}[{i}]"), b, n, found);
            }
        }
        _ if before == now => {}
        _ => found.push(format!("`{place}` was {}, is now {}", shown(before), shown(now))),
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => return "absent".into(),
        Value::Array(items) => return format!("a list of {}", items.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(value: Value) -> Fingerprint {
        Fingerprint::new(value.as_object().unwrap().clone())
    }

    #[test]
    fn the_order_of_keys_does_not_count_and_everything_else_does() {
        let a = of(json!({"seed": 1, "recipe": {"x": 1, "y": [1, 2]}}));
        assert_eq!(a.digest(), of(json!({"recipe": {"y": [1, 2], "x": 1}, "seed": 1})).digest());
        assert_ne!(a.digest(), of(json!({"recipe": {"y": [2, 1], "x": 1}, "seed": 1})).digest());
        assert_ne!(a.digest(), of(json!({"recipe": {"y": [1, 2], "x": 1}, "seed": "1"})).digest());
    }

    #[test]
    fn differences_name_the_place_and_both_values() {
        let before = of(json!({"seed": 1, "sources": [{"path": "a", "modified": "t1"}, {"path": "b"}], "gone": true}));
        let now = of(json!({"seed": 2, "sources": [{"path": "a", "modified": "t2"}, {"path": "b"}]}));
        let found = now.differences(&before);
        assert_eq!(
            found,
            [
                "`seed` was 1, is now 2",
                "`sources[0].modified` was \"t1\", is now \"t2\"",
                "`gone` was true, is now absent"
            ]
        );
        assert!(now.differences(&now).is_empty());
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let before = of(json!({"recipe": "é".repeat(500)}));
        let now = of(json!({"recipe": "x"}));
        assert!(now.differences(&before)[0].chars().count() < 130);
    }

    #[test]
    fn a_damaged_file_is_never_taken_for_a_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let text = of(json!({"seed": 1})).to_file();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(Fingerprint::read(&path).unwrap(), Some(of(json!({"seed": 1}))));
        for bad in ["", "[]", "{}", &text[..text.len() - 3], &text.replace("\"seed\":1", "\"seed\":2")] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(Fingerprint::read(&path).unwrap(), None, "{bad}");
        }
    }
}
