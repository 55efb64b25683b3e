//! The vocabulary of a model: its `tokenizer.json`, read as JSON. No text is encoded here, so that the rules of the
//! model (BPE, Unigram, WordPiece) are carried over and not run.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::{quoted, quoted_path};
use crate::error::{Error, Result};
use crate::output::copy::MAX_BYTES;

/// The file that holds a vocabulary.
pub(crate) const FILE: &str = "tokenizer.json";
/// Largest number of a token: far above any vocabulary, and a bound on what a stranger's file can ask for.
const MOST_TOKENS: u32 = 1 << 24;

/// A model's vocabulary.
#[derive(Debug, Clone)]
pub(crate) struct Vocabulary {
    /// Where it was read.
    pub path: PathBuf,
    /// The whole file.
    pub document: Value,
    /// How the model splits text, such as `BPE`.
    pub kind: String,
    ids: HashMap<String, u32>,
    texts: BTreeMap<u32, String>,
}

impl Vocabulary {
    /// Reads the vocabulary of a model's folder; `None` if there is nothing of a tokenizer.
    ///
    /// # Errors
    /// Input, for a file that is no tokenizer, and for tokenizers in other forms.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match std::fs::metadata(&path) {
            Ok(facts) if facts.len() > MAX_BYTES => {
                return Err(Error::input(format!("{} has more than {MAX_BYTES} bytes", quoted_path(&path))));
            }
            Ok(_) => std::fs::read(&path).map_err(|e| Error::io(format_args!("read {}", quoted_path(&path)), &e))?,
            Err(_) => return Self::absent(folder),
        };
        let document: Value = serde_json::from_slice(&text)
            .map_err(|e| Error::input(format!("{} is not valid JSON: {e}", quoted_path(&path))))?;
        Self::of(document, path).map(Some)
    }

    /// Without a `tokenizer.json`: nothing, or a form that is not read here.
    fn absent(folder: &Path) -> Result<Option<Self>> {
        for name in ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model"] {
            if folder.join(name).is_file() {
                return Err(Error::input(format!(
                    "{} has the tokenizer `{name}` and no `{FILE}`, which vocabularies are read from",
                    quoted_path(folder)
                ))
                .hint(
                    "save it in that form too: `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` in transformers",
                ));
            }
        }
        Ok(None)
    }

    fn of(document: Value, path: PathBuf) -> Result<Self> {
        let wrong = |what: &str| Error::input(format!("{} is no tokenizer: {what}", quoted_path(&path)));
        let model = document.get("model").ok_or_else(|| wrong("it has no `model`"))?;
        let vocab = model.get("vocab").ok_or_else(|| wrong("its `model` has no `vocab`"))?;
        let kind = match model.get("type").and_then(Value::as_str) {
            Some(kind) => kind.to_owned(),
            None if model.get("merges").is_some() => "BPE".to_owned(),
            None if vocab.is_array() => "Unigram".to_owned(),
            None => "WordPiece".to_owned(),
        };
        let mut found =
            Self { path: path.clone(), kind, ids: HashMap::new(), texts: BTreeMap::new(), document: Value::Null };
        match vocab {
            Value::Object(pieces) => {
                for (text, id) in pieces {
                    found.add(text, id.as_u64())?;
                }
            }
            Value::Array(pieces) => {
                for (id, piece) in pieces.iter().enumerate() {
                    let text = piece.get(0).and_then(Value::as_str).ok_or_else(|| wrong("a piece has no text"))?;
                    found.add(text, Some(id as u64))?;
                }
            }
            _ => return Err(wrong("its `vocab` is neither a mapping nor a list")),
        }
        for added in document.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let text =
                added.get("content").and_then(Value::as_str).ok_or_else(|| wrong("an added token has no `content`"))?;
            found.add(text, added.get("id").and_then(Value::as_u64))?;
        }
        found.document = document;
        Ok(found)
    }

    fn add(&mut self, text: &str, id: Option<u64>) -> Result<()> {
        let id = id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id < MOST_TOKENS).ok_or_else(|| {
            Error::input(format!(
                "{}: token {} has no number below {MOST_TOKENS}",
                quoted_path(&self.path),
                quoted(text)
            ))
        })?;
        // Special tokens stand among the pieces and among the added ones, with one number.
        if let Some(other) = self.ids.get(text).filter(|other| **other != id) {
            let message = format!("token {} has the numbers {other} and {id}", quoted(text));
            return Err(Error::input(format!("{}: {message}", quoted_path(&self.path))));
        }
        if let Some(other) = self.texts.get(&id).filter(|other| *other != text) {
            let message = format!("tokens {} and {} have the number {id}", quoted(other), quoted(text));
            return Err(Error::input(format!("{}: {message}", quoted_path(&self.path))));
        }
        self.ids.insert(text.to_owned(), id);
        self.texts.insert(id, text.to_owned());
        Ok(())
    }

    /// The number of a token.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// Tokens by number.
    pub fn tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.texts.iter().map(|(id, text)| (*id, text.as_str()))
    }

    /// One more than the greatest number.
    pub fn size(&self) -> u32 {
        self.texts.last_key_value().map_or(0, |(id, _)| id + 1)
    }

    /// The entry of a token that was added to the model's pieces.
    pub fn added(&self, text: &str) -> Option<&Value> {
        let all = self.document.get("added_tokens")?.as_array()?;
        all.iter().find(|added| added.get("content").and_then(Value::as_str) == Some(text))
    }

    /// Leaves out the tokens that lie beyond the rows of the model's embedding, with the merges that make them. How many.
    pub fn cut(&mut self, rows: u64) -> usize {
        let beyond: Vec<u32> = self.texts.keys().copied().filter(|id| u64::from(*id) >= rows).collect();
        if beyond.is_empty() {
            return 0;
        }
        for id in &beyond {
            if let Some(text) = self.texts.remove(id) {
                self.ids.remove(&text);
            }
        }
        let ids = std::mem::take(&mut self.ids);
        let is_kept = |text: &str| ids.contains_key(text);
        if let Some(added) = self.document.get_mut("added_tokens").and_then(Value::as_array_mut) {
            added.retain(|token| token.get("content").and_then(Value::as_str).is_some_and(is_kept));
        }
        if let Some(model) = self.document.get_mut("model") {
            match model.get_mut("vocab") {
                Some(Value::Object(pieces)) => pieces.retain(|text, _| is_kept(text)),
                Some(Value::Array(pieces)) => pieces.truncate(usize::try_from(rows).unwrap_or(usize::MAX)),
                _ => {}
            }
            if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
                merges.retain(|merge| {
                    parts(merge).is_some_and(|[a, b]| is_kept(a) && is_kept(b) && is_kept(&format!("{a}{b}")))
                });
            }
        }
        self.ids = ids;
        beyond.len()
    }

    /// Takes in a token under the next number: as a piece where the model's form has room for one, else as an added token.
    pub fn push(&mut self, text: &str, donor: Option<&Vocabulary>) -> Result<u32> {
        let id = self.size();
        self.add(text, Some(id.into()))?;
        let entry = donor.and_then(|donor| donor.added(text));
        let is_piece = entry.is_none() && donor.is_some_and(|donor| donor.kind == self.kind);
        if is_piece && self.push_piece(text, id, donor) {
            return Ok(id);
        }
        let flag = |name: &str| entry.and_then(|e| e.get(name)).and_then(Value::as_bool).unwrap_or(false);
        let added = serde_json::json!({
            "id": id, "content": text, "single_word": flag("single_word"), "lstrip": flag("lstrip"),
            "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
        });
        if let Some(document) = self.document.as_object_mut() {
            match document.entry("added_tokens").or_insert_with(|| Value::Array(Vec::new())) {
                Value::Array(all) => all.push(added),
                other => *other = Value::Array(vec![added]),
            }
        }
        Ok(id)
    }

    fn push_piece(&mut self, text: &str, id: u32, donor: Option<&Vocabulary>) -> bool {
        let Some(model) = self.document.get_mut("model") else { return false };
        match model.get_mut("vocab") {
            Some(Value::Object(pieces)) => {
                pieces.insert(text.to_owned(), id.into());
                true
            }
            // The number of a piece is its place.
            Some(Value::Array(pieces)) if pieces.len() as u64 == u64::from(id) => {
                let score = donor.and_then(|donor| donor.score(text)).unwrap_or(-1000.0);
                pieces.push(serde_json::json!([text, score]));
                true
            }
            _ => false,
        }
    }

    fn score(&self, text: &str) -> Option<f64> {
        let id = self.id(text)?;
        self.document.get("model")?.get("vocab")?.get(id as usize)?.get(1)?.as_f64()
    }

    /// Takes in a donor's merges that make pieces which came from it, behind this model's own.
    pub fn take_merges(&mut self, donor: &Vocabulary, made: &dyn Fn(&str) -> bool) {
        let theirs = donor.document.get("model").and_then(|m| m.get("merges")).and_then(Value::as_array);
        let Some(theirs) = theirs.filter(|_| self.kind == "BPE" && donor.kind == "BPE") else { return };
        let fits = |merge: &&Value| {
            parts(merge).is_some_and(|[a, b]| made(&format!("{a}{b}")) && self.id(a).is_some() && self.id(b).is_some())
        };
        let new: Vec<Value> = theirs.iter().filter(fits).cloned().collect();
        let own = self.document.get_mut("model").and_then(|m| m.get_mut("merges")).and_then(Value::as_array_mut);
        let Some(own) = own else { return };
        // Two forms of a merge are in use, and a file has one of them.
        let as_text = own.first().is_some_and(Value::is_string);
        own.extend(new.iter().filter_map(|merge| {
            let [a, b] = parts(merge)?;
            Some(if as_text { format!("{a} {b}").into() } else { serde_json::json!([a, b]) })
        }));
    }
}

