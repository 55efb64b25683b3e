//! RAM (arXiv 2601.13572): the mean of the task vectors that changed an element, as merging of reinforced agents asks for.

use crate::error::Result;
use crate::ops::rules::{Numbers, RuleId};
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Overlap, Program, Sparsify, TensorContext};

pub(super) static RAM: MethodSpec = MethodSpec {
    name: "ram",
    summary: "θ₀ + the mean of the τ_t with |τ_t| > epsilon: of an element that one model alone changed, all of its change",
    source: "arXiv 2601.13572, as mergekit has it",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[EPSILON],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "A NaN counts as a change. Stored as the recipe says, where mergekit keeps float32's for `ramplus_tl`.",
};

pub(super) static RAMPLUS_TL: MethodSpec = MethodSpec {
    name: "ramplus_tl",
    summary: "as `ram`, and what model t alone changed times 1 + r · (shared / alone, at most alpha), elements counted in the tensor",
    source: "arXiv 2601.13572, as mergekit has it",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        EPSILON,
        ParamSpec {
            name: "r",
            kind: ParamKind::Float { min: -1e6, max: 1e6 },
            scope: Scope::Global,
            default: ParamDefault::Float(0.1),
            help: "share of the ratio by which what a model alone changed grows",
        },
        ParamSpec {
            name: "alpha",
            kind: ParamKind::Float { min: 0.0, max: 1e6 },
            scope: Scope::Global,
            default: ParamDefault::Float(0.2),
            help: "greatest ratio that counts",
        },
    ],
    exclusive: &[],
    rule: Rule::Method(rule_plus),
    tolerance: 1e-5,
    notes: "The ratio is that of a model's changed elements that others changed too to those that none did (at least epsilon), in the \
            tensor. A NaN counts as a change. Stored as the recipe says, where mergekit keeps float32 whatever `dtype`.",
};

const EPSILON: ParamSpec = ParamSpec {
    name: "epsilon",
    kind: ParamKind::Float { min: 0.0, max: 1e6 },
    scope: Scope::Global,
    default: ParamDefault::Float(1e-5),
    help: "a |τ| up to this is no change",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    program(tensor, None)
}

fn rule_plus(tensor: &TensorContext<'_>) -> Result<Program> {
    program(tensor, Some(Overlap { share: tensor.float("r")?, most: tensor.float("alpha")? }))
}

fn program(tensor: &TensorContext<'_>, overlap: Option<Overlap>) -> Result<Program> {
    let numbers = Numbers { threshold: tensor.float("epsilon")?, ..Numbers::default() };
    let combine = Combine { overlap, ..Combine::weighted(RuleId::Reinforced, vec![1.0; tensor.models], numbers) };
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify: Sparsify::None, combine }))
}
