//! What low-rank merges do on a device beside matrix products, element by element against plain loops in f64.

use merganser::backend::cpu::blend::load_pruned;
use merganser::backend::cpu::prune::Scratch;
use merganser::backend::cpu::stored::Widen;
use merganser::backend::cuda::ops::low_rank::{self, Centring};
use merganser::backend::cuda::ops::{Place, StageBlob};
use merganser::dtype::{Dtype, DtypeExt};
use merganser::ops::{
    Centre, Geometry, Granularity, LowRank, Mask, MatrixRule, Prune, Rank, Real, Rescale, Score, StageState,
};

use super::{Gpu, on_device};
use crate::support::family::Rng;
use crate::support::operations::{DTYPES, Family, assert_same, narrow, unit, widen};

/// A_t of every task, and what they are measured from, by the definition.
fn expected(
    work: &LowRank,
    family: &Family,
    geometry: Geometry,
    wide: bool,
    blob: &[(Prune, StageState)],
) -> (Vec<Vec<f64>>, Vec<f64>) {
    fn pruned<C: Widen>(family: &Family, geometry: Geometry, stages: &[(Prune, StageState)]) -> Vec<Vec<f64>> {
        let mut scratch = Scratch::<C>::new(family.models());
        family.sources(|sources| load_pruned(geometry, stages, sources, 0, family.len, &mut scratch));
        scratch.tau.iter().map(|tau| tau[..family.len].iter().map(|x| x.f64()).collect()).collect()
    }
    let all: Vec<Vec<f64>> = family.stored.iter().map(|(dtype, bytes)| widen(*dtype, bytes)).collect();
    let mut base = all[0].clone();
    let mut parts = all[1..].to_vec();
    if !blob.is_empty() {
        parts = if wide { pruned::<f64>(family, geometry, blob) } else { pruned::<f32>(family, geometry, blob) };
    } else if work.centre == Centre::Base {
        parts.iter_mut().for_each(|part| part.iter_mut().zip(&base).for_each(|(x, b)| *x -= b));
    } else {
        base.fill(0.0);
    }
    let mut origin = base.clone();
    if work.centre == Centre::Average {
        let total: f64 = work.weights.iter().sum();
        for i in 0..family.len {
            let mean = parts.iter().zip(&work.weights).fold(0.0, |sum, (part, w)| sum + w * part[i]) / total;
            origin[i] = if mean == 0.0 { base[i] } else { base[i] + mean };
            parts.iter_mut().for_each(|part| part[i] -= mean);
        }
    }
    (parts, origin)
}

