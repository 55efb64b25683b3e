//! `experts`: a configuration of mergekit-moe, which makes a mixture of experts of dense models.

use std::path::Path;

use super::reader::{Reader, text};
use super::scalar::{self, Number};
use super::yaml::{Data, Entry, Node, quote};
use super::{ModelRef, Parameters, Recipe, dtypes, models, output};
use crate::error::{Error, Result};
use crate::methods;

/// The keys of such a configuration.
const KEYS: [&str; 7] =
    ["base_model", "experts", "shared_experts", "gate_mode", "dtype", "experts_per_token", "architecture"];
/// The keys of an expert.
const OWN: [&str; 5] = ["source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale"];
/// Above any use, and a bound on the work that a recipe can ask for.
const MOST_EXPERTS: usize = 1024;

/// A mixture of experts.
#[derive(Debug, Clone)]
pub struct Experts {
    /// The line of `experts`.
    pub line: usize,
    /// What a token chooses between.
    pub experts: Vec<Expert>,
    /// What every token passes, if there is one.
    pub shared: Option<Expert>,
    /// How gates are made.
    pub gate: Gate,
    /// How many experts a token passes.
    pub per_token: u64,
    /// `architecture`, as written.
    pub architecture: Option<String>,
    /// How experts are stored.
    pub layout: ExpertLayout,
}

/// One expert.
#[derive(Debug, Clone)]
pub struct Expert {
    /// The model whose MLPs it takes.
    pub model: ModelRef,
    /// Its line.
    pub line: usize,
    /// Standard deviation of the noise that is added to its matrices.
    pub noise: Option<f64>,
    /// Factor on its down projections.
    pub residual: Option<f64>,
}

/// How gates are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// From N(0, 1).
    Random,
    /// Uniform between ±1/√hidden.
    UniformRandom,
}

/// How experts are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpertLayout {
    /// Those of a layer in one tensor, as Transformers 5 has them.
    #[default]
    Packed,
    /// A tensor for each, as earlier versions have them.
    Old,
}

/// The recipe that a configuration of experts is, or nothing after mistakes that were noted; `None` for any other document.
pub(super) fn read(reader: &Reader, root: &Node) -> Result<Option<Option<Recipe>>> {
    let Data::Map(entries) = &root.data else { return Ok(None) };
    let of = |key: &str| entries.iter().find(|entry| entry.key == key && !entry.value.is_null());
    let Some(at) = of("experts") else { return Ok(None) };
    for entry in entries.iter().filter(|entry| !KEYS.contains(&entry.key.as_str())) {
        let message = format!("unknown key {} beside `experts`", quote(&entry.key));
        reader.keep::<()>(Err(reader.unknown_key(entry.line, message, &entry.key, &KEYS)));
    }
    let gate = reader.keep(gate(reader, at, of("gate_mode")));
    let base = match of("base_model") {
        Some(entry) => reader.keep(models::read(reader, &entry.value, "base_model")).map(|(model, _)| model),
        None => {
            let message = "`experts` needs `base_model`: attention, norms and embeddings are its";
            reader.keep(Err(reader.error(at.line, message)))
        }
    };
    let items = reader.list(&at.value, "`experts`")?;
    if items.is_empty() || items.len() > MOST_EXPERTS {
        let message = format!("`experts` lists {}, expected 1 to {MOST_EXPERTS}", items.len());
        return Err(reader.error(at.line, message));
    }
    let is_random = gate.is_none_or(|gate| gate == Gate::Random);
    let expert = |item: &std::rc::Rc<Node>| reader.keep(expert(reader, item, "experts", is_random)).flatten();
    let experts: Vec<Option<Expert>> = items.iter().map(expert).collect();
    let shared = match of("shared_experts") {
        Some(entry) => match reader.list(&entry.value, "`shared_experts`")? {
            [] => None,
            [one] => Some(self::expert(reader, one, "shared_experts", is_random)?),
            more => {
                let message = format!("`shared_experts` lists {}, and no architecture has more than one", more.len());
                return Err(reader.error(entry.line, message));
            }
        },
        None => None,
    };
    let per_token = match of("experts_per_token") {
        Some(entry) => reader.keep(count(reader, entry, items.len())).unwrap_or_default(),
        None => 2.min(items.len() as u64),
    };
    let architecture = match of("architecture") {
        Some(entry) => reader.keep(text(reader, entry)).flatten(),
        None => None,
    };
    let out_dtype = match of("dtype") {
        Some(entry) => reader.keep(dtypes::read(reader, entry)).flatten(),
        None => None,
    };
    let experts: Option<Vec<Expert>> = experts.into_iter().collect();
    let (Some(experts), Some(base), Some(gate)) = (experts, base, gate) else { return Ok(Some(None)) };
    if let [first, rest @ ..] = &experts[..]
        && !rest.is_empty()
        && rest
            .iter()
            .all(|expert| expert.model.path == first.model.path && expert.model.adapters == first.model.adapters)
    {
        let message = format!("all experts are {}: a mixture of one model is that model", quote(&first.model.written));
        return Err(reader.error(first.line, message));
    }
    let method = methods::find("passthrough").ok_or_else(|| Error::internal("`passthrough` is not registered"))?;
    let experts = Experts {
        line: at.line,
        experts,
        shared: shared.flatten(),
        gate,
        per_token,
        architecture,
        layout: ExpertLayout::default(),
    };
    Ok(Some(Some(Recipe {
        path: Path::new("").into(),
        text: String::new(),
        method,
        base: Some(base),
        models: Vec::new(),
        base_in_models: Some((0, Parameters::default())),
        parameters: Parameters::default(),
        around: Vec::new(),
        modules: Vec::new(),
        stages: Vec::new(),
        tokenizer: None,
        chat_template: None,
        copy: Vec::new(),
        out_dtype,
        output: output::Output::default(),
        cuts_embeddings: false,
        experts: Some(experts),
        before: Vec::new(),
        warnings: Vec::new(),
    })))
}

