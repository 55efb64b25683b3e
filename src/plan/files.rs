//! Small files of the output that are not the reference's as they are: `config.json` of another depth or vocabulary, and
//! files that the merge makes anew.

use serde_json::{Map, Value};

use super::outputs::Parts;
use super::towers::{Tower, Towers};
use crate::checkpoint::{Checkpoint, json_in};
use crate::error::{Error, Result};
use crate::output::copy::{Content, Copies, SmallFile};
use crate::recipe::Recipe;

/// What becomes of the reference's small files.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Changes of `config.json`.
    pub config: Vec<Edit>,
    /// Files that take the place of the reference's.
    pub made: Vec<SmallFile>,
    /// Files of the reference that are not copied.
    pub left: Vec<String>,
    /// Keys that `config.json` loses, at any depth.
    pub dropped: Vec<&'static str>,
    /// Whether the reference's tokenizer is left out.
    pub without_tokenizer: bool,
}

/// A value in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// The object that holds it; empty for the whole.
    pub section: String,
    /// Its key.
    pub key: String,
    /// What it becomes.
    pub value: Value,
}

impl Files {
    /// Puts this merge's files in the place of those that would be copied.
    ///
    /// # Errors
    /// Environment, if a file cannot be read.
    pub fn apply(&self, copies: &mut Copies) -> Result<()> {
        copies.files.retain(|f| !self.left.contains(&f.name) && !self.made.iter().any(|made| made.name == f.name));
        copies.files.retain(|f| !self.without_tokenizer || !crate::tokenizer::is_file(&f.name));
        copies.files.extend(self.made.iter().cloned());
        copies.files.sort_by(|a, b| a.name.cmp(&b.name));
        let Some(file) = copies.files.iter_mut().find(|f| f.name == "config.json") else { return Ok(()) };
        if self.config.is_empty() && self.dropped.is_empty() {
            return Ok(());
        }
        let text = match &file.content {
            Content::Copy(path) => {
                std::fs::read(path).map_err(|e| Error::io(format_args!("read `{}`", path.display()), &e))?
            }
            Content::Bytes(bytes) => bytes.clone(),
        };
        // What is no JSON object is copied as it is, and told by whoever chose it.
        let Ok(Value::Object(mut config)) = serde_json::from_slice(&text) else { return Ok(()) };
        for edit in &self.config {
            let section = match edit.section.as_str() {
                "" => Some(&mut config),
                name => config.get_mut(name).and_then(Value::as_object_mut),
            };
            if let Some(section) = section {
                section.insert(edit.key.clone(), edit.value.clone());
            }
        }
        drop_keys(&mut config, &self.dropped);
        let mut text = serde_json::to_vec_pretty(&config).map_err(|e| Error::internal(format!("config.json: {e}")))?;
        text.push(b'\n');
        file.content = Content::Bytes(text);
        Ok(())
    }

    /// Depths and lists by layer of what slices make.
    pub(super) fn of_slices(recipe: &Recipe, parts: &Parts) -> Self {
        let mut files = Self::default();
        let mut part = 0;
        for module in &recipe.modules {
            let of_module = &parts.parts[part..(part + module.slices.len()).min(parts.parts.len())];
            part += module.slices.len();
            let reference = &parts.sources[0].checkpoint;
            let towers = Towers::of(reference);
            let tower = match &module.name {
                Some(name) => towers.named(name),
                None => towers.all.first(),
            };
            let (Some(tower), Some(config)) = (tower, config_of(reference)) else { continue };
            let Some((section, depth_key)) = depth_of(&config, tower) else { continue };
            let mut layers: Vec<(Option<Map<String, Value>>, u32)> = Vec::new();
            for (slice, part) in module.slices.iter().zip(of_module) {
                let from = part.sources.first().unwrap_or(&part.reference);
                let own = config_of(&parts.sources[*from].checkpoint).and_then(|c| section_of(&c, &section).cloned());
                let range = slice.sources.first().and_then(|s| s.layers.clone()).unwrap_or(0..tower.depth);
                layers.extend(range.map(|layer| (own.clone(), layer)));
            }
            let Some(settings) = section_of(&config, &section) else { continue };
            if layers.len() as u64 != u64::from(tower.depth) {
                let value = Value::from(layers.len() as u64);
                files.config.push(Edit { section: section.clone(), key: depth_key, value });
            }
            for (key, list) in settings.iter().filter_map(|(key, v)| Some((key, v.as_array()?))) {
                if list.len() as u64 != u64::from(tower.depth) || !is_by_layer(key) {
                    continue;
                }
                let value: Vec<Value> = layers
                    .iter()
                    .filter_map(|(own, layer)| {
                        let own = own.as_ref().and_then(|own| own.get(key)).and_then(Value::as_array);
                        own.unwrap_or(list).get(*layer as usize).cloned()
                    })
                    .collect();
                if value.len() == layers.len() && value != *list {
                    files.config.push(Edit { section: section.clone(), key: key.clone(), value: value.into() });
                }
            }
        }
        files
    }
}