#[test]
fn task_vectors_are_centred_packed_and_summed_as_on_the_cpu() {
    let Some(gpu) = Gpu::open() else { return };
    let prune = Prune {
        stage: 0,
        score: Score::Tall,
        granularity: Granularity::Element,
        keep: 0.5,
        keep_redundant: false,
        rescale: Rescale::None,
    };
    for (i, dtypes) in [vec![Dtype::BF16], vec![Dtype::F32, Dtype::F16], vec![Dtype::F64]].into_iter().enumerate() {
        for (rows, columns) in [(1_u64, 33_u64), (31, 1), (17, 19), (24, 64)] {
            let (models, len) = (4, (rows * columns) as usize);
            let family = Family::new(i as u64 + 1, &dtypes, models, len);
            let (wide, geometry) = (family.wide(), Geometry::of(&[rows, columns]));
            let cut = if wide { 0.4_f64.key() } else { 0.4_f32.key() };
            let masks =
                vec![Mask::Elements { cut, lowest: false }, Mask::All, Mask::Rows(vec![1; rows as usize]), Mask::None];
            let stage = (prune, StageState { masks, factors: vec![1.0, 2.0, 1.0, 1.0] });
            for (centre, staged) in
                [(Centre::Average, false), (Centre::Base, false), (Centre::Average, true), (Centre::Base, true)]
            {
                let stages = if staged { vec![stage.clone()] } else { Vec::new() };
                let work = LowRank {
                    stages: stages.iter().map(|s| s.0).collect(),
                    weights: vec![0.5, 1.0, 0.25, 2.0],
                    centre,
                    rule: MatrixRule::Truncate(Rank::Ratio(0.1)),
                    lambda: 2.0,
                };
                let (parts, origin) = expected(&work, &family, geometry, wide, &stages);
                let blob = StageBlob::new(&stages, models);
                let centring = Centring { work: &work, wide, geometry, stages: blob.at(gpu.put(&blob.bytes)) };
                let (k, s) = (&gpu.kernels, &gpu.stream);
                let what = format!("{centre:?}, staged {staged}, {rows}×{columns}, {:?}", dtypes[0]);
                on_device(&family, &gpu, 0, |sources| {
                    let stride = len as u64 + 8 - len as u64 % 8;
                    let (to, from) = (gpu.zeros(8 * stride * 2), gpu.zeros(8 * len as u64));
                    low_rank::centre(k, s, &centring, sources, 1..3, true, to, stride, from).unwrap();
                    let found: Vec<f64> = gpu.get(to);
                    assert_same(&parts[1], &found[..len], &what);
                    assert_same(&parts[2], &found[stride as usize..][..len], &what);
                    assert_same(&origin, &gpu.get(from), &what);
                    let to = gpu.zeros(4 * stride * 4);
                    low_rank::centre(k, s, &centring, sources, 0..4, false, to, stride, 0).unwrap();
                    let found: Vec<f32> = gpu.get(to);
                    for (t, part) in parts.iter().enumerate() {
                        let narrow: Vec<f64> = part.iter().map(|x| f64::from(*x as f32)).collect();
                        let found: Vec<f64> =
                            found[t * stride as usize..][..len].iter().map(|x| f64::from(*x)).collect();
                        assert_same(&narrow, &found, &what);
                    }
                    let to = gpu.zeros(8 * len as u64);
                    low_rank::weighted(k, s, &centring, sources, 1..4, &[0.3, 1.5, -2.0], to).unwrap();
                    let sum: Vec<f64> =
                        (0..len).map(|i| 0.0 + parts[1][i] * 0.3 + parts[2][i] * 1.5 + parts[3][i] * -2.0).collect();
                    assert_same(&sum, &gpu.get(to), &what);
                });
                gpu.clear();
            }
        }
    }
}

#[test]
fn low_rank_parts_are_added_and_measured() {
    let Some(gpu) = Gpu::open() else { return };
    let (k, s) = (&gpu.kernels, &gpu.stream);
    for len in [1_usize, 33, 2048, 5001] {
        let mut rng = Rng(len as u64);
        let mut values =
            |n: usize| (0..n).map(|i| if i % 5 == 3 { -0.0 } else { unit(&mut rng) }).collect::<Vec<f64>>();
        let (merged, low, a) = (values(len), values(len), values(len));
        for double in [true, false] {
            let round = |x: &f64| if double { *x } else { f64::from(*x as f32) };
            let put = |x: &[f64]| {
                if double { gpu.put(x) } else { gpu.put(&x.iter().map(|x| *x as f32).collect::<Vec<_>>()) }
            };
            let (to, l, x) = (gpu.put(&merged), put(&low), put(&a));
            let scratch = gpu.zeros(low_rank::add_scratch_bytes(len as u64));
            let norms = gpu.put(&[1.0_f64, 2.0]);
            low_rank::add_low_rank(k, s, to, l, x, double, 0.75, len as u64, scratch, norms).unwrap();
            let add = |m: &f64, l: &f64| if round(l) == 0.0 { *m } else { m + 0.75 * round(l) };
            let sum: Vec<f64> = merged.iter().zip(&low).map(|(m, l)| add(m, l)).collect();
            assert_same(&sum, &gpu.get(to), &(len, double));
            let squares = |f: &dyn Fn(usize) -> f64| (0..len).map(|i| f(i) * f(i)).sum::<f64>();
            let left = squares(&|i| round(&a[i]) - round(&low[i]));
            let whole = squares(&|i| round(&a[i]));
            let found: Vec<f64> = gpu.get(norms);
            // Sums of positive numbers in another order: a few units in the last place.
            assert!((found[0] - 1.0 - left).abs() <= 1e-12 * (1.0 + left), "{} {left}", found[0]);
            assert!((found[1] - 2.0 - whole).abs() <= 1e-12 * (2.0 + whole), "{} {whole}", found[1]);
            let out = gpu.put(&[f64::NAN]);
            low_rank::squares(k, s, x, double, len as u64, scratch, out).unwrap();
            let found = gpu.get::<f64>(out)[0];
            assert!((found - whole).abs() <= 1e-12 * whole, "{found} {whole}");
            low_rank::add_low_rank(k, s, to, l, 0, double, 0.0, len as u64, 0, 0).unwrap();
            assert_same(&sum, &gpu.get(to), &"nothing is added");
            gpu.clear();
        }
    }
}

