//! Task arithmetic (arXiv 2212.04089): the base plus the scaled, weighted sum of task vectors.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Sparsify, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "task_arithmetic",
    summary: "θ₀ + λ Σ w_t τ_t",
    source: "arXiv 2212.04089",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[super::WEIGHT, super::LAMBDA, NORMALIZE, super::INT8_MASK],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "",
};

/// `normalize`, off unless asked for.
pub(super) const NORMALIZE: ParamSpec = ParamSpec {
    name: "normalize",
    kind: ParamKind::Bool,
    scope: Scope::Global,
    default: ParamDefault::Bool(false),
    help: "divide the summed change by the sum of the weights that took part",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    sum(tensor, Sparsify::None)
}

/// θ₀ + λ Σ w τ of what `sparsify` leaves, divided by Σ w when `normalize`; a sum of weights near 0 divides by nothing.
pub(super) fn sum(tensor: &TensorContext<'_>, sparsify: Sparsify) -> Result<Program> {
    let weights = tensor.each_float("weight")?;
    let total: f64 = weights.iter().sum();
    let divisor = if tensor.bool("normalize")? && total.abs() >= 1e-8 { total } else { 1.0 };
    let combine = Combine::sum(weights, divisor, tensor.float("lambda")?);
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify, combine }))
}
