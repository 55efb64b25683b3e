//! Every operation of the CUDA backend beside its CPU twin, bit for bit. Needs a device, or the stand-in
//! (`scripts/cuda/standin`); without either, each test says so and passes.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod cuda_common;

use cuda_common::{DTYPES, Family, Gpu, LENGTHS, Random, assert_same, widen};
use merganser::backend::cpu::blend::{self, Measured, RunFacts};
use merganser::backend::cpu::prune::{Geometry, Mask, Scratch, StageState};
use merganser::backend::cpu::real::Real;
use merganser::backend::cpu::select::Ranked;
use merganser::backend::cpu::stats;
use merganser::backend::cpu::stored::Widen;
use merganser::backend::cuda::ops::{self, Place, StageBlob};
use merganser::backend::{Combine, Granularity, Prune, Rescale, Score, Sparsify, philox};
use merganser::dtype::{Dtype, DtypeExt};

const SCORES: [Score; 5] = [Score::Magnitude, Score::Relative, Score::Deviation, Score::Agreement, Score::Tall];

fn measured(geometry: Geometry, sparsify: Sparsify, combine: Combine, models: usize) -> Measured {
    Measured {
        geometry,
        stages: Vec::new(),
        sparsify,
        cuts: Vec::new(),
        factors: vec![1.0; models],
        combine,
        slerp: (0.3, 0.75),
    }
}

fn weights(models: usize) -> Vec<f64> {
    (0..models).map(|t| 0.3 + 0.17 * t as f64).collect()
}

/// Every rule that takes these many models; the first four take task vectors one at a time.
fn rules(models: usize) -> Vec<Combine> {
    let weights = weights(models);
    let mut rules = vec![
        Combine::Sum { weights: weights.clone(), divisor: 1.0, lambda: 0.7 },
        Combine::Sum { weights: weights.clone(), divisor: 3.3, lambda: 1.0 },
        Combine::MaxMagnitude { lambda: 1.1 },
        Combine::MaxMagnitude { lambda: 0.0 },
        Combine::Elect { weights: weights.clone(), normalize: true, lambda: 1.0 },
        Combine::Elect { weights: weights.clone(), normalize: false, lambda: 0.4 },
        Combine::Average { weights: weights.clone(), divisor: weights.iter().sum() },
        Combine::Average { weights, divisor: 1.0 },
    ];
    if models == 1 {
        rules.extend([Combine::Slerp { t: 0.3 }, Combine::Scale { factor: 1.0 }, Combine::Scale { factor: -0.7 }]);
    }
    rules
}

fn takes_pruned(rule: &Combine) -> bool {
    matches!(rule, Combine::Sum { .. } | Combine::MaxMagnitude { .. } | Combine::Elect { .. })
}

fn on_cpu(m: &Measured, family: &Family, out: Dtype) -> (Vec<u8>, RunFacts) {
    fn run<C: Widen>(m: &Measured, family: &Family, out: Dtype) -> (Vec<u8>, RunFacts) {
        let mut bytes = vec![0; family.len * out.size_bytes().unwrap() as usize];
        let mut scratch = Scratch::<C>::new(family.models());
        let facts = family.on_cpu(|sources| blend::blend(m, sources, out, &mut bytes, &mut scratch));
        (bytes, facts)
    }
    if family.wide() { run::<f64>(m, family, out) } else { run::<f32>(m, family, out) }
}

fn check_blend(gpu: &Gpu, m: &Measured, family: &Family, out: Dtype, phase: usize) {
    let what = format!(
        "{:?} {:?} to {out}, {} models, {} elements, phase {phase}, types {:?}, {} stages",
        m.combine,
        m.sparsify,
        family.models(),
        family.len,
        family.stored.iter().map(|(d, _)| *d).take(4).collect::<Vec<_>>(),
        m.stages.len()
    );
    let (expected, facts) = on_cpu(m, family, out);
    let size = out.size_bytes().unwrap();
    let to = gpu.put_at(phase * size as usize, &vec![0xEE; expected.len()]);
    let counted = gpu.zeros(ops::blend::facts_bytes(family.models()));
    let blob = StageBlob::new(&m.stages, family.models());
    let stages = blob.at(gpu.put(&blob.bytes));
    family.on_device(gpu, phase, |sources| {
        let place = Place { dtype: out, ptr: to };
        ops::blend::blend(&gpu.kernels, &gpu.stream, m, family.wide(), stages, sources, place, counted).unwrap();
    });
    let found: Vec<u8> = gpu.get(to);
    assert_same(&widen(out, &expected), &widen(out, &found), &what);
    let counted: Vec<u64> = gpu.get(counted);
    assert_eq!(counted, [&[facts.nonfinite, facts.introduced], &facts.kept[..]].concat(), "{what}");
    gpu.clear();
}

