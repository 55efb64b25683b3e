//! Norms, products of vectors, scores of rows and columns, ranks within rows, and how far rows diverge.

use merganser::backend::contract::{Lane, Pass};
use merganser::dtype::Dtype;
use merganser::ops::{Combine, Geometry, Measured, Prune, Real, Restore, Slope, Sparsify, StageState, Vectors, philox};

use super::cases::{SCORES, measured, mixes, stages};
use super::{Family, assert_same};

/// Vectors whose products are taken in one launch, at most.
const MOST_VECTORS: usize = 64;

fn same(
    a: &mut dyn Lane,
    b: &mut dyn Lane,
    family: &Family,
    geometry: Geometry,
    stages: &[(Prune, StageState)],
    pass: Pass<'_>,
) {
    let run = |lane: &mut dyn Lane| family.run(geometry, stages, |run| lane.pass(run, pass).unwrap());
    let (expected, found) = (run(a), run(b));
    let (models, len, dtype) = (family.models(), family.len, family.stored[0].0);
    let (a, b) = (a.label(), b.label());
    assert_same(&expected, &found, &format!("{a} and {b}: {pass:?} of {models} models, {len} elements, {dtype:?}"));
}

fn sums(a: &mut dyn Lane, b: &mut dyn Lane, family: &Family, geometry: Geometry, stages: &[(Prune, StageState)]) {
    let (models, wide) = (family.models(), family.wide());
    let key = |x: f64| if wide { x.key() } else { (x as f32).key() };
    same(a, b, family, geometry, stages, Pass::Norms);
    same(a, b, family, geometry, stages, Pass::Changes(0.01));
    let density = vec![0.6; models];
    let streams = || (0..models).map(|t| philox::element_key(5, "w", t)).collect();
    let cuts = |least: f64| (0..models).map(|t| key(least + 0.01 * t as f64)).collect::<Vec<u64>>();
    let none = measured(geometry, Sparsify::None, Combine::average(Vec::new(), 1.0), models);
    let dropping = |sparsify: Sparsify, cuts: Vec<u64>, tops: Vec<u64>| Measured {
        sparsify,
        cuts,
        tops,
        stages: stages.to_vec(),
        ..none.clone()
    };
    let top = Sparsify::TopK { density: density.clone(), restore: Restore::L1, whole_model: false };
    let band = Sparsify::Band { density: density.clone(), gamma: vec![0.1; models], restore: Restore::L1 };
    let random = Sparsify::Random { density, restore: Restore::L1, keys: streams() };
    let trimmed = [
        dropping(top, cuts(0.0), Vec::new()),
        dropping(band, cuts(0.0), (0..models).map(|t| key(0.015 * (t + 1) as f64)).collect()),
        dropping(random, Vec::new(), Vec::new()),
    ];
    trimmed.iter().for_each(|m| same(a, b, family, geometry, stages, Pass::TrimNorms(m)));
    let spread = dropping(Sparsify::Spread { share: 0.3 }, cuts(0.02), Vec::new());
    same(a, b, family, geometry, stages, Pass::Gram(Vectors::TaskVectors, &spread));
    let all = Measured { stages: stages.to_vec(), ..none.clone() };
    for of in [Vectors::Parameters, Vectors::TaskVectors, Vectors::BaseAndTaskVectors] {
        // With the base they are more than a launch takes; no method fits so many.
        if of == Vectors::TaskVectors || models < MOST_VECTORS {
            same(a, b, family, geometry, stages, Pass::Gram(of, &all));
        }
    }
}

/// Rows of one element have no ranks; long ones are longer than a block of threads.
const SHAPES: [&[u64]; 6] = [&[300], &[1, 2500], &[33, 70], &[7, 257], &[4, 3, 5], &[129, 2]];

