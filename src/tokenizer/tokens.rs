//! The tokens of a `tokenizer.json` alone: what comparing two of them needs, without the merges, which are most of the file.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Tokens by number, and the entries of those that were added.
#[derive(Debug)]
pub(crate) struct Tokens {
    /// Texts by number.
    pub texts: BTreeMap<u32, String>,
    /// Entries of added tokens, by text, without their numbers.
    pub added: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<serde_json::Map<String, Value>>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Pieces,
}

/// Texts by number, from a mapping of texts to numbers or from a list of texts with their scores.
struct Pieces(BTreeMap<u32, String>);

impl Tokens {
    /// The tokens of a file; `None` if it is no tokenizer.
    pub fn read(file: &[u8]) -> Option<Self> {
        let File { model: Model { vocab: Pieces(mut texts) }, added_tokens } = serde_json::from_slice(file).ok()?;
        let mut added = BTreeMap::new();
        for mut token in added_tokens {
            let text = token.remove("content")?.as_str()?.to_owned();
            texts.insert(u32::try_from(token.remove("id")?.as_u64()?).ok()?, text.clone());
            added.insert(text, Value::Object(token));
        }
        Some(Self { texts, added })
    }
}

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Pieces;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pieces, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((text, id)) = map.next_entry::<String, u32>()? {
                    texts.insert(id, text);
                }
                Ok(Pieces(texts))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pieces, A::Error> {
                let mut texts = BTreeMap::new();
                let mut id = 0;
                while let Some((text, _)) = list.next_element::<(String, IgnoredAny)>()? {
                    texts.insert(id, text);
                    id += 1;
                }
                Ok(Pieces(texts))
            }
        }
        deserializer.deserialize_any(Read)
    }
}
