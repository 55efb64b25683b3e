//! Spherical linear interpolation of two models, as mergekit defines it.

use crate::error::Result;
use crate::ops::rules::{Numbers, RuleId};
use crate::ops::spec::*;
use crate::ops::{Along, Blend, Combine, Fit, Gram, Program, Sparsify, TensorContext, Vectors};

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
    Ok(Program::Blend(Blend { stages: Vec::new(), sparsify: Sparsify::None, combine: combine(tensor.float("t")?) }))
}

/// θ₀ and the other model, by coefficients that the angle between them gives.
pub(crate) fn combine(t: f64) -> Combine {
    let fit = Fit { name: "slerp", of: Vectors::Parameters, along: Along::Whole, parameters: vec![t], settle };
    Combine::weighted(RuleId::Mix, vec![0.0], Numbers::default()).fitted(fit)
}

/// Coefficients of θ₀ and of the other model, as mergekit computes them.
fn settle(gram: &Gram, parameters: &[f64], combine: &mut Combine) -> Option<&'static str> {
    const NEARLY_PARALLEL: f64 = 0.9995;
    const TINY: f64 = 1e-8;
    let t = parameters[0];
    let norm = |of: usize| if gram.norm(of) > TINY { gram.norm(of) } else { 1.0 };
    let cosine = (gram.product(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    let (base, other) = if cosine.abs() > NEARLY_PARALLEL || cosine.is_nan() {
        (1.0 - t, t)
    } else {
        let angle = cosine.acos();
        (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
    };
    combine.numbers.base = base;
    combine.weights = vec![other];
    None
}
