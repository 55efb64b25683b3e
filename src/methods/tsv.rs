//! TSV-M (arXiv 2412.00081): the tasks' leading singular vectors, orthonormalised together so that tasks interfere less.

use super::matrices::{is_eligible, mean_change};
use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Centre, LowRank, MatrixRule, Program, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "tsv_m",
    summary: "θ₀ + λ U⊥ Σ V⊥ᵀ of every task's leading singular triples, their vectors orthonormalised together",
    source: "arXiv 2412.00081",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::Whole,
    parameters: &[super::WEIGHT, super::LAMBDA, super::matrices::ELIGIBLE],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-4,
    notes: "Of each w'_t τ_t (w' the weights scaled to mean 1) the top ⌊min(m, n)/T⌋ triples; U and V are each replaced by \
            their polar factor, of which numerically null directions are left out. Matrices with min(m, n) < T, and tensors \
            that are not matrices of transformer blocks, are θ₀ + λ·mean τ.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let weights = tensor.each_float("weight")?;
    tensor.weight_sum(&weights)?;
    let lambda = tensor.float("lambda")?;
    let is_too_small = tensor.shape.iter().any(|side| *side < weights.len() as u64);
    if !is_eligible(tensor)? || is_too_small {
        return mean_change(tensor, weights, lambda);
    }
    let rule = MatrixRule::TaskSingular;
    Ok(Program::LowRank(LowRank { stages: tensor.stages.clone(), weights, centre: Centre::Base, rule, lambda }))
}
