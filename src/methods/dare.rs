//! DARE (arXiv 2311.03099): drop elements of task vectors at random and rescale, then sum or TIES.

use crate::error::Result;
use crate::ops::philox::element_key;
use crate::ops::spec::*;
use crate::ops::{Program, Restore, Sparsify, TensorContext};

pub(super) static LINEAR: MethodSpec = MethodSpec {
    name: "dare_linear",
    summary: "drop each element of τ_t with probability 1 − density, rescale by 1/density, then task arithmetic",
    source: "arXiv 2311.03099",
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
    name: "dare_ties",
    summary: "drop each element of τ_t with probability 1 − density, rescale by 1/density, then elect signs as TIES",
    source: "arXiv 2311.03099",
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
    super::LAMBDA,
    super::task_arithmetic::NORMALIZE,
    super::ties::RESCALE,
    super::INT8_MASK,
];

const NOTES: &str = "The mask is Philox4x32-10, keyed by seed, tensor name, model index and element index. `rescale: true` \
                     is `inverse_p`, by 1/density; mergekit rescales to the tensor's L1 norm, the same in expectation: `l1`.";

fn linear(tensor: &TensorContext<'_>) -> Result<Program> {
    super::task_arithmetic::sum(tensor, drop_at_random(tensor)?)
}

fn ties(tensor: &TensorContext<'_>) -> Result<Program> {
    super::ties::elect(tensor, drop_at_random(tensor)?)
}

fn drop_at_random(tensor: &TensorContext<'_>) -> Result<Sparsify> {
    let density = tensor.each_float("density")?;
    if density.iter().all(|d| *d >= 1.0) {
        return Ok(Sparsify::None);
    }
    let keys = (0..density.len()).map(|model| element_key(tensor.seed, tensor.tensor, model)).collect();
    Ok(Sparsify::Random { density, restore: super::ties::restore(tensor, Restore::Inverse)?, keys })
}
