//! What is merged: a base and three fine-tunes of a few layers in every type, and recipes of every method.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;

use crate::backend::cpu::stored::Widen;
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Result};
use crate::methods::REGISTRY;
use crate::ops::philox;
use crate::ops::spec::{BaseModel, MethodSpec, ParamDefault, ParamKind, ParamSpec, Role};
use crate::plan::Options;

/// Of every merge.
pub(super) const OPTIONS: Options = super::options();
/// What each takes of the device's memory at most.
pub(super) const DEVICE_MEMORY: u64 = 128 << 20;

const MODELS: [&str; 4] = ["base", "a", "b", "c"];

/// Tensors: matrices both ways round, one of each type, several of one shape, one of more than a segment, and what is no matrix.
const TENSORS: &[(&str, Dtype, &[usize])] = &[
    ("model.embed_tokens.weight", Dtype::BF16, &[600, 128]),
    ("model.layers.0.self_attn.q_proj.weight", Dtype::F16, &[48, 48]),
    ("model.layers.0.mlp.up_proj.weight", Dtype::F32, &[72, 40]),
    ("model.layers.0.mlp.down_proj.weight", Dtype::BF16, &[40, 72]),
    ("model.layers.0.norm.weight", Dtype::F32, &[97]),
    ("model.layers.1.self_attn.q_proj.weight", Dtype::F64, &[48, 48]),
    ("model.layers.1.mlp.up_proj.weight", Dtype::F32, &[72, 40]),
    ("model.layers.1.mlp.down_proj.weight", Dtype::BF16, &[40, 72]),
    ("model.layers.1.norm.weight", Dtype::F16, &[1]),
];

/// A folder of its own, that is gone once the check has ended.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!(".merganser-check-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|e| {
            Error::io(format_args!("create `{}`", path.display()), &e)
                .hint("name a folder that can be written to in the environment's TMPDIR")
        })?;
        Ok(Self(path))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes the models.
    pub fn write(&self) -> Result<()> {
        for (model, name) in MODELS.iter().enumerate() {
            let tensors: Vec<(usize, Vec<u8>)> = (0..TENSORS.len()).map(|t| (t, values(model, t))).collect();
            let view = |t: usize, bytes| {
                let (name, dtype, shape) = TENSORS[t];
                let view = TensorView::new(dtype, shape.to_vec(), bytes);
                view.map(|view| (name, view)).map_err(|e| Error::internal(format!("`{name}`: {e}")))
            };
            let views = tensors.iter().map(|(t, bytes)| view(*t, bytes)).collect::<Result<Vec<_>>>()?;
            let bytes = safetensors::serialize(views, None).map_err(|e| Error::internal(e.to_string()))?;
            put(&self.path(&format!("{name}.safetensors")), &bytes)?;
        }
        Ok(())
    }

    /// Writes a recipe.
    pub fn recipe(&self, text: &str) -> Result<PathBuf> {
        let path = self.path("recipe.yaml");
        put(&path, text.as_bytes())?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).map_err(|e| Error::io(format_args!("write `{}`", path.display()), &e))
}

/// A tensor of a model: noise, and of a fine-tune the base's with noise a tenth as large on nine elements in ten.
fn values(model: usize, tensor: usize) -> Vec<u8> {
    let (_, dtype, shape) = TENSORS[tensor];
    let elems: usize = shape.iter().product();
    let noise = |of: usize| {
        let mut words = vec![0u32; elems];
        philox::fill(&mut words, 0, [of as u32 + 1, tensor as u32]);
        words
    };
    // Sums of the four bytes of a word: nearly normal.
    let normal = |word: u32| word.to_le_bytes().iter().map(|byte| f64::from(*byte) - 127.5).sum::<f64>() / 147.8;
    let mut all: Vec<f64> = noise(0).into_iter().map(normal).collect();
    if model > 0 {
        let changes = noise(model).into_iter().map(|word| if word % 10 == 0 { 0.0 } else { 0.1 * normal(word) });
        all.iter_mut().zip(changes).for_each(|(value, change)| *value += change);
    }
    let mut bytes = vec![0; elems * dtype.size_bytes().unwrap_or(1) as usize];
    f64::narrow(&all, dtype, &mut bytes);
    bytes
}

/// A recipe and what is told of it.
pub(super) struct Text {
    pub name: String,
    pub text: String,
}

/// Every method and stage with values that change something, and for each of its choices and switches every other one.
pub(super) fn recipes() -> Vec<Text> {
    REGISTRY.iter().flat_map(|spec| variants(spec)).collect()
}

