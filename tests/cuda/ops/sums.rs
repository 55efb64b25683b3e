//! Norms, products of vectors, and mean scores of rows and columns.

use merganser::backend::cpu::prune::Scratch;
use merganser::backend::cpu::stats;
use merganser::backend::cpu::stored::Widen;
use merganser::backend::cuda::ops::{self, MAX_MODELS, StageBlob};
use merganser::dtype::{Dtype, DtypeExt};
use merganser::ops::rules::{Numbers, RuleId};
use merganser::ops::{Combine, Geometry, Prune, Real, Score, Sparsify, StageState, Vectors};

use super::cases::{SCORES, measured, mixes, stages};
use super::{Family, Gpu, assert_same};

/// A run's CPU result and the device's.
fn check_sums(gpu: &Gpu, family: &Family, stages: &[(Prune, StageState)], geometry: Geometry, phase: usize) {
    fn cpu<C: Widen>(
        family: &Family,
        stages: &[(Prune, StageState)],
        geometry: Geometry,
        cuts: [&[u64]; 2],
    ) -> [Vec<f64>; 5] {
        let mut scratch = Scratch::<C>::new(family.models());
        let mut m = measured(
            geometry,
            Sparsify::None,
            Combine::new(RuleId::MaxMagnitude, Numbers { lambda: 1.0, ..Numbers::default() }),
            family.models(),
        );
        (m.stages, m.cuts, m.tops) = (stages.to_vec(), cuts[0].to_vec(), cuts[1].to_vec());
        family.on_cpu(|sources| {
            let sums = stats::sums(geometry, stages, sources, &mut scratch);
            let trim = stats::trim_norms(&m, sources, &mut scratch);
            let [parameters, tau, both] = [Vectors::Parameters, Vectors::TaskVectors, Vectors::BaseAndTaskVectors]
                .map(|of| stats::gram(of, geometry, stages, sources, &mut scratch).concat());
            [
                sums.iter().flatten().flat_map(|s| [s.l1, s.squares, s.deviation, s.dot, s.rest, s.base]).collect(),
                trim.iter().flatten().flatten().copied().collect(),
                parameters,
                tau,
                both,
            ]
        })
    }
    use ops::sums::{Stat, out_bytes, scratch_bytes};
    let (models, wide, len) = (family.models(), family.wide(), family.len as u64);
    let key = |x: f64| if wide { x.key() } else { (x as f32).key() };
    let cuts: Vec<u64> = (0..models).map(|t| key(0.01 * t as f64)).collect();
    // One cut in some cases, two in the others.
    let tops: Vec<u64> = (0..models).map(|t| key(0.015 * (t + 1) as f64)).filter(|_| models % 2 == 0).collect();
    let cuts = [&cuts[..], &tops[..]];
    let [sums, trim, parameters, tau, both] =
        if wide { cpu::<f64>(family, stages, geometry, cuts) } else { cpu::<f32>(family, stages, geometry, cuts) };
    let blob = StageBlob::new(stages, models);
    let on_device = blob.at(gpu.put(&blob.bytes));
    let (k, s) = (&gpu.kernels, &gpu.stream);
    let room = |stat| {
        let scratch = gpu.put(&vec![f64::NAN; scratch_bytes(stat, geometry, len, models) as usize / 8]);
        (scratch, gpu.put(&vec![f64::NAN; out_bytes(stat, geometry, len, models) as usize / 8]))
    };
    let what = |of: &str| format!("{of} of {models} models, {len} elements, {:?}", family.stored[0].0);
    family.on_device(gpu, phase, |sources| {
        let (scratch, out) = room(Stat::Norms);
        ops::sums::sums(k, s, wide, geometry, on_device, sources, scratch, out).unwrap();
        assert_same(&sums, &gpu.get(out), &what("norms"));
        let (scratch, out) = room(Stat::TrimNorms);
        ops::sums::trim_norms(k, s, wide, geometry, on_device, cuts, sources, scratch, out).unwrap();
        assert_same(&trim, &gpu.get(out), &what("trimmed norms"));
        let products =
            [(Vectors::Parameters, &parameters), (Vectors::TaskVectors, &tau), (Vectors::BaseAndTaskVectors, &both)];
        for (of, expected) in products {
            if of != Vectors::TaskVectors && models == MAX_MODELS {
                // With the base they are more than a launch takes; no method fits so many.
                continue;
            }
            let (scratch, out) = room(Stat::Gram);
            ops::sums::gram(k, s, wide, of, geometry, on_device, sources, scratch, out).unwrap();
            let found: Vec<f64> = gpu.get(out);
            assert_same(expected, &found[..expected.len()], &what(&format!("products of {of:?}")));
        }
    });
    gpu.clear();
}

