//! CART (arXiv 2412.12153): task vectors centred on the weight average, low-rank approximated, summed.

use super::context::*;
use super::spec::*;
use crate::backend::{LowRank, Program, Rank};
use crate::error::Result;
use crate::recipe::{Value, compile_patterns};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "cart",
    summary: "W̄ + λ Σ w'_t SVD_k(W_t − W̄) for matrices of transformer blocks; the average W̄ elsewhere",
    source: "arXiv 2412.12153",
    role: Role::Method,
    base: BaseModel::Optional,
    models: (1, 64),
    takes_stages: true,
    parameters: &[
        super::WEIGHT,
        ParamSpec {
            name: "lambda",
            kind: ParamKind::Float { min: -1e6, max: 1e6 },
            scope: Scope::Global,
            default: ParamDefault::Float(2.0),
            help: "scale λ of the summed low-rank parts (2.0: the authors' choice for eight tasks)",
        },
        ParamSpec {
            name: "rank_ratio",
            kind: ParamKind::Float { min: 0.0, max: 1.0 },
            scope: Scope::Global,
            default: ParamDefault::Absent,
            help: "rank kept, k = max(1, ⌊rank_ratio · min(m, n)⌋); 0.08 where neither this, `energy` nor `rank` is given",
        },
        ParamSpec {
            name: "energy",
            kind: ParamKind::Float { min: f64::MIN_POSITIVE, max: 1.0 },
            scope: Scope::Global,
            default: ParamDefault::Absent,
            help: "least k with Σ_{i≤k} σ_i² ≥ energy · Σ σ_i²",
        },
        ParamSpec {
            name: "rank",
            kind: ParamKind::Int { min: 1, max: 1 << 30 },
            scope: Scope::Global,
            default: ParamDefault::Absent,
            help: "rank kept, as a number (at most min(m, n))",
        },
        ParamSpec {
            name: "eligible",
            kind: ParamKind::Patterns,
            scope: Scope::Global,
            default: ParamDefault::Absent,
            help: "regular expressions, found anywhere in a name: the 2-D tensors that are low-rank approximated, instead of the built-in rule",
        },
    ],
    exclusive: &[&["rank_ratio", "energy", "rank"]],
    rule: Rule::Method(rule),
    tolerance: 1e-4,
    notes: "w' are the weights scaled to mean 1.",
};

/// rank_ratio where the recipe gives neither it, `energy` nor `rank`: near the paper's optimum.
const DEFAULT_RANK_RATIO: f64 = 0.08;

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let weights = tensor.each_float("weight")?;
    tensor.weight_sum(&weights)?;
    let eligible = match tensor.global("eligible")?.given() {
        Some(patterns) => compile_patterns(patterns.patterns()?)?.is_match(tensor.tensor),
        None => is_block_matrix(tensor.tensor),
    };
    if !eligible || tensor.shape.len() != 2 || tensor.shape.contains(&0) {
        return super::linear::average(tensor, weights, true);
    }
    let given = |name| -> Result<Option<Value>> { Ok(tensor.global(name)?.given().cloned()) };
    let rank = match (given("rank")?, given("energy")?, given("rank_ratio")?) {
        (Some(k), ..) => Rank::Count(k.int()?.unsigned_abs()),
        (_, Some(share), _) => Rank::Energy(share.float()?),
        (.., Some(ratio)) => Rank::Ratio(ratio.float()?),
        _ => Rank::Ratio(DEFAULT_RANK_RATIO),
    };
    let lambda = tensor.float("lambda")?;
    Ok(Program::LowRank(LowRank { stages: tensor.stages.clone(), weights, rank, lambda }))
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
