//! Matrix merges against faer's singular value decomposition in f64.
#![allow(clippy::unwrap_used)]

use crate::ops::{Centre, LowRankFacts, Rank};
use faer::Mat;

use super::*;
use crate::backend::cpu::stored::Stored;
use crate::dtype::Dtype;

struct Bytes {
    dtype: Dtype,
    base: Vec<u8>,
    models: Vec<Vec<u8>>,
}

impl Bytes {
    fn new(dtype: Dtype, base: &Mat<f64>, models: &[Mat<f64>]) -> Self {
        let bytes = |w: &Mat<f64>| {
            let values = (0..w.nrows() * w.ncols()).map(|i| w[(i / w.ncols(), i % w.ncols())]);
            match dtype {
                Dtype::F64 => values.flat_map(f64::to_le_bytes).collect::<Vec<u8>>(),
                _ => values.flat_map(|x| (x as f32).to_le_bytes()).collect(),
            }
        };
        Self { dtype, base: bytes(base), models: models.iter().map(bytes).collect() }
    }
}

impl ReadRuns for Bytes {
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()> {
        let size = if self.dtype == Dtype::F64 { 8 } else { 4 };
        let (a, b) = (start as usize * size, (start as usize + len) * size);
        let stored = |bytes| Stored { dtype: self.dtype, bytes };
        let models: Vec<_> = self.models.iter().map(|m| stored(&m[a..b])).collect();
        take(&Sources { base: Some(stored(&self.base[a..b])), models: &models, start, len });
        Ok(())
    }
}

fn run_on(work: &LowRank, dtype: Dtype, base: &Mat<f64>, models: &[Mat<f64>]) -> Result<(Mat<f64>, LowRankFacts)> {
    let (m, n) = base.shape();
    let (mut bytes, mut out) = (Bytes::new(dtype, base, models), Vec::new());
    let (size, mut wide) = ((m as u64, n as u64), Scratch::<f64>::new(models.len()));
    let mut emit = |values: &[f64]| {
        out.extend_from_slice(values);
        Ok(())
    };
    let facts = if dtype == Dtype::F64 {
        merge(work, size, &[], &mut bytes, &mut Scratch::<f64>::new(models.len()), &mut wide, &mut emit)?
    } else {
        merge(work, size, &[], &mut bytes, &mut Scratch::<f32>::new(models.len()), &mut wide, &mut emit)?
    };
    Ok((Mat::from_fn(m, n, |i, j| out[i * n + j]), facts))
}

fn work(centre: Centre, rule: MatrixRule, models: usize, lambda: f64) -> LowRank {
    LowRank { stages: vec![], weights: vec![1.0; models], centre, rule, lambda }
}

fn run(models: &[Mat<f64>], rank: Rank, lambda: f64) -> (Mat<f64>, LowRankFacts) {
    let work = work(Centre::Average, MatrixRule::Truncate(rank), models.len(), lambda);
    run_on(&work, Dtype::F64, &Mat::zeros(models[0].nrows(), models[0].ncols()), models).unwrap()
}

fn random(m: usize, n: usize, seed: u64) -> Mat<f64> {
    let mut state = seed;
    Mat::from_fn(m, n, |_, _| {
        let mut sum = 0.0;
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            sum += (state >> 33) as f64 / 2f64.powi(30) - 1.0;
        }
        sum
    })
}

fn family(m: usize, n: usize, models: usize) -> Vec<Mat<f64>> {
    (0..models).map(|t| random(m, n, t as u64 + 1)).collect()
}

/// An m×n matrix with these singular values.
fn with_spectrum(m: usize, n: usize, seed: u64, sigma: impl Fn(usize) -> f64) -> Mat<f64> {
    let r = m.min(n);
    let (p, q) = (random(m, r, seed).qr().compute_thin_Q(), random(n, r, seed + 99).qr().compute_thin_Q());
    Mat::from_fn(m, r, |i, j| p[(i, j)] * sigma(j)) * q.transpose()
}