pub fn ranks_within_rows(a: &mut dyn Lane, b: &mut dyn Lane) {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let (geometry, len) = (Geometry::of(shape), shape.iter().product::<u64>() as usize);
        // Values of 8 bits are tied in their rows: those go by position.
        for mix in [vec![Dtype::BF16], vec![Dtype::F8_E4M3], vec![Dtype::F64, Dtype::F32]] {
            for restore in [Restore::L1, Restore::Inverse] {
                let (models, family) = (3, Family::new(i as u64 + 5, &mix, 3, len));
                let slope = |t: usize| Slope { least: 0.2 + 0.1 * t as f64, rise: if t == 2 { -0.2 } else { 0.3 } };
                let sparsify = Sparsify::Ranked {
                    density: vec![0.5, 1.0, 0.4],
                    slopes: (0..models).map(slope).collect(),
                    restore,
                    keys: (0..models).map(|t| philox::element_key(9, "r", t)).collect(),
                };
                let mut m = measured(geometry, sparsify, Combine::sum(vec![1.0; models], 1.0, 1.0), models);
                if i % 2 == 1 {
                    m.stages = stages(geometry, models, family.wide(), 8)[..2].to_vec();
                }
                same(a, b, &family, geometry, &m.stages, Pass::Chosen(&m));
            }
        }
    }
}

pub fn divergence_of_rows(a: &mut dyn Lane, b: &mut dyn Lane) {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let (geometry, len) = (Geometry::of(shape), shape.iter().product::<u64>() as usize);
        for mix in [vec![Dtype::BF16], vec![Dtype::F32, Dtype::F16], vec![Dtype::F64]] {
            let family = Family::new(i as u64 + 40, &mix, 1, len);
            let mut m = measured(geometry, Sparsify::Importance, Combine::sum(vec![1.0], 1.0, 1.0), 1);
            if i % 2 == 0 {
                m.stages = stages(geometry, 1, family.wide(), 8)[1..2].to_vec();
            }
            same(a, b, &family, geometry, &m.stages, Pass::Divergence(&m));
        }
    }
}

pub fn norms_and_products(a: &mut dyn Lane, b: &mut dyn Lane) {
    for (i, mix) in mixes().iter().enumerate() {
        for (models, len) in [(1, 1), (1, 2049), (2, 33), (5, 4500)] {
            let family = Family::new(i as u64 + 55, mix, models, len);
            sums(a, b, &family, Geometry::of(&[len as u64]), &[]);
        }
    }
    for (mix, models, len) in
        [(vec![Dtype::BF16], 2, 65_537), (vec![Dtype::F64], 1, 70_000), (vec![Dtype::F32], 64, 100)]
    {
        let family = Family::new(66, &mix, models, len);
        sums(a, b, &family, Geometry::of(&[len as u64]), &[]);
    }
    let (geometry, family) = (Geometry::of(&[41, 50]), Family::new(2, &[Dtype::BF16], 5, 41 * 50));
    sums(a, b, &family, geometry, &stages(geometry, 5, false, 12));
}

pub fn scores_of_rows_and_columns(a: &mut dyn Lane, b: &mut dyn Lane) {
    let shapes: [&[u64]; 9] =
        [&[300], &[1, 2500], &[2500, 1], &[33, 70], &[40, 64], &[5, 2049], &[7, 6, 3], &[4, 3, 5, 5], &[130, 72]];
    for (i, shape) in shapes.into_iter().enumerate() {
        let (geometry, len) = (Geometry::of(shape), shape.iter().product::<u64>() as usize);
        let mixes = [(vec![Dtype::BF16], 3), (vec![Dtype::F64], 2), (vec![Dtype::F16, Dtype::F32], 6)];
        for (j, (mix, models)) in mixes.into_iter().enumerate() {
            let family = Family::new(i as u64 + 200, &mix, models, len);
            let all = stages(geometry, models, family.wide(), 3);
            let scores = SCORES.into_iter().zip([&all[..0], &all[..1], &all[..0], &all[2..4], &all[..0]]);
            // By turns: every score meets every shape, and every mix most shapes.
            for (score, stages) in scores.skip((i + j) % 2).step_by(2) {
                same(a, b, &family, geometry, stages, Pass::Rows(score));
                same(a, b, &family, geometry, stages, Pass::Columns(score));
            }
        }
    }
}
