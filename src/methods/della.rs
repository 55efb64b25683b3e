//! DELLA (arXiv 2406.11617): drop elements of task vectors at random, small ones rather than large ones, then sum or TIES.

use crate::error::Result;
use crate::ops::philox::element_key;
use crate::ops::spec::*;
use crate::ops::{Program, Restore, Slope, Sparsify, TensorContext};

pub(super) static LINEAR: MethodSpec = MethodSpec {
    name: "della_linear",
    summary: "drop elements of τ_t at random, the smaller in its row the sooner, then task arithmetic",
    source: "arXiv 2406.11617, as mergekit has it",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        super::WEIGHT,
        super::ties::DENSITY,
        EPSILON,
        super::LAMBDA,
        super::task_arithmetic::NORMALIZE,
        RESCALE,
        super::INT8_MASK,
    ],
    exclusive: &[],
    rule: Rule::Method(linear),
    tolerance: 1e-5,
    notes: NOTES,
};

pub(super) static TIES: MethodSpec = MethodSpec {
    name: "della",
    summary: "drop elements of τ_t at random, the smaller in its row the sooner, then elect signs as TIES",
    source: "arXiv 2406.11617, as mergekit has it",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        super::WEIGHT,
        super::ties::DENSITY,
        EPSILON,
        super::LAMBDA,
        ParamSpec { default: ParamDefault::Bool(true), ..super::task_arithmetic::NORMALIZE },
        RESCALE,
        super::INT8_MASK,
    ],
    exclusive: &[],
    rule: Rule::Method(ties),
    tolerance: 1e-5,
    notes: NOTES,
};

const EPSILON: ParamSpec = ParamSpec {
    name: "epsilon",
    kind: ParamKind::Float { min: -1.0, max: 1.0 },
    scope: Scope::PerModel,
    default: ParamDefault::Float(0.15),
    help: "the smallest of a row is kept with probability density − epsilon, the largest with density + epsilon",
};

const RESCALE: ParamSpec = ParamSpec {
    help: "multiply what is kept: true or l1, to the L1 norm that τ_t had in this tensor; inverse_p, each element by one over its \
           probability, as the paper; false or none, not",
    ..super::ties::RESCALE
};

const NOTES: &str = "Ranks are by |τ| within each row along the last dimension (a vector is one row), equal ones by position; mergekit ranks \
                     tensors of three dimensions along the second. Where density is 1 or 0, everything or nothing is kept; else density − epsilon \
                     and density + epsilon must lie between 0 and 1. In a row of one element the probability is density, where mergekit \
                     stops. `epsilon` is half of what the paper calls so. Random words are those of `dare_linear`; a NaN counts as the \
                     largest. The ranks of a tensor take a bit of memory for each element and model, with `inverse_p` four bytes.";

fn linear(tensor: &TensorContext<'_>) -> Result<Program> {
    super::task_arithmetic::sum(tensor, drop_by_rank(tensor)?)
}

fn ties(tensor: &TensorContext<'_>) -> Result<Program> {
    super::ties::elect(tensor, drop_by_rank(tensor)?)
}

fn drop_by_rank(tensor: &TensorContext<'_>) -> Result<Sparsify> {
    let (density, epsilon) = (tensor.each_float("density")?, tensor.each_float("epsilon")?);
    for (model, (density, epsilon)) in density.iter().zip(&epsilon).enumerate() {
        let (least, most) = (density - epsilon.abs(), density + epsilon.abs());
        if *density > 0.0 && *density < 1.0 && (least <= 0.0 || most >= 1.0) {
            let message = format!(
                "`density` {density} and `epsilon` {epsilon} of model {} give probabilities from {least} to {most}, which must lie \
                 between 0 and 1",
                model + 1
            );
            let hint = format!("give an `epsilon` below {}", density.min(1.0 - density));
            return Err(tensor.mistake(&["epsilon", "density"], message).hint(hint));
        }
    }
    if density.iter().all(|d| *d >= 1.0) {
        return Ok(Sparsify::None);
    }
    let restore = super::ties::restore(tensor, Restore::L1)?;
    let keys = (0..density.len()).map(|model| element_key(tensor.seed, tensor.tensor, model)).collect();
    // A row of one element has no ranks.
    if tensor.shape.last().is_none_or(|last| *last <= 1) {
        return Ok(Sparsify::Random { density, restore, keys });
    }
    let slope = |(density, epsilon): (&f64, &f64)| Slope { least: density - epsilon, rise: 2.0 * epsilon };
    let slopes = density.iter().zip(&epsilon).map(slope).collect();
    Ok(Sparsify::Ranked { density, slopes, restore, keys })
}