fn drop_keys(config: &mut Map<String, Value>, dropped: &[&str]) {
    config.retain(|key, _| !dropped.contains(&key.as_str()));
    config.values_mut().filter_map(Value::as_object_mut).for_each(|section| drop_keys(section, dropped));
}

/// Lists that hold a value for each layer; others of the same length are a coincidence.
fn is_by_layer(key: &str) -> bool {
    ["layer", "block", "pattern"].iter().any(|part| key.contains(part))
        && !key.ends_with("indices")
        && key != "mlp_only_layers"
}

/// The section of a configuration that states a tower's depth, and under which key.
fn depth_of(config: &Map<String, Value>, tower: &Tower) -> Option<(String, String)> {
    let keys: &[&str] = match tower.module.as_str() {
        "decoder" => &["num_decoder_layers", "decoder_layers", "num_layers"],
        "encoder" => &["num_layers", "encoder_layers", "num_hidden_layers"],
        _ => &["num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"],
    };
    let is_vision = tower.list.contains("vision") || tower.list.contains("visual");
    let sections = if is_vision { ["vision_config", "", "text_config"] } else { ["", "text_config", "vision_config"] };
    sections.iter().find_map(|section| {
        let settings = section_of(config, section)?;
        let key = keys.iter().find(|key| settings.get(**key).and_then(Value::as_u64) == Some(tower.depth.into()))?;
        Some(((*section).to_owned(), (*key).to_owned()))
    })
}

fn section_of<'a>(config: &'a Map<String, Value>, section: &str) -> Option<&'a Map<String, Value>> {
    if section.is_empty() { Some(config) } else { config.get(section)?.as_object() }
}

/// What a checkpoint's `config.json` says, if it has one that can be read.
pub(crate) fn config_of(checkpoint: &Checkpoint) -> Option<Map<String, Value>> {
    json_in(checkpoint.folder()?, "config.json")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(config: Value, module: &str, list: &str, depth: u32) -> Option<(String, String)> {
        let tower = Tower { module: module.into(), list: list.into(), depth };
        depth_of(config.as_object().unwrap(), &tower)
    }

    #[test]
    fn a_towers_depth_is_found_in_its_section() {
        let at = |section: &str, key: &str| Some((section.to_owned(), key.to_owned()));
        assert_eq!(found(json!({"num_hidden_layers": 4}), "default", "model.layers", 4), at("", "num_hidden_layers"));
        assert_eq!(found(json!({"n_layer": 4}), "default", "transformer.h", 4), at("", "n_layer"));
        assert_eq!(found(json!({"n_layer": 5}), "default", "transformer.h", 4), None);
        let both = json!({"num_layers": 2, "num_decoder_layers": 3});
        assert_eq!(found(both.clone(), "encoder", "encoder.block", 2), at("", "num_layers"));
        assert_eq!(found(both, "decoder", "decoder.block", 3), at("", "num_decoder_layers"));
        let sees =
            json!({"text_config": {"num_hidden_layers": 3}, "vision_config": {"depth": 3, "num_hidden_layers": 9}});
        assert_eq!(found(sees.clone(), "text_decoder", "model.layers", 3), at("text_config", "num_hidden_layers"));
        assert_eq!(found(sees, "vision_tower", "visual.blocks", 3), at("vision_config", "depth"));
    }

    #[test]
    fn edits_change_their_section_and_nothing_else() {
        let config = json!({"a": 1, "text_config": {"b": 2}});
        let content = Content::Bytes(config.to_string().into_bytes());
        let mut copies = Copies { files: vec![SmallFile { name: "config.json".into(), content }], notes: Vec::new() };
        let edit = |section: &str, key: &str| Edit { section: section.into(), key: key.into(), value: 7.into() };
        let files =
            Files { config: vec![edit("", "a"), edit("text_config", "c"), edit("none", "d")], ..Files::default() };
        files.apply(&mut copies).unwrap();
        let Content::Bytes(text) = &copies.files[0].content else { panic!() };
        let expected = json!({"a": 7, "text_config": {"b": 2, "c": 7}});
        assert_eq!(serde_json::from_slice::<Value>(text).unwrap(), expected);
    }
}
