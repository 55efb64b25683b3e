//! Spherical interpolation of two task vectors, or of two models without a base: mergekit's `nuslerp`.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Along, Blend, Combine, Fit, Gram, Program, Sparsify, TensorContext, Vectors};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "nuslerp",
    summary: "spherical interpolation between two task vectors, by their weights; without a base, between two models",
    source: "mergekit",
    role: Role::Method,
    base: BaseModel::Origin,
    models: (2, 2),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        ParamSpec { default: ParamDefault::Required, ..super::WEIGHT },
        ParamSpec {
            name: "nuslerp_row_wise",
            kind: ParamKind::Bool,
            scope: Scope::Global,
            default: ParamDefault::Bool(false),
            help: "of a tensor that is not flattened, its vectors along the first dimension (columns) instead of the last (rows), as in mergekit",
        },
        ParamSpec {
            name: "nuslerp_flatten",
            kind: ParamKind::Bool,
            scope: Scope::Global,
            default: ParamDefault::Bool(true),
            help: "one angle for the tensor; `false`: one for each of its vectors",
        },
    ],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "t = w₂ / (w₁ + w₂), and ½ where the weights sum to 0. As in mergekit the vectors themselves are combined, by the sines \
            of the angle between them; so the length is not interpolated where theirs differ, and a vector of zeros counts as one \
            across. Linear where the sine is below 1e-6, in float64 (mergekit's float32 takes nearly opposite vectors for noise), \
            and where a source holds a NaN or an infinity. With `nuslerp_flatten: false` all of this holds of each vector along the last \
            dimension, with `nuslerp_row_wise: true` beside it along the first, which is the other way round than the name says, as in \
            mergekit.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    /// Below this the weights sum to nothing.
    const TINY: f64 = 1e-6;
    let weights = tensor.each_float("weight")?;
    let sum: f64 = weights.iter().sum();
    let t = if sum.abs() < TINY { 0.5 } else { weights[1] / sum };
    let (name, along) = match (tensor.bool("nuslerp_flatten")?, tensor.bool("nuslerp_row_wise")?) {
        (true, _) => ("nuslerp", Along::Whole),
        (false, false) => ("nuslerp by row", Along::Last),
        (false, true) => ("nuslerp by column", Along::First),
    };
    let fit = |of| Fit { name, of, along, parameters: vec![t], settle };
    let weights = vec![1.0 - t, t];
    let combine = if tensor.has_base {
        Combine::sum(weights, 1.0, 1.0).fitted(fit(Vectors::TaskVectors))
    } else {
        Combine::average(weights, 1.0).fitted(fit(Vectors::Parameters))
    };
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify: Sparsify::None, combine }))
}

/// The coefficients of the two vectors.
fn settle(gram: &Gram, parameters: &[f64], combine: &mut Combine) -> Option<&'static str> {
    const LEAST_NORM: f64 = 1e-7;
    const LEAST_SINE: f64 = 1e-6;
    let t = parameters[0];
    let norm = |of: usize| gram.norm(of).max(LEAST_NORM);
    let cosine = (gram.product(0, 1) / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    let sine = (1.0 - cosine * cosine).sqrt();
    combine.weights = if sine < LEAST_SINE || !gram.is_finite() {
        vec![1.0 - t, t]
    } else {
        let angle = cosine.acos();
        vec![((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine]
    };
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coefficients(t: f64, products: Vec<f64>) -> Vec<f64> {
        let mut combine = Combine::average(vec![1.0; 2], 1.0);
        assert_eq!(settle(&Gram::new(2, products), &[t], &mut combine), None);
        combine.weights
    }

    #[test]
    fn vectors_across_are_weighed_by_sine_and_cosine() {
        let [a, b] = coefficients(1.0 / 3.0, vec![4.0, 0.0, 1.0])[..] else { panic!() };
        assert!((a - 0.75f64.sqrt()).abs() < 1e-12 && (b - 0.5).abs() < 1e-12, "{a} {b}");
    }

    #[test]
    fn a_vector_of_zeros_counts_as_one_across() {
        let found = coefficients(0.5, vec![0.0, 0.0, 1.0]);
        assert!(found.iter().all(|c| (c - 0.5f64.sqrt()).abs() < 1e-12), "{found:?}");
    }

    #[test]
    fn parallel_and_opposite_vectors_and_what_is_no_number_are_interpolated_linearly() {
        for product in [2.0, -2.0, f64::NAN, f64::INFINITY] {
            assert_eq!(coefficients(0.25, vec![4.0, product, 1.0]), [0.75, 0.25], "{product}");
        }
    }
}
