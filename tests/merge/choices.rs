//! What methods that choose elements by an order do at the edges: `sce`, `della`, `della_linear`, `arcee_fusion`, `ties` with one cut a model.

use merganser::dtype::Dtype::{F32, F64};

use crate::support::family::{Family, Merged, Rng};
use crate::support::merge;
use crate::support::recipes::Text;
use crate::support::tensor::Tensor;

/// A base of zeros, so that a model's values are its changes, stored in two types.
fn family(shape: &[u64], models: &[&[f64]]) -> Family {
    let tensors = |values: &[f64]| vec![Tensor::new("w", F32, shape, values), Tensor::new("wide", F64, shape, values)];
    let base = vec![0.0; models[0].len()];
    Family::of([&[&base[..]], models].concat().into_iter().map(tensors).collect())
}

/// What both tensors come to, which is the same: NaN as a text, so that it equals itself.
fn both(merged: &Merged) -> Vec<String> {
    let of = |tensor: &str| written(&merged.values(tensor));
    assert_eq!(of("w"), of("wide"));
    of("w")
}

fn written(values: &[f64]) -> Vec<String> {
    values.iter().map(|v| format!("{v:.6}")).collect()
}

/// The error of a recipe that is refused, and its hints.
fn refused(family: &Family, text: &Text) -> (String, String) {
    let out = family.path("refused");
    let error = merge(&family.recipe("refused", &text.yaml()), &out).unwrap_err();
    assert!(error.exit_code() == 1 && !out.exists(), "{error}");
    (error.to_string(), error.hints().join("\n"))
}

#[test]
fn sce_keeps_what_differs_most_and_weighs_by_squares() {
    // Variances 0, 4, 4, 0: half of the two that differ is one, and what equals it.
    let family = family(&[4], &[&[1.0, -1.0, 2.0, 0.0], &[1.0, 3.0, -2.0, 0.0]]);
    let text = |share: &str| Text::plain("sce", 2).set("select_topk", share);
    // The second element: −1 does not agree. The third: no sum, which counts as above zero.
    assert_eq!(both(&family.merged("half", &text("0.5").yaml())), written(&[0.0, 3.0, 2.0, 0.0]));
    assert_eq!(family.merged("facts", &text("0.5").yaml()).facts("w")["kept"], serde_json::json!([2, 2]));
    assert_eq!(both(&family.merged("none", &text("0.4").yaml())), written(&[0.0; 4]));
    assert_eq!(both(&family.merged("zero", &text("0").yaml())), written(&[0.0; 4]));
    // Without a choice, the mean by the squares 6 and 14, of which only shares matter.
    assert_eq!(both(&family.merged("all", &text("1").yaml())), written(&[1.0, 3.0, 2.0, 0.0]));
    let unequal = self::family(&[2], &[&[1.0, 1.0], &[3.0, 1.0]]);
    let expected = (2.0 * 1.0 + 10.0 * 3.0) / 12.0;
    assert_eq!(both(&unequal.merged("mean", &text("1").yaml())), written(&[expected, 1.0]));
    // Where all are equal, nothing differs.
    let same: &[f64] = &[1.0, 2.0, 3.0];
    let equal = self::family(&[3], &[same, same, same]);
    assert_eq!(
        both(&equal.merged("equal", &Text::plain("sce", 3).set("select_topk", "0.9").yaml())),
        written(&[0.0; 3])
    );
}

#[test]
fn a_nan_or_an_infinity_stays_where_it_is() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let family =
        family(&[2, 4], &[&[1.0, nan, 2.0, 0.5, 1.0, 1.0, inf, 0.1], &[1.5, 1.0, 3.0, 0.2, 1.0, 2.0, 1.0, 0.3]]);
    for text in [
        Text::plain("sce", 2).set("select_topk", "0.5"),
        Text::plain("sce", 2),
        Text::plain("della", 2).set("density", "0.5"),
        Text::plain("della_linear", 2).set("density", "0.5").set("rescale", "inverse_p"),
        Text::plain("arcee_fusion", 1),
        Text::plain("ties", 2).set("density", "0.5").set("scope", "model"),
    ] {
        let name =
            text.method.clone() + &text.parameters.len().to_string() + &text.parameters.last().map_or("", |p| &p.0);
        let merged = family.merged(&name, &text.yaml());
        for tensor in ["w", "wide"] {
            let values = merged.values(tensor);
            let bad: Vec<usize> = (0..8).filter(|i| !values[*i].is_finite()).collect();
            assert!(bad.iter().all(|i| [1, 6].contains(i)), "{name}, {tensor}: {values:?}");
        }
    }
}

