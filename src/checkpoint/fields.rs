//! The JSON of a safetensors header, as fields: who reads it sees every key, duplicates too, and knows which tensor an
//! error belongs to.
//!
//! The grammar has a fixed depth (object → object → list of numbers), so anything nested deeper is a type error where it
//! begins, and nothing here recurses.

use super::header::MAX_RANK;
use crate::dtype::Dtype;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

/// One tensor's entry as the header states it, its offsets relative to the data section.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub begin: u64,
    pub end: u64,
}

/// A header as stated; not yet checked against the file or itself.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub entries: Vec<Entry>,
    pub metadata: BTreeMap<String, String>,
}

/// Why a header could not be read.
#[derive(Debug)]
pub(super) struct Fault {
    /// The tensor (or `__metadata__`) in whose entry it was found.
    pub tensor: Option<String>,
    pub message: String,
    pub line: usize,
    pub column: usize,
}

/// Reads a header's JSON text.
pub(super) fn read(text: &str) -> Result<Fields, Fault> {
    let at = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_str(text);
    Document { at: &at }.deserialize(&mut json).and_then(|fields| json.end().map(|()| fields)).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let message = error.to_string();
        // serde_json ends its message with the place, which the fault carries apart.
        let message = message.trim_end_matches(&format!(" at line {line} column {column}")).to_owned();
        Fault { tensor: at.borrow_mut().take(), message, line, column }
    })
}

/// The whole object. `at` holds the key whose value is being read.
struct Document<'a> {
    at: &'a RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = Fields;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Fields, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object that maps tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        let mut metadata = None;
        while let Some(key) = map.next_key::<String>()? {
            let seen = self.at.replace(Some(key));
            drop(seen);
            let is_metadata = self.at.borrow().as_deref() == Some("__metadata__");
            if is_metadata {
                if metadata.replace(map.next_value::<Metadata>()?.0).is_some() {
                    return Err(A::Error::custom("`__metadata__` stands twice"));
                }
                self.at.replace(None);
            } else {
                let body = map.next_value::<Body>()?;
                let name = self.at.replace(None).unwrap_or_default();
                fields.entries.push(Entry {
                    name,
                    dtype: body.dtype,
                    shape: body.shape,
                    begin: body.offsets.0,
                    end: body.offsets.1,
                });
            }
        }
        fields.metadata = metadata.unwrap_or_default();
        Ok(fields)
    }
}

/// `__metadata__`: strings to strings; `null` is what a writer without metadata may put.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Metadata, E> {
                Ok(Metadata(BTreeMap::new()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut out = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<String>()?;
                    if let Some(old) = out.insert(key, value) {
                        drop(old);
                        return Err(A::Error::custom("a key stands twice"));
                    }
                }
                Ok(Metadata(out))
            }
        }
        json.deserialize_any(Strings)
    }
}

/// What stands behind a tensor's name.
struct Body {
    dtype: Dtype,
    shape: Vec<u64>,
    offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Body;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let twice = match key.as_str() {
                        "dtype" => dtype.replace(map.next_value::<KnownDtype>()?.0).is_some(),
                        "shape" => shape.replace(map.next_value::<Shape>()?.0).is_some(),
                        "data_offsets" => offsets.replace(map.next_value::<Offsets>()?.0).is_some(),
                        // A key that is not understood could change what the bytes mean.
                        other => {
                            let other = super::text::quoted(other);
                            return Err(A::Error::custom(format!(
                                "unknown key {other}, expected dtype, shape and data_offsets"
                            )));
                        }
                    };
                    if twice {
                        return Err(A::Error::custom(format!("`{key}` stands twice")));
                    }
                }
                Ok(Body {
                    dtype: dtype.ok_or_else(|| A::Error::custom("it has no dtype"))?,
                    shape: shape.ok_or_else(|| A::Error::custom("it has no shape"))?,
                    offsets: offsets.ok_or_else(|| A::Error::custom("it has no data_offsets"))?,
                })
            }
        }
        json.deserialize_map(Keys)
    }
}

struct KnownDtype(Dtype);

impl<'de> Deserialize<'de> for KnownDtype {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = KnownDtype;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a dtype")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<KnownDtype, E> {
                let json: de::value::StrDeserializer<'_, de::value::Error> = name.into_deserializer();
                Dtype::deserialize(json).map(KnownDtype).map_err(|_| {
                    // serde's own message lists the variants, but repeats the name unescaped and at any length.
                    let known = Dtype::deserialize(IntoDeserializer::<de::value::Error>::into_deserializer(""));
                    let known = known.err().map(|e| e.to_string()).unwrap_or_default();
                    let known = known.rsplit("one of ").next().unwrap_or_default().replace('`', "");
                    E::custom(format!("unknown dtype {}, known are {known}", super::text::quoted(name)))
                })
            }
        }
        json.deserialize_str(Name)
    }
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a shape: a list of whole numbers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dims = Vec::new();
                while let Some(dim) = seq.next_element::<u64>()? {
                    if dims.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("its shape has more than {MAX_RANK} dimensions")));
                    }
                    dims.push(dim);
                }
                dims.shrink_to_fit();
                Ok(Shape(dims))
            }
        }
        json.deserialize_seq(Dims)
    }
}

struct Offsets((u64, u64));

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Offsets;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("data_offsets: a list of two whole numbers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Offsets, A::Error> {
                let wrong = || A::Error::custom("its data_offsets are not two numbers");
                let begin = seq.next_element::<u64>()?.ok_or_else(wrong)?;
                let end = seq.next_element::<u64>()?.ok_or_else(wrong)?;
                if seq.next_element::<u64>()?.is_some() {
                    return Err(wrong());
                }
                Ok(Offsets((begin, end)))
            }
        }
        json.deserialize_seq(Pair)
    }
}
