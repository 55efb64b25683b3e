//! One model's tensors as they are, optionally scaled, as mergekit defines it.

use super::spec::*;

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "passthrough",
    summary: "the tensor as it is, times `scale` if given",
    source: "mergekit",
    role: Role::Method,
    base: BaseModel::Optional,
    models: (1, 1),
    takes_stages: false,
    parameters: &[ParamSpec {
        name: "scale",
        kind: ParamKind::Float { min: -1e6, max: 1e6 },
        scope: Scope::PerModel,
        default: ParamDefault::Absent,
        help: "factor on every element",
    }],
    exclusive: &[],
    tolerance: 1e-5,
    notes: "",
};
