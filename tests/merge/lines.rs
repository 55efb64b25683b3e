//! Methods that go by the rows or columns of a tensor: `model_stock` with `filter_wise`, `nuslerp` that does not flatten.

use merganser::dtype::Dtype::{F32, F64};

use crate::support::Run;
use crate::support::family::{Family, Merged, Rng};
use crate::support::recipes::Text;
use crate::support::tensor::Tensor;

fn stock() -> Text {
    Text::plain("model_stock", 2).set("filter_wise", "true")
}

fn nuslerp(by_column: bool) -> Text {
    let text = Text::plain("nuslerp", 2).set("weight", "0.5").set("nuslerp_flatten", "false");
    text.set("nuslerp_row_wise", &by_column.to_string())
}

/// What the two task vectors of a line become.
type Rule = fn(&[f64], &[f64]) -> Vec<f64>;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn of_stock(a: &[f64], b: &[f64]) -> Vec<f64> {
    let cosine = (dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()).max(1e-6)).clamp(-1.0, 1.0);
    let t = 2.0 * cosine / (1.0 + cosine);
    a.iter().zip(b).map(|(a, b)| t * (a + b) / 2.0).collect()
}

fn of_nuslerp(a: &[f64], b: &[f64]) -> Vec<f64> {
    let norm = |x: &[f64]| dot(x, x).sqrt().max(1e-7);
    let angle = (dot(a, b) / (norm(a) * norm(b))).acos();
    let c = (0.5 * angle).sin() / angle.sin();
    a.iter().zip(b).map(|(a, b)| c * (a + b)).collect()
}

/// Task vectors of a matrix merged row by row, or column by column.
fn by_lines(shape: [usize; 2], by_column: bool, a: &[f64], b: &[f64], rule: Rule) -> Vec<f64> {
    let [rows, columns] = shape;
    let mut out = vec![0.0; rows * columns];
    for line in 0..if by_column { columns } else { rows } {
        let at = |i: usize| if by_column { i * columns + line } else { line * columns + i };
        let of = |x: &[f64]| (0..if by_column { rows } else { columns }).map(|i| x[at(i)]).collect::<Vec<_>>();
        for (i, value) in rule(&of(a), &of(b)).into_iter().enumerate() {
            out[at(i)] = value;
        }
    }
    out
}

/// Changes of a base of zeros.
fn family(shape: [usize; 2], changes: &[Vec<f64>]) -> Family {
    let shape = shape.map(|n| n as u64);
    let tensors =
        |values: &[f64]| vec![Tensor::new("w", F32, &shape, values), Tensor::new("wide", F64, &shape, values)];
    let base = vec![0.0; changes[0].len()];
    Family::of([vec![base], changes.to_vec()].concat().iter().map(|values| tensors(values)).collect())
}

fn random(rng: &mut Rng, n: usize) -> Vec<f64> {
    // Above zero, so that no two lines point apart, where a coefficient has no bound.
    (0..n).map(|_| f64::from((rng.unit() + 0.2) as f32)).collect()
}

fn assert_near(merged: &Merged, expected: &[f64], what: &str) {
    for name in ["w", "wide"] {
        // Short lines may be so near to parallel that the sine of their angle has but half of its digits.
        let tolerance = if name == "w" { 1e-5 } else { 1e-8 };
        let found = merged.values(name);
        assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: element {i} of `{name}` is {a}, not {b}");
        }
    }
}

/// Rows shorter and longer than a block and than a segment, columns fewer and more than are worked on at once.
#[test]
fn every_line_has_an_angle_of_its_own() {
    let mut rng = Rng(11);
    for shape in [[1, 1], [5, 1], [1, 5], [7, 3], [3, 2049], [3000, 2], [2, 70_001], [9, 1500]] {
        let n = shape[0] * shape[1];
        let (a, b) = (random(&mut rng, n), random(&mut rng, n));
        let family = family(shape, &[a.clone(), b.clone()]);
        let stock = family.merged("stock", &stock().yaml());
        assert_near(&stock, &by_lines(shape, false, &a, &b, of_stock), &format!("stock {shape:?}"));
        for by_column in [false, true] {
            if shape[usize::from(!by_column)] == 1 {
                // Lines of one element are parallel.
                continue;
            }
            let merged = family.merged(&format!("nuslerp-{by_column}"), &nuslerp(by_column).yaml());
            let expected = by_lines(shape, by_column, &a, &b, of_nuslerp);
            assert_near(&merged, &expected, &format!("nuslerp {shape:?}, by column: {by_column}"));
        }
    }
}

