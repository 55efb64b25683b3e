//! What methods that choose elements by size do at the edges: `breadcrumbs`, `breadcrumbs_ties`, `nearswap`, `ram`, `ramplus_tl`.

use merganser::dtype::Dtype::{F32, F64};

use crate::support::family::{Family, Rng};
use crate::support::recipes::Text;
use crate::support::tensor::Tensor;
use crate::support::{Run, quick_folder};

/// A base of zeros, so that a model's values are its changes.
fn family(models: &[&[f64]]) -> Family {
    let n = models[0].len();
    let tensors = |values: &[f64]| {
        vec![Tensor::new("w", F32, &[n as u64], values), Tensor::new("wide", F64, &[n as u64], values)]
    };
    let base = vec![0.0; n];
    Family::of([&[&base[..]], models].concat().into_iter().map(tensors).collect())
}

/// What both tensors come to, which is the same: NaN as a string, so that it equals itself.
fn merged(family: &Family, name: &str, text: &Text) -> Vec<String> {
    let merged = family.merged(name, &text.yaml());
    let of = |tensor: &str| merged.values(tensor).iter().map(|v| format!("{v:.6}")).collect::<Vec<_>>();
    assert_eq!(of("w"), of("wide"), "{name}");
    of("w")
}

fn written(values: &[f64]) -> Vec<String> {
    values.iter().map(|v| format!("{v:.6}")).collect()
}

fn breadcrumbs(density: f64, gamma: f64) -> Text {
    Text::plain("breadcrumbs", 1).set("density", &density.to_string()).set("gamma", &gamma.to_string())
}

#[test]
fn a_band_of_magnitudes_is_kept() {
    let family = family(&[&[3.0, -9.0, 1.0, 10.0, -5.0, 2.0, 6.0, -8.0, 4.0, 7.0]]);
    for (density, gamma, kept) in [
        (0.5, 0.2, [0.0, 0.0, 0.0, 0.0, -5.0, 0.0, 6.0, -8.0, 4.0, 7.0]),
        // No more outliers can go than are left over.
        (0.9, 0.4, [3.0, -9.0, 1.0, 0.0, -5.0, 2.0, 6.0, -8.0, 4.0, 7.0]),
        (0.3, 0.0, [0.0, -9.0, 0.0, 10.0, 0.0, 0.0, 0.0, -8.0, 0.0, 0.0]),
        // int(gamma · n) and int(density · n) are cut down.
        (0.39, 0.19, [0.0, -9.0, 0.0, 0.0, 0.0, 0.0, 0.0, -8.0, 0.0, 7.0]),
        (1.0, 1.0, [3.0, -9.0, 1.0, 10.0, -5.0, 2.0, 6.0, -8.0, 4.0, 7.0]),
        (0.09, 0.1, [0.0; 10]),
        (0.0, 0.0, [0.0; 10]),
    ] {
        let name = format!("{density}-{gamma}");
        assert_eq!(merged(&family, &name, &breadcrumbs(density, gamma)), written(&kept), "{name}");
        let ties = Text { method: "breadcrumbs_ties".into(), ..breadcrumbs(density, gamma) };
        assert_eq!(merged(&family, &format!("ties-{name}"), &ties), written(&kept), "{name}");
    }
    let facts = family.merged("facts", &breadcrumbs(0.5, 0.2).yaml()).facts("w");
    assert_eq!((&facts["kept"], &facts["share_kept"]), (&serde_json::json!([5]), &serde_json::json!([0.5])));
}

#[test]
fn what_equals_an_end_of_the_band_is_kept() {
    let all = family(&[&[2.0, -2.0, 2.0, 2.0, -2.0, 2.0, 2.0]]);
    assert_eq!(merged(&all, "all", &breadcrumbs(0.3, 0.2)), written(&[2.0, -2.0, 2.0, 2.0, -2.0, 2.0, 2.0]));
    let ends = family(&[&[1.0, -1.0, 2.0, 3.0, -3.0, 1.0, 4.0]]);
    // 1 1 1 2 3 3 4: without the largest, three from the third on are 2, 3 and 3; of four the least is a 1, as two others are.
    assert_eq!(merged(&ends, "three", &breadcrumbs(0.43, 0.15)), written(&[0.0, 0.0, 2.0, 3.0, -3.0, 0.0, 0.0]));
    let four = ends.merged("four", &breadcrumbs(0.58, 0.15).yaml());
    assert_eq!(four.values("w"), [1.0, -1.0, 2.0, 3.0, -3.0, 1.0, 0.0]);
    assert_eq!(four.facts("w")["kept"], serde_json::json!([6]));
}