/// The best approximation of rank k.
fn truncated(a: &Mat<f64>, k: usize) -> Mat<f64> {
    let svd = a.thin_svd().unwrap();
    let left = Mat::from_fn(a.nrows(), k, |i, j| svd.U()[(i, j)] * svd.S()[j]);
    left * svd.V().subcols(0, k).transpose()
}

#[test]
fn the_sum_of_truncated_svds_is_what_faers_svd_gives() {
    for (m, n) in [(1, 1), (1, 9), (9, 1), (12, 30), (30, 12), (25, 25)] {
        for models in [1, 2, 5] {
            let w = family(m, n, models);
            let k = 1.max(m.min(n) / 3);
            let (merged, facts) = run(&w, Rank::Count(k as u64), 1.7);
            let mut mean = Mat::<f64>::zeros(m, n);
            w.iter().for_each(|w| mean += w);
            mean *= 1.0 / models as f64;
            let mut expected = mean.clone();
            for (t, w) in w.iter().enumerate() {
                let a = w - &mean;
                let l = truncated(&a, k);
                let norm = a.norm_l2();
                let residual = if norm == 0.0 { 0.0 } else { (&a - &l).norm_l2() / norm };
                assert!((facts.residual[t] - residual).abs() < 1e-7, "{m}×{n}: {facts:?} against {residual}");
                expected += &l * 1.7;
            }
            let error = (&merged - &expected).norm_l2() / expected.norm_l2();
            assert!(error < 1e-7, "{m}×{n}, {models} models: {error}");
        }
    }
}

/// A task vector, its truncation as computed from f32 sources, and what the manifest would say.
fn truncate_f32(a: &Mat<f64>, k: usize) -> (Mat<f64>, LowRankFacts) {
    let work = work(Centre::Base, MatrixRule::Truncate(Rank::Count(k as u64)), 1, 1.0);
    run_on(&work, Dtype::F32, &Mat::zeros(a.nrows(), a.ncols()), std::slice::from_ref(a)).unwrap()
}

#[test]
fn from_f32_sources_both_bounds_hold_on_every_spectrum() {
    type Spectrum = fn(usize) -> f64;
    let spectra: [(&str, Spectrum, &str); 8] = [
        ("flat", |j| 1.0 - 2e-3 * j as f64, "float32"),
        ("steep", |j| 0.3f64.powi(j as i32), "float64"),
        ("decaying", |j| 1.0 / (1.0 + j as f64), "float32"),
        ("low rank in noise", |j| if j < 5 { 10.0 } else { 0.1 - 1e-4 * j as f64 }, "float64"),
        ("of rank 5", |j| if j < 5 { 3.0 - j as f64 * 0.1 } else { 0.0 }, "float64"),
        ("repeated", |j| 4.0 - (j / 20) as f64, "float32"),
        ("huge", |j| 1e36 / (1.0 + j as f64), "float64"),
        ("tiny", |j| 1e-36 / (1.0 + j as f64), "float64"),
    ];
    for (m, n) in [(96, 96), (80, 300), (300, 80), (65, 700)] {
        for (name, sigma, precision) in spectra {
            // The matrix as f32 stores it.
            let a = with_spectrum(m, n, 5, sigma);
            let a = Mat::from_fn(m, n, |i, j| f64::from(a[(i, j)] as f32));
            let s = a.singular_values().unwrap();
            for k in [1, 6, 19] {
                let (l, facts) = truncate_f32(&a, k);
                let exact = truncated(&a, k);
                let has_gap = s[k - 1] - s[k] > 1e-4 * s[k - 1];
                let error = (&l - &exact).norm_l2() / exact.norm_l2();
                assert!(!has_gap || error <= 1e-4, "{name} {m}×{n}, k = {k}: {error:e} {facts:?}");
                let (left, least) = ((&a - &l).norm_l2(), (&a - &exact).norm_l2());
                // Below this f32 itself, in which the result is stored, has no digits.
                let floor = 1e-6 * a.norm_l2();
                assert!(left <= (1.0 + 1e-5) * least + floor, "{name} {m}×{n}, k = {k}: {left:e} {least:e} {facts:?}");
                assert!(least < floor || left <= (1.0 + 1e-5) * least, "{name} {m}×{n}, k = {k}: {left:e} {least:e}");
                assert!((facts.residual[0] - left / a.norm_l2()).abs() < 1e-6, "{name}: {facts:?}");
                let energy = exact.squared_norm_l2() / a.squared_norm_l2();
                assert!((facts.energy[0] - energy).abs() < 1e-6, "{name}: {facts:?} {energy}");
                // A cut through equal values has no certificate; f64 is as good as anything there.
                if name != "repeated" && k == 6 {
                    assert_eq!(facts.precision, [precision], "{name} {m}×{n}, k = {k}");
                }
            }
        }
    }
}

