//! Which small files of a source folder go into the output: what Hugging Face tools need to load the model, and the
//! licences that come with it. Never weights, never code, never the base's model card.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dtype::{Dtype, DtypeExt, RECIPE_DTYPES};
use crate::error::{Error, Result};

/// Larger files are not copied.
pub const MAX_BYTES: u64 = crate::checkpoint::MAX_SMALL_BYTES;

const NAMES: [&str; 15] = [
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "tekken.json",
    "normalizer.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
];
const PREFIXES: [&str; 6] = ["tokenizer", "vocab", "chat_template", "LICENSE", "NOTICE", "USE_POLICY"];
/// SentencePiece models, and vocabularies of other tokenizers.
const SUFFIXES: [&str; 4] = [".model", ".tiktoken", ".spm", ".codes"];
/// A folder of chat templates.
const TEMPLATES: &str = "additional_chat_templates";
/// How many names a note lists.
const LISTED: usize = 12;
/// Weights, indices of weights, and code: never copied, whatever their name begins with.
const NEVER: [&str; 12] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json", ".pkl", ".py"];

/// Where a small file's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// It is a copy of this file.
    Copy(PathBuf),
    /// It is these bytes.
    Bytes(Vec<u8>),
}

/// A small file of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmallFile {
    /// Its name in OUT: without a folder, or in that of an adapter.
    pub name: String,
    /// Its content.
    pub content: Content,
}

/// What goes into the output, and what the user should know of what does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copies {
    /// The files, by name.
    pub files: Vec<SmallFile>,
    /// One sentence for each file that is left out for a reason worth telling.
    pub notes: Vec<String>,
}

impl Copies {
    /// Chooses from `folder`, the base's or the first model's. With `out_dtype`, what `config.json` says of the
    /// stored element type is brought in line; everything else in it stays.
    ///
    /// # Errors
    ///
    /// A folder that cannot be listed, a `config.json` that cannot be read.
    pub fn choose(folder: &Path, out_dtype: Option<Dtype>) -> Result<Self> {
        let listing = |e: &std::io::Error| Error::io(format_args!("list the folder `{}`", folder.display()), e);
        let mut copies = Self::default();
        let mut left = Vec::new();
        for entry in fs::read_dir(folder).map_err(|e| listing(&e))? {
            let entry = entry.map_err(|e| listing(&e))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.ends_with(".py") {
                copies.notes.push(format!("`{name}` is not copied: code in a model's folder is not taken on trust"));
            }
            let path = entry.path();
            if path.is_dir() && !name.starts_with('.') {
                copies.choose_in(&path, &name, &mut left)?;
                continue;
            }
            if !is_wanted(&name) {
                if is_told(&name) {
                    left.push(name);
                }
                continue;
            }
            // `metadata` follows links: the Hugging Face cache is made of them.
            match fs::metadata(&path) {
                Ok(m) if !m.is_file() => continue,
                Ok(m) if m.len() > MAX_BYTES => {
                    let size = m.len();
                    copies.notes.push(format!("`{name}` is not copied: it has {size} bytes, more than {MAX_BYTES}"));
                    continue;
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    copies.notes.push(format!("`{name}` is not copied: it is a link that leads nowhere"));
                    continue;
                }
                Err(e) => return Err(Error::io(format_args!("look at `{}`", path.display()), &e)),
            }
            let content = match out_dtype {
                Some(dtype) if name == "config.json" => config(&path, dtype, &mut copies.notes)?,
                _ => Content::Copy(path),
            };
            copies.files.push(SmallFile { name, content });
        }
        copies.files.sort_by(|a, b| a.name.cmp(&b.name));
        copies.notes.sort();
        copies.notes.extend(left_out(folder, left));
        Ok(copies)
    }

