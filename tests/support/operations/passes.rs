//! Norms, products of vectors, and mean scores of rows and columns.

use merganser::backend::contract::{Lane, Pass};
use merganser::dtype::Dtype;
use merganser::ops::{Along, Geometry, Lines, Prune, Real, StageState, Vectors};

use super::cases::{SCORES, mixes, stages};
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
    let cuts: Vec<u64> = (0..models).map(|t| key(0.01 * t as f64)).collect();
    // One cut in some cases, two in the others.
    let tops: Vec<u64> = (0..models).map(|t| key(0.015 * (t + 1) as f64)).filter(|_| models % 2 == 0).collect();
    same(a, b, family, geometry, stages, Pass::Norms);
    same(a, b, family, geometry, stages, Pass::TrimNorms([&cuts, &tops]));
    same(a, b, family, geometry, stages, Pass::Changes(0.01));
    for of in [Vectors::Parameters, Vectors::TaskVectors, Vectors::BaseAndTaskVectors] {
        // With the base they are more than a launch takes; no method fits so many.
        if of == Vectors::TaskVectors || models < MOST_VECTORS {
            same(a, b, family, geometry, stages, Pass::Gram(of));
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

pub fn products_of_lines(a: &mut dyn Lane, b: &mut dyn Lane) {
    for shape in [vec![7, 300], vec![300, 7], vec![5, 3, 11], vec![1, 5000], vec![77, 1], vec![3, 2100]] {
        let (geometry, len) = (Geometry::of(&shape), shape.iter().product::<u64>() as usize);
        for mix in [vec![Dtype::BF16], vec![Dtype::F32, Dtype::F16], vec![Dtype::F64]] {
            let family = Family::new(len as u64 + 11, &mix, 3, len);
            let stages = stages(geometry, 3, family.wide(), 5)[..2].to_vec();
            for along in [Along::Last, Along::First] {
                for of in [Vectors::TaskVectors, Vectors::Parameters] {
                    same(a, b, &family, geometry, &stages, Pass::Lines(of, Lines::of(&shape, along)));
                }
            }
        }
    }
}