fn gate(reader: &Reader, at: &Entry, mode: Option<&Entry>) -> Result<Gate> {
    let written = mode.map(|entry| text(reader, entry)).transpose()?.flatten().unwrap_or_else(|| "hidden".into());
    let refused = |why: &str| {
        let mode = quote(&written);
        let mode = mode.trim_matches('`');
        let message = format!("`experts` is a configuration of mergekit-moe with `gate_mode: {mode}`: {why}");
        Err(reader.error(at.line, message))
    };
    match written.as_str() {
        "random" => Ok(Gate::Random),
        "uniform_random" => Ok(Gate::UniformRandom),
        "hidden" | "hidden_last" | "hidden_avg" => {
            refused("it takes hidden states of a model that runs, and merganser runs none")
        }
        "cheap_embed" => refused("it takes embeddings of encoded prompts, which is not done yet"),
        _ => refused("it is unknown"),
    }
}

fn expert(reader: &Reader, item: &Node, list: &str, is_random: bool) -> Result<Option<Expert>> {
    let Data::Map(entries) = &item.data else {
        let message = format!("an entry of `{list}` must be a mapping, found {}", item.describe());
        return Err(reader.error(item.line, message).hint("write `- source_model: PATH`"));
    };
    let mut model = None;
    let (mut noise, mut residual, mut has_prompts) = (None, None, false);
    for entry in entries.iter().filter(|entry| !entry.value.is_null()) {
        match entry.key.as_str() {
            "source_model" => model = Some(models::read(reader, &entry.value, "source_model")?.0),
            "positive_prompts" | "negative_prompts" => {
                let prompts = reader.list(&entry.value, &format!("`{}`", entry.key))?;
                has_prompts |= entry.key == "positive_prompts" && !prompts.is_empty();
            }
            "noise_scale" => noise = Some(number(reader, entry)?),
            "residual_scale" => residual = Some(number(reader, entry)?),
            key => {
                let message = format!("unknown key {} in an entry of `{list}`", quote(key));
                return Err(reader.unknown_key(entry.line, message, key, &OWN));
            }
        }
    }
    let Some(model) = model else {
        return Err(reader.error(item.line, format_args!("an entry of `{list}` has no `source_model`")));
    };
    if !has_prompts && !is_random {
        let message = format!("{} has no `positive_prompts`", quote(&model.written));
        return Err(reader
            .error(item.line, message)
            .hint("`gate_mode: random` alone takes experts without prompts, as in mergekit"));
    }
    Ok(Some(Expert { model, line: item.line, noise, residual }))
}

fn number(reader: &Reader, entry: &Entry) -> Result<f64> {
    let found = match &entry.value.data {
        Data::Scalar { text, .. } => scalar::number(text).ok(),
        _ => None,
    };
    let value = match found {
        Some(Number::Int(value)) => value as f64,
        Some(Number::Float(value)) => value,
        None => f64::NAN,
    };
    if !value.is_finite() || value.abs() > 1e6 {
        let message = format!("`{}` must be a number, found {}", entry.key, entry.value.describe());
        return Err(reader.error(entry.value.line, message));
    }
    Ok(value)
}

fn count(reader: &Reader, entry: &Entry, experts: usize) -> Result<u64> {
    let value = number(reader, entry)?;
    if value.fract() != 0.0 || value < 1.0 || value > experts as f64 {
        let message =
            format!("`experts_per_token` must be 1 to {experts}, as many as there are experts, found {value}");
        return Err(reader.error(entry.value.line, message));
    }
    Ok(value as u64)
}
