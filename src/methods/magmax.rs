//! MagMax (arXiv 2407.06322): per element, the task vector of largest magnitude.

use crate::error::Result;
use crate::ops::rules::{Numbers, RuleId};
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Sparsify, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "magmax",
    summary: "θ₀ + λ τ_{t*}, t* the model with the largest |τ_t| at the element; on a tie the later model",
    source: "arXiv 2407.06322",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[super::LAMBDA],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let combine = Combine::new(RuleId::MaxMagnitude, Numbers { lambda: tensor.float("lambda")?, ..Numbers::default() });
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify: Sparsify::None, combine }))
}
