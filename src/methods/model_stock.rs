//! Model stock (arXiv 2403.19522): the models' mean, drawn to the base by how much their task vectors point apart.

use crate::error::Result;
use crate::ops::spec::*;
use crate::ops::{Along, Blend, Combine, Fit, Gram, Program, Sparsify, TensorContext, Vectors};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "model_stock",
    summary: "θ₀ + t·mean τ_t, where t = N c / (1 + (N − 1) c) of the mean cosine c between task vectors",
    source: "arXiv 2403.19522, as mergekit has it",
    role: Role::Method,
    base: BaseModel::Required,
    models: (2, 64),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        ParamSpec {
            name: "filter_wise",
            kind: ParamKind::Bool,
            scope: Scope::Global,
            default: ParamDefault::Bool(false),
            help: "a cosine and a t for each vector along the last dimension (the rows of a matrix) instead of one for the tensor",
        },
        ParamSpec {
            name: "clamp",
            kind: ParamKind::Bool,
            scope: Scope::Global,
            default: ParamDefault::Bool(false),
            help: "count a negative mean cosine as 0, which gives the base",
        },
    ],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "Per tensor, or with `filter_wise` for each vector along its last dimension. c is the mean over all pairs of models. As in mergekit it is taken as it is where it is negative: the result \
            then lies beyond the base, the further the nearer c is to −1/(N − 1); such tensors are counted in a warning, and \
            `clamp: true` gives the base there. Norms whose product is below 1e-6 count as 1e-6, which depends on the scale of the \
            weights. Where 1 + (N − 1) c is 0, the base is given; where a source holds a NaN or an infinity, the mean.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let clamp = f64::from(u8::from(tensor.bool("clamp")?));
    let (name, along) =
        if tensor.bool("filter_wise")? { ("model stock by row", Along::Last) } else { ("model stock", Along::Whole) };
    let fit = Fit { name, of: Vectors::TaskVectors, along, parameters: vec![clamp], settle };
    let combine = Combine::sum(vec![1.0; tensor.models], 1.0, 1.0).fitted(fit);
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify: Sparsify::None, combine }))
}

/// The weight of every task vector, t / N.
fn settle(gram: &Gram, parameters: &[f64], combine: &mut Combine) -> Option<&'static str> {
    const LEAST_NORMS: f64 = 1e-6;
    const LEAST_DIVISOR: f64 = 1e-6;
    let models = gram.vectors();
    let n = models as f64;
    let is_clamped = parameters == [1.0];
    let mut cosines = 0.0;
    for (a, b) in Gram::pairs(models).filter(|(a, b)| a < b) {
        let norms = (gram.norm(a) * gram.norm(b)).max(LEAST_NORMS);
        cosines += (gram.product(a, b) / norms).clamp(-1.0, 1.0);
    }
    // Without angles the models are averaged: only what is no number in a source is none in the result.
    let cosine = if gram.is_finite() { cosines / (n * (n - 1.0) / 2.0) } else { 1.0 };
    let used = if is_clamped { cosine.max(0.0) } else { cosine };
    let divisor = 1.0 + (n - 1.0) * used;
    let t = if divisor.abs() < LEAST_DIVISOR { 0.0 } else { n * used / divisor };
    combine.weights = vec![t / n; models];
    match cosine < 0.0 {
        true if is_clamped => {
            Some("task vectors point away from each other (mean cosine below 0): the base, by `clamp`")
        }
        true => Some("task vectors point away from each other (mean cosine below 0): the result lies beyond the base"),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The weight of each of `models` task vectors of this length whose pairs all have this cosine.
    fn weight(models: usize, norm: f64, cosine: f64, clamp: f64) -> f64 {
        let product = |(a, b)| if a == b { norm * norm } else { norm * norm * cosine };
        let gram = Gram::new(models, Gram::pairs(models).map(product).collect());
        let mut combine = Combine::sum(vec![1.0; models], 1.0, 1.0);
        let remark = settle(&gram, &[clamp], &mut combine);
        assert_eq!(remark.is_some(), cosine < 0.0);
        assert!(combine.weights.iter().all(|w| *w == combine.weights[0]) && combine.weights.len() == models);
        combine.weights[0]
    }

    #[test]
    fn equal_models_are_kept_and_orthogonal_ones_give_the_base() {
        assert_eq!(weight(2, 3.0, 1.0, 0.0), 0.5);
        assert!((weight(4, 0.1, 1.0, 0.0) - 0.25).abs() < 1e-15);
        assert_eq!(weight(3, 1.0, 0.0, 0.0), 0.0);
        // t = 2 c / (1 + c)
        assert!((weight(2, 1.0, 0.5, 0.0) - 1.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn opposite_models_go_beyond_the_base_unless_clamped() {
        // mergekit: t = −1120 or so, as its cosine is rounded to float32.
        assert!((weight(2, 1.0, -0.998, 0.0) * 2.0 + 998.0).abs() < 1e-9);
        assert_eq!(weight(2, 1.0, -0.998, 1.0), 0.0);
        assert_eq!(weight(2, 1.0, -1.0, 0.0), 0.0, "1 + (N − 1) c is 0");
    }

    #[test]
    fn short_task_vectors_count_as_less_alike_and_none_as_orthogonal() {
        assert!((weight(2, 1e-4, 1.0, 0.0) - 0.01 / 1.01).abs() < 1e-12, "c = 1e-8 / 1e-6");
        assert_eq!(weight(3, 0.0, 1.0, 0.0), 0.0);
    }

    #[test]
    fn what_is_no_number_has_no_angle_and_is_averaged() {
        for product in [f64::NAN, f64::INFINITY] {
            let mut combine = Combine::sum(vec![1.0; 2], 1.0, 1.0);
            assert_eq!(settle(&Gram::new(2, vec![1.0, product, product]), &[0.0], &mut combine), None);
            assert_eq!(combine.weights, [0.5, 0.5]);
        }
    }
}