#[test]
fn lines_do_not_depend_on_threads_and_budgets() {
    let mut rng = Rng(23);
    for shape in [[40, 70_001], [90_000, 3]] {
        let n = shape[0] * shape[1];
        let family = family(shape, &[random(&mut rng, n), random(&mut rng, n)]);
        for (name, text) in [("stock", stock()), ("rows", nuslerp(false)), ("columns", nuslerp(true))] {
            let of = |run: Run, way: &str| {
                let out = family.path(&format!("{name}-{way}"));
                run.merge(&family.recipe(name, &text.yaml()), &out).unwrap();
                crate::support::read(&out)
            };
            let one = of(Run { threads: 1, budget: 64 << 20, ..Run::default() }, "one");
            let many = of(Run { threads: 3, budget: 1 << 30, unmapped: true, ..Run::default() }, "many");
            assert!(one == many, "{name} of {shape:?}");
        }
    }
}

#[test]
fn a_line_without_an_angle_is_averaged_and_leaves_the_others_alone() {
    let (a, mut b) = (vec![1.0, 2.0, 3.0, 0.0, 0.0, 0.0], vec![2.0, 4.0, 6.0, 4.0, 2.0, 0.0]);
    let family = |b: &[f64]| family([2, 3], &[a.clone(), b.to_vec()]);
    // Parallel rows are halfway between, of a row and a row of zeros half the sine is taken.
    let half = 0.5_f64.sqrt();
    assert_near(
        &family(&b).merged("nuslerp", &nuslerp(false).yaml()),
        &[1.5, 3.0, 4.5, 4.0 * half, 2.0 * half, 0.0],
        "nuslerp",
    );
    // model_stock: cosine 1 gives the mean, cosine 0 the base.
    assert_near(&family(&b).merged("stock", &stock().yaml()), &[1.5, 3.0, 4.5, 0.0, 0.0, 0.0], "stock");
    b[4] = f64::NAN;
    for text in [nuslerp(false), stock()] {
        let values = family(&b).merged(&text.method, &text.yaml()).values("w");
        assert_eq!(values[..4], [1.5, 3.0, 4.5, 2.0], "{}", text.method);
        assert!(values[4].is_nan() && values[5] == 0.0);
    }
}

#[test]
fn rows_that_point_apart_are_told() {
    let family = family([2, 2], &[vec![1.0, 2.0, 1.0, 0.5], vec![1.0, 1.0, -1.0, 0.25]]);
    let facts = family.merged("stock", &stock().yaml()).facts("w");
    assert!(facts["remark"].as_str().unwrap().contains("point away from each other"), "{facts}");
    let facts = family.merged("whole", &Text::plain("model_stock", 2).yaml()).facts("w");
    assert!(facts.get("remark").is_none(), "{facts}");
}

#[test]
fn a_plan_counts_the_weights_of_lines() {
    let values = vec![0.5; 200_000 * 4];
    let family = family([200_000, 4], &[values.clone(), values]);
    let least = |text: &Text, name: &str| {
        let plan = Run::default().plan(&family.recipe(name, &text.yaml())).unwrap();
        (plan.memory.largest_step, plan.memory.tables)
    };
    let (step, tables) = least(&stock(), "stock");
    let (whole_step, whole_tables) = least(&Text::plain("model_stock", 2), "whole");
    // Two models, a number of 8 bytes for each of 200 000 rows; kept until the tensor is merged.
    assert_eq!(step, 2 * 200_000 * 8);
    assert!(whole_step < step && tables >= whole_tables + 2 * 200_000 * 8, "{whole_step} {tables} {whole_tables}");
}
