//! A mixture of experts, made of dense models: each layer's MLPs side by side, and gates that choose between them.
//!
//! Everything but the MLPs is the base's. Names and shapes are those of Transformers: packed, `experts.gate_up_proj`
//! [E, 2I, H] and `experts.down_proj` [E, H, I], or a tensor for each expert's projection.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Held;
use super::lora::Instead;
use crate::backend::cpu::stored::Stored;
use crate::checkpoint::{Checkpoint, Made, Origin, Shard, Tensor, quoted};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Result};
use crate::ops::philox;
use crate::recipe::{Expert, ExpertLayout, Experts, Gate};

const F32_BYTES: u64 = 4;
/// Projections of an MLP, as dense models name them.
const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// The architectures that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Mixtral,
    Qwen2Moe,
    Qwen3Moe,
}

impl Kind {
    /// What a configuration asks for, or what its parents' kind (`model_type`) and a shared expert leave.
    ///
    /// # Errors
    /// Input, for parents or an architecture of which none is made.
    pub fn of(experts: &Experts, parents: &[String]) -> Result<Self> {
        let refused = |message: String| {
            Err(Error::input(message).hint(
            "made here: Mixtral of Llama and Mistral, Qwen2-MoE of Qwen2, Llama and Mistral with one shared expert, Qwen3-MoE of Qwen3",
        ))
        };
        let is_llama = |kind: &String| matches!(kind.as_str(), "llama" | "mistral");
        let all = |wanted: &str| parents.iter().all(|kind| kind == wanted);
        let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_', ' '], "");
        let asked = experts.architecture.as_deref().map(plain);
        let is_asked = |name: &str| asked.as_deref().is_none_or(|asked| name.starts_with(asked));
        let has_shared = experts.shared.is_some();
        if is_asked("mixtral") && parents.iter().all(is_llama) && !has_shared {
            return Ok(Self::Mixtral);
        }
        let takes_qwen2 = all("qwen2") || (parents.iter().all(is_llama) && asked.is_some());
        if (is_asked("qwenmoe") || is_asked("qwen2moe")) && takes_qwen2 {
            if !has_shared {
                return refused("Qwen2-MoE has exactly one shared expert, and `shared_experts` lists none".into());
            }
            return Ok(Self::Qwen2Moe);
        }
        if is_asked("qwen3moe") && all("qwen3") {
            if has_shared {
                return refused("Qwen3-MoE has no shared expert".into());
            }
            return Ok(Self::Qwen3Moe);
        }
        let parents = parents.join("`, `");
        refused(match &experts.architecture {
            Some(asked) => format!("no {} is made of models of the type `{parents}`", quoted(asked)),
            None if has_shared => format!("no mixture with a shared expert is made of models of the type `{parents}`"),
            None => format!("no mixture of experts is made of models of the type `{parents}`"),
        })
    }

    /// What stands between a layer's number and its experts.
    fn block(self, layout: ExpertLayout) -> &'static str {
        match (self, layout) {
            (Self::Mixtral, ExpertLayout::Old) => "block_sparse_moe",
            _ => "mlp",
        }
    }

    /// The name of one expert's projection.
    fn projection(self, projection: usize) -> &'static str {
        match self {
            Self::Mixtral => ["w1", "w3", "w2"][projection],
            _ => PROJECTIONS[projection],
        }
    }

    /// Changes of the base's `config.json`. `width`: rows of an expert's up projection; `shared`: of the shared expert's.
    pub fn config(self, experts: &Experts, width: u64, shared: u64) -> Map<String, Value> {
        let count = experts.experts.len();
        let mut config = match self {
            Self::Mixtral => json!({
                "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": count,
            }),
            Self::Qwen2Moe | Self::Qwen3Moe => {
                let name = if self == Self::Qwen2Moe { "Qwen2Moe" } else { "Qwen3Moe" };
                let kind = if self == Self::Qwen2Moe { "qwen2_moe" } else { "qwen3_moe" };
                json!({
                    "architectures": [format!("{name}ForCausalLM")], "model_type": kind, "num_experts": count,
                    "moe_intermediate_size": width, "decoder_sparse_step": 1, "mlp_only_layers": [],
                    // The experts' weights sum to 1, so that equal experts are the dense model.
                    "norm_topk_prob": true,
                })
            }
        };
        config["num_experts_per_tok"] = experts.per_token.into();
        if self == Self::Qwen2Moe {
            config["shared_expert_intermediate_size"] = shared.into();
        }
        config.as_object().cloned().unwrap_or_default()
    }
}

