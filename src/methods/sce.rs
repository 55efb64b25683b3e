//! SCE (FuseChat, arXiv 2408.07990): select where the models differ most, calculate a weight for each, erase what disagrees.

use crate::error::Result;
use crate::ops::rules::{Numbers, RuleId};
use crate::ops::spec::*;
use crate::ops::{Blend, Combine, Fit, Gram, Program, Sparsify, TensorContext, Vectors};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "sce",
    summary: "of the elements where the models differ most, the mean of those τ_t that have the sign of their sum, weighted by τ_t²",
    source: "arXiv 2408.07990, as mergekit has it",
    role: Role::Method,
    base: BaseModel::Required,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        ParamSpec {
            name: "select_topk",
            kind: ParamKind::Float { min: 0.0, max: 1.0 },
            scope: Scope::Global,
            default: ParamDefault::Float(1.0),
            help: "share kept of the elements where the models differ at all; 1 keeps every element",
        },
        super::INT8_MASK,
    ],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "Per tensor. Kept are the int(select_topk · n) elements with the largest variance over the models, of the n where it is not 0; \
            all that equal the least of them are kept too. Where that is none (one model, or equal ones), the result is the base. A model's \
            weight is its share of Σ τ² of what is kept, as a mean over all elements of the tensor; where those means sum to less than 1e-6, \
            which depends on the scale of the weights and holds for most light fine-tunes, the weights are equal, as in mergekit. So they \
            are where a source holds a NaN or an infinity.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let share = tensor.float("select_topk")?;
    let elems: u64 = tensor.shape.iter().product();
    let fit = Fit { name: "sce", of: Vectors::TaskVectors, parameters: vec![elems as f64], settle };
    let weights = vec![1.0 / tensor.models as f64; tensor.models];
    let combine = Combine::weighted(RuleId::Agree, weights, Numbers::default()).fitted(fit);
    let sparsify = if share < 1.0 { Sparsify::Spread { share } } else { Sparsify::None };
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify, combine }))
}

/// The weight of every task vector: its share of their mean squares.
fn settle(gram: &Gram, parameters: &[f64], combine: &mut Combine) -> Option<&'static str> {
    const LEAST: f64 = 1e-6;
    let models = gram.vectors();
    let means: Vec<f64> = (0..models).map(|t| gram.product(t, t) / parameters[0].max(1.0)).collect();
    let sum: f64 = means.iter().sum();
    let is_known = sum.is_finite() && sum >= LEAST;
    combine.weights = means.iter().map(|mean| if is_known { mean / sum } else { 1.0 / models as f64 }).collect();
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(squares: &[f64], elems: f64) -> Vec<f64> {
        let product = |(a, b): (usize, usize)| if a == b { squares[a] } else { 0.0 };
        let gram = Gram::new(squares.len(), Gram::pairs(squares.len()).map(product).collect());
        let mut combine = Combine::weighted(RuleId::Agree, Vec::new(), Numbers::default());
        assert!(settle(&gram, &[elems], &mut combine).is_none());
        combine.weights
    }

    #[test]
    fn weights_are_shares_of_mean_squares() {
        assert_eq!(weights(&[1.0, 3.0], 10.0), [0.25, 0.75]);
        assert_eq!(weights(&[0.0, 3.0, 1.0], 1.0), [0.0, 0.75, 0.25]);
    }

    #[test]
    fn weights_of_small_changes_or_of_what_is_no_number_are_equal() {
        assert_eq!(weights(&[1e-6, 3e-6], 10.0), [0.5, 0.5]);
        assert_eq!(weights(&[0.0, 0.0], 0.0), [0.5, 0.5]);
        assert_eq!(weights(&[f64::NAN, 1.0], 10.0), [0.5, 0.5]);
        assert_eq!(weights(&[f64::INFINITY, 1.0], 10.0), [0.5, 0.5]);
    }
}
