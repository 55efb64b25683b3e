//! Nearswap: the base, drawn to another model by no more than a step an element.

use crate::error::Result;
use crate::ops::rules::{Numbers, RuleId};
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Sparsify, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "nearswap",
    summary: "θ₀ + τ · clamp(t / |τ|, 0, 1): the other model where it is nearer than t, elsewhere a step of t towards it",
    source: "mergekit",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 1),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[ParamSpec {
        name: "t",
        kind: ParamKind::Float { min: -1e6, max: 1e6 },
        scope: Scope::Global,
        default: ParamDefault::Required,
        help: "how far an element may go from the base, in units of the weights",
    }],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "As in mergekit a |τ| below 1e-6 counts as 1e-6, so that a smaller t takes a share of it. `t` of 0 or below gives the base. \
            An infinite change gives NaN.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let combine = Combine::new(RuleId::Near, Numbers { threshold: tensor.float("t")?, ..Numbers::default() });
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify: Sparsify::None, combine }))
}
