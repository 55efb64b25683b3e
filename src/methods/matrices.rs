//! What methods on whole matrices share: which tensors are eligible, how many singular triples are kept.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Rank, Sparsify, TensorContext, Value};

/// rank_ratio where the recipe gives neither it, `energy` nor `rank`: near CART's optimum.
const DEFAULT_RANK_RATIO: f64 = 0.08;

pub(super) const RANK_RATIO: ParamSpec = ParamSpec {
    name: "rank_ratio",
    kind: ParamKind::Float { min: 0.0, max: 1.0 },
    scope: Scope::Global,
    default: ParamDefault::Absent,
    help: "rank kept, k = max(1, ⌊rank_ratio · min(m, n)⌋); 0.08 where neither this, `energy` nor `rank` is given",
};

pub(super) const ENERGY: ParamSpec = ParamSpec {
    name: "energy",
    kind: ParamKind::Float { min: f64::MIN_POSITIVE, max: 1.0 },
    scope: Scope::Global,
    default: ParamDefault::Absent,
    help: "least k with Σ_{i≤k} σ_i² ≥ energy · Σ σ_i²",
};

pub(super) const RANK: ParamSpec = ParamSpec {
    name: "rank",
    kind: ParamKind::Int { min: 1, max: 1 << 30 },
    scope: Scope::Global,
    default: ParamDefault::Absent,
    help: "rank kept, as a number (at most min(m, n))",
};

/// Of [`RANK_RATIO`], [`ENERGY`] and [`RANK`] a recipe gives at most one.
pub(super) const EXCLUSIVE: &[&[&str]] = &[&["rank_ratio", "energy", "rank"]];

pub(super) const ELIGIBLE: ParamSpec = ParamSpec {
    name: "eligible",
    kind: ParamKind::Patterns,
    scope: Scope::Global,
    default: ParamDefault::Absent,
    help: "regular expressions, found anywhere in a name: the 2-D tensors that are merged as matrices, instead of the built-in rule",
};

/// The rank that a recipe asks for.
pub(super) fn rank(tensor: &TensorContext<'_>) -> Result<Rank> {
    let given = |name| -> Result<Option<Value>> { Ok(tensor.global(name)?.given().cloned()) };
    Ok(match (given("rank")?, given("energy")?, given("rank_ratio")?) {
        (Some(k), ..) => Rank::Count(k.int()?.unsigned_abs()),
        (_, Some(share), _) => Rank::Energy(share.float()?),
        (.., Some(ratio)) => Rank::Ratio(ratio.float()?),
        _ => Rank::Ratio(DEFAULT_RANK_RATIO),
    })
}

/// Whether a tensor is merged as a matrix.
pub(super) fn is_eligible(tensor: &TensorContext<'_>) -> Result<bool> {
    let is_named = match tensor.global("eligible")?.given() {
        Some(patterns) => patterns.patterns()?.is_match(tensor.tensor),
        None => is_block_matrix(tensor.tensor),
    };
    Ok(is_named && tensor.shape.len() == 2 && !tensor.shape.contains(&0))
}

/// θ₀ + λ Σ w τ / Σ w, for tensors that are not merged as matrices.
pub(super) fn mean_change(tensor: &TensorContext<'_>, weights: Vec<f64>, lambda: f64) -> Result<Program> {
    let divisor = tensor.weight_sum(&weights)?;
    Ok(Program::Blend(Blend {
        stages: tensor.stages.clone(),
        sparsify: Sparsify::None,
        combine: Combine::Sum { weights, divisor, lambda },
    }))
}

/// Whether a tensor is, by its name, a matrix of a transformer block: its attention, its MLP or one of their projections,
/// and not an embedding, head, norm or bias.
pub(super) fn is_block_matrix(name: &str) -> bool {
    const PROJECTIONS: [&str; 21] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "gate_up_proj",
        "qkv_proj",
        "out_proj",
        "in_proj",
        "in_proj_weight",
        "query",
        "key",
        "value",
        "fc1",
        "fc2",
        "c_attn",
        "c_fc",
        "c_proj",
        "query_key_value",
    ];
    let name = name.to_ascii_lowercase();
    let segments: Vec<&str> = name.split('.').collect();
    let is_other = |s: &&str| {
        ["embed", "norm", "bias"].iter().any(|word| s.contains(word))
            || ["lm_head", "head", "classifier", "score"].contains(s)
    };
    let is_projection =
        |s: &&str| PROJECTIONS.contains(s) || ["attn", "attention", "mlp"].iter().any(|word| s.contains(word));
    let is_bert_dense = |pair: &[&str]| matches!(pair, ["intermediate" | "output", "dense"]);
    !segments.iter().any(is_other) && (segments.iter().any(is_projection) || segments.windows(2).any(is_bert_dense))
}

#[cfg(test)]
mod tests {
    use super::is_block_matrix;

    #[test]
    fn matrices_of_blocks_are_eligible_and_nothing_else() {
        for name in [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.31.mlp.down_proj.weight",
            "encoder.layer.3.attention.self.query.weight",
            "encoder.layer.3.attention.output.dense.weight",
            "encoder.layer.3.intermediate.dense.weight",
            "encoder.layer.3.output.dense.weight",
            "visual.transformer.resblocks.2.attn.in_proj_weight",
            "visual.transformer.resblocks.2.mlp.c_fc.weight",
            "h.0.attn.c_attn.weight",
            "vision_model.encoder.layers.0.mlp.fc1.weight",
        ] {
            assert!(is_block_matrix(name), "{name}");
        }
        for name in [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "embeddings.position_embeddings.weight",
            "model.layers.0.input_layernorm.weight",
            "encoder.layer.0.attention.output.LayerNorm.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "visual.proj",
            "text_projection.weight",
            "pooler.dense.weight",
            "classifier.out_proj.weight",
        ] {
            assert!(!is_block_matrix(name), "{name}");
        }
    }
}
