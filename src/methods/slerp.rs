//! Spherical linear interpolation of two models, as mergekit defines it.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Sparsify, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "slerp",
    summary: "spherical interpolation from the base (t = 0) to the other model (t = 1), linear where they are nearly parallel",
    source: "mergekit",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 1),
    takes_stages: false,
    matrices: Matrices::No,
    parameters: &[ParamSpec {
        name: "t",
        kind: ParamKind::Float { min: -1e6, max: 1e6 },
        scope: Scope::Global,
        default: ParamDefault::Required,
        help: "position between the base (0) and the other model (1)",
    }],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "Per tensor, over its flattened elements; linear where |cos| > 0.9995, as mergekit.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let combine = Combine::Slerp { t: tensor.float("t")? };
    Ok(Program::Blend(Blend { stages: Vec::new(), sparsify: Sparsify::None, combine }))
}
