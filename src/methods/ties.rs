//! TIES merging (arXiv 2306.01708): trim, elect signs, merge what agrees.

use crate::error::Result;
use crate::ops::rules::{Numbers, RuleId};
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Restore, Sparsify, TensorContext, Value};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "ties",
    summary: "trim each τ_t to its `density` largest magnitudes, elect a sign per element, weighted mean of those that agree",
    source: "arXiv 2306.01708",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        super::WEIGHT,
        DENSITY,
        super::LAMBDA,
        ParamSpec {
            name: "normalize",
            kind: ParamKind::Bool,
            scope: Scope::Global,
            default: ParamDefault::Bool(true),
            help: "divide by the sum of the weights that agree with the elected sign",
        },
        ParamSpec { default: ParamDefault::Bool(false), ..RESCALE },
        ParamSpec {
            name: "scope",
            kind: ParamKind::Choice(&["tensor", "model"]),
            scope: Scope::Global,
            default: ParamDefault::Word("tensor"),
            help: "what is trimmed as one: each tensor, or all merged tensors of a model, as in the paper",
        },
        super::INT8_MASK,
    ],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "k = max(1, int(density · n)) per tensor, or over all merged tensors with `scope: model`; every element with |τ| at or above the k-th largest is kept, ties \
            included, where mergekit keeps an arbitrary choice among ties. Weights apply before signs are elected. With `scope: model` each model needs one density for all tensors; \
            magnitudes are compared as float32, and `rescale` restores the norm of each tensor. `rescale: true` is `l1`.",
};

/// `rescale`, with a default of the method's own.
pub(super) const RESCALE: ParamSpec = ParamSpec {
    name: "rescale",
    kind: ParamKind::Switch(&["l1", "inverse_p", "none"]),
    scope: Scope::Global,
    default: ParamDefault::Bool(true),
    help: "multiply what is kept: l1, to the L1 norm that τ_t had in this tensor; inverse_p, by 1/density; false or none, not",
};

/// What `rescale` says, where `true` means this.
pub(super) fn restore(tensor: &TensorContext<'_>, truth: Restore) -> Result<Restore> {
    Ok(match tensor.global("rescale")? {
        Value::Bool(true) => truth,
        Value::Word("l1") => Restore::L1,
        Value::Word("inverse_p") => Restore::Inverse,
        _ => Restore::None,
    })
}

/// `density`, by model.
pub(super) const DENSITY: ParamSpec = ParamSpec {
    name: "density",
    kind: ParamKind::Float { min: 0.0, max: 1.0 },
    scope: Scope::PerModel,
    default: ParamDefault::Float(1.0),
    help: "share of each task vector's elements that is kept",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let density = tensor.each_float("density")?;
    let restore = restore(tensor, Restore::L1)?;
    let whole_model = tensor.global("scope")?.word()? == "model";
    let trims = whole_model || density.iter().any(|d| *d < 1.0);
    elect(tensor, if trims { Sparsify::TopK { density, restore, whole_model } } else { Sparsify::None })
}

/// Sign election and the weighted mean (or sum) of what agrees, of what `sparsify` leaves.
pub(super) fn elect(tensor: &TensorContext<'_>, sparsify: Sparsify) -> Result<Program> {
    let numbers =
        Numbers { normalize: tensor.bool("normalize")?, lambda: tensor.float("lambda")?, ..Numbers::default() };
    let combine = Combine::weighted(RuleId::Elect, tensor.each_float("weight")?, numbers);
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify, combine }))
}
