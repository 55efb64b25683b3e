//! Weighted average of parameters (model soups, arXiv 2203.05482).

use super::spec::*;

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "linear",
    summary: "Σ w_t θ_t, divided by Σ w_t when `normalize`",
    source: "model soups, arXiv 2203.05482",
    role: Role::Method,
    base: BaseModel::Optional,
    models: (1, 64),
    takes_stages: true,
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
    tolerance: 1e-5,
    notes: "As in mergekit, a `base_model` that is not among `models` takes part in the average exactly when the recipe's \
            own `parameters` give it a `weight`; else it lends only its configuration and copied tensors.",
};
