//! Whether a source is a whole model of plain numbers: no half of one, no quantised codes, no adapter, no optimizer's state.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Source, TensorPlan};
use crate::checkpoint::{Checkpoint, LayerMap, quoted};
use crate::error::{Error, Result};
use crate::ops::Program;
use crate::output::copy::MAX_BYTES;
use crate::recipe::Recipe;

/// Files that quantisers leave beside the weights.
const SIDE_FILES: [&str; 5] = [
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
    "hf_quant_config.json",
    "quant_strategy.json",
];
/// Keys of `config.json` that tell of quantised weights, at any depth.
const CONFIG_KEYS: [&str; 3] = ["quantization_config", "quantization", "compression_config"];
/// How many levels of a `config.json` are looked into.
const DEPTH: usize = 16;
/// Ends of names that only quantised tensors and their companions have.
const CODES: [&str; 14] = [
    ".qweight",
    ".qzeros",
    ".weight_scale_inv",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_packed",
    ".weight_zero_point",
    ".weight.absmax",
    ".weight.quant_map",
    ".weight.nested_absmax",
    ".SCB",
    ".weight._data",
    ".weight._scale",
    ".input_scale",
];
/// Companions and what they stand beside: MXFP4's blocks, MLX's codes, FP4's and FP8's scales.
const PAIRS: [(&str, &str); 4] =
    [("_scales", "_blocks"), (".scales", ".biases"), (".scales", ".qweight"), (".g_idx", ".qweight")];
/// Parts of names of an adapter's factors.
const FACTORS: [&str; 9] = [
    "lora_A",
    "lora_B",
    "lora_down.",
    "lora_up.",
    "lora_embedding_",
    "lora_magnitude_vector",
    ".hada_w",
    ".lokr_w",
    "ia3_l",
];
/// Parts of names of an optimizer's state.
const STATES: [&str; 3] = ["exp_avg", "momentum_buffer", "optimizer_state"];

/// Refuses sources that are no whole models, by name. Gives warnings.
///
/// # Errors
/// `Input`, naming the source and what of it tells.
pub(super) fn check(recipe: &Recipe, sources: &[Source]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for source in sources {
        is_complete(source)?;
        if !copies_bytes(recipe) {
            holds_weights(source)?;
        }
        warnings.extend(fewer_layers(source));
    }
    // What one of them has and another lacks does not fit, and is refused as that.
    warnings.extend(sources.first().and_then(placeholders));
    Ok(warnings)
}

/// What of a quantised source is not copied byte for byte is refused.
///
/// # Errors
/// `Input`, naming the source and the tensor.
pub(super) fn copied_whole(recipe: &Recipe, sources: &[Source], tensors: &[TensorPlan]) -> Result<()> {
    if !copies_bytes(recipe) {
        return Ok(());
    }
    for tensor in tensors.iter().filter(|t| t.program != Program::Copy) {
        tensor.reads().try_for_each(|at| holds_weights(&sources[at.source]))?;
    }
    Ok(())
}

/// Whether a recipe asks for copies alone.
pub(super) fn copies_bytes(recipe: &Recipe) -> bool {
    let are_copies = recipe.methods().all(|method| method.name == "passthrough");
    are_copies && recipe.experts.is_none() && recipe.out_dtype.is_none() && !recipe.is_set_anywhere("scale")
}