/// What is left of the certificate is λ_{p+1}: where it is σ_k² too, no gap tells the spaces apart, however far λ_{p+2} lies below.
#[test]
fn a_tie_that_ends_right_behind_the_vectors_has_no_certificate() {
    for (m, n) in [(96, 200), (200, 96)] {
        let k = 8;
        let shape = panels::Shape { m, n };
        let decomposition = truncated::Decomposition::of(shape, Rank::Count(k as u64), false);
        let truncated::Decomposition::Certified { vectors: p } = decomposition else { panic!("{decomposition:?}") };
        for (equal, precision) in [(p + 1, "float64"), (p, "float32")] {
            // σ_k = … = σ_equal, and a third of that behind them.
            let sigma = |j: usize| {
                if j + 1 < k {
                    10.0 - j as f64
                } else if j < equal {
                    3.0
                } else {
                    1.0
                }
            };
            let a = Mat::from_fn(m, n, |i, j| if i == j { sigma(i) } else { 0.0 });
            let (_, facts) = truncate_f32(&a, k);
            assert_eq!(facts.precision, [precision], "{m}×{n}: {equal} equal");
        }
    }
}

#[test]
fn hundreds_of_random_shapes_and_spectra_agree_with_an_svd() {
    let mut state = 42u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut precisions = std::collections::BTreeMap::new();
    for case in 0..300 {
        let (m, n) = (1 + next(150), 1 + next(150));
        let (slope, scale) = (next(8) as f64, 10f64.powi(next(20) as i32 - 10));
        let r = m.min(n) as f64;
        let a = with_spectrum(m, n, case, |j| scale * 10f64.powf(-slope * j as f64 / r));
        let a = Mat::from_fn(m, n, |i, j| f64::from(a[(i, j)] as f32));
        let k = 1 + next(m.min(n));
        let (l, facts) = truncate_f32(&a, k);
        *precisions.entry(facts.precision[0]).or_insert(0) += 1;
        let exact = truncated(&a, k);
        let error = (&l - &exact).norm_l2() / exact.norm_l2();
        assert!(error <= 1e-4, "case {case}, {m}×{n}, k = {k}, slope {slope}: {error:e}");
        let (left, least) = ((&a - &l).norm_l2(), (&a - &exact).norm_l2());
        assert!(left <= (1.0 + 1e-5) * least + 1e-6 * a.norm_l2(), "case {case}: {left:e} {least:e}");
    }
    // Both ways are taken often enough for the test to mean something.
    assert!(precisions.values().all(|cases| *cases >= 20) && precisions.len() == 2, "{precisions:?}");
}

#[test]
fn full_rank_gives_the_average_for_every_lambda() {
    let w = family(17, 23, 3);
    let (merged, facts) = run(&w, Rank::Ratio(1.0), 5.0);
    let mean = (&w[0] + &w[1] + &w[2]) * (1.0 / 3.0);
    assert!((&merged - &mean).norm_l2() < 1e-12 * mean.norm_l2());
    assert_eq!(facts.rank, [17, 17, 17]);
}

