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
        combine: Combine::sum(weights, divisor, lambda),
    }))
}

/// Whether a tensor is, by its name, in a numbered block and no norm, bias, table or head. With two dimensions it is a matrix of that
/// block, whatever its architecture calls it. Only the last segments are judged: a model may be part of another one.
pub(super) fn is_block_matrix(name: &str) -> bool {
    is_in_block(name) && !is_table(name)
}

/// The segment of a name that numbers a block: the first that is all digits, with one before and one after it.
fn block(segments: &[&str]) -> Option<usize> {
    let is_index = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (1..segments.len().saturating_sub(1)).find(|i| is_index(segments[*i]))
}

fn is_in_block(name: &str) -> bool {
    block(&name.split('.').collect::<Vec<_>>()).is_some()
}

/// Whether a tensor is, by the last segments of its name, an embedding, a head, a table of positions or relations, a norm or a bias.
pub(crate) fn is_table(name: &str) -> bool {
    const PARTS: [&str; 9] = ["embed", "norm", "bias", "position", "relative", "rel_pos", "rotary", "pos_emb", "embd"];
    const WHOLE: [&str; 16] = [
        "lm_head",
        "head",
        "heads",
        "lm_heads",
        "medusa_head",
        "classifier",
        "score",
        "cls",
        "wte",
        "wpe",
        "ln",
        "ln1",
        "ln2",
        "shared",
        "logit_scale",
        "embed_out",
    ];
    /// Outside blocks: a module, a layer of it, and the tensor.
    const JUDGED: usize = 3;
    let name = name.to_ascii_lowercase();
    let segments: Vec<&str> = name.split('.').collect();
    // The list's own name too: a list of heads has numbered ones.
    let from = block(&segments).map_or_else(|| segments.len().saturating_sub(JUDGED), |index| index - 1);
    let is_output = from + 2 == segments.len() || segments.len() <= 2;
    segments[from..].iter().any(|s| {
        PARTS.iter().any(|part| s.contains(part)) || WHOLE.contains(s) || s.starts_with("ln_")
            // The head of the original Llama.
            || (is_output && *s == "output")
    })
}

/// Whether a tensor is, by its name, an embedding of tokens or a head over them, one row a token.
pub(crate) fn is_vocabulary(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "embed_tokens",
        "lm_head",
        "wte",
        "word_embeddings",
        "tok_embeddings",
        "embed_in",
        "embed_out",
        "shared",
        "embed",
        "embedding",
        "output",
        "token_embedding",
    ];
    block(&name.split('.').collect::<Vec<_>>()).is_none() && name.split('.').rev().take(2).any(|s| NAMES.contains(&s))
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
            "transformer.h.0.attn.c_attn.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
            "model.layers.0.block_sparse_moe.experts.7.w1.weight",
            "model.layers.0.block_sparse_moe.gate.weight",
            "distilbert.transformer.layer.0.ffn.lin1.weight",
            "transformer.blocks.0.ffn.up_proj.weight",
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
            "layers.0.feed_forward.w1.weight",
            "model.layers.0.feed_forward.w1.weight",
            "model.transformer.blocks.0.ff_proj.weight",
            "model.transformer.blocks.0.att_proj.weight",
            "model.layers.0.mixer.x_proj.weight",
            "embedding_model.layers.0.mlp.up_proj.weight",
            "normaliser.layers.2.attention.dense.weight",
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
            "transformer.h.0.ln_1.weight",
            "lm_heads.0.weight",
            "medusa_head.1.0.linear.weight",
            "layers.0.blocks.1.attn.relative_position_bias_table",
            "visual.blocks.3.attn.rel_pos_h",
            "decoder.embed_tokens.0.weight",
            "model.layers.0.self_attn.q_proj.bias",
        ] {
            assert!(!is_block_matrix(name), "{name}");
        }
    }
}
