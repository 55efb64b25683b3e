//! Task arithmetic (arXiv 2212.04089): the base plus the scaled, weighted sum of task vectors.

use super::spec::*;

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "task_arithmetic",
    summary: "θ₀ + λ Σ w_t τ_t",
    source: "arXiv 2212.04089",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    parameters: &[super::WEIGHT, super::LAMBDA, NORMALIZE, super::INT8_MASK],
    exclusive: &[],
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