#[test]
fn tensors_of_one_element_and_without_change_are_the_bases() {
    let one = family(&[&[5.0]]);
    assert_eq!(merged(&one, "lost", &breadcrumbs(0.9, 0.01)), written(&[0.0]));
    assert_eq!(merged(&one, "kept", &breadcrumbs(1.0, 0.01)), written(&[5.0]));
    let none = family(&[&[0.0, -0.0, 0.0], &[0.0, 0.0, -0.0]]);
    for text in [
        Text::plain("breadcrumbs", 2).set("density", "0.5").set("rescale", "true"),
        Text::plain("breadcrumbs_ties", 2).set("density", "0.5").set("normalize", "true"),
        Text::plain("nearswap", 1).set("t", "0.5"),
        Text::plain("ram", 2),
        Text::plain("ram", 2).set("epsilon", "0"),
        Text::plain("ramplus_tl", 2),
        Text::plain("ramplus_tl", 2).set("epsilon", "0").set("r", "2"),
    ] {
        let out = none.merged(&format!("{}-{}", text.method, text.parameters.len()), &text.yaml());
        for name in ["w", "wide"] {
            assert_eq!(out.bytes(name), none.tensor(0, name).bytes, "{text:?}");
        }
    }
}

#[test]
fn a_nan_is_among_the_largest() {
    let family = family(&[&[1.0, f64::NAN, 3.0, f64::INFINITY, 2.0, 4.0]]);
    assert_eq!(merged(&family, "dropped", &breadcrumbs(0.5, 0.34)), written(&[0.0, 0.0, 3.0, 0.0, 2.0, 4.0]));
    assert_eq!(
        merged(&family, "kept", &breadcrumbs(0.5, 0.0)),
        written(&[0.0, f64::NAN, 0.0, f64::INFINITY, 0.0, 4.0])
    );
}

#[test]
fn keeping_everything_is_task_arithmetic() {
    let family = family(&[&[1.5, -2.0, 0.25], &[-1.0, 0.5, 0.125]]);
    let plain = family.merged("plain", &Text::plain("task_arithmetic", 2).set("lambda", "0.3").yaml());
    let whole = Text::plain("breadcrumbs", 2).set("lambda", "0.3").set("gamma", "0.5").set("rescale", "true");
    assert_eq!(family.merged("whole", &whole.yaml()).bytes("w"), plain.bytes("w"));
}

/// Large enough that cuts are found from a sample, with values that repeat.
#[test]
fn both_cuts_of_a_large_tensor_are_exact() {
    let n = 200_000_usize;
    let mut rng = Rng(5);
    for coarse in [false, true] {
        let value = |x: f64| if coarse { (x * 64.0).round() / 64.0 } else { f64::from(x as f32) };
        let values: Vec<f64> = (0..n).map(|_| value(rng.normal())).collect();
        let base = Tensor::new("w", F32, &[n as u64], &vec![0.0; n]);
        let family = Family::of(vec![vec![base], vec![Tensor::new("w", F32, &[n as u64], &values)]]);
        let mut sizes: Vec<f64> = values.iter().map(|v| v.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        for (density, gamma) in [(0.5, 0.1), (0.9, 0.001), (0.02, 0.97), (0.9, 0.5)] {
            let (held, top) = ((density * n as f64) as usize, (gamma * n as f64) as usize);
            let below = (n - held).saturating_sub(top);
            let (least, most) = (sizes[below], sizes[below + held - 1]);
            let is_kept = |v: &f64| v.abs() >= least && v.abs() <= most;
            let merged = family.merged(&format!("{coarse}-{density}-{gamma}"), &breadcrumbs(density, gamma).yaml());
            let expected: Vec<f64> = values.iter().map(|v| if is_kept(v) { *v } else { 0.0 }).collect();
            assert!(merged.values("w") == expected, "{coarse} {density} {gamma}");
            let kept = values.iter().filter(|v| is_kept(v)).count();
            assert_eq!(merged.facts("w")["kept"], serde_json::json!([kept]));
        }
    }
}

#[test]
fn nearswap_goes_no_further_than_t() {
    let changes = [0.05, -0.05, 0.3, -0.3, 0.0, 1e-7, f64::NAN, f64::INFINITY];
    let family = family(&[&changes]);
    let of = |t: &str| merged(&family, &format!("t{t}"), &Text::plain("nearswap", 1).set("t", t));
    assert_eq!(of("0.1"), written(&[0.05, -0.05, 0.1, -0.1, 0.0, 0.0, f64::NAN, f64::NAN]));
    let base = written(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, f64::NAN, f64::NAN]);
    assert_eq!([of("0"), of("-3")], [base.clone(), base]);
    // A |τ| below 1e-6 counts as 1e-6: half of it is taken at t = 5e-7.
    let small = family.merged("small", &Text::plain("nearswap", 1).set("t", "5e-7").yaml());
    assert!((small.values("wide")[5] - 0.5e-7).abs() < 1e-15, "{:?}", small.values("wide"));
    assert!((small.values("wide")[0] - 5e-7).abs() < 1e-15);
}

