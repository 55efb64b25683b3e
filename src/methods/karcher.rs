//! The Karcher mean (Riemannian centre of mass) of the models' directions, with the mean of their lengths, as mergekit defines it.
//!
//! Every step stays in the span of the models, so that the products of every two of them are all that it takes.

use crate::error::Result;
use crate::ops::rules::{Numbers, RuleId};
use crate::ops::spec::*;
use crate::ops::{Along, Blend, Combine, Fit, Gram, Program, Sparsify, TensorContext, Vectors};

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "karcher",
    summary: "mean direction of the models on the sphere, times the mean of their lengths",
    source: "mergekit",
    role: Role::Method,
    base: BaseModel::Joins,
    models: (1, 63),
    takes_stages: true,
    matrices: Matrices::No,
    parameters: &[
        ParamSpec {
            name: "max_iter",
            kind: ParamKind::Int { min: 0, max: 10_000 },
            scope: Scope::Global,
            default: ParamDefault::Int(10),
            help: "most steps towards the mean",
        },
        ParamSpec {
            name: "tol",
            kind: ParamKind::Float { min: 0.0, max: 1.0 },
            scope: Scope::Global,
            default: ParamDefault::Float(1e-5),
            help: "angles, steps and lengths below this count as 0",
        },
    ],
    exclusive: &[],
    rule: Rule::Method(rule),
    tolerance: 1e-5,
    notes: "Per tensor, every model with the same weight; a base that is given is one of the models, listed or not. Angles are \
            computed in float64: in float32, as mergekit has them, those of near models are rounding errors. A model in the very \
            opposite direction has no part in a step, as no way to it is the shortest. Where a source holds a NaN or an infinity, \
            the models are averaged.",
};

fn rule(tensor: &TensorContext<'_>) -> Result<Program> {
    let parameters = vec![tensor.int("max_iter")? as f64, tensor.float("tol")?];
    let fit = |of| Fit { name: "karcher", of, along: Along::Whole, parameters, settle };
    let weights = vec![1.0; tensor.models];
    let combine = if tensor.has_base {
        Combine::weighted(RuleId::Affine, weights, Numbers::default()).fitted(fit(Vectors::BaseAndTaskVectors))
    } else {
        Combine::average(weights, 1.0).fitted(fit(Vectors::Parameters))
    };
    Ok(Program::Blend(Blend { stages: tensor.stages.clone(), sparsify: Sparsify::None, combine }))
}

/// The weight of every model and, where there is a base, of θ₀ in all of them together.
fn settle(gram: &Gram, parameters: &[f64], combine: &mut Combine) -> Option<&'static str> {
    let (steps, least) = (parameters[0] as usize, parameters[1]);
    if combine.rule != RuleId::Affine {
        combine.weights = weights(gram, steps, least);
        return None;
    }
    // θ₀ + τ_t of every model, then θ₀.
    let models = gram.vectors() - 1;
    let with = |t: usize, product: f64| if t < models { product } else { 0.0 };
    let product = |(a, b): (usize, usize)| {
        // Of θ₀ there is no τ, so that any product does.
        let [at, bt] = [a, b].map(|t| (t + 1) % (models + 1));
        gram.product(0, 0)
            + with(a, gram.product(0, at))
            + with(b, gram.product(0, bt))
            + with(a, with(b, gram.product(at, bt)))
    };
    let mut all = weights(&Gram::new(models + 1, Gram::pairs(models + 1).map(product).collect()), steps, least);
    // Where nothing changed the base is the mean to the last bit.
    let is_changed = (1..=models).any(|t| gram.product(t, t) != 0.0);
    combine.numbers.base = if is_changed { all.iter().sum() } else { 1.0 };
    all.truncate(models);
    combine.weights = all;
    None
}

/// The weight of every vector, from the products of every two.
fn weights(gram: &Gram, steps: usize, least: f64) -> Vec<f64> {
    let models = gram.vectors();
    if models == 1 || !gram.is_finite() {
        return vec![1.0 / models as f64; models];
    }
    let norms: Vec<f64> = (0..models).map(|t| gram.norm(t)).collect();
    let counted: Vec<usize> = (0..models).filter(|t| norms[*t] > least).collect();
    let mean = mean(&counted, &|a, b| (gram.product(a, b) / (norms[a] * norms[b])).clamp(-1.0, 1.0), steps, least);
    let length = norms.iter().sum::<f64>() / models as f64;
    let mut weights = vec![0.0; models];
    for (t, share) in counted.iter().zip(mean) {
        weights[*t] = length * share / norms[*t];
    }
    weights
}

