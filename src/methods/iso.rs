//! Isotropic merging (arXiv 2502.04959): Iso-C flattens the spectrum of the summed task vectors, Iso-CTS that of a common
//! subspace and of what each task has outside it.

use super::matrices::{is_eligible, mean_change};
use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Centre, LowRank, MatrixRule, Program, TensorContext};

pub(super) static COMMON: MethodSpec = MethodSpec {
    name: "iso_c",
    summary: "θ₀ + λ·mean(σ)·U Vᵀ of Σ w'_t τ_t = U Σ Vᵀ for matrices of transformer blocks; θ₀ + λ·mean τ elsewhere",
    source: "arXiv 2502.04959",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::Whole,
    parameters: &[super::WEIGHT, super::LAMBDA, super::matrices::ELIGIBLE],
    exclusive: &[],
    rule: Rule::Method(|tensor| rule(tensor, |_| Ok(MatrixRule::Isotropic))),
    tolerance: 1e-4,
    notes: "w' are the weights scaled to mean 1; numerically null directions are left out of U Vᵀ.",
};

pub(super) static COMMON_AND_SPECIFIC: MethodSpec = MethodSpec {
    name: "iso_cts",
    summary: "as iso_c, of a common subspace of Σ w'_t τ_t and task-specific directions outside it, orthonormalised together",
    source: "arXiv 2502.04959",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::Whole,
    parameters: &[
        super::WEIGHT,
        super::LAMBDA,
        ParamSpec {
            name: "common_space_fraction",
            kind: ParamKind::Float { min: 0.0, max: 1.0 },
            scope: Scope::Global,
            default: ParamDefault::Float(0.8),
            help: "share of min(m, n) that the common subspace takes; the tasks divide the rest evenly",
        },
        super::matrices::ELIGIBLE,
    ],
    exclusive: &[],
    rule: Rule::Method(|tensor| {
        rule(tensor, |t| Ok(MatrixRule::CommonAndSpecific { common: t.float("common_space_fraction")? }))
    }),
    tolerance: 1e-4,
    notes: "w' are the weights scaled to mean 1; numerically null directions are left out.",
};

fn rule(tensor: &TensorContext<'_>, of: impl Fn(&TensorContext<'_>) -> Result<MatrixRule>) -> Result<Program> {
    let weights = tensor.each_float("weight")?;
    tensor.weight_sum(&weights)?;
    let lambda = tensor.float("lambda")?;
    if !is_eligible(tensor)? {
        return mean_change(tensor, weights, lambda);
    }
    let rule = of(tensor)?;
    Ok(Program::LowRank(LowRank { stages: tensor.stages.clone(), weights, centre: Centre::Base, rule, lambda }))
}
