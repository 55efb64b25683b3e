//! One model's tensors as they are, optionally scaled, as mergekit defines it.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Sparsify, TensorContext, Value};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "passthrough",
    summary: "the tensor as it is, times `scale` if given",
    source: "mergekit",
    role: Role::Method,
    base: BaseModel::Optional,
    models: (1, 1),
    takes_stages: false,
    matrices: Matrices::No,
    parameters: &[ParamSpec {
        name: "scale",
        kind: ParamKind::Float { min: -1e6, max: 1e6 },
        scope: Scope::PerModel,
        default: ParamDefault::Absent,
        help: "factor on every element",
    }],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let scale = tensor.values.each("scale")?;
    let factor = scale.first().and_then(Value::given).map_or(Ok(1.0), Value::float)?;
    Ok(Program::Blend(Blend {
        stages: Vec::new(),
        sparsify: Sparsify::None,
        combine: Combine::average(vec![factor], 1.0),
    }))
}
