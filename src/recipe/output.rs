//! `output`: what a merge writes, and `factors`: how it stores low-rank factors.

use super::dtypes;
use super::parameters::Parameters;
use super::reader::{Reader, list_of_names, text};
use super::yaml::{Entry, quote};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::Result;
use crate::methods::REGISTRY;
use crate::ops::{Matrices, MethodSpec};
use crate::suggest::nearest;

/// What `output` may be.
const WORDS: [(&str, OutputKind); 3] =
    [("merged", OutputKind::Merged), ("factors", OutputKind::Factors), ("lora", OutputKind::Lora)];

/// Keys of `factors`.
const KEYS: [&str; 3] = ["dtype", "others", "base_model_name_or_path"];

/// What `others` may be.
const OTHERS: [(&str, Others); 2] = [("centre", Others::Centre), ("task", Others::Task)];

/// What factors are stored as.
const DTYPES: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// What a merge writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutputKind {
    /// The merged model.
    #[default]
    Merged,
    /// What the low-rank parts are added to, and the factors of each task's parts, in one checkpoint.
    Factors,
    /// What the low-rank parts are added to, and a LoRA adapter for each task.
    Lora,
}

impl OutputKind {
    /// The word in a recipe.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }
}

/// What is stored of the tensors that have no factors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Others {
    /// The centre alone.
    #[default]
    Centre,
    /// Each task's own tensor too, as its model stores it.
    Task,
}

/// `output` and `factors`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// What is written.
    pub kind: OutputKind,
    /// What factors are stored as; `None`: float32 beside tensors of float32 or wider, else bfloat16.
    pub factor_dtype: Option<Dtype>,
    /// What is stored of tensors that have no factors.
    pub others: Others,
    /// The name by which adapters find their base; `None`: that of OUT's folder.
    pub base_name: Option<String>,
}

impl Output {
    /// As the recipe says it, for the manifest; nothing where a model is merged.
    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        let dtype = self.factor_dtype.and_then(DtypeExt::recipe_name);
        let others = OTHERS.iter().find(|(_, others)| *others == self.others).map(|(word, _)| *word);
        let factors = serde_json::json!({"dtype": dtype, "others": others, "base_model_name_or_path": self.base_name});
        (self.kind != OutputKind::Merged).then_some(factors)
    }
}

/// Reads `output` and `factors`, which must go with the method and its rank.
pub(super) fn read(
    reader: &Reader,
    output: Option<&Entry>,
    factors: Option<&Entry>,
    method: &MethodSpec,
    parameters: &Parameters,
    has_stages: bool,
) -> Result<Output> {
    let kind = match output {
        Some(entry) => word_of(reader, entry, &WORDS)?.unwrap_or_default(),
        None => OutputKind::Merged,
    };
    let mut out = Output { kind, ..Output::default() };
    if kind == OutputKind::Merged {
        return match factors {
            Some(entry) => Err(reader
                .error(entry.line, "`factors` says how factors are stored, and this recipe stores none")
                .hint("add `output: factors` or `output: lora`, or leave it out")),
            None => Ok(out),
        };
    }
    let line = output.map_or(1, |entry| entry.line);
    let word = kind.word();
    if method.matrices != Matrices::Factors {
        let able = REGISTRY.iter().filter(|m| m.matrices == Matrices::Factors).map(|m| m.name);
        let message = format!("`output: {word}` stores low-rank parts, and method `{}` makes none", method.name);
        return Err(reader
            .error(line, message)
            .hint(format!("methods that make them: {}", list_of_names(able, "and"))));
    }
    if let Some(energy) = parameters.setting("energy") {
        let message =
            format!("`energy` leaves the rank open until the data is read, and `output: {word}` needs it before");
        return Err(reader.error(energy.line, message).hint("give `rank_ratio` or `rank` instead"));
    }
    for entry in factors.map(|entry| reader.map(&entry.value, "`factors`")).transpose()?.unwrap_or_default() {
        match entry.key.as_str() {
            "dtype" => out.factor_dtype = dtype(reader, entry)?,
            "others" => {
                out.others = word_of(reader, entry, &OTHERS)?.unwrap_or_default();
                if out.others == Others::Task && (kind == OutputKind::Lora || has_stages) {
                    let why = match kind {
                        OutputKind::Lora => "an adapter changes matrices alone",
                        _ => "a task-vector stage changes the tasks' tensors, and these would be stored unchanged",
                    };
                    return Err(reader
                        .error(entry.line, format_args!("`others: task` cannot be: {why}"))
                        .hint("leave it out"));
                }
            }
            "base_model_name_or_path" if kind == OutputKind::Lora => out.base_name = text(reader, entry)?,
            "base_model_name_or_path" => {
                let message = "`base_model_name_or_path` is for adapters, and `output: factors` writes none";
                return Err(reader.error(entry.line, message).hint("leave it out, or write `output: lora`"));
            }
            key => {
                let message = format!("unknown key {} in `factors`", quote(key));
                return Err(reader.unknown_key(entry.line, message, key, &KEYS));
            }
        }
    }
    Ok(out)
}

/// What a key's word stands for; `None` if it is null.
fn word_of<T: Copy>(reader: &Reader, entry: &Entry, words: &[(&'static str, T)]) -> Result<Option<T>> {
    let Some(word) = text(reader, entry)? else { return Ok(None) };
    if let Some((_, meaning)) = words.iter().find(|(known, _)| *known == word) {
        return Ok(Some(*meaning));
    }
    let names = || words.iter().map(|(word, _)| *word);
    let message = format!("`{}` must be one of {}, found {}", entry.key, list_of_names(names(), "or"), quote(&word));
    let error = reader.error(entry.value.line, message);
    Err(match nearest(&word, names()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error,
    })
}

fn dtype(reader: &Reader, entry: &Entry) -> Result<Option<Dtype>> {
    let dtype = dtypes::read(reader, entry)?;
    let Some(wrong) = dtype.filter(|dtype| !DTYPES.contains(dtype)) else { return Ok(dtype) };
    let known = list_of_names(DTYPES.iter().filter_map(|d| d.recipe_name()), "or");
    let message = format!("factors cannot be stored as {}", wrong.recipe_name().unwrap_or_default());
    Err(reader.error(entry.value.line, message).hint(format!("write {known}")))
}