#[test]
fn results_are_rounded_once_and_what_is_no_number_is_counted() {
    let Some(gpu) = Gpu::open() else { return };
    let (k, s) = (&gpu.kernels, &gpu.stream);
    for len in [1_usize, 33, 4099] {
        let mut rng = Rng(9);
        let scale = |i: usize| [1.0, 1e-40, 1e5, 1e300, 1e-8, 448.0][i % 6];
        let mut values: Vec<f64> = (0..len).map(|i| unit(&mut rng) * scale(i)).collect();
        values[len / 2] = f64::NAN;
        let merged = gpu.put(&values);
        for dtype in DTYPES {
            let expected = narrow(dtype, &values);
            let to = gpu.put(&vec![0xEE_u8; expected.len()]);
            let facts = gpu.put(&[100_u64]);
            low_rank::round(k, s, merged, Place { dtype, ptr: to }, len as u64, facts).unwrap();
            assert_same(&widen(dtype, &expected), &widen(dtype, &gpu.get::<u8>(to)), &dtype);
            let bad = widen(dtype, &expected).iter().filter(|x| !x.is_finite()).count() as u64;
            assert_eq!(gpu.get::<u64>(facts), [100 + bad], "{dtype}");
        }
        let size = Dtype::F32.size_bytes().unwrap();
        let narrow = gpu.zeros(size * len as u64);
        low_rank::convert(k, s, merged, true, narrow, false, len as u64).unwrap();
        let rounded: Vec<f64> = values.iter().map(|x| f64::from(*x as f32)).collect();
        let found: Vec<f64> = gpu.get::<f32>(narrow).into_iter().map(f64::from).collect();
        assert_same(&rounded, &found, &len);
        let (back, count) = (gpu.zeros(8 * len as u64), gpu.zeros(8));
        low_rank::convert(k, s, narrow, false, back, true, len as u64).unwrap();
        assert_same(&rounded, &gpu.get(back), &len);
        low_rank::count_nonfinite(k, s, back, true, len as u64, count).unwrap();
        low_rank::count_nonfinite(k, s, narrow, false, len as u64, count).unwrap();
        let bad = rounded.iter().filter(|x| !x.is_finite()).count() as u64;
        assert_eq!(gpu.get::<u64>(count), [2 * bad]);
        gpu.clear();
    }
}

#[test]
fn columns_are_scaled_and_their_residuals_measured() {
    let Some(gpu) = Gpu::open() else { return };
    let (k, s) = (&gpu.kernels, &gpu.stream);
    for (rows, cols) in [(1_usize, 1_usize), (33, 3), (700, 5)] {
        let mut rng = Rng(4);
        let mut matrix = || (0..rows * cols).map(|_| unit(&mut rng)).collect::<Vec<f64>>();
        let (back, basis) = (matrix(), matrix());
        let values: Vec<f64> = (0..cols).map(|j| 0.1 + j as f64).collect();
        for double in [true, false] {
            let round = |x: f64| if double { x } else { f64::from(x as f32) };
            let put = |x: &[f64]| {
                if double { gpu.put(x) } else { gpu.put(&x.iter().map(|x| *x as f32).collect::<Vec<_>>()) }
            };
            let (b, q, v) = (put(&back), put(&basis), gpu.put(&values));
            let out = gpu.zeros(8 * cols as u64);
            low_rank::residuals(k, s, b, q, double, v, rows as u64, cols as u64, out).unwrap();
            for (j, found) in gpu.get::<f64>(out).into_iter().enumerate() {
                let at = |i: usize| round(back[j * rows + i]) - values[j] * round(basis[j * rows + i]);
                let expected = (0..rows).map(|i| at(i) * at(i)).sum::<f64>().sqrt();
                assert!((found - expected).abs() <= 1e-13 * expected, "{found} {expected}");
            }
            low_rank::scale_columns(k, s, b, double, v, rows as u64, cols as u64).unwrap();
            let scaled: Vec<f64> = back.iter().enumerate().map(|(i, x)| round(round(*x) * values[i / rows])).collect();
            let found: Vec<f64> =
                if double { gpu.get(b) } else { gpu.get::<f32>(b).into_iter().map(f64::from).collect() };
            assert_same(&scaled, &found, &(rows, cols, double));
            gpu.clear();
        }
    }
}