    /// Chooses from a folder in it: the configuration of a part of a sentence transformer, and chat templates. What else is there, or the
    /// folder, is added to `left`.
    fn choose_in(&mut self, path: &Path, name: &str, left: &mut Vec<String>) -> Result<()> {
        let is_part = name.split_once('_').is_some_and(|(n, _)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        if !is_part && name != TEMPLATES {
            left.push(format!("{name}/"));
            return Ok(());
        }
        let listing = |e: &std::io::Error| Error::io(format_args!("list the folder `{}`", path.display()), e);
        for entry in fs::read_dir(path).map_err(|e| listing(&e))? {
            let entry = entry.map_err(|e| listing(&e))?;
            let Ok(inner) = entry.file_name().into_string() else { continue };
            let ends = if is_part { ".json" } else { ".jinja" };
            let facts = fs::metadata(entry.path());
            if inner.ends_with(ends) && facts.is_ok_and(|m| m.is_file() && m.len() <= MAX_BYTES) {
                self.files.push(SmallFile { name: format!("{name}/{inner}"), content: Content::Copy(entry.path()) });
            } else {
                left.push(format!("{name}/{inner}"));
            }
        }
        Ok(())
    }

    /// Whether the output will have a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.iter().any(|f| f.name == name)
    }
}

/// Whether it is said of a file that it is not copied. Weights are merged, the card is written anew, code is told by itself, and
/// hidden files are those of the tools that brought the folder.
fn is_told(name: &str) -> bool {
    let is_weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    !is_weights && !name.starts_with('.') && !name.ends_with(".py") && !["README.md", "merganser.json"].contains(&name)
}

/// One sentence about all files that are left out.
fn left_out(folder: &Path, mut left: Vec<String>) -> Option<String> {
    left.sort();
    let more = left.len().saturating_sub(LISTED);
    let mut shown: Vec<String> = left.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    (!shown.is_empty()).then(|| format!("not copied from `{}`: {}", folder.display(), shown.join(", ")))
}

/// Whether a file of this name is copied.
pub(crate) fn is_wanted(name: &str) -> bool {
    let named = NAMES.contains(&name)
        || PREFIXES.iter().any(|p| name.starts_with(p))
        || SUFFIXES.iter().any(|s| name.ends_with(s));
    let lower = name.to_ascii_lowercase();
    named && !name.starts_with('.') && !NEVER.iter().any(|s| lower.ends_with(s))
}

/// `config.json` with its element types brought in line, or a copy of it where there is nothing to change.
fn config(path: &Path, dtype: Dtype, notes: &mut Vec<String>) -> Result<Content> {
    let text = fs::read(path).map_err(|e| Error::io(format_args!("read `{}`", path.display()), &e))?;
    let copy = Content::Copy(path.to_owned());
    let Some(name) = dtype.recipe_name() else { return Ok(copy) };
    let mut value: Value = match serde_json::from_slice(&text) {
        Ok(value @ Value::Object(_)) => value,
        Ok(_) => {
            notes.push("`config.json` is copied as it is: it is not a JSON object".into());
            return Ok(copy);
        }
        Err(e) => {
            notes.push(format!("`config.json` is copied as it is: it is not valid JSON ({e})"));
            return Ok(copy);
        }
    };
    if !set_dtype(&mut value, name) {
        return Ok(copy);
    }
    let mut text = serde_json::to_vec_pretty(&value).map_err(|e| Error::internal(format!("config.json: {e}")))?;
    text.push(b'\n');
    Ok(Content::Bytes(text))
}

