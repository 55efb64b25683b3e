//! LoRA adapters in PEFT's layout: what each of their tensors does to a base's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use regex::Regex;
use serde_json::{Map, Value};

use super::Held;
use super::lora::{Adapted, DTYPE, Instead};
use crate::checkpoint::{Checkpoint, Made, json_in, quoted, quoted_path};
use crate::dtype::DtypeExt;
use crate::error::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLED: &str = "adapter_model.bin";
/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";
/// PEFT's own default.
const ALPHA: f64 = 8.0;

/// The tensors of an adapter that belong to one module.
#[derive(Debug, Clone, Default)]
pub(super) struct Module {
    pub a: Option<Held>,
    pub b: Option<Held>,
    pub magnitudes: Option<Held>,
    pub is_embedding: bool,
}

/// An adapter, read.
pub(super) struct Adapter<'a> {
    pub config: Config<'a>,
    /// Its file.
    pub checkpoint: Checkpoint,
    /// Modules with factors, by their names in the base.
    pub modules: BTreeMap<String, Module>,
    /// Tensors that take the place of the base's, with the base's names.
    pub whole: Vec<(String, Held)>,
}

/// What `adapter_config.json` says.
pub(super) struct Config<'a> {
    folder: &'a Path,
    settings: Map<String, Value>,
}

/// Puts an adapter on a checkpoint: its tensors are made of the base's and the adapter's as they are read. Gives warnings.
///
/// # Errors
/// Input, for an adapter that does not fit, or does what is not known, naming it.
pub(crate) fn apply(base: &mut Checkpoint, written: &str, folder: &Path) -> Result<Vec<String>> {
    let Adapter { config, checkpoint: adapter, modules, whole } = Adapter::read(folder)?;
    let mut warnings = Vec::new();
    if let Some(named) = config.settings.get("base_model_name_or_path").and_then(Value::as_str)
        && !named.is_empty()
        && last(named) != last(written)
    {
        let adapter = quoted_path(folder);
        warnings.push(format!(
            "the adapter {adapter} was trained on {}, and is put on {}",
            quoted(named),
            quoted(written)
        ));
    }
    // Whole tensors first: what replaces a base's weight is what the change is added to.
    for (name, held) in whole {
        let at = base.position(&name).ok_or_else(|| {
            config.error(format!("{} matches no tensor of {}", quoted(&held.tensor.name), quoted(written)))
        })?;
        let stored = &base.tensors()[at];
        if stored.shape != held.tensor.shape || !held.tensor.dtype.is_mergeable_float() {
            let message = format!(
                "{} has the shape {:?}, {} of {} has {:?}",
                quoted(&held.tensor.name),
                held.tensor.shape,
                quoted(&name),
                quoted(written),
                stored.shape
            );
            return Err(config.error(message));
        }
        let (dtype, shape) = (held.tensor.dtype, held.tensor.shape.clone());
        base.replace(at, dtype, shape, Arc::new(Instead(held)))?;
    }
    for (name, module) in modules {
        let (at, made) = config.adapted(base, written, &name, module)?;
        let shape = base.tensors()[at].shape.clone();
        base.replace(at, DTYPE, shape, made)?;
    }
    base.adopt(&adapter);
    Ok(warnings)
}

/// The last part of a name or path.
fn last(name: &str) -> &str {
    name.trim_end_matches('/').rsplit('/').next().unwrap_or(name)
}

enum Part {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
    Magnitudes,
}

/// The module that a tensor belongs to, and what it is there; `None` for one that stands for a whole tensor.
fn part_of(name: &str) -> Option<(&str, Part)> {
    for (marker, part) in [
        (".lora_embedding_A", Part::EmbeddingA),
        (".lora_embedding_B", Part::EmbeddingB),
        (".lora_magnitude_vector", Part::Magnitudes),
        (".lora_A", Part::A),
        (".lora_B", Part::B),
    ] {
        // Behind it may stand the adapter's name, and `weight`.
        if let Some((module, rest)) = name.split_once(marker)
            && matches!(rest, "" | ".weight" | ".default" | ".default.weight")
        {
            return Some((module, part));
        }
    }
    None
}

