use std::path::{Path, PathBuf};

use super::*;
use crate::dtype::Dtype;

type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// Writes a checkpoint with the safetensors crate.
fn checkpoint(folder: &Path, name: &str, tensors: &[Stored]) -> Checkpoint {
    let path: PathBuf = folder.join(format!("{name}.safetensors"));
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    Checkpoint::open(&path).unwrap()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn f64s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// One tensor of each side, compared.
fn one(a: (Dtype, Vec<usize>, Vec<u8>), b: (Dtype, Vec<usize>, Vec<u8>)) -> Comparison {
    let dir = tempfile::tempdir().unwrap();
    let a = checkpoint(dir.path(), "a", &[("w", a.0, a.1, a.2)]);
    let b = checkpoint(dir.path(), "b", &[("w", b.0, b.1, b.2)]);
    compare(&a, &b, 3, &|_| ()).unwrap()
}

fn wide(a: &[f64], b: &[f64]) -> Measures {
    let found = one((Dtype::F64, vec![a.len()], f64s(a)), (Dtype::F64, vec![b.len()], f64s(b)));
    let mut alone = found.tensors[0].measures.clone();
    let total = found.total;
    assert_eq!((alone.max_difference, alone.relative_error), (total.max_difference, total.relative_error));
    match (&mut alone.cosine, total.cosine) {
        (Some(one), Some(all)) => assert!((*one - all).abs() < 1e-15),
        (one, all) => assert_eq!(*one, all),
    }
    alone
}

fn near(found: Option<f64>, expected: f64) {
    let found = found.unwrap();
    assert!((found - expected).abs() <= 1e-14 * expected.abs(), "{found} instead of {expected}");
}

#[test]
fn measures_are_those_of_the_definitions() {
    let m = wide(&[3.0, 0.0, -4.0], &[3.0, 1.0, -2.0]);
    near(m.max_difference, 2.0);
    near(m.relative_error, 5_f64.sqrt() / 5.0);
    near(m.cosine, 17.0 / (5.0 * 14_f64.sqrt()));
    assert_eq!((m.elements, m.differing, m.nonfinite()), (3, 2, 0));
}

#[test]
fn values_whose_squares_overflow_or_vanish_are_measured_all_the_same() {
    for scale in [1e200, 1e-200, 1e300, 1e-310] {
        let m = wide(&[3.0 * scale, 0.0, -4.0 * scale], &[3.0 * scale, scale, -2.0 * scale]);
        let found = (m.relative_error.unwrap(), m.cosine.unwrap());
        // Subnormal numbers have few digits.
        let within = if scale < 1e-300 { 1e-12 } else { 1e-14 };
        assert!((found.0 - 5_f64.sqrt() / 5.0).abs() < within, "{scale}: {found:?}");
        assert!((found.1 - 17.0 / (5.0 * 14_f64.sqrt())).abs() < within, "{scale}: {found:?}");
    }
    let far = wide(&[1e308, 1e308], &[-1e308, 1e308]);
    assert_eq!(far.max_difference, None, "2e308 is no double");
    near(far.relative_error, 2_f64.sqrt());
    near(wide(&[1.0, 1e-200], &[1.0, 3e-200]).relative_error, 2e-200);
}

#[test]
fn zeros_have_no_direction_and_nothing_to_be_relative_to() {
    let both = wide(&[0.0, -0.0], &[0.0, 0.0]);
    assert_eq!((both.relative_error, both.cosine, both.differing), (Some(0.0), None, 0));
    let only_a = wide(&[0.0, 0.0], &[0.0, 2.0]);
    assert_eq!((only_a.max_difference, only_a.relative_error, only_a.cosine), (Some(2.0), None, None));
}

#[test]
fn nan_and_infinities_are_counted_and_never_pass_for_equal() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let m = wide(&[nan, 1.0, inf, -inf, 5.0], &[nan, nan, inf, 0.0, 5.0]);
    assert_eq!((m.nan_a, m.nan_b, m.inf_a, m.inf_b), (1, 2, 2, 1));
    assert_eq!(m.differing, 3, "two places with a NaN and one infinity against 0");
    assert_eq!((m.max_difference, m.relative_error, m.cosine), (None, None, None));
    let json = serde_json::to_value(&m).unwrap();
    assert!(json["relative_error"].is_null() && json["nan_b"] == 2, "{json}");
}

#[test]
fn a_checkpoint_with_nan_is_not_identical_to_itself() {
    let one_nan = || (Dtype::F32, vec![2], f32s(&[1.0, f32::NAN]));
    assert!(!one(one_nan(), one_nan()).identical);
    let finite = || (Dtype::F32, vec![2], f32s(&[1.0, 2.0]));
    assert!(one(finite(), finite()).identical);
}

