//! Low-rank task vectors around the base: the uncentred control of CART (arXiv 2412.12153).

use super::matrices::{is_eligible, mean_change, rank};
use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Centre, LowRank, MatrixRule, Program, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "low_rank",
    summary: "θ₀ + λ Σ w'_t SVD_k(τ_t) for matrices of transformer blocks; θ₀ + λ·mean τ elsewhere",
    source: "arXiv 2412.12153 (its control)",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::Factors,
    parameters: &[
        super::WEIGHT,
        ParamSpec {
            name: "lambda",
            kind: ParamKind::Float { min: -1e6, max: 1e6 },
            scope: Scope::Global,
            default: ParamDefault::Float(0.4),
            help: "scale λ of the summed low-rank parts",
        },
        super::matrices::RANK_RATIO,
        super::matrices::ENERGY,
        super::matrices::RANK,
        super::matrices::ELIGIBLE,
    ],
    exclusive: super::matrices::EXCLUSIVE,
    rule: Rule::Method(rule),
    tolerance: 1e-4,
    notes: "w' are the weights scaled to mean 1.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let weights = tensor.each_float("weight")?;
    tensor.weight_sum(&weights)?;
    let lambda = tensor.float("lambda")?;
    if !is_eligible(tensor)? {
        return mean_change(tensor, weights, lambda);
    }
    let rule = MatrixRule::Truncate(rank(tensor)?);
    Ok(Program::LowRank(LowRank { stages: tensor.stages.clone(), weights, centre: Centre::Base, rule, lambda }))
}
