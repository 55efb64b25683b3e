//! Weighted average of parameters (model soups, arXiv 2203.05482).

use crate::error::{Error, Result};
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Sparsify, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "linear",
    summary: "Σ w_t θ_t, divided by Σ w_t when `normalize`",
    source: "model soups, arXiv 2203.05482",
    role: Role::Method,
    base: BaseModel::JoinsByWeight,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        super::WEIGHT,
        ParamSpec {
            name: "normalize",
            kind: ParamKind::Bool,
            scope: Scope::Global,
            default: ParamDefault::Bool(true),
            help: "divide by the sum of the weights",
        },
    ],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "As in mergekit, a `base_model` that is not among `models` takes part in the average exactly when the recipe's \
            own `parameters` give it a `weight`; else it lends only its configuration and copied tensors.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let weights = tensor.each_float("weight")?;
    let normalize = tensor.bool("normalize")?;
    average(tensor, weights, normalize)
}

/// The average of the participants, or their weighted sum; also what `cart` makes of all but its matrices.
///
/// With stages in front it is θ₀ + Σ w τ' / Σ w, so that an element that every stage dropped is θ₀ exactly.
pub(super) fn average(tensor: &TensorContext<'_>, weights: Vec<f64>, normalize: bool) -> Result<Program> {
    let divisor = if normalize { tensor.weight_sum(&weights)? } else { 1.0 };
    let combine = if tensor.stages.is_empty() {
        Combine::average(weights, divisor)
    } else if normalize {
        Combine::sum(weights, divisor, 1.0)
    } else {
        return Err(Error::input("`normalize: false` of `linear` has no meaning behind a task-vector stage")
            .hint("use `task_arithmetic`, which sums task vectors"));
    };
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify: Sparsify::None, combine }))
}