#[test]
fn norms_have_the_cpus_bits() {
    let Some(gpu) = Gpu::open() else { return };
    for (i, mix) in mixes().iter().enumerate() {
        for (models, len) in [(1, 1), (1, 2049), (2, 33), (5, 4500)] {
            let family = Family::new(i as u64 + 55, mix, models, len);
            check_sums(&gpu, &family, &[], Geometry::of(&[len as u64]), i % 3);
        }
    }
    for (mix, models, len) in
        [(vec![Dtype::BF16], 2, 65_537), (vec![Dtype::F64], 1, 70_000), (vec![Dtype::F32], 64, 100)]
    {
        let family = Family::new(66, &mix, models, len);
        check_sums(&gpu, &family, &[], Geometry::of(&[len as u64]), 0);
    }
    let (geometry, family) = (Geometry::of(&[41, 50]), Family::new(2, &[Dtype::BF16], 5, 41 * 50));
    check_sums(&gpu, &family, &stages(geometry, 5, false, 12), geometry, 0);
}

#[test]
fn mean_scores_of_rows_and_columns_have_the_cpus_bits() {
    fn cpu<C: Widen>(
        family: &Family,
        score: Score,
        geometry: Geometry,
        stages: &[(Prune, StageState)],
    ) -> [Vec<f64>; 2] {
        let models = family.models();
        let mut scratch = Scratch::<C>::new(models);
        let mut columns = vec![vec![0.0; geometry.columns as usize]; models];
        family.on_cpu(|sources| {
            let rows = stats::row_scores(score, geometry, stages, sources, &mut scratch);
            // Row by row, as the engine goes.
            let row = geometry.columns * geometry.inner;
            for first in (0..family.len as u64).step_by(row as usize) {
                let cut = |stored: &merganser::backend::cpu::stored::Stored<'_>| {
                    let size = stored.dtype.size_bytes().unwrap();
                    (stored.dtype, stored.bytes[(first * size) as usize..((first + row) * size) as usize].to_vec())
                };
                let stored: Vec<_> = sources.base.iter().chain(sources.models).map(cut).collect();
                let part = Family { stored, start: first, len: row as usize };
                part.on_cpu(|sources| {
                    stats::add_column_scores(score, geometry, stages, sources, 0, &mut columns, &mut scratch);
                });
            }
            let elems = geometry.column_elems() as f64;
            [rows.concat(), columns.concat().into_iter().map(|total| total / elems).collect()]
        })
    }
    let Some(gpu) = Gpu::open() else { return };
    let shapes: [&[u64]; 9] =
        [&[300], &[1, 2500], &[2500, 1], &[33, 70], &[40, 64], &[5, 2049], &[7, 6, 3], &[4, 3, 5, 5], &[130, 72]];
    for (i, shape) in shapes.into_iter().enumerate() {
        let (geometry, len) = (Geometry::of(shape), shape.iter().product::<u64>() as usize);
        let mixes = [(vec![Dtype::BF16], 3), (vec![Dtype::F64], 2), (vec![Dtype::F16, Dtype::F32], 6)];
        for (j, (mix, models)) in mixes.into_iter().enumerate() {
            let family = Family::new(i as u64 + 200, &mix, models, len);
            let wide = family.wide();
            let all = stages(geometry, models, wide, 3);
            let scores = SCORES.into_iter().zip([&all[..0], &all[..1], &all[..0], &all[2..4], &all[..0]]);
            // By turns: every score meets every shape, and every mix most shapes.
            for (score, stages) in scores.skip((i + j) % 2).step_by(2) {
                let [rows, columns] = if wide {
                    cpu::<f64>(&family, score, geometry, stages)
                } else {
                    cpu::<f32>(&family, score, geometry, stages)
                };
                let blob = StageBlob::new(stages, models);
                let on_device = blob.at(gpu.put(&blob.bytes));
                let (k, s) = (&gpu.kernels, &gpu.stream);
                use ops::sums::{Stat, out_bytes, scratch_bytes};
                let scratch = gpu.zeros(scratch_bytes(Stat::Rows, geometry, len as u64, models));
                let out = gpu.zeros(out_bytes(Stat::Rows, geometry, len as u64, models));
                let totals = gpu.zeros(ops::columns::totals_bytes(geometry, models));
                family.on_device(&gpu, 0, |sources| {
                    ops::sums::row_scores(k, s, wide, score, geometry, on_device, sources, scratch, out).unwrap();
                    ops::columns::add_column_scores(k, s, wide, score, geometry, on_device, sources, totals).unwrap();
                    ops::columns::finish_columns(k, s, geometry, models, totals).unwrap();
                });
                let what = format!("{score:?} of {models} models of {shape:?}, {:?}", mix[0]);
                assert_same(&rows, &gpu.get(out), &format!("rows, {what}"));
                assert_same(&columns, &gpu.get(totals), &format!("columns, {what}"));
                gpu.clear();
            }
        }
    }
}
