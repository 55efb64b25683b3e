//! CART (arXiv 2412.12153): task vectors centred on the weight average, low-rank approximated, summed.

use super::matrices::{is_eligible, rank};
use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Centre, LowRank, MatrixRule, Program, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "cart",
    summary: "W̄ + λ Σ w'_t SVD_k(W_t − W̄) for matrices of transformer blocks; the average W̄ elsewhere",
    source: "arXiv 2412.12153",
    role: Role::Method,
    base: BaseModel::Optional,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::Factors,
    parameters: &[
        super::WEIGHT,
        ParamSpec {
            name: "lambda",
            kind: ParamKind::Float { min: -1e6, max: 1e6 },
            scope: Scope::Global,
            default: ParamDefault::Float(2.0),
            help: "scale λ of the summed low-rank parts (2.0: the authors' choice for eight tasks)",
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
    if !is_eligible(tensor)? {
        return super::linear::average(tensor, weights, true);
    }
    Ok(Program::LowRank(LowRank {
        stages: tensor.stages.clone(),
        weights,
        centre: Centre::Average,
        rule: MatrixRule::Truncate(rank(tensor)?),
        lambda: tensor.float("lambda")?,
    }))
}