impl<'a> Adapter<'a> {
    /// Reads an adapter's configuration and the header of its file.
    ///
    /// # Errors
    /// Input, for what is no adapter, or does what is not known.
    pub fn read(folder: &'a Path) -> Result<Self> {
        let config = Config::read(folder)?;
        let weights = [WEIGHTS, PICKLED].map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
        let checkpoint = Checkpoint::open(&weights.unwrap_or_else(|| folder.join(WEIGHTS)))?;
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        let mut whole: Vec<(String, Held)> = Vec::new();
        for tensor in checkpoint.tensors() {
            let held = Held { shard: Arc::clone(checkpoint.shared_shard(tensor.shard)), tensor: tensor.clone() };
            let name = tensor.name.strip_prefix(PREFIX).unwrap_or(&tensor.name);
            match part_of(name) {
                Some((module, part)) => {
                    let module = modules.entry(module.to_owned()).or_default();
                    match part {
                        Part::A => module.a = Some(held),
                        Part::B => module.b = Some(held),
                        Part::EmbeddingA => (module.a, module.is_embedding) = (Some(held), true),
                        Part::EmbeddingB => (module.b, module.is_embedding) = (Some(held), true),
                        Part::Magnitudes => module.magnitudes = Some(held),
                    }
                }
                None => whole.push((name.replace(".modules_to_save.", ".").replace(".base_layer.", "."), held)),
            }
        }
        Ok(Self { config, checkpoint, modules, whole })
    }
}

impl<'a> Config<'a> {
    fn read(folder: &'a Path) -> Result<Self> {
        let settings = json_in(folder, CONFIG).ok_or_else(|| {
            Error::input(format!("{} has no `{CONFIG}` that can be read: it is no adapter", quoted_path(folder)))
        })?;
        let config = Self { folder, settings };
        let kind = config.settings.get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
        if kind != "LORA" {
            return Err(config.error(format!("an adapter of the kind {} is not read, only LORA", quoted(kind))));
        }
        for key in [
            "lora_bias",
            "layer_replication",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "target_parameters",
        ] {
            let is_set = match config.settings.get(key) {
                None | Some(Value::Null | Value::Bool(false)) => false,
                Some(Value::Array(items)) => !items.is_empty(),
                Some(_) => true,
            };
            if is_set {
                return Err(config.error(format!("`{key}` of an adapter is not known here")));
            }
        }
        Ok(config)
    }

    pub fn error(&self, message: String) -> Error {
        Error::input(format!("{}: {message}", quoted_path(self.folder)))
    }