/// Every part of a model that is stored in parts.
fn is_complete(source: &Source) -> Result<()> {
    let label = quoted(&source.written);
    let checkpoint = &source.checkpoint;
    if checkpoint.tensors().is_empty() {
        return Err(Error::input(format!("{label} holds no tensors"))
            .hint("its file was not written to the end, or belongs to something else: download the model again"));
    }
    if checkpoint.tensors().iter().all(|t| t.elems == 0) {
        return Err(Error::input(format!("every tensor of {label} is empty, {} first", shown(checkpoint, 0)))
            .hint("these are placeholders, as a training that shards its parameters saves them: gather the weights and save again"));
    }
    let names: BTreeSet<String> = checkpoint
        .shards()
        .iter()
        .filter_map(|shard| Some(shard.path().file_name()?.to_string_lossy().into_owned()))
        .collect();
    let Some((stem, count, width)) = names.iter().find_map(|name| part(name)) else { return Ok(()) };
    let missing: Vec<String> = (1..=count)
        .map(|i| format!("{stem}-{i:0width$}-of-{count:0width$}.safetensors"))
        .filter(|name| !names.contains(name))
        .collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let is_there = checkpoint.folder().is_some_and(|folder| folder.join(first).is_file());
    let why = if is_there { "is there, but the index does not name it" } else { "is missing" };
    let more = match missing.len() - 1 {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    };
    let hint = match checkpoint.folder() {
        None => "a part of a model cannot be merged: give the folder with all of its parts and their index".into(),
        Some(_) => format!("download {} again: all parts and `{stem}.safetensors.index.json`", quoted(&source.written)),
    };
    Err(Error::input(format!("{label} is not whole: of its {count} parts {} {why}{more}", quoted(first))).hint(hint))
}

/// Stem, count and width of the number of `model-00001-of-00002.safetensors`.
fn part(name: &str) -> Option<(String, usize, usize)> {
    /// More parts than anyone has.
    const MOST: usize = 100_000;
    let (rest, of) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, index) = rest.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let count = of.parse().ok().filter(|n| digits(of) && digits(index) && (2..=MOST).contains(n))?;
    Some((stem.to_owned(), count, index.len()))
}

/// Refuses codes, factors and states.
fn holds_weights(source: &Source) -> Result<()> {
    let label = quoted(&source.written);
    if let Some(why) = quantised(source) {
        return Err(Error::input(format!("{label} is quantised: {why}")).hint(
            "codes and scales are no weights that could be merged: give the model as it was before, or dequantised to bfloat16",
        ));
    }
    let tensors = source.checkpoint.tensors();
    let named = |parts: &[&str]| tensors.iter().find(|t| parts.iter().any(|part| t.name.contains(part)));
    if let Some(tensor) = named(&FACTORS) {
        return Err(Error::input(format!(
            "{label} holds factors of an adapter, such as {}, and no whole model",
            quoted(&tensor.name)
        ))
        .hint("merge the adapter into its base model first"));
    }
    if let Some(tensor) = named(&STATES) {
        return Err(Error::input(format!("{label} holds an optimizer's state, such as {}", quoted(&tensor.name)))
            .hint("give the model's weights alone"));
    }
    Ok(())
}

/// What tells that a checkpoint is quantised, in words.
fn quantised(source: &Source) -> Option<String> {
    let checkpoint = &source.checkpoint;
    let folder = checkpoint.folder().map(Path::to_owned).or_else(|| checkpoint.path().parent().map(Path::to_owned))?;
    if source.is_dequantised {
        return companion(checkpoint);
    }
    if let Some(config) = json(&folder.join("config.json"))
        && let Some(found) = quantisation(&config, "", DEPTH)
    {
        return Some(format!("its `config.json` has {found}"));
    }
    if let Some(name) = SIDE_FILES.iter().find(|name| folder.join(name).is_file()) {
        return Some(format!("`{name}` lies beside it"));
    }
    companion(checkpoint)
}

/// A tensor that belongs to codes, in words.
fn companion(checkpoint: &Checkpoint) -> Option<String> {
    let tensors = checkpoint.tensors();
    let is_companion = |name: &str| {
        CODES.iter().any(|end| name.ends_with(end))
            || name.contains(".quant_state.")
            || PAIRS.iter().any(|(end, other)| {
                name.strip_suffix(end).is_some_and(|stem| checkpoint.get(&format!("{stem}{other}")).is_some())
            })
    };
    let found = tensors.iter().find(|t| is_companion(&t.name))?;
    Some(format!("{} belongs to codes, not to weights", quoted(&found.name)))
}