/// The mixture as a checkpoint, and the widths of an expert and of the shared one.
///
/// # Errors
/// Input, where an expert lacks a tensor of the base's MLPs or has it in another shape.
pub(crate) fn assemble(
    kind: Kind,
    experts: &Experts,
    base: &Checkpoint,
    models: &[&Checkpoint],
    shared: Option<&Checkpoint>,
    seed: u64,
) -> Result<(Checkpoint, [u64; 2])> {
    let mut made = Mixture { kind, experts, seed, tensors: Vec::new(), widths: [0; 2] };
    let mut last = None;
    for tensor in base.tensors() {
        let Some((prefix, _)) = mlp_of(&tensor.name) else {
            made.keep(base, tensor, tensor.name.clone());
            continue;
        };
        if last.as_deref() != Some(prefix) {
            if made
                .tensors
                .iter()
                .any(|(name, ..)| name.starts_with(&format!("{prefix}.{}", kind.block(experts.layout))))
            {
                continue;
            }
            made.layer(base, prefix, models, shared)?;
            last = Some(prefix.to_owned());
        }
    }
    if last.is_none() {
        return Err(Error::input("the base has no MLPs of the kind `model.layers.N.mlp.up_proj.weight`")
            .hint("mixtures are made of dense models of Llama's kind"));
    }
    let Mixture { tensors, widths, .. } = made;
    let planned = tensors.iter().map(|(name, _, dtype, shape, _)| (name.clone(), *dtype, shape.clone())).collect();
    let mut checkpoint = Checkpoint::planned(&base.path().to_string_lossy(), base.folder(), planned)?;
    for (at, (_, stored, dtype, _, made)) in tensors.into_iter().enumerate() {
        checkpoint.replace_as(at, stored, dtype, made)?;
    }
    for other in [base].into_iter().chain(models.iter().copied()).chain(shared) {
        checkpoint.adopt(other);
    }
    Ok((checkpoint, widths))
}

/// The layer and the projection of a dense MLP's matrix: what stands before `.mlp.`, and which.
fn mlp_of(name: &str) -> Option<(&str, usize)> {
    let (prefix, rest) = name.split_once(".mlp.")?;
    let is_layer = prefix.rsplit_once('.').is_some_and(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()));
    let projection = rest.strip_suffix(".weight")?;
    Some((prefix, PROJECTIONS.iter().position(|known| *known == projection).filter(|_| is_layer)?))
}

/// Name, type that it counts as stored in, type that it is made in, shape, and what makes it.
type Piece = (String, Dtype, Dtype, Vec<u64>, Arc<dyn Made>);

struct Mixture<'a> {
    kind: Kind,
    experts: &'a Experts,
    seed: u64,
    tensors: Vec<Piece>,
    widths: [u64; 2],
}