#[test]
fn ram_takes_the_mean_of_what_changed() {
    let family = family(&[
        &[4.0, 0.0, 1e-6, 2.0, 0.0, f64::NAN, f64::INFINITY, 1.0],
        &[2.0, 6.0, 0.0, -2.0, 0.0, 0.0, 3.0, 1.0],
        &[0.0, 0.0, 0.0, 3.0, -5.0, 1.0, 0.0, 1.0],
    ]);
    let expected = [3.0, 6.0, 0.0, 1.0, -5.0, f64::NAN, f64::INFINITY, 1.0];
    assert_eq!(merged(&family, "ram", &Text::plain("ram", 3)), written(&expected));
    // With epsilon 2 a change of 2 is none.
    let expected = [4.0, 6.0, 0.0, 3.0, -5.0, f64::NAN, f64::INFINITY, 0.0];
    assert_eq!(merged(&family, "two", &Text::plain("ram", 3).set("epsilon", "2")), written(&expected));
    // With epsilon 0 the smallest change is one.
    let small = family.merged("zero", &Text::plain("ram", 3).set("epsilon", "0").yaml());
    assert!((small.values("wide")[2] - 1e-6).abs() < 1e-15);
}

#[test]
fn ramplus_scales_what_one_model_alone_changed() {
    // The first changed three of five elements alone, the second one of three.
    let family = family(&[&[1.0, 2.0, 3.0, 4.0, 6.0, 0.0], &[0.0, 0.0, 0.0, 2.0, 2.0, 5.0]]);
    let of = |name: &str, alpha: &str| {
        merged(&family, name, &Text::plain("ramplus_tl", 2).set("r", "0.5").set("alpha", alpha))
    };
    let (first, second) = (1.0 + 0.5 * 2.0 / 3.0, 1.0 + 0.5 * 2.0);
    assert_eq!(of("free", "9"), written(&[first, 2.0 * first, 3.0 * first, 3.0, 4.0, 5.0 * second]));
    assert_eq!(of("most", "0.2"), written(&[1.1, 2.2, 3.3, 3.0, 4.0, 5.5]));
    assert_eq!(of("none", "0"), merged(&family, "ram", &Text::plain("ram", 2)));
}

#[test]
fn mistakes_are_refused_with_line_and_key_before_anything_is_read() {
    // The models are empty folders: nobody looks into them.
    let folder = quick_folder();
    for name in ["base", "model-1", "model-2"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let recipe = folder.path().join("mistake.yaml");
    for (text, expected) in [
        (breadcrumbs(0.5, 1.5), "gamma"),
        (breadcrumbs(0.5, -0.1), "gamma"),
        (breadcrumbs(1.2, 0.1), "density"),
        (Text::plain("breadcrumbs_ties", 2).set("gamma", "often"), "gamma"),
        (Text::plain("nearswap", 1), "t"),
        (Text::plain("nearswap", 2).set("t", "0.1"), "nearswap"),
        (Text { base: false, ..Text::plain("ram", 2) }, "base_model"),
        (Text::plain("ram", 2).set("epsilon", "-1"), "epsilon"),
        (Text::plain("ramplus_tl", 2).set("alpha", "-0.1"), "alpha"),
        (Text::plain("ramplus_tl", 2).set("r", "much"), "r"),
    ] {
        std::fs::write(&recipe, text.yaml()).unwrap();
        let error = Run::default().plan(&recipe).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("mistake.yaml") && said.contains(&format!("`{expected}`")), "{said}");
    }
}