    pub fn flag(&self, key: &str) -> bool {
        self.settings.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A number of a module: that of the first pattern that matches its name, else that of all.
    fn number(&self, module: &str, patterns: &str, all: &str) -> Result<Option<f64>> {
        for (pattern, value) in self.settings.get(patterns).and_then(Value::as_object).into_iter().flatten() {
            let whole = format!(r"^(?:.*\.)?(?:{pattern})$");
            let regex = Regex::new(&whole)
                .map_err(|_| self.error(format!("the pattern {} of `{patterns}` does not compile", quoted(pattern))))?;
            if regex.is_match(module) {
                return Ok(value.as_f64());
            }
        }
        Ok(self.settings.get(all).and_then(Value::as_f64))
    }

    /// What a module's product of factors is multiplied by: alpha/r, or alpha/√r.
    pub fn scale(&self, module: &str, rank: u64) -> Result<f64> {
        let alpha = self.number(module, "alpha_pattern", "lora_alpha")?.unwrap_or(ALPHA);
        let rank = rank as f64;
        Ok(alpha / if self.flag("use_rslora") { rank.sqrt() } else { rank })
    }

    /// The weight of a module with its change.
    pub fn adapted(
        &self,
        base: &Checkpoint,
        written: &str,
        name: &str,
        module: Module,
    ) -> Result<(usize, Arc<dyn Made>)> {
        let Module { a: Some(a), b: Some(b), magnitudes, is_embedding } = module else {
            return Err(self.error(format!("{} has half a pair of factors", quoted(name))));
        };
        let weight = format!("{name}.weight");
        let at = base
            .position(&weight)
            .ok_or_else(|| self.error(format!("{} has no tensor {}", quoted(written), quoted(&weight))))?;
        let stored = &base.tensors()[at];
        if magnitudes.is_some() && is_embedding {
            return Err(self.error(format!("DoRA on the embedding {} is not known here", quoted(name))));
        }
        let ([m, n], [r, of_a], [of_b, other]) = (&stored.shape[..], &a.tensor.shape[..], &b.tensor.shape[..]) else {
            return Err(self.error(format!(
                "{} is no matrix with matrices as factors: {:?}, {:?}, {:?}",
                quoted(name),
                stored.shape,
                a.tensor.shape,
                b.tensor.shape
            )));
        };
        let is_transposed = is_embedding || self.flag("fan_in_fan_out");
        let fits = if is_transposed { (of_b, of_a) == (n, m) } else { (of_b, of_a) == (m, n) };
        if !fits || r != other || *r == 0 {
            return Err(self.error(format!(
                "factors of {} do not fit: A {:?}, B {:?}, and the weight of {} is {:?}",
                quoted(name),
                a.tensor.shape,
                b.tensor.shape,
                quoted(written),
                stored.shape
            )));
        }
        let all = [stored, &a.tensor, &b.tensor];
        if let Some(wrong) = all.iter().find(|t| !t.dtype.is_mergeable_float()) {
            return Err(self.error(format!("{} is stored as {}, which is no float", quoted(&wrong.name), wrong.dtype)));
        }
        if let Some(rank) = self.number(name, "rank_pattern", "r")?
            && rank != *r as f64
        {
            return Err(self.error(format!("factors of {} have rank {r}, and `{CONFIG}` says {rank}", quoted(name))));
        }
        let scale = self.scale(name, *r)? as f32;
        if let Some(magnitudes) = &magnitudes {
            let outputs = if is_transposed { n } else { m };
            if magnitudes.tensor.elems != *outputs || !magnitudes.tensor.dtype.is_mergeable_float() {
                return Err(self.error(format!(
                    "DoRA's magnitudes of {} are {:?}, expected [{outputs}]",
                    quoted(name),
                    magnitudes.tensor.shape
                )));
            }
        } else if self.flag("use_dora") {
            return Err(self.error(format!("{} has no DoRA magnitudes, and `use_dora` is set", quoted(name))));
        }
        let rank = *r;
        let base = Held { shard: Arc::clone(base.shared_shard(stored.shard)), tensor: stored.clone() };
        Ok((at, Arc::new(Adapted { base, a, b, rank, scale, is_transposed, magnitudes, norms: OnceLock::new() })))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_names() {
        for (name, module) in [
            ("model.layers.0.q_proj.lora_A.weight", Some("model.layers.0.q_proj")),
            ("model.layers.0.q_proj.lora_B.default.weight", Some("model.layers.0.q_proj")),
            ("wte.lora_embedding_A", Some("wte")),
            ("q.lora_magnitude_vector.weight", Some("q")),
            ("lm_head.weight", None),
            ("q.lora_A.weight.extra", None),
        ] {
            assert_eq!(part_of(name).map(|(module, _)| module), module, "{name}");
        }
    }

    #[test]
    fn the_first_pattern_that_matches_counts_and_rank_and_alpha_are_looked_up_apart() {
        let settings = serde_json::json!({"r": 8, "rank_pattern": {"layers.1.q": 4, "q": 2}, "alpha_pattern": {"v": 3}, "lora_alpha": 16});
        let config = Config { folder: Path::new("a"), settings: settings.as_object().unwrap().clone() };
        let rank = |module: &str| config.number(module, "rank_pattern", "r").unwrap().unwrap();
        assert_eq!(
            [rank("m.layers.1.q"), rank("m.layers.2.q"), rank("q"), rank("m.xq"), rank("m.v")],
            [4.0, 2.0, 2.0, 8.0, 8.0]
        );
        assert_eq!(config.number("m.v", "alpha_pattern", "lora_alpha").unwrap(), Some(3.0));
    }
}