/// The mean of unit vectors, as shares of each; `cosine` is the product of two.
fn mean(units: &[usize], cosine: &impl Fn(usize, usize) -> f64, steps: usize, least: f64) -> Vec<f64> {
    /// Sines below this are rounding errors: of a direction and its opposite.
    const OPPOSITE: f64 = 1e-7;
    let n = units.len();
    if n == 0 {
        return Vec::new();
    }
    let cosines: Vec<f64> = units.iter().flat_map(|a| units.iter().map(|b| cosine(*a, *b))).collect();
    let products = |of: &[f64]| -> Vec<f64> {
        cosines.chunks(n).map(|row| row.iter().zip(of).map(|(k, x)| k * x).sum()).collect()
    };
    let length = |of: &[f64]| products(of).iter().zip(of).map(|(p, x)| p * x).sum::<f64>().max(0.0).sqrt();
    let share = 1.0 / n as f64;
    let mut at = vec![share; n];
    let start = length(&at);
    if start < least || start == 0.0 {
        // Nothing is left of directions that cancel out: the first.
        at = (0..n).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect();
    } else {
        at.iter_mut().for_each(|x| *x /= start);
    }
    for _ in 0..steps {
        let mut step = vec![0.0; n];
        for (i, product) in products(&at).into_iter().enumerate() {
            let cosine = product.clamp(-1.0, 1.0);
            let angle = cosine.acos();
            if angle < least || angle.sin() < OPPOSITE {
                continue;
            }
            let factor = share * angle / angle.sin();
            step[i] += factor;
            step.iter_mut().zip(&at).for_each(|(s, x)| *s -= factor * cosine * x);
        }
        let size = length(&step);
        if size < least || size == 0.0 {
            break;
        }
        at.iter_mut().zip(&step).for_each(|(x, s)| *x = size.cos() * *x + size.sin() / size * s);
        let size = length(&at);
        if size > 0.0 {
            at.iter_mut().for_each(|x| *x /= size);
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gram(vectors: &[[f64; 3]]) -> Gram {
        let dot = |(a, b): (usize, usize)| vectors[a].iter().zip(vectors[b]).map(|(x, y)| x * y).sum();
        Gram::new(vectors.len(), Gram::pairs(vectors.len()).map(dot).collect())
    }

    fn merged(vectors: &[[f64; 3]], steps: usize, least: f64) -> [f64; 3] {
        let weights = weights(&gram(vectors), steps, least);
        [0, 1, 2].map(|i| vectors.iter().zip(&weights).map(|(v, w)| v[i] * w).sum())
    }

    fn near(a: [f64; 3], b: [f64; 3]) {
        assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-9), "{a:?}, {b:?}");
    }

    #[test]
    fn two_vectors_meet_halfway_with_the_mean_length() {
        near(merged(&[[2.0, 0.0, 0.0], [0.0, 4.0, 0.0]], 10, 1e-5), [3.0 / 2f64.sqrt(), 3.0 / 2f64.sqrt(), 0.0]);
        near(merged(&[[1.0, 2.0, 3.0]; 3], 10, 1e-5), [1.0, 2.0, 3.0]);
        near(merged(&[[5.0, 0.0, 1.0]], 10, 1e-5), [5.0, 0.0, 1.0]);
    }

    #[test]
    fn at_the_mean_the_ways_to_all_models_cancel_out() {
        let vectors = [[1.0, 0.2, 0.0], [0.3, 1.0, -0.2], [0.1, 0.4, 0.9]];
        let mean = merged(&vectors, 200, 1e-12);
        let length = |v: [f64; 3]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let u = mean.map(|x| x / length(mean));
        let mut sum = [0.0; 3];
        for vector in vectors {
            let v = vector.map(|x| x / length(vector));
            let cosine: f64 = u.iter().zip(v).map(|(a, b)| a * b).sum();
            let factor = cosine.acos() / cosine.acos().sin();
            (0..3).for_each(|i| sum[i] += factor * (v[i] - cosine * u[i]));
        }
        assert!(length(sum) < 1e-9, "{sum:?}");
        assert!((length(mean) - vectors.map(length).iter().sum::<f64>() / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_zero_vector_counts_for_the_length_alone_and_only_zeros_give_zero() {
        near(merged(&[[2.0, 0.0, 0.0], [0.0; 3]], 10, 1e-5), [1.0, 0.0, 0.0]);
        near(merged(&[[0.0; 3]; 2], 10, 1e-5), [0.0; 3]);
        near(merged(&[[0.0; 3]; 2], 10, 0.0), [0.0; 3]);
    }

    #[test]
    fn a_base_is_one_more_model() {
        let (base, changes) = ([1.0, -2.0, 0.5], [[0.3, 0.1, -0.2], [-0.4, 0.2, 0.6]]);
        let mut combine = Combine::weighted(RuleId::Affine, vec![1.0; 2], Numbers::default());
        settle(&gram(&[base, changes[0], changes[1]]), &[10.0, 1e-5], &mut combine);
        let part = |i: usize| changes.iter().zip(&combine.weights).map(|(c, w)| c[i] * w).sum::<f64>();
        let found = [0, 1, 2].map(|i| combine.numbers.base * base[i] + part(i));
        let models = changes.map(|c| [0, 1, 2].map(|i| base[i] + c[i]));
        near(found, merged(&[models[0], models[1], base], 10, 1e-5));
    }

    #[test]
    fn opposite_vectors_give_the_first_and_what_is_no_number_the_average() {
        near(merged(&[[2.0, 0.0, 0.0], [-4.0, 0.0, 0.0]], 10, 1e-5), [3.0, 0.0, 0.0]);
        assert_eq!(weights(&Gram::new(2, vec![1.0, f64::NAN, 1.0]), 10, 1e-5), [0.5, 0.5]);
    }
}