/// Sets every statement of the weights' element type: at the top and in the configurations of a model's parts, but
/// not in how a quantizer computes. Whether anything changed.
fn set_dtype(value: &mut Value, name: &str) -> bool {
    let Value::Object(map) = value else { return false };
    let mut changed = false;
    for (key, value) in map {
        match value {
            Value::String(old) if matches!(key.as_str(), "torch_dtype" | "dtype") => {
                let is_dtype = RECIPE_DTYPES.iter().any(|(known, _)| old == known);
                if is_dtype && old != name {
                    *old = name.to_owned();
                    changed = true;
                }
            }
            Value::Object(_) if key.ends_with("_config") && key != "quantization_config" => {
                changed |= set_dtype(value, name);
            }
            _ => {}
        }
    }
    changed
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn names(copies: &Copies) -> Vec<&str> {
        copies.files.iter().map(|f| f.name.as_str()).collect()
    }

    #[test]
    fn what_loading_needs_is_copied_and_weights_code_and_cards_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let copied = [
            "LICENSE",
            "LICENSE.txt",
            "NOTICE",
            "USE_POLICY.md",
            "added_tokens.json",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "merges.txt",
            "preprocessor_config.json",
            "special_tokens_map.json",
            "spiece.model",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "vocab.json",
            "vocab.txt",
            "tekken.json",
            "normalizer.json",
            "modules.json",
            "qwen.tiktoken",
            "source.spm",
            "sentence_bert_config.json",
        ];
        let left = [
            "README.md",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "tokenizer.bin",
            "vocab.PT",
            "tokenizer.py",
            "modeling_x.py",
            ".tokenizer",
            "training_args.json",
            "merganser.json",
        ];
        for name in copied.iter().chain(&left) {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        for folder in ["tokenizer_folder", "1_Pooling", "2_Dense", "additional_chat_templates", ".git"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let inner = ["1_Pooling/config.json", "2_Dense/config.json", "additional_chat_templates/tool.jinja"];
        for name in inner.iter().chain(&["2_Dense/model.safetensors", "additional_chat_templates/x.py"]) {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        let copies = Copies::choose(dir.path(), None).unwrap();
        let mut wanted: Vec<&str> = copied.iter().chain(&inner).copied().collect();
        wanted.sort_unstable();
        assert_eq!(names(&copies), wanted);
        let last = copies.notes.last().unwrap();
        let told = [
            "2_Dense/model.safetensors",
            "additional_chat_templates/x.py",
            "pytorch_model.bin",
            "tokenizer_folder/",
            "training_args.json",
        ];
        assert!(
            told.iter().all(|name| last.contains(&format!("`{name}`"))) && last.starts_with("not copied from"),
            "{last}"
        );
        assert!([".git", "README.md", "`model.safetensors"].iter().all(|name| !last.contains(name)), "{last}");
        assert!(copies.has("config.json") && !copies.has("README.md"));
        assert_eq!(copies.notes.len(), 3, "each file of code is told, and the rest in one line: {:?}", copies.notes);
    }

    #[test]
    fn links_are_followed_and_what_is_too_large_or_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("blob");
        fs::write(&blob, "x").unwrap();
        symlink(&blob, dir.path().join("tokenizer.json")).unwrap();
        symlink(dir.path().join("none"), dir.path().join("vocab.json")).unwrap();
        fs::File::create(dir.path().join("tokenizer.model")).unwrap().set_len(MAX_BYTES + 1).unwrap();
        let copies = Copies::choose(dir.path(), None).unwrap();
        assert_eq!(names(&copies), ["tokenizer.json"]);
        assert!(copies.notes[0].contains("tokenizer.model") && copies.notes[1].contains("leads nowhere"));
    }

    fn config_of(text: &str, dtype: Option<Dtype>) -> (Option<String>, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), text).unwrap();
        let copies = Copies::choose(dir.path(), dtype).unwrap();
        let text = match &copies.files[0].content {
            Content::Copy(_) => None,
            Content::Bytes(bytes) => Some(String::from_utf8(bytes.clone()).unwrap()),
        };
        (text, copies.notes)
    }

    #[test]
    fn the_stated_element_type_follows_the_output_and_nothing_else_changes() {
        let text = r#"{"z":1,"torch_dtype":"float32","a":[1e-5,{"dtype":"float32"}],
            "text_config":{"dtype":"float32","k":null},"quantization_config":{"dtype":"float32"},"dtype":7}"#;
        let (changed, notes) = config_of(text, Some(Dtype::BF16));
        let changed = changed.unwrap();
        let mut expected: Value = serde_json::from_str(text).unwrap();
        expected["torch_dtype"] = "bfloat16".into();
        expected["text_config"]["dtype"] = "bfloat16".into();
        assert_eq!(serde_json::from_str::<Value>(&changed).unwrap(), expected);
        let place = |key: &str| changed.find(key).unwrap();
        assert!(place("\"z\"") < place("torch_dtype") && place("torch_dtype") < place("\"a\""), "order is kept");
        assert!(notes.is_empty());
    }

    #[test]
    fn a_config_without_need_of_change_is_copied_byte_for_byte() {
        assert_eq!(config_of(r#"{"torch_dtype": "bfloat16"}"#, Some(Dtype::BF16)).0, None);
        assert_eq!(config_of(r#"{"torch_dtype": "float32"}"#, None).0, None);
        assert_eq!(config_of(r#"{"torch_dtype": "auto"}"#, Some(Dtype::BF16)).0, None);
        for bad in ["{", "[1]", "\u{feff}{}"] {
            let (changed, notes) = config_of(bad, Some(Dtype::BF16));
            assert_eq!(changed, None);
            assert!(notes[0].contains("copied as it is"), "{notes:?}");
        }
    }
}