/// Where a configuration tells of quantised weights: the key with its path, and the method if it is named.
fn quantisation(value: &Value, place: &str, depth: usize) -> Option<String> {
    let map = value.as_object().filter(|_| depth > 0)?;
    map.iter().find_map(|(key, value)| {
        let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
        let says = CONFIG_KEYS.contains(&key.as_str()) && value.as_object().is_some_and(|map| !map.is_empty());
        if !says {
            return quantisation(value, &place, depth - 1);
        }
        let method = value.get("quant_method").and_then(Value::as_str);
        Some(method.map_or_else(|| quoted(&place), |m| format!("{} (`quant_method`: {})", quoted(&place), quoted(m))))
    })
}

/// Fewer blocks than `config.json` says.
fn fewer_layers(source: &Source) -> Option<String> {
    let config = json(&source.checkpoint.folder()?.join("config.json"))?;
    let stated = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"].iter().find_map(|key| {
        let inner = || config.get("text_config").and_then(|text| text.get(key));
        Some((*key, config.get(key).or_else(inner)?.as_u64()?))
    })?;
    let layers = LayerMap::new(source.checkpoint.tensors().iter().map(|t| t.name.as_str()));
    let last = layers.groups().iter().filter_map(|layer| layer.index).max()?;
    let found = u64::from(last) + 1;
    (found < stated.1).then(|| {
        format!("{} has {found} layers, its `config.json` says `{}: {}`", quoted(&source.written), stated.0, stated.1)
    })
}

/// Tensors without elements in a model that has others.
fn placeholders(source: &Source) -> Option<String> {
    let tensors = source.checkpoint.tensors();
    let count = tensors.iter().filter(|t| t.elems == 0).count();
    let first = tensors.iter().position(|t| t.elems == 0)?;
    let what = if count == 1 { "1 tensor".into() } else { format!("{count} tensors") };
    Some(format!("{what} of {} without elements, {} first", quoted(&source.written), shown(&source.checkpoint, first)))
}

fn shown(checkpoint: &Checkpoint, tensor: usize) -> String {
    let tensor = &checkpoint.tensors()[tensor];
    format!("{} ({:?})", quoted(&tensor.name), tensor.shape)
}

/// A small JSON file; `None` if it is not there, too large, or no JSON: whoever copies it says so.
pub(super) fn json(path: &Path) -> Option<Value> {
    let file = std::fs::File::open(path).ok()?;
    if !file.metadata().is_ok_and(|m| m.is_file() && m.len() <= MAX_BYTES) {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Where a source's small files are.
pub(super) fn folder(source: &Source) -> Option<PathBuf> {
    source.checkpoint.folder().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_are_known_by_their_names() {
        assert_eq!(part("model-00001-of-00002.safetensors"), Some(("model".into(), 2, 5)));
        assert_eq!(part("a-b-1-of-3.safetensors"), Some(("a-b".into(), 3, 1)));
        for name in
            ["model.safetensors", "model-1-of-1.safetensors", "x-of-2.safetensors", "m-1-of-99999999999.safetensors"]
        {
            assert_eq!(part(name), None, "{name}");
        }
    }

    #[test]
    fn quantised_configurations_are_known_at_any_depth_and_empty_ones_are_none() {
        let found = |config: Value| quantisation(&config, "", DEPTH);
        assert_eq!(
            found(json!({"text_config": {"quantization_config": {"quant_method": "gptq"}}})).as_deref(),
            Some("`text_config.quantization_config` (`quant_method`: `gptq`)")
        );
        assert_eq!(found(json!({"quantization": {"bits": 4}})).as_deref(), Some("`quantization`"));
        assert_eq!(found(json!({"quantization_config": null, "quantization": {}})), None);
    }
}