/// Mixes of types: each alone, and several together.
fn mixes() -> Vec<Vec<Dtype>> {
    let mut mixes: Vec<Vec<Dtype>> = DTYPES.iter().map(|d| vec![*d]).collect();
    mixes.push(vec![Dtype::BF16, Dtype::F32, Dtype::F16, Dtype::F8_E4M3]);
    mixes.push(vec![Dtype::F64, Dtype::BF16]);
    mixes
}

#[test]
fn every_rule_gives_the_cpus_bits_for_every_type() {
    let Some(gpu) = Gpu::open() else { return };
    for (i, mix) in mixes().iter().enumerate() {
        for models in [1, 3] {
            let family = Family::new(i as u64 + 1, mix, models, 301);
            for rule in rules(models) {
                let m = measured(Geometry::of(&[301]), Sparsify::None, rule, models);
                for out in DTYPES {
                    check_blend(&gpu, &m, &family, out, 0);
                }
            }
        }
    }
}

#[test]
fn every_length_and_every_start_in_memory_gives_the_cpus_bits() {
    let Some(gpu) = Gpu::open() else { return };
    for (i, len) in LENGTHS.into_iter().enumerate() {
        for (mix, out) in [
            (vec![Dtype::BF16], Dtype::BF16),
            (vec![Dtype::F32], Dtype::F32),
            (vec![Dtype::F8_E5M2, Dtype::F16], Dtype::F8_E4M3),
            (vec![Dtype::F64], Dtype::F64),
        ] {
            let models = if len > 10_000 { 2 } else { 5 };
            let mut family = Family::new(i as u64 + 77, &mix, models, len);
            family.start = 65_536 * 3;
            for rule in rules(models).into_iter().step_by(2) {
                let m = measured(Geometry::of(&[1 << 20]), Sparsify::None, rule, models);
                for phase in [0, 1, 8] {
                    check_blend(&gpu, &m, &family, out, phase);
                }
            }
        }
    }
}

#[test]
fn sixty_four_models_are_merged_at_once() {
    let Some(gpu) = Gpu::open() else { return };
    for mix in [vec![Dtype::BF16], vec![Dtype::F32], vec![Dtype::F64, Dtype::F32]] {
        let family = Family::new(5, &mix, 64, 700);
        for rule in rules(64).into_iter().step_by(2) {
            let m = measured(Geometry::of(&[700]), Sparsify::None, rule, 64);
            check_blend(&gpu, &m, &family, mix[0], 0);
        }
    }
}

#[test]
fn cuts_and_random_words_drop_what_they_drop_on_the_cpu() {
    let Some(gpu) = Gpu::open() else { return };
    for (i, mix) in mixes().iter().enumerate() {
        for (models, len, start) in [(2, 1000, 0), (3, 333, 131_072), (2, 100, 3), (2, 77, 4 << 32)] {
            let mut family = Family::new(i as u64 + 9, mix, models, len);
            family.start = start;
            let density = [0.3, 1.0, 0.0];
            let random = Sparsify::Random {
                density: density[..models].to_vec(),
                rescale: true,
                keys: (0..models).map(|t| philox::element_key(7, "w", t)).collect(),
            };
            let top = Sparsify::TopK { density: density[..models].to_vec(), rescale: true };
            for rule in rules(models).into_iter().filter(takes_pruned) {
                let mut m = measured(Geometry::of(&[1 << 40]), random.clone(), rule, models);
                check_blend(&gpu, &m, &family, mix[0], 0);
                m.sparsify = top.clone();
                let key = |x: f64| if family.wide() { x.key() } else { (x as f32).key() };
                m.cuts = vec![key(0.01), 0, u64::MAX][..models].to_vec();
                m.factors = vec![1.7, 1.0, 1.0][..models].to_vec();
                check_blend(&gpu, &m, &family, mix[0], 0);
            }
        }
    }
}

