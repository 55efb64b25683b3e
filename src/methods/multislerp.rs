//! The weighted mean of the models' directions, with the weighted mean of their lengths: mergekit's `multislerp`.
//!
//! mergekit averages in the tangent space at the mean direction m = Σ w u / ‖Σ w u‖, but there the sum Σ w (u − ⟨u, m⟩ m) is 0
//! whatever the models: what it computes is this closed form.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Along, Blend, Combine, Fit, Gram, Program, Sparsify, TensorContext, Vectors};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "multislerp",
    summary: "weighted mean direction, times the weighted mean length, of task vectors; without a base, of the models",
    source: "mergekit",
    role: Role::Method,
    base: BaseModel::Origin,
    models: (1, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        ParamSpec { default: ParamDefault::Required, ..super::WEIGHT },
        ParamSpec {
            name: "normalize_weights",
            kind: ParamKind::Bool,
            scope: Scope::Global,
            default: ParamDefault::Bool(true),
            help: "divide the weights by their sum",
        },
        ParamSpec {
            name: "eps",
            kind: ParamKind::Float { min: 0.0, max: 1.0 },
            scope: Scope::Global,
            default: ParamDefault::Float(1e-8),
            help: "is added to lengths; a sum of directions below it is none",
        },
    ],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "Per tensor: Σ w ‖x‖ · m, where m is the direction of Σ w x / (‖x‖ + eps) and x are task vectors, added to the base, or \
            the models where no base is given. Where the directions cancel out, two models give Σ w x, as in mergekit; three or \
            more give the base (0 without one) and are counted in a warning, where mergekit stops. One model is given as it is. \
            Where a source holds a NaN or an infinity, Σ w x is given.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let mut weights = tensor.each_float("weight")?;
    if tensor.bool("normalize_weights")? {
        let sum = tensor.weight_sum(&weights)?;
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    if weights.len() == 1 {
        weights = vec![1.0];
    }
    let parameters = [vec![tensor.float("eps")?], weights.clone()].concat();
    let fit = |of| Fit { name: "multislerp", of, along: Along::Whole, parameters, settle };
    let is_alone = weights.len() == 1;
    let (combine, of) = if tensor.has_base {
        (Combine::sum(weights, 1.0, 1.0), Vectors::TaskVectors)
    } else {
        (Combine::average(weights, 1.0), Vectors::Parameters)
    };
    let combine = if is_alone { combine } else { combine.fitted(fit(of)) };
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify: Sparsify::None, combine }))
}

/// The coefficient of every vector.
fn settle(gram: &Gram, parameters: &[f64], combine: &mut Combine) -> Option<&'static str> {
    let (eps, weights) = (parameters[0], &parameters[1..]);
    let models = gram.vectors();
    let length = |t: usize| gram.norm(t) + eps;
    let mut square = 0.0;
    for (a, b) in Gram::pairs(models) {
        let both = if a == b { 1.0 } else { 2.0 };
        let lengths = length(a) * length(b);
        square += if lengths == 0.0 { 0.0 } else { both * weights[a] * weights[b] * gram.product(a, b) / lengths };
    }
    let size = square.max(0.0).sqrt();
    combine.weights = weights.to_vec();
    if !gram.is_finite() {
        return None;
    }
    if size < eps || size == 0.0 {
        if models == 2 {
            return None;
        }
        combine.weights = vec![0.0; models];
        return Some("the directions of the models cancel out, or none changed: the base, or 0 without one");
    }
    let mean: f64 = (0..models).map(|t| weights[t] * gram.norm(t)).sum();
    combine.weights =
        (0..models).map(|t| if length(t) == 0.0 { 0.0 } else { mean * weights[t] / (length(t) * size) }).collect();
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coefficients(weights: &[f64], products: Vec<f64>) -> (Vec<f64>, bool) {
        let mut combine = Combine::average(weights.to_vec(), 1.0);
        let parameters = [&[1e-8], weights].concat();
        let remark = settle(&Gram::new(weights.len(), products), &parameters, &mut combine);
        (combine.weights, remark.is_some())
    }

    #[test]
    fn vectors_across_meet_between_with_the_mean_length() {
        // (3, 0) and (0, 1) with weights ¾ and ¼: length 2.5, direction (3, 1)/√10.
        let (found, _) = coefficients(&[0.75, 0.25], vec![9.0, 0.0, 1.0]);
        let expected = [2.5 / 10f64.sqrt(), 2.5 / 10f64.sqrt()];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7), "{found:?}");
    }

    #[test]
    fn equal_vectors_are_kept_whatever_the_weights() {
        let (found, _) = coefficients(&[0.2, 0.5, 0.3], vec![4.0; 6]);
        assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-8, "{found:?}");
    }

    #[test]
    fn directions_that_cancel_out_are_summed_of_two_and_left_out_of_three() {
        assert_eq!(coefficients(&[0.5, 0.5], vec![1.0, -1.0, 1.0]), (vec![0.5, 0.5], false));
        assert_eq!(coefficients(&[0.5, 0.5], vec![0.0; 3]), (vec![0.5, 0.5], false));
        assert_eq!(coefficients(&[1.0, 1.0, 1.0], vec![0.0; 6]), (vec![0.0; 3], true));
    }

    #[test]
    fn what_is_no_number_is_summed() {
        assert_eq!(coefficients(&[0.7, 0.3], vec![1.0, f64::NAN, f64::INFINITY]), (vec![0.7, 0.3], false));
    }
}