#[test]
fn dtypes_may_differ_and_then_values_count() {
    let narrow: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let found = one((Dtype::BF16, vec![2], narrow), (Dtype::F64, vec![2], f64s(&[1.5, -2.0])));
    assert!(found.same_layout && !found.identical);
    assert_eq!((found.total.differing, found.total.relative_error), (0, Some(0.0)));
    let found = one(
        (Dtype::I32, vec![2], [3_i32, -1].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (Dtype::F32, vec![2], f32s(&[3.0, -1.5])),
    );
    assert_eq!((found.tensors[0].compared_as, found.total.differing), (Way::Floats, 1));
    near(found.total.max_difference, 0.5);
}

#[test]
fn integers_are_compared_exactly_also_beyond_what_doubles_hold() {
    let large = |last: u64| (1_u64 << 60) + last;
    let bytes = |values: &[u64]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let a = (Dtype::U64, vec![3], bytes(&[large(0), large(1), u64::MAX]));
    let b = (Dtype::U64, vec![3], bytes(&[large(0), large(2), u64::MAX]));
    let found = one(a.clone(), b);
    assert_eq!((found.tensors[0].compared_as, found.total.differing), (Way::Integers, 1));
    assert_eq!((found.total.max_difference, found.total.cosine), (None, None));
    // The same bits, but another number.
    let signed = (Dtype::I64, vec![3], a.2.clone());
    assert_eq!(one(a, signed).total.differing, 1);
    let small = (Dtype::I8, vec![2], vec![0xff, 7]);
    let wide = (Dtype::I16, vec![2], vec![0xff, 0xff, 7, 0]);
    assert_eq!(one(small, wide).total.differing, 0);
}

#[test]
fn types_without_arithmetic_are_compared_by_their_bits_element_for_element() {
    // Two elements of four bits in a byte: one differs.
    let found = one((Dtype::F4, vec![4], vec![0x21, 0x43]), (Dtype::F4, vec![4], vec![0x21, 0x53]));
    assert_eq!((found.tensors[0].compared_as, found.total.differing, found.total.elements), (Way::Bits, 1, 4));
    let found = one((Dtype::F8_E8M0, vec![2], vec![1, 2]), (Dtype::F8_E5M2, vec![2], vec![1, 2]));
    assert!(!found.same_layout);
    assert_eq!(found.mismatched[0].dtype_b, Dtype::F8_E5M2);
}

#[test]
fn names_and_shapes_that_differ_are_listed_and_the_rest_is_compared() {
    let dir = tempfile::tempdir().unwrap();
    let w = |values: &[f32]| f32s(values);
    let a = [
        ("a", Dtype::F32, vec![1], w(&[1.0])),
        ("both", Dtype::F32, vec![2], w(&[1.0, 2.0])),
        ("turned", Dtype::F32, vec![1, 2], w(&[1.0, 2.0])),
        ("empty", Dtype::F32, vec![0, 3], vec![]),
    ];
    let b = [
        ("both", Dtype::F32, vec![2], w(&[1.0, 2.5])),
        ("turned", Dtype::F32, vec![2, 1], w(&[1.0, 2.0])),
        ("z", Dtype::F32, vec![], w(&[1.0])),
        ("empty", Dtype::F32, vec![0, 3], vec![]),
    ];
    let (a, b) = (checkpoint(dir.path(), "a", &a), checkpoint(dir.path(), "b", &b));
    let found = compare(&a, &b, 2, &|_| ()).unwrap();
    assert_eq!((&*found.only_in_a, &*found.only_in_b), (&["a".to_owned()][..], &["z".to_owned()][..]));
    assert_eq!((found.mismatched.len(), &*found.mismatched[0].shape_b), (1, &[2, 1][..]));
    assert_eq!((found.tensors.len(), found.total.elements, found.total.differing), (2, 2, 1));
    assert!(!found.same_layout);
    assert_eq!(bytes_to_read(&a, &b), 16);
}

#[test]
fn any_number_of_threads_and_reading_without_maps_give_the_same() {
    let dir = tempfile::tempdir().unwrap();
    // More than one unit, and no whole number of lanes.
    let n = 4 * (1 << 20) + 70_001;
    let value = |i: usize, s: f64| ((i as f64 * 0.618 + s).sin() * 1e3) as f32;
    let (a, b): (Vec<f32>, Vec<f32>) = (0..n).map(|i| (value(i, 0.0), value(i, 1e-3))).unzip();
    checkpoint(dir.path(), "a", &[("w", Dtype::F32, vec![n], f32s(&a)), ("v", Dtype::F32, vec![7], f32s(&a[..7]))]);
    checkpoint(dir.path(), "b", &[("w", Dtype::F32, vec![n], f32s(&b)), ("v", Dtype::F32, vec![7], f32s(&b[..7]))]);
    let open = |mapped: bool, name: &str| {
        let path = dir.path().join(format!("{name}.safetensors"));
        if mapped { Checkpoint::open(&path).unwrap() } else { Checkpoint::open_unmapped(&path).unwrap() }
    };
    let read = std::sync::atomic::AtomicU64::new(0);
    let run = |mapped, threads| {
        let progress = |bytes| {
            read.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        };
        compare(&open(mapped, "a"), &open(mapped, "b"), threads, &progress).unwrap()
    };
    let found = run(true, 1);
    assert_eq!(read.load(std::sync::atomic::Ordering::Relaxed), 2 * 4 * (n as u64 + 7));
    for (mapped, threads) in [(true, 4), (false, 1), (false, 3)] {
        assert_eq!(run(mapped, threads), found);
    }
    let (mut d2, mut a2) = (0.0, 0.0);
    for (x, y) in a.iter().zip(&b) {
        d2 += f64::from(x - y).powi(2);
        a2 += f64::from(*x).powi(2);
    }
    let w = found.tensors.iter().find(|t| t.name == "w").unwrap();
    assert!((w.measures.relative_error.unwrap() / f64::sqrt(d2 / a2) - 1.0).abs() < 1e-6);
}