/// Stages of every kind of mask, one a score, by turns.
fn stages(geometry: Geometry, models: usize, wide: bool, seed: u64) -> Vec<(Prune, StageState)> {
    let mut random = Random(seed | 1);
    let mut keep = |n: u64| (0..n).map(|_| u8::from(!random.next().is_multiple_of(3))).collect::<Vec<_>>();
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

#[test]
fn stages_prune_what_they_prune_on_the_cpu() {
    let Some(gpu) = Gpu::open() else { return };
    for shape in [vec![513], vec![1, 400], vec![400, 1], vec![37, 29], vec![9, 5, 3, 2], vec![6, 20, 9]] {
        let (geometry, len) = (Geometry::of(&shape), shape.iter().product::<u64>() as usize);
        for mix in [vec![Dtype::BF16], vec![Dtype::F32, Dtype::F16], vec![Dtype::F64]] {
            let models = 5;
            let family = Family::new(len as u64, &mix, models, len);
            let all = stages(geometry, models, family.wide(), len as u64);
            for rule in rules(models).into_iter().filter(takes_pruned).step_by(2) {
                for count in [1, 2, 5] {
                    let mut m = measured(geometry, Sparsify::None, rule.clone(), models);
                    m.stages = all[..count].to_vec();
                    check_blend(&gpu, &m, &family, mix[0], 0);
                }
                let mut m = measured(geometry, Sparsify::None, rule.clone(), models);
                // Nothing of everything, then what is left of it.
                m.stages = all[3..4].to_vec();
                m.stages[0].1.masks[2] = Mask::None;
                m.sparsify = Sparsify::Random {
                    density: vec![0.6; models],
                    rescale: false,
                    keys: (0..models).map(|t| philox::element_key(1, "x", t)).collect(),
                };
                check_blend(&gpu, &m, &family, mix[0], 0);
            }
        }
    }
}

#[test]
fn numbers_that_are_none_are_counted_as_on_the_cpu() {
    let Some(gpu) = Gpu::open() else { return };
    for (mix, out) in [
        (vec![Dtype::F32], Dtype::BF16),
        (vec![Dtype::BF16], Dtype::F8_E4M3),
        (vec![Dtype::F64], Dtype::F16),
        (vec![Dtype::F32], Dtype::F8_E5M2),
    ] {
        let models = 3;
        let mut family = Family::new(3, &mix, models, 3000);
        for (source, at, value) in [
            (0, 5, f64::NAN),
            (1, 5, 1.0),
            (1, 17, f64::INFINITY),
            (2, 17, f64::NEG_INFINITY),
            (3, 2999, f64::NAN),
            (1, 40, 3e38),
            (2, 40, 3e38),
            (3, 41, 7e4),
        ] {
            family.set(source, at, value);
        }
        for rule in rules(models) {
            let m = measured(Geometry::of(&[3000]), Sparsify::None, rule, models);
            check_blend(&gpu, &m, &family, out, 0);
        }
    }
}

/// Scores (or τ) of every element and model, from the CPU, as keys.
fn keys(family: &Family, ranked: Ranked, stages: &[(Prune, StageState)]) -> Vec<Vec<u64>> {
    fn run<C: Widen>(family: &Family, score: Score, stages: &[(Prune, StageState)]) -> Vec<Vec<u64>> {
        let geometry = Geometry::of(&[family.len as u64]);
        let mut scratch = Scratch::<C>::new(family.models());
        let scores = family.on_cpu(|sources| stats::row_scores(score, geometry, stages, sources, &mut scratch));
        scores.iter().map(|s| s.iter().map(|x| C::of(*x).key()).collect()).collect()
    }
    let score = match ranked {
        Ranked::Magnitude => Score::Magnitude,
        Ranked::Score(score) => score,
    };
    if family.wide() { run::<f64>(family, score, stages) } else { run::<f32>(family, score, stages) }
}

fn check_select(gpu: &Gpu, family: &Family, ranked: Ranked, stages: &[(Prune, StageState)], phase: usize) {
    let (models, n, wide) = (family.models(), family.len as u64, family.wide());
    let keys = keys(family, ranked, stages);
    for lowest in [false, true] {
        for share in [0.0, 0.2, 0.5, 1.0] {
            let rank = |t: usize| (((share + 0.07 * t as f64) * n as f64) as u64).clamp(1, n);
            // The last of several models has no search.
            let is_searched = |t: usize| models == 1 || t + 1 < models;
            let begin = |t: usize| {
                if is_searched(t) {
                    ops::select::SelectState::new(rank(t), lowest, wide)
                } else {
                    ops::select::SelectState::none()
                }
            };
            let states = gpu.put(&(0..models).map(begin).collect::<Vec<_>>());
            let bins = gpu.zeros(ops::select::bins_bytes(models));
            let blob = StageBlob::new(stages, models);
            let on_device = blob.at(gpu.put(&blob.bytes));
            let geometry = Geometry::of(&[n]);
            family.on_device(gpu, phase, |sources| {
                for _ in 0..ops::select::levels(wide) {
                    let (k, s) = (&gpu.kernels, &gpu.stream);
                    ops::select::count(k, s, ranked, wide, geometry, on_device, sources, states, bins).unwrap();
                    ops::select::advance(k, s, models, states, bins).unwrap();
                }
            });
            let found: Vec<ops::select::SelectState> = gpu.get(states);
            for (t, (found, keys)) in found.iter().zip(&keys).enumerate() {
                let what = format!("{ranked:?} model {t} of {models}, {n} elements, lowest {lowest}, share {share}");
                let Some(cut) = found.cut() else {
                    assert!(!is_searched(t), "{what}");
                    continue;
                };
                let mut sorted = keys.clone();
                sorted.sort_unstable();
                let at = if lowest { rank(t) - 1 } else { n - rank(t) } as usize;
                assert_eq!(cut.key, sorted[at], "{what}");
                let kept = keys.iter().filter(|k| if lowest { **k <= cut.key } else { **k >= cut.key }).count();
                assert_eq!(cut.kept, kept as u64, "{what}");
            }
            gpu.clear();
        }
    }
}

#[test]
fn the_cut_is_the_kth_key_whatever_is_ranked() {
    let Some(gpu) = Gpu::open() else { return };
    for (i, mix) in mixes().iter().enumerate() {
        for (models, len) in [(1, 1), (2, 33), (6, 2049)] {
            let family = Family::new(i as u64 + 31, mix, models, len);
            check_select(&gpu, &family, Ranked::Magnitude, &[], i % 2);
            for score in SCORES.into_iter().filter(|s| models > 1 || !s.is_relational()).step_by(2) {
                check_select(&gpu, &family, Ranked::Score(score), &[], 0);
            }
        }
    }
}

#[test]
fn a_search_goes_through_stages_and_through_many_models() {
    let Some(gpu) = Gpu::open() else { return };
    for (mix, models) in [(vec![Dtype::BF16], 3), (vec![Dtype::F64], 9), (vec![Dtype::F32], 64)] {
        let family = Family::new(8, &mix, models, 257);
        let all = stages(Geometry::of(&[257]), models, family.wide(), 4);
        check_select(&gpu, &family, Ranked::Magnitude, &all[2..4], 0);
        check_select(&gpu, &family, Ranked::Score(Score::Agreement), &all[..1], 0);
    }
}

/// A run's CPU result and the device's.
fn check_sums(gpu: &Gpu, family: &Family, stages: &[(Prune, StageState)], geometry: Geometry, phase: usize) {
    fn cpu<C: Widen>(
        family: &Family,
        stages: &[(Prune, StageState)],
        geometry: Geometry,
        cuts: &[u64],
    ) -> [Vec<f64>; 3] {
        let mut scratch = Scratch::<C>::new(family.models());
        let mut m = measured(geometry, Sparsify::None, Combine::MaxMagnitude { lambda: 1.0 }, family.models());
        (m.stages, m.cuts) = (stages.to_vec(), cuts.to_vec());
        family.on_cpu(|sources| {
            let sums = stats::sums(geometry, stages, sources, &mut scratch);
            let trim = stats::trim_norms(&m, sources, &mut scratch);
            let angle = stats::angle(sources, &mut scratch);
            [
                sums.iter().flatten().flat_map(|s| [s.l1, s.squares, s.deviation, s.dot, s.rest, s.base]).collect(),
                trim.iter().flatten().flatten().copied().collect(),
                angle.iter().flatten().copied().collect(),
            ]
        })
    }
    use ops::sums::{Stat, out_bytes, scratch_bytes};
    let (models, wide, len) = (family.models(), family.wide(), family.len as u64);
    let cuts: Vec<u64> =
        (0..models).map(|t| if wide { (0.01 * t as f64).key() } else { (0.01 * t as f32).key() }).collect();
    let [sums, trim, angle] =
        if wide { cpu::<f64>(family, stages, geometry, &cuts) } else { cpu::<f32>(family, stages, geometry, &cuts) };
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
        ops::sums::trim_norms(k, s, wide, geometry, on_device, &cuts, sources, scratch, out).unwrap();
        assert_same(&trim, &gpu.get(out), &what("trimmed norms"));
        if models == 1 {
            let (scratch, out) = room(Stat::Angle);
            ops::sums::angle(k, s, wide, sources, scratch, out).unwrap();
            assert_same(&angle, &gpu.get(out), &what("angle"));
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
        for (mix, models) in [(vec![Dtype::BF16], 3), (vec![Dtype::F64], 2), (vec![Dtype::F16, Dtype::F32], 6)] {
            let family = Family::new(i as u64 + 200, &mix, models, len);
            let wide = family.wide();
            let all = stages(geometry, models, wide, 3);
            for (score, stages) in SCORES.into_iter().zip([&all[..0], &all[..1], &all[..0], &all[2..4], &all[..0]]) {
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