impl Mixture<'_> {
    fn keep(&mut self, from: &Checkpoint, tensor: &Tensor, name: String) {
        let held = Held { shard: Arc::clone(from.shared_shard(tensor.shard)), tensor: tensor.clone() };
        let stored = from.position(&tensor.name).map_or(tensor.dtype, |at| from.stored_dtype(at));
        self.tensors.push((name, stored, tensor.dtype, tensor.shape.clone(), Arc::new(Instead(held))));
    }

    /// The experts of a layer and its gates.
    fn layer(
        &mut self,
        base: &Checkpoint,
        prefix: &str,
        models: &[&Checkpoint],
        shared: Option<&Checkpoint>,
    ) -> Result<()> {
        let name_of = |projection: usize| format!("{prefix}.mlp.{}.weight", PROJECTIONS[projection]);
        let block = format!("{prefix}.{}", self.kind.block(self.experts.layout));
        let own = |projection: usize| {
            let name = name_of(projection);
            base.get(&name).ok_or_else(|| Error::input(format!("the base has no tensor {}", quoted(&name))))
        };
        let [gate, up, down] = [own(0)?, own(1)?, own(2)?];
        let ([width, hidden], true) = (&up.shape[..], gate.shape == up.shape) else {
            return Err(Error::input(format!(
                "{} and {} are no matrices of one shape: {:?} and {:?}",
                quoted(&gate.name),
                quoted(&up.name),
                gate.shape,
                up.shape
            )));
        };
        let (width, hidden, count) = (*width, *hidden, models.len() as u64);
        self.widths[0] = width;
        let stored = base.position(&up.name).map_or(up.dtype, |at| base.stored_dtype(at));
        let mut parts: [Vec<Part>; 3] = Default::default();
        for (index, (model, expert)) in models.iter().zip(&self.experts.experts).enumerate() {
            for (projection, of) in [gate, up, down].into_iter().enumerate() {
                parts[projection].push(self.part(model, expert, of, projection, index)?);
            }
        }
        let [gates, ups, downs] = parts;
        match self.experts.layout {
            ExpertLayout::Packed => {
                let pairs = gates.into_iter().zip(ups).flat_map(|(gate, up)| [gate, up]).collect();
                self.push(format!("{block}.experts.gate_up_proj"), stored, vec![count, 2 * width, hidden], pairs);
                self.push(format!("{block}.experts.down_proj"), stored, vec![count, hidden, width], downs);
            }
            ExpertLayout::Old => {
                for (index, each) in gates.into_iter().zip(ups).zip(downs).enumerate() {
                    let ((gate, up), down) = each;
                    for (projection, part) in [gate, up, down].into_iter().enumerate() {
                        let name = format!("{block}.experts.{index}.{}.weight", self.kind.projection(projection));
                        let shape = part.held.tensor.shape.clone();
                        self.push(name, stored, shape, vec![part]);
                    }
                }
            }
        }
        self.gates(format!("{block}.gate.weight"), stored, count, hidden);
        if let (Some(model), Some(expert)) = (shared, &self.experts.shared) {
            for (projection, of) in [gate, up, down].into_iter().enumerate() {
                let part = self.part(model, expert, of, projection, models.len())?;
                let shape = part.held.tensor.shape.clone();
                let name = format!("{block}.shared_expert.{}.weight", PROJECTIONS[projection]);
                self.push(name, stored, shape, vec![part]);
            }
            self.widths[1] = width;
            self.gates(format!("{block}.shared_expert_gate.weight"), stored, 1, hidden);
        }
        Ok(())
    }

    fn part(&self, model: &Checkpoint, expert: &Expert, of: &Tensor, projection: usize, index: usize) -> Result<Part> {
        let written = quoted(&expert.model.written);
        let found =
            model.get(&of.name).ok_or_else(|| Error::input(format!("{written} has no tensor {}", quoted(&of.name))))?;
        if found.shape != of.shape || !found.dtype.is_mergeable_float() {
            return Err(Error::input(format!(
                "{} of {written} is {} {:?}, and the base has {} {:?}",
                quoted(&of.name),
                found.dtype,
                found.shape,
                of.dtype,
                of.shape
            ))
            .hint("experts must have the base's hidden and intermediate sizes"));
        }
        let held = Held { shard: Arc::clone(model.shared_shard(found.shard)), tensor: found.clone() };
        let scale = expert.residual.filter(|_| projection == 2).unwrap_or(1.0) as f32;
        let key = philox::element_key(self.seed, &of.name, index);
        let noise = expert.noise.filter(|noise| *noise != 0.0).map(|noise| (noise, key));
        Ok(Part { held, scale, noise })
    }

    /// Parts, one behind the other.
    fn push(&mut self, name: String, stored: Dtype, shape: Vec<u64>, parts: Vec<Part>) {
        let is_plain = |part: &Part| part.scale == 1.0 && part.noise.is_none() && part.held.tensor.dtype == stored;
        let are_bytes = parts.iter().all(is_plain);
        let dtype = if are_bytes { stored } else { Dtype::F32 };
        self.tensors.push((name, stored, dtype, shape, Arc::new(Stacked { parts, dtype })));
    }

    fn gates(&mut self, name: String, stored: Dtype, rows: u64, hidden: u64) {
        let key = philox::element_key(self.seed, &name, 0);
        let gates = Gates { kind: self.experts.gate, hidden, key };
        self.tensors.push((name, stored, Dtype::F32, vec![rows, hidden], Arc::new(gates)));
    }
}

/// An expert's matrix.
#[derive(Debug)]
struct Part {
    held: Held,
    scale: f32,
    /// Standard deviation, and the key of its random numbers.
    noise: Option<(f64, [u32; 2])>,
}

/// Matrices of experts, one behind the other.
#[derive(Debug)]
struct Stacked {
    parts: Vec<Part>,
    /// What they are made in: as they are stored, or float32.
    dtype: Dtype,
}

impl Stacked {
    /// The parts that a range of the whole's elements touches, with the ranges within them.
    fn within(&self, elems: Range<u64>) -> impl Iterator<Item = (&Part, Range<u64>)> {
        let mut begin = 0;
        self.parts.iter().filter_map(move |part| {
            let start = begin;
            begin += part.held.tensor.elems;
            let (from, to) = (elems.start.max(start), elems.end.min(begin));
            (from < to).then(|| (part, from - start..to - start))
        })
    }
}