#[test]
fn one_cut_a_model_keeps_the_largest_of_all_its_tensors() {
    let tensors = |large: &[f64], small: &[f64]| {
        vec![
            Tensor::new("large", F32, &[4], large),
            Tensor::new("small", F32, &[4], small),
            Tensor::new("wide", F64, &[2, 2], large),
            Tensor::new("number", F32, &[], &small[..1]),
        ]
    };
    let zeros = [0.0; 4];
    let family = Family::of(vec![
        tensors(&zeros, &zeros),
        tensors(&[4.0, -3.0, 2.0, 1.0], &[0.1, 0.2, -0.3, 0.4]),
        tensors(&[1.0; 4], &[1.0; 4]),
    ]);
    let text = |density: &str| Text::plain("ties", 1).set("density", density).set("scope", "model");
    // int(0.5 · 13) = 6: three of each of the two with large changes.
    let merged = family.merged("half", &text("0.5").yaml());
    assert_eq!(written(&merged.values("large")), written(&[4.0, -3.0, 2.0, 0.0]));
    assert_eq!(merged.values("large"), merged.values("wide"));
    assert_eq!(written(&merged.values("small")), written(&zeros));
    assert_eq!(merged.facts("small")["cut"], serde_json::json!([2.0]));
    // Each by itself keeps two.
    let by_tensor = family.merged("tensor", &text("0.5").set("scope", "tensor").yaml());
    assert_eq!(written(&by_tensor.values("small")), written(&[0.0, 0.0, -0.3, 0.4]));
    // What equals the cut is kept, in all tensors.
    let second = Text { models: vec![2], ..text("0.1") };
    assert_eq!(written(&family.merged("equal", &second.yaml()).values("small")), written(&[1.0; 4]));
    assert_eq!(family.merged("none", &text("0").yaml()).facts("large")["cut"], serde_json::json!([null]));
    assert_eq!(written(&family.merged("all", &text("1").yaml()).values("small")), written(&[0.1, 0.2, -0.3, 0.4]));
}

#[test]
fn one_cut_a_model_needs_one_density_a_model() {
    let family = family(&[4], &[&[1.0; 4], &[2.0; 4]]);
    let text =
        Text::plain("ties", 2).set("scope", "model").set("density", "[{filter: wide, value: 0.3}, {value: 0.5}]");
    let (message, hint) = refused(&family, &text);
    let place = "refused.yaml:8: `scope: model` cuts all tensors of a model at one magnitude, but `density` of model 1 is 0.3 and 0.5";
    assert!(message.contains(place) && message.ends_with("for `wide` and `w`"), "{message}");
    assert!(hint.contains("`scope: tensor`"), "{hint}");
    let mixed =
        Text::plain("ties", 2).set("density", "0.5").set("scope", "[{filter: wide, value: tensor}, {value: model}]");
    let (message, _) = refused(&family, &mixed);
    assert!(
        message.contains("refused.yaml:8: ") && message.contains("`scope` differs for `wide` and `w`"),
        "{message}"
    );
}

#[test]
fn probabilities_must_lie_between_none_and_one() {
    let family = family(&[4], &[&[1.0; 4]]);
    for (method, density, epsilon, range) in [
        ("della", "0.9", "0.15", "from 0.75 to 1.05"),
        ("della_linear", "0.1", "0.1", "from 0 to 0.2"),
        ("della", "0.5", "-0.5", "from 0 to 1"),
    ] {
        let text = Text::plain(method, 1).set("density", density).set("epsilon", epsilon);
        let (message, hint) = refused(&family, &text);
        let expected = format!(
            "refused.yaml:7: `density` {density} and `epsilon` {epsilon} of model 1 give probabilities {range}"
        );
        assert!(message.contains(&expected) && message.ends_with("for `wide`"), "{message}");
        assert!(hint.starts_with("give an `epsilon` below 0."), "{hint}");
    }
    // With the default, the line of what was given.
    let (message, _) = refused(&family, &Text::plain("della", 1).set("density", "0.9"));
    assert!(message.contains("refused.yaml:6: "), "{message}");
}