#[test]
fn energy_is_reached_by_the_least_rank() {
    let a = with_spectrum(40, 60, 3, |j| if j < 4 { 2.0 } else { 0.1 });
    let work = work(Centre::Base, MatrixRule::Truncate(Rank::Energy(0.75)), 1, 1.0);
    let (_, facts) = run_on(&work, Dtype::F32, &Mat::zeros(40, 60), &[a]).unwrap();
    // 12 of 16.36 is not three quarters, 16 is.
    assert_eq!(facts.rank, [4]);
    assert!((facts.energy[0] - 16.0 / 16.36).abs() < 1e-6);
}

#[test]
fn isotropic_merges_have_one_singular_value() {
    for (m, n) in [(20, 50), (50, 20), (24, 24)] {
        let models = family(m, n, 4);
        for rule in [MatrixRule::Isotropic, MatrixRule::CommonAndSpecific { common: 0.6 }] {
            let work = work(Centre::Base, rule, 4, 0.5);
            let (change, facts) = run_on(&work, Dtype::F64, &Mat::zeros(m, n), &models).unwrap();
            let found = facts.singular_value.unwrap();
            let values = change.singular_values().unwrap();
            assert!(values.iter().all(|s| (s - 0.5 * found).abs() < 1e-9 * found), "{m}×{n}: {values:?} {found}");
        }
    }
}

#[test]
fn task_singular_vectors_of_one_task_are_the_task_itself() {
    let w = family(15, 31, 1);
    let one = work(Centre::Base, MatrixRule::TaskSingular, 1, 1.0);
    let (merged, facts) = run_on(&one, Dtype::F64, &Mat::zeros(15, 31), &w).unwrap();
    assert!((&merged - &w[0]).norm_max() < 1e-12 && facts.rank == [15] && facts.energy[0] > 1.0 - 1e-12);
    // Tasks whose triples are orthogonal to each other do not change by being made so.
    let apart: Vec<_> = (0..2).map(|t| Mat::from_fn(6, 8, |i, j| f64::from(u8::from(i == j && i / 3 == t)))).collect();
    let two = work(Centre::Base, MatrixRule::TaskSingular, 2, 1.0);
    let (merged, _) = run_on(&two, Dtype::F64, &Mat::zeros(6, 8), &apart).unwrap();
    assert!((&merged - (&apart[0] + &apart[1])).norm_max() < 1e-12);
}

#[test]
fn a_nan_is_an_error() {
    let mut w = family(4, 4, 2);
    w[1][(2, 2)] = f64::NAN;
    for (centre, rule) in [
        (Centre::Average, MatrixRule::Truncate(Rank::Count(1))),
        (Centre::Base, MatrixRule::Isotropic),
        (Centre::Base, MatrixRule::TaskSingular),
        (Centre::Base, MatrixRule::CommonAndSpecific { common: 0.5 }),
    ] {
        assert!(run_on(&work(centre, rule, 2, 1.0), Dtype::F64, &Mat::zeros(4, 4), &w).is_err(), "{rule:?}");
    }
}

#[test]
fn memory_and_work_grow_with_the_matrix_and_algorithms_are_named() {
    let cart = work(Centre::Average, MatrixRule::Truncate(Rank::Ratio(0.08)), 8, 2.0);
    assert_eq!(algorithm(&cart, (768, 3072), false), "leading eigenvectors, float32 certified in float64");
    assert_eq!(algorithm(&cart, (768, 3072), true), "leading eigenvectors, float64");
    assert_eq!((passes(&cart, (768, 3072), false), passes(&cart, (8192, 28672), false)), (3, 17));
    assert!(bytes(&cart, (4096, 4096), false) > bytes(&cart, (768, 3072), false));
    assert!(operations(&cart, (768, 3072), false) > 8.0 * 768.0 * 768.0 * 3072.0);
}

#[test]
fn packed_operands_of_thin_matrices_are_small() {
    assert_eq!(packing_bytes(4096, 14336), 8 * 512 * (4096 + 14336));
    assert_eq!(packing_bytes(4, 25_000), 8 * 4 * 25_004);
    assert_eq!(packing_bytes(25_000, 4), packing_bytes(4, 25_000));
    assert_eq!(packing_bytes(100, 101), 8 * 512 * 200);
}