impl Made for Stacked {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let size = self.dtype.size_bytes().unwrap_or(1);
        let mut scratch = Vec::new();
        for (part, elems) in self.within(range.start / size..range.end / size) {
            let tensor = &part.held.tensor;
            let own = tensor.dtype.size_bytes().unwrap_or(1);
            let at = tensor.begin + elems.start * own..tensor.begin + elems.end * own;
            let bytes = part.held.shard.bytes(at, &mut scratch)?;
            if tensor.dtype == self.dtype && part.scale == 1.0 && part.noise.is_none() {
                out.extend_from_slice(bytes);
                continue;
            }
            let mut values = vec![0.0_f32; (elems.end - elems.start) as usize];
            Stored { dtype: tensor.dtype, bytes }.widen(0, &mut values);
            if let Some((deviation, key)) = part.noise {
                let mut noise = vec![0.0; values.len()];
                normal(&mut noise, elems.start, key);
                values.iter_mut().zip(&noise).for_each(|(v, noise)| *v = (f64::from(*v) + deviation * noise) as f32);
            }
            values.iter_mut().for_each(|v| *v *= part.scale);
            out.extend_from_slice(bytemuck::cast_slice(&values));
        }
        Ok(())
    }

    fn of(&self, range: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        let size = self.dtype.size_bytes().unwrap_or(1);
        let (part, elems) = self.within(range.start / size..range.end.div_ceil(size)).next()?;
        let own = part.held.tensor.dtype.size_bytes().unwrap_or(1);
        let begin = part.held.tensor.begin;
        Some((&part.held.shard, begin + elems.start * own..begin + elems.end * own))
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        let part = |(at, part): (usize, &Part)| part.held.part(format!("expert matrix {at}"));
        Origin {
            how: "matrices of experts, one behind the other".into(),
            parts: self.parts.iter().enumerate().map(part).collect(),
        }
    }
}

/// Random gates: a row of them for each expert.
#[derive(Debug)]
struct Gates {
    kind: Gate,
    hidden: u64,
    key: [u32; 2],
}

impl Made for Gates {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let (start, end) = (range.start / F32_BYTES, range.end / F32_BYTES);
        let mut values = vec![0.0; (end - start) as usize];
        match self.kind {
            Gate::Random => normal(&mut values, start, self.key),
            Gate::UniformRandom => {
                let mut words = vec![0; values.len()];
                philox::fill(&mut words, start, self.key);
                let bound = 1.0 / (self.hidden as f64).sqrt();
                // In the middle of 2^32 steps, so that neither end is reached.
                let unit = |word: &u32| (f64::from(*word) + 0.5) / 4_294_967_296.0;
                values.iter_mut().zip(&words).for_each(|(v, word)| *v = bound * (2.0 * unit(word) - 1.0));
            }
        }
        out.extend(values.iter().flat_map(|v| (*v as f32).to_le_bytes()));
        Ok(())
    }

    fn of(&self, _: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        None
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        let how = match self.kind {
            Gate::Random => "random gates from N(0, 1), by the seed",
            Gate::UniformRandom => "random gates, uniform between ±1/√hidden, by the seed",
        };
        Origin { how: how.into(), parts: Vec::new() }
    }
}

/// Numbers from N(0, 1) by Box and Muller, of elements from `start` on.
fn normal(values: &mut [f64], start: u64, key: [u32; 2]) {
    let mut words = vec![0; 2 * values.len()];
    philox::fill(&mut words, 2 * start, key);
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    for (value, pair) in values.iter_mut().zip(words.chunks_exact(2)) {
        *value = (-2.0 * unit(pair[0]).ln()).sqrt() * (std::f64::consts::TAU * unit(pair[1])).cos();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_their_mean_and_variance_and_do_not_depend_on_pieces() {
        let mut all = vec![0.0; 40_000];
        normal(&mut all, 0, [3, 4]);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|v| v * v).sum::<f64>() / all.len() as f64;
        // Four standard errors.
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        let mut piece = vec![0.0; 100];
        normal(&mut piece, 1234, [3, 4]);
        assert_eq!(piece[..], all[1234..1334]);
    }

    #[test]
    fn matrices_of_mlps_are_told_by_their_names() {
        assert_eq!(mlp_of("model.layers.3.mlp.up_proj.weight"), Some(("model.layers.3", 1)));
        for name in ["model.layers.3.mlp.up_proj.bias", "model.mlp.up_proj.weight", "model.layers.3.mlp.gate.weight"] {
            assert_eq!(mlp_of(name), None, "{name}");
        }
    }
}
