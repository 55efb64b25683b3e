//! Arcee's fusion, as mergekit has it: of one model, the changes that matter most to the distributions of their rows.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Program, Sparsify, TensorContext};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "arcee_fusion",
    summary: "θ₀ + τ where |τ| times the divergence of its row's softmax from the base's is far above the median",
    source: "mergekit",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 1),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "Per tensor. A row is one along the last dimension, a vector one row; its divergence is Σ p ln(p/q) of p = softmax(θ) + 1e-8 and \
            q = softmax(θ₀) + 1e-8. Kept is τ where |τ| times it reaches the median + 1.5·(third quartile − first), quantiles being \
            the elements at ⌊q (n − 1)⌋ in order. Softmax, divergence and the threshold are computed in float64 and the quantiles are exact, \
            where mergekit computes in float32, in which the divergence of near rows is noise, and draws a million elements of \
            larger tensors. Rows of one element have no divergence: all of τ is kept. A row with a NaN or an infinity is kept as a whole.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let has_rows = tensor.shape.last().is_some_and(|last| *last > 1);
    let sparsify = if has_rows { Sparsify::Importance } else { Sparsify::None };
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify, combine: Combine::sum(vec![1.0], 1.0, 1.0) }))
}
