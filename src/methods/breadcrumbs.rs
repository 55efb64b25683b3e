//! Model Breadcrumbs (arXiv 2312.06795): drop the largest and the smallest changes of each task vector, then sum or TIES.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Program, Restore, Sparsify, TensorContext};

pub(super) static LINEAR: MethodSpec = MethodSpec {
    name: "breadcrumbs",
    summary: "of each τ_t drop the `gamma` largest magnitudes and the smallest, so that `density` stays, then task arithmetic",
    source: "arXiv 2312.06795, as mergekit has it",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: PARAMETERS,
    exclusive: &[],
    rule: Rule::Method(linear),
    tolerance: 1e-5,
    notes: NOTES,
};

pub(super) static TIES: MethodSpec = MethodSpec {
    name: "breadcrumbs_ties",
    summary: "of each τ_t drop the `gamma` largest magnitudes and the smallest, so that `density` stays, then elect signs as TIES",
    source: "arXiv 2312.06795 and 2306.01708, as mergekit has it",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: PARAMETERS,
    exclusive: &[],
    rule: Rule::Method(ties),
    tolerance: 1e-5,
    notes: NOTES,
};

const PARAMETERS: &[ParamSpec] = &[
    super::WEIGHT,
    super::ties::DENSITY,
    ParamSpec {
        name: "gamma",
        kind: ParamKind::Float { min: 0.0, max: 1.0 },
        scope: Scope::PerModel,
        default: ParamDefault::Float(0.01),
        help: "share of each task vector's elements, the largest, that is dropped",
    },
    super::LAMBDA,
    super::task_arithmetic::NORMALIZE,
    ParamSpec { default: ParamDefault::Bool(false), ..super::ties::RESCALE },
    super::INT8_MASK,
];

const NOTES: &str = "Per tensor of n elements: int(gamma · n) of the largest magnitudes go, and as many of the smallest as leave \
                     int(density · n); where that leaves less room, fewer of the largest go. What equals the smallest or the \
                     largest kept is kept too, where mergekit keeps an arbitrary choice of equal ones. `density: 1` keeps all, \
                     whatever `gamma`; a tensor with density · n < 1 keeps nothing, as in mergekit. A NaN counts as the largest \
                     magnitude, and goes with those.";

fn linear(tensor: &TensorContext<'_>) -> Result<Program> {
    super::task_arithmetic::sum(tensor, trim(tensor)?)
}

fn ties(tensor: &TensorContext<'_>) -> Result<Program> {
    super::ties::elect(tensor, trim(tensor)?)
}

fn trim(tensor: &TensorContext<'_>) -> Result<Sparsify> {
    let density = tensor.each_float("density")?;
    if density.iter().all(|d| *d >= 1.0) {
        return Ok(Sparsify::None);
    }
    Ok(Sparsify::Band {
        density,
        gamma: tensor.each_float("gamma")?,
        restore: super::ties::restore(tensor, Restore::L1)?,
    })
}
