//! Merges: every rule, with and without stages, cuts and random words.

use merganser::backend::contract::Lane;
use merganser::backend::cpu::prune::Sources;
use merganser::dtype::{Dtype, DtypeExt};
use merganser::ops::{Along, Combine, Geometry, LineWeights, Lines, Mask, Measured, Real, Sparsify, philox};

use super::cases::{measured, mixes, rules, stages, takes_pruned};
use super::{DTYPES, Family, LENGTHS, assert_same, widen};

fn same(a: &mut dyn Lane, b: &mut dyn Lane, m: &Measured, family: &Family, out: Dtype) {
    let what = format!(
        "{} and {}: {:?} {:?} to {out}, {} models, {} elements, types {:?}, {} stages",
        a.label(),
        b.label(),
        m.combine,
        m.sparsify,
        family.models(),
        family.len,
        family.stored.iter().map(|(d, _)| *d).take(4).collect::<Vec<_>>(),
        m.stages.len()
    );
    let size = out.size_bytes().unwrap() as usize;
    let run = |lane: &mut dyn Lane| {
        let mut bytes = vec![0xEE; family.len * size];
        let facts = family.sources(|sources| {
            // A plan gives no base to what does not read it, and lines are weighed of what is measured from it.
            let without = Sources { base: None, ..*sources };
            let sources = if m.lines.is_some() && !m.combine.reads_base() { &without } else { sources };
            lane.merge(m, sources, family.wide(), out, &mut bytes).unwrap()
        });
        (bytes, facts)
    };
    let ((expected, facts), (found, other)) = (run(a), run(b));
    assert_same(&widen(out, &expected), &widen(out, &found), &what);
    assert_eq!(facts, other, "{what}");
}

pub fn every_rule_and_type(a: &mut dyn Lane, b: &mut dyn Lane) {
    for (i, mix) in mixes().iter().enumerate() {
        for models in [1, 3] {
            let family = Family::new(i as u64 + 1, mix, models, 301);
            for rule in rules(models) {
                let m = measured(Geometry::of(&[301]), Sparsify::None, rule, models);
                DTYPES.into_iter().for_each(|out| same(a, b, &m, &family, out));
            }
        }
    }
}

pub fn every_length(a: &mut dyn Lane, b: &mut dyn Lane) {
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
                same(a, b, &m, &family, out);
            }
        }
    }
}

pub fn sixty_four_models(a: &mut dyn Lane, b: &mut dyn Lane) {
    for mix in [vec![Dtype::BF16], vec![Dtype::F32], vec![Dtype::F64, Dtype::F32]] {
        let family = Family::new(5, &mix, 64, 700);
        for rule in rules(64).into_iter().step_by(2) {
            let m = measured(Geometry::of(&[700]), Sparsify::None, rule, 64);
            same(a, b, &m, &family, mix[0]);
        }
    }
}

pub fn cuts_and_random_words(a: &mut dyn Lane, b: &mut dyn Lane) {
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
                same(a, b, &m, &family, mix[0]);
                m.sparsify = top.clone();
                let key = |x: f64| if family.wide() { x.key() } else { (x as f32).key() };
                m.cuts = vec![key(0.01), 0, u64::MAX][..models].to_vec();
                m.factors = vec![1.7, 1.0, 1.0][..models].to_vec();
                same(a, b, &m, &family, mix[0]);
                m.sparsify = band.clone();
                m.tops = vec![key(0.04), key(0.02), u64::MAX][..models].to_vec();
                same(a, b, &m, &family, mix[0]);
            }
        }
    }
}

pub fn stages_prune(a: &mut dyn Lane, b: &mut dyn Lane) {
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
                    same(a, b, &m, &family, mix[0]);
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
                same(a, b, &m, &family, mix[0]);
            }
        }
    }
}

pub fn numbers_that_are_none(a: &mut dyn Lane, b: &mut dyn Lane) {
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
            same(a, b, &m, &family, out);
        }
    }
}

pub fn weights_of_lines(a: &mut dyn Lane, b: &mut dyn Lane) {
    for shape in [vec![7, 300], vec![300, 7], vec![5, 3, 11], vec![1, 77], vec![77, 1], vec![3, 2100]] {
        let (geometry, len) = (Geometry::of(&shape), shape.iter().product::<u64>() as usize);
        for mix in [vec![Dtype::BF16], vec![Dtype::F32, Dtype::F16], vec![Dtype::F64]] {
            let family = Family::new(len as u64 + 3, &mix, 2, len);
            let sums = [Combine::sum(vec![1.0; 2], 1.0, 1.0), Combine::average(vec![1.0; 2], 1.0)];
            for (along, rule) in
                [Along::Last, Along::First].into_iter().flat_map(|along| sums.clone().map(|r| (along, r)))
            {
                let lines = Lines::of(&shape, along);
                let weights =
                    (0..2).map(|t| (0..lines.count).map(|i| 0.7 + 0.1 * t as f64 - 0.01 * i as f64).collect());
                let mut m = measured(geometry, Sparsify::None, rule, 2);
                m.lines = Some(LineWeights { lines, weights: weights.collect() });
                same(a, b, &m, &family, mix[0]);
                if m.combine.rule.takes_task_vectors() {
                    m.stages = stages(geometry, 2, family.wide(), 5)[..2].to_vec();
                    same(a, b, &m, &family, mix[0]);
                }
            }
        }
    }
}
