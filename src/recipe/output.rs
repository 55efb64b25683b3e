//! `output`: what a merge writes, and `factors`: how it stores low-rank factors.

use super::dtypes;
use super::parameters::Parameters;
use super::reader::{Reader, list_of_names, text};
use super::yaml::{Entry, quote};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::Result;
use crate::methods::REGISTRY;
use crate::ops::{BaseModel, Matrices, MethodSpec};
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
    /// Whether all models are adapters of one base, merged in the space that they span together into an adapter.
    pub in_core: bool,
    /// The rank of that adapter; `None`: what holds the merge exactly.
    pub rank: Option<u64>,
}

/// What a recipe says of adapters alone.
pub(super) struct OfAdapters<'a> {
    /// Whether every model is one base with one adapter.
    pub are_alone: bool,
    /// `lora_rank`.
    pub rank: Option<&'a Entry>,
    /// `adapter_space`.
    pub space: Option<&'a Entry>,
    /// Whether the recipe has `base_model`.
    pub has_base: bool,
}

/// Above any rank.
const MOST_RANK: u64 = 65_536;

impl OfAdapters<'_> {
    /// Reads them for a merge of adapters into an adapter.
    fn read(
        &self,
        reader: &Reader,
        line: usize,
        method: &MethodSpec,
        parameters: &Parameters,
        out: &mut Output,
    ) -> Result<()> {
        let space = self.space.map(|entry| text(reader, entry)).transpose()?.flatten();
        let line_of_space = self.space.map_or(line, |entry| entry.line);
        match space.as_deref().unwrap_or("full") {
            "core" => out.in_core = true,
            "full" | "knots" => {
                let asked = space.as_deref().unwrap_or("full, the default,");
                let message = format!("`adapter_space` {asked} is not there yet for `output: lora` of adapters alone");
                return Err(reader.error(line_of_space, message).hint(
                    "`adapter_space: core` merges in the space that the adapters span: for averages and sums of task vectors the \
                     same adapter, exactly",
                ));
            }
            other => {
                let message = format!("`adapter_space` must be `core`, `full` or `knots`, found {}", quote(other));
                return Err(reader.error(line_of_space, message));
            }
        }
        let is_mean = method.base == BaseModel::JoinsByWeight;
        // What is measured from the models' average moves with the base as well.
        let moves_along = is_mean || method.matrices == Matrices::Factors;
        if !method.base.is_origin(self.has_base) && !moves_along {
            let message =
                format!("method `{}` does not work on differences from the base, as adapters are", method.name);
            return Err(reader.error(line, message).hint("merge the models: leave `output: lora` out"));
        }
        if let Some(setting) = parameters.setting("normalize").filter(|_| is_mean) {
            let message = "`normalize` cannot be set here: weights that do not sum to 1 scale the base too, which no adapter holds";
            return Err(reader.error(setting.line, message).hint("leave it out: weights are then normalised"));
        }
        out.rank = match self.rank {
            None => None,
            Some(entry) => {
                let found = text(reader, entry)?.and_then(|text| text.parse::<u64>().ok());
                let rank = found.filter(|rank| (1..=MOST_RANK).contains(rank));
                Some(rank.ok_or_else(|| {
                    let message = format!("`lora_rank` must be 1 to {MOST_RANK}, found {}", entry.value.describe());
                    reader.error(entry.value.line, message)
                })?)
            }
        };
        Ok(())
    }
}

impl Output {
    /// As the recipe says it, for the manifest; nothing where a model is merged.
    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        let dtype = self.factor_dtype.and_then(DtypeExt::recipe_name);
        let others = OTHERS.iter().find(|(_, others)| *others == self.others).map(|(word, _)| *word);
        let mut factors =
            serde_json::json!({"dtype": dtype, "others": others, "base_model_name_or_path": self.base_name});
        if self.in_core {
            factors["adapter_space"] = "core".into();
            factors["lora_rank"] = self.rank.into();
        }
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
    adapters: &OfAdapters<'_>,
) -> Result<Output> {
    let kind = match output {
        Some(entry) => word_of(reader, entry, &WORDS)?.unwrap_or_default(),
        None => OutputKind::Merged,
    };
    let mut out = Output { kind, ..Output::default() };
    let is_alone = kind == OutputKind::Lora && adapters.are_alone;
    if let Some(entry) = adapters.rank.or(adapters.space).filter(|_| !is_alone) {
        let message =
            format!("`{}` is for `output: lora` of adapters alone: every model one base with one adapter", entry.key);
        return Err(reader.error(entry.line, message));
    }
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
    if is_alone {
        adapters.read(reader, line, method, parameters, &mut out)?;
    } else if method.matrices != Matrices::Factors {
        let able = REGISTRY.iter().filter(|m| m.matrices == Matrices::Factors).map(|m| m.name);
        let message = format!("`output: {word}` stores low-rank parts, and method `{}` makes none", method.name);
        return Err(reader
            .error(line, message)
            .hint(format!("methods that make them: {}", list_of_names(able, "and"))));
    }
    if let Some(energy) = parameters.setting("energy").filter(|_| !is_alone) {
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
