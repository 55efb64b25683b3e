//! `model.safetensors.index.json`: which shard holds which tensor.

use super::header::MAX_HEADER_BYTES;
use super::text::{plain, quoted, quoted_path};
use super::{discover, shard};
use crate::{Error, Result};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A validated index: its shards are plain names of files in its folder.
#[derive(Debug)]
pub(super) struct Index {
    /// Where it was read from, for messages.
    pub path: PathBuf,
    /// The shards' file names, sorted.
    pub shards: Vec<String>,
    /// Each tensor's name and its shard, as a position in `shards`.
    pub weight_map: Vec<(String, usize)>,
}

impl Index {
    /// Reads an index file.
    pub fn read(path: &Path) -> Result<Self> {
        let (file, facts) = shard::open_regular(path)?;
        let shown = quoted_path(path);
        if facts.len() > MAX_HEADER_BYTES {
            return Err(Error::input(format!(
                "{shown} has {} bytes, the most allowed for an index is {MAX_HEADER_BYTES}",
                facts.len()
            )));
        }
        let mut text = Vec::new();
        // The limit holds even if the file grows under the reader.
        file.take(MAX_HEADER_BYTES).read_to_end(&mut text).map_err(|e| Error::io(format!("read {shown}"), &e))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let shown = quoted_path(path);
        let stated: Stated = serde_json::from_slice(text).map_err(|error| {
            Error::input(format!("{shown}: {}", plain(&error.to_string(), 600)))
                .hint("the index is damaged; download it again")
        })?;
        if stated.weight_map.is_empty() {
            return Err(Error::input(format!("{shown}: its weight_map is empty"))
                .hint("the index is damaged; download it again"));
        }
        let mut shards = BTreeMap::new();
        for name in stated.shards.keys() {
            check_name(&shown, name)?;
            shards.insert(name.as_str(), 0);
        }
        for (position, slot) in shards.values_mut().enumerate() {
            *slot = position;
        }
        // From the order in which the index names the shards to their sorted order.
        let mut sorted = vec![0; shards.len()];
        for (name, first_seen) in &stated.shards {
            sorted[*first_seen] = shards[name.as_str()];
        }
        let weight_map = stated.weight_map.into_iter().map(|(name, at)| (name, sorted[at])).collect();
        let shards = shards.into_keys().map(str::to_owned).collect();
        Ok(Self { path: path.to_owned(), shards, weight_map })
    }
}

/// A shard's name must be that of a file in the index's own folder.
fn check_name(shown: &str, name: &str) -> Result<()> {
    let wrong = |what: &str| {
        Err(Error::input(format!("{shown}: weight_map names the shard {}, {what}", quoted(name)))
            .hint("shards must be files in the index's own folder, named without a path"))
    };
    if name.is_empty() || name == "." || name == ".." {
        return wrong("which is no file name");
    }
    if name.contains(['/', '\\']) {
        return wrong("which is a path");
    }
    if name.chars().any(char::is_control) {
        return wrong("which has control characters");
    }
    if discover::is_pickle(name) && !discover::is_archive(std::path::Path::new(name)) {
        return Err(
            Error::input(format!("{shown}: weight_map names {}, a pickle", quoted(name))).hint(discover::CONVERT)
        );
    }
    Ok(())
}

/// The JSON as stated, with each shard's name kept once.
struct Stated {
    /// Shard name → order of its first appearance.
    shards: BTreeMap<String, usize>,
    weight_map: Vec<(String, usize)>,
}

impl<'de> Deserialize<'de> for Stated {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Stated;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with a weight_map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Stated, A::Error> {
                let mut out = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != "weight_map" {
                        // Facts for people (total_size and the like): nothing here depends on them.
                        map.next_value::<IgnoredAny>()?;
                    } else if out.replace(map.next_value::<WeightMap>()?.0).is_some() {
                        return Err(A::Error::custom("weight_map stands twice"));
                    }
                }
                out.ok_or_else(|| A::Error::custom("it has no weight_map"))
            }
        }
        json.deserialize_map(Keys)
    }
}

struct WeightMap(Stated);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a weight_map: an object of tensor names and file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut out = Stated { shards: BTreeMap::new(), weight_map: Vec::new() };
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    let next = out.shards.len();
                    let at = *out.shards.entry(shard).or_insert(next);
                    out.weight_map.push((tensor, at));
                }
                out.weight_map.sort_unstable();
                match out.weight_map.array_windows::<2>().find(|[a, b]| a.0 == b.0) {
                    Some([(name, _), _]) => {
                        Err(A::Error::custom(format!("tensor {} stands twice in weight_map", quoted(name))))
                    }
                    None => Ok(WeightMap(out)),
                }
            }
        }
        json.deserialize_map(Names)
    }
}
