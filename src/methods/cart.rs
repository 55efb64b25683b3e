//! CART (arXiv 2412.12153): task vectors centred on the weight average, low-rank approximated, summed.

use super::spec::*;

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
            help: "regular expressions: the 2-D tensors that are low-rank approximated, instead of the built-in rule",
        },
    ],
    exclusive: &[&["rank_ratio", "energy", "rank"]],
    tolerance: 1e-4,
    notes: "At most one of `rank_ratio`, `energy` and `rank`. w' are the weights scaled to mean 1.",
};