/// The two parts of a merge: `["a", "b"]`, or `"a b"`.
fn parts(merge: &Value) -> Option<[&str; 2]> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| [a, b]),
        Value::Array(items) => match &items[..] {
            [Value::String(a), Value::String(b)] => Some([a, b]),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bpe(pieces: &[&str], merges: Value, added: Value) -> Vocabulary {
        let vocab: serde_json::Map<String, Value> =
            pieces.iter().enumerate().map(|(i, p)| ((*p).into(), i.into())).collect();
        let document = json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": added});
        Vocabulary::of(document, "t.json".into()).unwrap()
    }

    #[test]
    fn tokens_beyond_the_rows_go_with_their_merges() {
        let mut v =
            bpe(&["a", "b", "ab", "abb"], json!([["a", "b"], ["ab", "b"]]), json!([{"id": 4, "content": "<x>"}]));
        assert_eq!(v.size(), 5);
        assert_eq!(v.cut(3), 2);
        assert_eq!(v.tokens().collect::<Vec<_>>(), [(0, "a"), (1, "b"), (2, "ab")]);
        assert_eq!(v.document["model"]["merges"], json!([["a", "b"]]));
        assert_eq!(v.document["added_tokens"], json!([]));
        assert_eq!(v.cut(3), 0);
    }

    #[test]
    fn foreign_pieces_come_with_their_merges_and_added_tokens_keep_special() {
        let mut own = bpe(&["a", "b"], json!(["a a"]), json!([]));
        let donor = bpe(&["b", "a", "ab"], json!([["a", "b"]]), json!([{"id": 3, "content": "<x>", "special": true}]));
        assert_eq!(own.push("ab", Some(&donor)).unwrap(), 2);
        assert_eq!(own.push("<x>", Some(&donor)).unwrap(), 3);
        own.take_merges(&donor, &|text| text == "ab");
        assert_eq!(own.document["model"]["vocab"]["ab"], 2);
        assert_eq!(own.document["model"]["merges"], json!(["a a", "a b"]));
        assert_eq!(own.document["added_tokens"][0]["special"], true);
        assert_eq!(own.document["added_tokens"][0]["id"], 3);
    }

    #[test]
    fn a_piece_of_a_unigram_model_stands_at_its_number_or_is_added() {
        let unigram = |pieces: Value, added: Value| {
            let document = json!({"model": {"type": "Unigram", "vocab": pieces}, "added_tokens": added});
            Vocabulary::of(document, "t.json".into()).unwrap()
        };
        let donor = unigram(json!([["x", -2.5]]), json!([]));
        let mut own = unigram(json!([["a", 0.0]]), json!([]));
        own.push("x", Some(&donor)).unwrap();
        assert_eq!(own.document["model"]["vocab"][1], json!(["x", -2.5]));
        let mut own = unigram(json!([["a", 0.0]]), json!([{"id": 1, "content": "<x>"}]));
        assert_eq!(own.push("x", Some(&donor)).unwrap(), 2);
        assert_eq!(own.document["added_tokens"][1]["content"], "x");
    }

    #[test]
    fn two_tokens_of_one_number_and_numbers_out_of_bounds_are_refused() {
        for added in [
            json!([{"id": 0, "content": "z"}]),
            json!([{"id": 4_000_000_000_u64, "content": "z"}]),
            json!([{"content": "z"}]),
        ] {
            let document = json!({"model": {"vocab": {"a": 0}}, "added_tokens": added});
            assert!(Vocabulary::of(document, "t.json".into()).is_err());
        }
    }
}