#[test]
fn della_keeps_large_elements_rather_than_small_ones_and_goes_by_position_among_equal_ones() {
    let n = 40_000;
    let mut rng = Rng(3);
    let values: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
    let family = family(&[1, n as u64], &[&values, &vec![1.0; n]]);
    let text = |model: usize, rescale: &str| {
        let text = Text::plain("della_linear", 1).models(&[model]).set("density", "0.5").set("epsilon", "0.4");
        text.set("rescale", rescale)
    };
    let quarters = |merged: &Merged, order: &[usize]| -> Vec<f64> {
        let values = merged.values("w");
        order
            .chunks(n / 4)
            .map(|part| part.iter().filter(|i| values[**i] != 0.0).count() as f64 / part.len() as f64)
            .collect()
    };
    let mut by_size: Vec<usize> = (0..n).collect();
    by_size.sort_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
    let by_place: Vec<usize> = (0..n).collect();
    for (model, order) in [(1, &by_size), (2, &by_place)] {
        let merged = family.merged(&format!("none-{model}"), &text(model, "none").yaml());
        let found = quarters(&merged, order);
        // 0.2, 0.4, 0.6, 0.8 to five standard errors.
        let near = found.iter().zip([0.2, 0.4, 0.6, 0.8]).all(|(f, p)| (f - p).abs() < 0.025);
        assert!(near, "model {model}: {found:?}");
        let kept = merged.facts("w")["kept"][0].as_u64().unwrap();
        assert_eq!(kept, merged.values("w").iter().filter(|v| **v != 0.0).count() as u64);
    }
    // The L1 norm is what it was; by one over the probability the sum is, but for chance.
    let l1 = |values: &[f64]| values.iter().map(|v| v.abs()).sum::<f64>();
    let restored = family.merged("l1", &text(1, "true").yaml()).values("w");
    assert!((l1(&restored) / l1(&values) - 1.0).abs() < 1e-5);
    let inverse = l1(&family.merged("inverse", &text(2, "inverse_p").yaml()).values("w"));
    assert!((inverse / n as f64 - 1.0).abs() < 0.03, "{inverse}");
}

#[test]
fn rows_of_one_element_are_kept_with_the_density() {
    let n = 20_000;
    let family = family(&[n, 1], &[&vec![1.0; n as usize]]);
    let text = Text::plain("della", 1).set("density", "0.3").set("rescale", "false");
    let kept = family.merged("column", &text.yaml()).values("w").iter().sum::<f64>() / n as f64;
    assert!((kept - 0.3).abs() < 0.02, "{kept}");
    let fused = self::family(&[3, 1], &[&[1.0, -2.0, 0.0]]);
    assert_eq!(both(&fused.merged("fused", &Text::plain("arcee_fusion", 1).yaml())), written(&[1.0, -2.0, 0.0]));
}

#[test]
fn fusion_keeps_outliers_of_rows_that_moved() {
    // Three rows: one as it was, one whose distribution stays (all shifted alike), one that has an outlier.
    let mut values = vec![0.0; 24];
    values[8..16].fill(2.0);
    values[16..].copy_from_slice(&[0.01, 0.02, 5.0, 0.01, 0.02, 0.01, 0.03, 0.02]);
    let family = family(&[3, 8], &[&values]);
    let merged = both(&family.merged("fused", &Text::plain("arcee_fusion", 1).yaml()));
    // Half of all importances are 0, so the threshold is above them only as far as the third quartile is.
    assert_eq!(merged[18], "5.000000");
    assert_eq!(merged[..16], written(&[0.0; 16]));
    // A zero task vector changes nothing; what diverges nowhere is kept, as its importance reaches the threshold 0.
    let none = self::family(&[2, 3], &[&[0.0; 6]]);
    assert_eq!(both(&none.merged("none", &Text::plain("arcee_fusion", 1).yaml())), written(&[0.0; 6]));
    let shifted = self::family(&[1, 3], &[&[1.0; 3]]);
    assert_eq!(both(&shifted.merged("shifted", &Text::plain("arcee_fusion", 1).yaml())), written(&[1.0; 3]));
}
