//! Rules, stages and mixes of types that the operations are tested on.

use merganser::dtype::Dtype;
use merganser::ops::rules::{Numbers, RuleId};
use merganser::ops::{
    Combine, Geometry, Granularity, Mask, Measured, Prune, Real, Rescale, Score, Sparsify, StageState,
};

use super::DTYPES;
use crate::support::family::Rng;

pub const SCORES: [Score; 5] = [Score::Magnitude, Score::Relative, Score::Deviation, Score::Agreement, Score::Tall];

pub fn measured(geometry: Geometry, sparsify: Sparsify, combine: Combine, models: usize) -> Measured {
    Measured {
        geometry,
        stages: Vec::new(),
        sparsify,
        cuts: Vec::new(),
        tops: Vec::new(),
        factors: vec![1.0; models],
        lines: None,
        combine,
    }
}

fn weights(models: usize) -> Vec<f64> {
    (0..models).map(|t| 0.3 + 0.17 * t as f64).collect()
}

/// Every rule that takes these many models; the first four take task vectors one at a time.
pub fn rules(models: usize) -> Vec<Combine> {
    let weights = weights(models);
    let mut rules = vec![
        Combine::sum(weights.clone(), 1.0, 0.7),
        Combine::sum(weights.clone(), 3.3, 1.0),
        Combine::new(RuleId::MaxMagnitude, Numbers { lambda: 1.1, ..Numbers::default() }),
        Combine::new(RuleId::MaxMagnitude, Numbers { lambda: 0.0, ..Numbers::default() }),
        Combine::weighted(
            RuleId::Elect,
            weights.clone(),
            Numbers { normalize: true, lambda: 1.0, ..Numbers::default() },
        ),
        Combine::weighted(
            RuleId::Elect,
            weights.clone(),
            Numbers { normalize: false, lambda: 0.4, ..Numbers::default() },
        ),
        Combine::average(weights.clone(), weights.iter().sum()),
        Combine::average(weights.clone(), 1.0),
        Combine::weighted(RuleId::Reinforced, weights.clone(), Numbers { threshold: 0.01, ..Numbers::default() }),
        Combine::weighted(RuleId::Affine, weights, Numbers { base: 0.9, divisor: 1.7, ..Numbers::default() }),
    ];
    if models == 1 {
        rules.extend([
            Combine::weighted(RuleId::Mix, vec![0.7], Numbers { base: 0.3, ..Numbers::default() }),
            Combine::average(vec![1.0], 1.0),
            Combine::new(RuleId::Near, Numbers { threshold: 0.01, ..Numbers::default() }),
            Combine::new(RuleId::Near, Numbers { threshold: 1e-9, ..Numbers::default() }),
            Combine::average(vec![-0.7], 1.0),
        ]);
    }
    rules
}

pub fn takes_pruned(rule: &Combine) -> bool {
    rule.rule.takes_task_vectors()
}

/// Mixes of types: each alone, and several together.
pub fn mixes() -> Vec<Vec<Dtype>> {
    let mut mixes: Vec<Vec<Dtype>> = DTYPES.iter().map(|d| vec![*d]).collect();
    mixes.push(vec![Dtype::BF16, Dtype::F32, Dtype::F16, Dtype::F8_E4M3]);
    mixes.push(vec![Dtype::F64, Dtype::BF16]);
    mixes
}

/// Stages of every kind of mask, one a score, by turns.
pub fn stages(geometry: Geometry, models: usize, wide: bool, seed: u64) -> Vec<(Prune, StageState)> {
    let mut rng = Rng(seed);
    let mut keep = |n: u64| (0..n).map(|_| u8::from(!rng.bits().is_multiple_of(3))).collect::<Vec<_>>();
    SCORES
        .into_iter()
        .enumerate()
        .map(|(i, score)| {
            let prune = Prune {
                stage: i,
                score,
                granularity: Granularity::Element,
                keep: 0.5,
                keep_redundant: i % 2 == 1,
                rescale: Rescale::L1,
            };
            let cut = |x: f64| if wide { x.key() } else { (x as f32).key() };
            let masks = (0..models)
                .map(|t| match (t + i) % 4 {
                    0 => Mask::Rows(keep(geometry.rows)),
                    1 => Mask::Columns(keep(geometry.columns)),
                    2 => Mask::All,
                    _ => {
                        let at = [0.001, 0.3, 0.0005, 0.5, 0.6][i];
                        Mask::Elements { cut: cut(at), lowest: i % 2 == 1 }
                    }
                })
                .collect();
            let factors = (0..models).map(|t| if t % 2 == 0 { 1.0 } else { 1.25 }).collect();
            (prune, StageState { masks, factors })
        })
        .collect()
}
