//! Merges: every rule, with and without stages, cuts and random words.

use merganser::backend::cpu::blend;
use merganser::backend::cpu::prune::Scratch;
use merganser::backend::cpu::stored::Widen;
use merganser::backend::cuda::ops::{self, Place, StageBlob};
use merganser::dtype::{Dtype, DtypeExt};
use merganser::ops::{Geometry, Mask, Measured, Real, RunFacts, Sparsify, philox};

use super::cases::{measured, mixes, rules, stages, takes_pruned};
use super::{DTYPES, Family, Gpu, LENGTHS, assert_same, widen};

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
            let (shares, gamma) = (density[..models].to_vec(), vec![0.1; models]);
            let band = Sparsify::Band { density: shares, gamma, rescale: true };
            let top = Sparsify::TopK { density: density[..models].to_vec(), rescale: true };
            for rule in rules(models).into_iter().filter(takes_pruned) {
                let mut m = measured(Geometry::of(&[1 << 40]), random.clone(), rule, models);
                check_blend(&gpu, &m, &family, mix[0], 0);
                m.sparsify = top.clone();
                let key = |x: f64| if family.wide() { x.key() } else { (x as f32).key() };
                m.cuts = vec![key(0.01), 0, u64::MAX][..models].to_vec();
                m.factors = vec![1.7, 1.0, 1.0][..models].to_vec();
                check_blend(&gpu, &m, &family, mix[0], 0);
                m.sparsify = band.clone();
                m.tops = vec![key(0.04), key(0.02), u64::MAX][..models].to_vec();
                check_blend(&gpu, &m, &family, mix[0], 0);
            }
        }
    }
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