fn variants(spec: &MethodSpec) -> Vec<Text> {
    let plain: BTreeMap<&str, String> = spec.parameters.iter().filter_map(|p| Some((p.name, value(p)?))).collect();
    let mut all = vec![text(spec, spec.name.to_owned(), &plain)];
    for parameter in spec.parameters.iter().filter(|p| p.name != "int8_mask") {
        let words: Vec<String> = match parameter.kind {
            ParamKind::Choice(words) => words.iter().map(ToString::to_string).collect(),
            ParamKind::Bool => vec!["true".into(), "false".into()],
            _ => continue,
        };
        let default = match parameter.default {
            ParamDefault::Word(word) => word.to_owned(),
            ParamDefault::Bool(value) => value.to_string(),
            _ => String::new(),
        };
        for word in words.into_iter().filter(|word| *word != default) {
            let mut values = plain.clone();
            let name = format!("{}, {}: {word}", spec.name, parameter.name);
            values.insert(parameter.name, word);
            all.push(text(spec, name, &values));
        }
    }
    all
}

/// What a parameter is set to; `None` where its default does.
fn value(parameter: &ParamSpec) -> Option<String> {
    match (parameter.name, parameter.kind) {
        ("density" | "keep", ParamKind::Float { min, max }) => Some(0.4f64.clamp(min, max).to_string()),
        ("rank_ratio", _) => Some("0.25".into()),
        ("lambda", ParamKind::Float { .. }) => Some("0.7".into()),
        ("weight", _) => None,
        (_, kind) if parameter.default == ParamDefault::Required => match kind {
            ParamKind::Float { min, max } => Some(0.4f64.clamp(min, max).to_string()),
            ParamKind::Int { min, .. } => Some(min.to_string()),
            ParamKind::Choice(words) => words.first().map(ToString::to_string),
            _ => None,
        },
        _ => None,
    }
}

fn text(spec: &MethodSpec, name: String, values: &BTreeMap<&str, String>) -> Text {
    let method = if spec.role == Role::Method { spec.name } else { "task_arithmetic" };
    let mut text = format!("merge_method: {method}\n");
    if matches!(spec.base, BaseModel::Required | BaseModel::Origin) || spec.role == Role::Stage {
        text += "base_model: base.safetensors\n";
    }
    text += "models:\n";
    let weighs = spec.parameters.iter().any(|p| p.name == "weight") || spec.role == Role::Stage;
    for (i, name) in MODELS[1..].iter().take(spec.models.1.min(3).max(spec.models.0)).enumerate() {
        let weight =
            if weighs { format!(", parameters: {{weight: {}}}", 0.5 + 0.25 * i as f64) } else { String::new() };
        let _ = writeln!(text, "  - {{model: {name}.safetensors{weight}}}");
    }
    let list: Vec<String> = values.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let list = list.join(", ");
    match spec.role {
        Role::Stage => {
            let _ = writeln!(text, "task_vector_stages:\n  - {{stage: {}, parameters: {{{list}}}}}", spec.name);
        }
        Role::Method if list.is_empty() => {}
        Role::Method => {
            let _ = writeln!(text, "parameters: {{{list}}}");
        }
    }
    Text { name, text }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::recipe::Recipe;

    #[test]
    fn every_method_has_a_recipe_that_plans_on_the_family_and_the_folder_goes_with_its_end() {
        let folder = Folder::new().unwrap();
        folder.write().unwrap();
        let mut planned = BTreeMap::<String, usize>::new();
        for Text { name, text } in recipes() {
            let path = folder.recipe(&text).unwrap();
            let of = name.split(',').next().unwrap_or_default().to_owned();
            match Recipe::load(&path).and_then(|recipe| Plan::new(recipe, OPTIONS)) {
                Ok(_) => *planned.entry(of).or_default() += 1,
                Err(error) => assert!(name.contains(", "), "{name}: {error}\n{text}"),
            }
        }
        for spec in REGISTRY {
            assert!(planned.contains_key(spec.name), "{}", spec.name);
        }
        assert!(planned["lwptv"] > 4, "{planned:?}");
        let path = folder.0.clone();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn fine_tunes_differ_from_the_base_and_from_each_other_in_most_elements() {
        for (tensor, (_, _, shape)) in TENSORS.iter().enumerate() {
            let of: Vec<Vec<u8>> = (0..4).map(|model| values(model, tensor)).collect();
            assert_eq!(of[0], values(0, tensor));
            assert!(*shape == [1] || (of[1] != of[0] && of[1] != of[2] && of[2] != of[3]));
        }
    }
}
