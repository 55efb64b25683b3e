//! One element's way through an element-wise merge, step by step: the portable loops on a run of one element, and beside them
//! the same formulas in f64.

use super::blend::combine;
use super::portable::Block;
use super::prune::{self, Scratch, Sources};
use super::simd;
use super::sparsify;
use super::stored::{Stored, Widen};
use crate::dtype::Dtype;
use crate::instructions::Instructions;
use crate::ops::{Geometry, Measured, Prune, Sparsify, StageState};

/// An element's values, by model where there are several. They are those of the computing type, which f64 holds exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// θ₀ as stored, where it is read.
    pub base: Option<f64>,
    /// θ_t as stored.
    pub models: Vec<f64>,
    /// τ_t = θ_t − θ₀; `None` where parameters are combined.
    pub task_vectors: Option<Vec<f64>>,
    /// τ_t behind each stage.
    pub stages: Vec<Vec<f64>>,
    /// What the method has not dropped of τ_t, rescaled; `None` where it drops nothing.
    pub sparsified: Option<Vec<f64>>,
    /// The merged element in the computing type; what is stored is this, rounded.
    pub merged: f64,
    /// The merged element where every operation is done in f64, on what the masks and cuts of the computing type leave.
    pub merged_in_f64: f64,
    /// What is stored.
    pub stored: f64,
}

/// τ_t in the computing type, and in f64.
struct Pair {
    computed: Vec<f64>,
    exact: Vec<f64>,
}

impl Pair {
    /// What came of the values after a step that drops some of them and multiplies the others by a factor each.
    fn follow<C: Widen>(&mut self, scratch: &Scratch<C>, factors: &[f64]) -> Vec<f64> {
        for (t, computed) in self.computed.iter_mut().enumerate() {
            let after = scratch.tau[t][0].f64();
            // Nothing but a mask makes a 0 of what was none; NaN stays NaN.
            let dropped = after == 0.0 && *computed != 0.0;
            self.exact[t] = if dropped { 0.0 } else { self.exact[t] * factors.get(t).copied().unwrap_or(1.0) };
            *computed = after;
        }
        self.computed.clone()
    }
}

/// Traces the one element that `sources` holds; it is stored as `dtype`.
pub fn trace<C: Widen>(m: &Measured, sources: &Sources<'_>, dtype: Dtype) -> Trace {
    let models = sources.models.len();
    let mut scratch = Scratch::<C>::new(models);
    let base = sources.base.as_ref().map(value);
    let parameters: Vec<f64> = sources.models.iter().map(value).collect();
    let takes_task_vectors = m.combine.rule.takes_task_vectors();
    let (mut stages, mut pair) = (Vec::new(), Pair { computed: parameters.clone(), exact: parameters.clone() });
    let mut sparsified = None;
    if takes_task_vectors {
        (stages, pair) = through_stages(m.geometry, &m.stages, sources, &mut scratch);
        if m.sparsify != Sparsify::None {
            sparsify::apply(m, models, sources.start, 1, &mut scratch, &mut vec![0; models]);
            sparsified = Some(pair.follow(&scratch, &factors(m, models, sources.start)));
        }
    } else {
        prune::load_parameters(sources, 0, 1, &mut scratch);
    }
    combine(m, models, 1, &mut scratch);
    let merged = [scratch.c[0]];
    let mut bytes = vec![0; dtype.bitsize() / 8];
    C::narrow(&merged, dtype, &mut bytes);
    let mut exact = [0.0];
    Block {
        base: &[base.unwrap_or(0.0)],
        models: &pair.exact.iter().map(|x| vec![*x]).collect::<Vec<_>>(),
        weights: &m.combine.weights,
        numbers: &m.combine.numbers,
        out: &mut exact,
    }
    .merge(m.combine.rule);
    let task_vectors = takes_task_vectors.then(|| differences::<C>(sources));
    Trace {
        base,
        models: parameters,
        task_vectors,
        stages,
        sparsified,
        merged: merged[0].f64(),
        merged_in_f64: exact[0],
        stored: value(&Stored { dtype, bytes: &bytes }),
    }
}

/// τ_t of the one element that `sources` holds, and τ_t behind each stage.
pub fn task_vectors<C: Widen>(
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut scratch = Scratch::<C>::new(sources.models.len());
    let behind = through_stages(geometry, stages, sources, &mut scratch).0;
    (differences::<C>(sources), behind)
}

/// The first stored element.
fn value(stored: &Stored<'_>) -> f64 {
    let mut value = [0.0];
    stored.widen(0, &mut value);
    value[0]
}

/// θ_t − θ₀ in the computing type.
fn differences<C: Widen>(sources: &Sources<'_>) -> Vec<f64> {
    let mut scratch = Scratch::<C>::new(sources.models.len());
    prune::load(sources, 0, 1, &mut scratch);
    scratch.tau[..sources.models.len()].iter().map(|tau| tau[0].f64()).collect()
}

/// Leaves τ_t behind all stages in `scratch`, and gives τ_t behind each.
fn through_stages<C: Widen>(
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    sources: &Sources<'_>,
    scratch: &mut Scratch<C>,
) -> (Vec<Vec<f64>>, Pair) {
    let models = sources.models.len();
    prune::load(sources, 0, 1, scratch);
    let base = sources.base.as_ref().map_or(0.0, value);
    let mut pair = Pair {
        computed: scratch.tau[..models].iter().map(|tau| tau[0].f64()).collect(),
        exact: sources.models.iter().map(|stored| value(stored) - base).collect(),
    };
    let mut behind = Vec::with_capacity(stages.len());
    for stage in stages {
        prune::apply(std::slice::from_ref(stage), geometry, models, sources.start, 1, scratch);
        behind.push(pair.follow(scratch, &stage.1.factors));
    }
    (behind, pair)
}

/// What the one element that the method has not dropped is multiplied by, by model.
fn factors(m: &Measured, models: usize, element: u64) -> Vec<f64> {
    let own = |t: usize| m.chosen.get(t).and_then(|chosen| chosen.scale(element as usize)).map_or(1.0, f64::from);
    (0..models).map(|t| m.factor(t) * own(t)).collect()
}

/// The instruction set whose loops merge tensors of these stored types, as far as that is known before anything is measured:
/// masks of several stages that each drop whole tensors or columns are left to the portable loops as well.
pub fn instructions(wide: bool, sources: &[Dtype], dtype: Dtype) -> Instructions {
    let covers = |dtype: &Dtype| matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
    let chosen = Instructions::chosen();
    if wide || !sources.iter().all(covers) || !simd::takes(sources.len(), dtype) {
        Instructions::Portable
    } else {
        chosen
    }
}
