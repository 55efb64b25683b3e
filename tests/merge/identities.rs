//! What must hold of every method whatever the numbers are: identities, invariants, and what becomes of NaN and infinity.

use std::collections::BTreeMap;

use merganser::dtype::Dtype::{self, *};
use merganser::methods::find;

use crate::support::family::{Family, Merged, relative};
use crate::support::recipes::{Text, methods, models_of, staged_methods};
use crate::support::tensor::Tensor;
use crate::support::{merge, quick_folder};

/// Layers, matrices of both orientations, vectors, a convolution, every float dtype.
const SPECS: &[(&str, Dtype, &[u64])] = &[
    ("model.embed.weight", BF16, &[50, 24]),
    ("model.layers.0.self_attn.q_proj.weight", F32, &[24, 24]),
    ("model.layers.0.mlp.up_proj.weight", BF16, &[40, 24]),
    ("model.layers.0.norm.weight", F32, &[24]),
    ("model.layers.1.self_attn.q_proj.weight", F16, &[24, 24]),
    ("model.layers.1.mlp.down_proj.weight", F32, &[24, 40]),
    ("model.layers.1.conv.weight", F32, &[5, 3, 2, 2]),
    ("model.layers.2.self_attn.q_proj.weight", F64, &[24, 24]),
    ("model.layers.2.mlp.up_proj.weight", F32, &[40, 24]),
    ("model.layers.2.codes", F8_E4M3, &[40]),
    ("model.layers.2.scale", F32, &[]),
    ("head.weight", F32, &[10, 24]),
    ("steps", I64, &[4]),
];

fn family(models: usize) -> Family {
    let mut family = Family::new(quick_folder(), SPECS, models, 17);
    // Negative zeros in the base, which must come through where nothing changes, and an element that no model changes.
    for (member, tensors) in family.members.iter_mut().enumerate() {
        for tensor in tensors.iter_mut().filter(|t| t.is_float()) {
            let size = tensor.dtype.bitsize() / 8;
            for element in [0, 3] {
                if element * size < tensor.bytes.len() && (member == 0 || element == 0) {
                    let mut zero = vec![0; size];
                    zero[size - 1] = 0x80;
                    tensor.bytes[element * size..][..size].copy_from_slice(&zero);
                }
            }
        }
    }
    family.write();
    family
}

fn floats(family: &Family) -> impl Iterator<Item = &Tensor> {
    family.members[0].iter().filter(|t| t.is_float())
}

fn assert_same(what: &str, a: &Merged, b: &Merged) {
    assert_eq!(a.tensors.keys().collect::<Vec<_>>(), b.tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &a.tensors {
        assert!(tensor == &b.tensors[name], "{what}: `{name}` differs");
    }
}

/// Fails unless every tensor is the base's, bit for bit.
fn assert_base(what: &str, family: &Family, merged: &Merged) {
    for tensor in &family.members[0] {
        assert!(tensor == &merged.tensors[&tensor.name], "{what}: `{}` is not the base's", tensor.name);
    }
}

/// Fails where a tensor is further from `expected` than this share of its change from the base.
fn assert_near(what: &str, family: &Family, merged: &Merged, expected: impl Fn(&str) -> Vec<f64>, tolerance: f64) {
    for tensor in floats(family) {
        let apart = relative(&merged.values(&tensor.name), &expected(&tensor.name), &tensor.values());
        assert!(apart <= tolerance, "{what}: `{}` is {apart:e} away", tensor.name);
    }
}

#[test]
fn keeping_all_is_no_stage_and_keeping_nothing_is_the_base() {
    let family = family(3);
    for method in staged_methods() {
        let plain = family.merged(method.name, &Text::of(method).yaml());
        for granularity in ["layer", "tensor", "row", "column", "element"] {
            let name = format!("{}-{granularity}", method.name);
            let stage = |keep: &str| format!("granularity: {granularity}, keep: {keep}, rescale: l2");
            let all = family.merged(&format!("{name}-all"), &Text::of(method).lwptv(&stage("1.0")).yaml());
            assert_same(&name, &plain, &all);
            let none = family.merged(&format!("{name}-none"), &Text::of(method).lwptv(&stage("0.0")).yaml());
            assert_base(&name, &family, &none);
        }
    }
}

#[test]
fn a_layer_that_every_task_drops_is_the_bases_bit_for_bit() {
    let family = family(3);
    let mut dropped = 0;
    for method in staged_methods() {
        for granularity in ["layer", "tensor"] {
            let stage = format!("granularity: {granularity}, keep: 0.3, score: relative");
            let merged =
                family.merged(&format!("{}-{granularity}", method.name), &Text::of(method).lwptv(&stage).yaml());
            let mut kept_any = false;
            for tensor in floats(&family) {
                let kept = kept(&merged.facts(&tensor.name));
                if kept.iter().all(|k| *k == 0) {
                    dropped += 1;
                    assert!(merged.bytes(&tensor.name) == tensor.bytes, "{}: `{}`", method.name, tensor.name);
                } else {
                    kept_any |= merged.bytes(&tensor.name) != tensor.bytes;
                }
            }
            assert!(kept_any, "{} with {granularity} changes nothing", method.name);
        }
    }
    assert!(dropped > 0, "nothing was dropped anywhere");
}

/// Elements that the first stage kept, by model.
fn kept(facts: &serde_json::Value) -> Vec<u64> {
    facts["stages"][0]["kept"].as_array().unwrap().iter().map(|k| k.as_u64().unwrap()).collect()
}

#[test]
fn masks_are_nested_in_what_is_kept() {
    let family = family(1);
    for granularity in ["layer", "tensor", "row", "column", "element"] {
        for order in ["keep_salient", "keep_redundant"] {
            for score in ["magnitude", "relative"] {
                let mut before: BTreeMap<String, Vec<bool>> = BTreeMap::new();
                for keep in ["0.0", "0.2", "0.5", "0.7", "0.95", "1.0"] {
                    let stage = format!("granularity: {granularity}, keep: {keep}, score: {score}, order: {order}");
                    let name = format!("{granularity}-{order}-{score}-{keep}");
                    let merged = family.merged(&name, &Text::plain("task_arithmetic", 1).lwptv(&stage).yaml());
                    for tensor in floats(&family) {
                        let changed = changes(tensor, &merged);
                        if let Some(less) = before.insert(tensor.name.clone(), changed.clone()) {
                            let nested = less.iter().zip(&changed).all(|(less, more)| !less | more);
                            assert!(nested, "{name}: `{}` loses what less kept", tensor.name);
                        }
                    }
                }
                let all: usize = before.values().flatten().filter(|c| **c).count();
                assert!(all > 1000, "{all} elements change");
            }
        }
    }
}

fn changes(base: &Tensor, merged: &Merged) -> Vec<bool> {
    let size = base.dtype.bitsize() / 8;
    let pairs = base.bytes.chunks(size).zip(merged.bytes(&base.name).chunks(size));
    pairs.map(|(a, b)| a != b).collect()
}

#[test]
fn a_tasks_mask_does_not_depend_on_the_order_of_the_models() {
    let family = family(3);
    let orders: [&[usize]; 4] = [&[1, 2, 3], &[3, 1, 2], &[2, 1, 3], &[3, 2, 1]];
    for granularity in ["layer", "tensor", "row", "column", "element"] {
        for score in ["magnitude", "relative", "deviation", "agreement", "tall"] {
            let stage = format!("granularity: {granularity}, keep: 0.4, score: {score}");
            let mut by_model: Vec<BTreeMap<usize, Vec<u64>>> = Vec::new();
            for (i, order) in orders.into_iter().enumerate() {
                let text = Text::plain("task_arithmetic", 3).models(order).lwptv(&stage);
                let merged = family.merged(&format!("{granularity}-{score}-{i}"), &text.yaml());
                let mut of_models: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
                for tensor in floats(&family) {
                    let kept = kept(&merged.facts(&tensor.name));
                    order.iter().zip(kept).for_each(|(model, k)| of_models.entry(*model).or_default().push(k));
                }
                by_model.push(of_models);
            }
            // Ties in the element-wise scores of rounded numbers are kept whole, so the counts are those of any order.
            assert!(by_model.windows(2).all(|w| w[0] == w[1]), "{granularity}, {score}: {by_model:?}");
        }
    }
}

#[test]
fn two_models_in_either_order_give_the_same_bytes_where_sums_commute() {
    let family = family(2);
    for method in ["task_arithmetic", "ties", "linear"] {
        for granularity in ["layer", "tensor", "row", "column", "element"] {
            for score in ["magnitude", "relative", "deviation", "agreement", "tall"] {
                let stage = format!("granularity: {granularity}, keep: 0.4, score: {score}");
                let of = |order: &[usize]| {
                    let text = Text::plain(method, 2).models(order).lwptv(&stage);
                    family.merged(&format!("{method}-{granularity}-{score}-{}", order[0]), &text.yaml())
                };
                assert_same(&format!("{method}, {granularity}, {score}"), &of(&[1, 2]), &of(&[2, 1]));
            }
        }
    }
}

#[test]
fn cart_of_full_rank_is_the_average_for_every_lambda() {
    let family = family(3);
    let average = family.merged("average", &Text::plain("linear", 3).more("out_dtype: float64").yaml());
    for lambda in ["-1.0", "0.0", "1.0", "2.0", "5.0"] {
        for rank in ["rank_ratio: 1.0", "energy: 1.0", "rank: 1000"] {
            let (key, value) = rank.split_once(": ").unwrap();
            let text = Text::plain("cart", 3).set("lambda", lambda).set(key, value).more("out_dtype: float64");
            let merged = family.merged(&format!("cart{lambda}-{key}"), &text.yaml());
            assert_near(&format!("λ = {lambda}, {rank}"), &family, &merged, |t| average.values(t), 1e-5);
        }
    }
}

#[test]
fn cart_of_one_model_is_that_model() {
    let family = family(1);
    let merged = family.merged("one", &Text::plain("cart", 1).yaml());
    for tensor in floats(&family) {
        // As numbers: a matrix goes through sums that make a negative zero a positive one.
        assert_eq!(merged.values(&tensor.name), family.tensor(1, &tensor.name).values(), "`{}`", tensor.name);
    }
}

#[test]
fn cart_does_not_depend_on_the_order_of_the_models_beyond_rounding() {
    let family = family(3);
    let of = |name: &str, models: &[usize]| {
        family.merged(
            name,
            &Text::plain("cart", 3).set("rank_ratio", "0.2").models(models).more("out_dtype: float64").yaml(),
        )
    };
    let first = of("123", &[1, 2, 3]);
    for (name, order) in [("312", [3, 1, 2]), ("213", [2, 1, 3])] {
        assert_near(name, &family, &of(name, &order), |t| first.values(t), 1e-6);
    }
}

/// Scaling all W_t − W̄ by c scales the change from W̄ by c.
#[test]
fn the_change_of_cart_scales_with_its_sources() {
    let scaled = |factor: f64| {
        let mut family = Family::new(quick_folder(), &[("layers.0.mlp.w.weight", F64, &[20, 30])], 3, 5);
        let values: Vec<Vec<f64>> = family.members.iter().map(|m| m[0].values()).collect();
        let mean = |i: usize| (values[1][i] + values[2][i] + values[3][i]) / 3.0;
        for (member, values) in family.members.iter_mut().zip(&values).skip(1) {
            let new: Vec<f64> = (0..600).map(|i| mean(i) + factor * (values[i] - mean(i))).collect();
            member[0] = Tensor::new("layers.0.mlp.w.weight", F64, &[20, 30], &new);
        }
        family.write();
        let merged = family.merged("cart", &Text::plain("cart", 3).set("rank_ratio", "0.2").yaml());
        let merged = merged.values("layers.0.mlp.w.weight");
        (0..600).map(|i| merged[i] - mean(i)).collect::<Vec<f64>>()
    };
    let once = scaled(1.0);
    for factor in [0.25, 3.0, -1.0] {
        let expected: Vec<f64> = once.iter().map(|d| d * factor).collect();
        let apart = relative(&scaled(factor), &expected, &vec![0.0; 600]);
        assert!(apart <= 1e-9, "{factor}: {apart:e}");
    }
}

#[test]
fn equal_models_average_to_themselves_bit_for_bit() {
    let mut family = family(4);
    for model in 2..=4 {
        family.members[model] = family.members[1].clone();
    }
    family.write();
    for models in [2, 4] {
        for (method, key, value) in
            [("linear", "weight", "1.0"), ("linear", "weight", "0.5"), ("cart", "lambda", "2.0")]
        {
            let text = Text::plain(method, models).set(key, value);
            // A weight for all would make the base one of the averaged.
            let text = Text { base: key != "weight", ..text };
            let merged = family.merged(&format!("{method}-{value}-{models}"), &text.yaml());
            for tensor in floats(&family) {
                let model = family.tensor(1, &tensor.name);
                let is_same = match method {
                    // Sums of matrices make a negative zero a positive one.
                    "cart" => merged.values(&tensor.name) == model.values(),
                    _ => merged.bytes(&tensor.name) == model.bytes,
                };
                assert!(is_same, "{method} of {models}: `{}`", tensor.name);
            }
        }
    }
}

#[test]
fn a_scale_of_zero_or_a_weight_of_zero_is_the_base() {
    let family = family(3);
    for method in methods().filter(|m| m.takes_stages && m.parameters.iter().any(|p| p.name == "lambda")) {
        if method.name == "cart" {
            continue; // Around the average, not the base.
        }
        let merged = family.merged(&format!("{}-0", method.name), &Text::of(method).set("lambda", "0.0").yaml());
        assert_base(method.name, &family, &merged);
    }
    for method in ["task_arithmetic", "ties", "dare_linear"] {
        let merged = family.merged(&format!("{method}-w0"), &Text::plain(method, 3).set("weight", "0.0").yaml());
        assert_base(method, &family, &merged);
    }
    let slerp = family.merged("slerp-0", &Text::plain("slerp", 1).set("t", "0.0").yaml());
    assert_near("slerp at 0", &family, &slerp, |t| family.tensor(0, t).values(), 0.0);
}

#[test]
fn one_model_taken_whole_is_that_model() {
    let family = family(1);
    let whole = [
        Text::plain("ties", 1).set("density", "1.0"),
        Text::plain("task_arithmetic", 1),
        Text::plain("magmax", 1),
        Text::plain("dare_ties", 1),
        Text::plain("breadcrumbs_ties", 1),
        Text::plain("nearswap", 1).set("t", "9"),
        Text::plain("ram", 1).set("epsilon", "0"),
        Text::plain("slerp", 1).set("t", "1.0"),
        Text::plain("linear", 1),
        Text::plain("passthrough", 1),
    ];
    for text in whole {
        let merged = family.merged(&text.method, &text.yaml());
        // θ₀ + (θ₁ − θ₀) rounds twice in float32, and then once more to what is stored.
        assert_near(&text.method, &family, &merged, |t| family.tensor(1, t).values(), 2e-6);
    }
}

#[test]
fn dropping_nothing_at_random_is_the_method_without_it() {
    let family = family(3);
    for (dare, plain) in [("dare_linear", "task_arithmetic"), ("dare_ties", "ties")] {
        let dare = family.merged(dare, &Text::plain(dare, 3).set("density", "1.0").set("normalize", "false").yaml());
        let plain = family.merged(plain, &Text::plain(plain, 3).set("normalize", "false").yaml());
        assert_same("density 1", &dare, &plain);
    }
}

#[test]
fn random_masks_keep_about_the_share_asked_for_and_are_the_tasks_own() {
    let specs: &[(&str, Dtype, &[u64])] = &[("a", F32, &[200, 300]), ("b", F32, &[60_000])];
    let family = Family::new(quick_folder(), specs, 2, 9);
    let merged = family.merged("dare", &Text::plain("dare_linear", 2).set("density", "0.25").yaml());
    let mut counts = Vec::new();
    for name in ["a", "b"] {
        for kept in merged.facts(name)["kept"].as_array().unwrap() {
            let kept = kept.as_u64().unwrap();
            // Six standard deviations of a binomial distribution of 60 000 draws.
            assert!((kept as f64 - 15_000.0).abs() < 6.0 * 106.1, "{kept}");
            counts.push(kept);
        }
    }
    counts.sort_unstable();
    counts.dedup();
    assert!(counts.len() > 1, "masks of different models and tensors are the same: {counts:?}");
}

#[test]
fn on_a_tie_magmax_takes_the_later_model() {
    let tensor = |values: &[f64]| vec![Tensor::new("w", F32, &[4], values)];
    let family = Family::of(vec![
        tensor(&[1.0, 1.0, 1.0, 1.0]),
        tensor(&[1.5, 0.5, 2.0, 1.0]),
        tensor(&[0.5, 1.5, 1.25, 1.0]),
        tensor(&[1.25, 1.25, 0.0, 1.0]),
    ]);
    let merged = family.merged("magmax", &Text::plain("magmax", 3).yaml());
    assert_eq!(merged.values("w"), [0.5, 1.5, 0.0, 1.0]);
    let merged = family.merged("reversed", &Text::plain("magmax", 3).models(&[3, 2, 1]).yaml());
    assert_eq!(merged.values("w"), [1.5, 0.5, 2.0, 1.0]);
}

/// Element-wise methods that look at nothing but the element: a NaN there must stay there.
fn local_methods() -> Vec<Text> {
    vec![
        Text::plain("linear", 3),
        Text::plain("task_arithmetic", 3),
        Text::plain("ties", 3),
        Text::plain("dare_linear", 3),
        Text::plain("dare_ties", 3),
        Text::plain("magmax", 3),
        Text::plain("breadcrumbs", 3),
        Text::plain("nearswap", 1).set("t", "0.05"),
        Text::plain("ram", 3),
        Text::plain("passthrough", 1),
        Text::plain("task_arithmetic", 3).set("normalize", "true").set("lambda", "0.5"),
        Text::plain("passthrough", 1).set("scale", "0.5"),
    ]
}

#[test]
fn nan_and_infinity_come_through_where_they_are_and_nowhere_else() {
    let family = family(3);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut hurt = Family { folder: quick_folder(), members: family.members.clone() };
        let mut places = 0;
        for tensor in hurt.members[1].iter_mut().filter(|t| t.is_float() && t.dtype != F8_E4M3) {
            let mut values = tensor.values();
            let last = values.len() - 1;
            values[last] = bad;
            *tensor = Tensor::new(&tensor.name, tensor.dtype, &tensor.shape, &values);
            places += 1;
        }
        hurt.write();
        for (i, text) in local_methods().iter().enumerate() {
            let name = format!("{}-{i}-{bad}", text.method);
            let sound = family.merged(&name, &text.yaml());
            let merged = hurt.merged(&name, &text.yaml());
            for tensor in floats(&family) {
                let (found, expected) = (merged.values(&tensor.name), sound.values(&tensor.name));
                let last = found.len() - 1;
                let is_hurt = tensor.dtype != F8_E4M3;
                assert_eq!(is_hurt, !found[last].is_finite(), "{name}: `{}` ends in {}", tensor.name, found[last]);
                assert_eq!(found[..last], expected[..last], "{name}: `{}` elsewhere", tensor.name);
                let counted = crate::support::stated(&merged.out, &tensor.name).nonfinite;
                assert_eq!((counted.output, counted.introduced), (u64::from(is_hurt), 0), "{name}: `{}`", tensor.name);
            }
            let manifest = merganser::report::manifest::Manifest::read(&merged.out).unwrap();
            assert_eq!(manifest.totals.nonfinite.output, places, "{name}");
        }
    }
}

#[test]
fn no_method_panics_or_hangs_over_sources_full_of_nan() {
    let mut family = family(3);
    for tensor in family.members[2].iter_mut().filter(|t| t.is_float()) {
        let values: Vec<f64> =
            (0..tensor.values().len()).map(|i| if i % 3 == 0 { f64::NAN } else { -f64::INFINITY }).collect();
        *tensor = match tensor.dtype {
            // It has no infinities: the codes of NaN.
            F8_E4M3 => Tensor { bytes: vec![0x7F; tensor.bytes.len()], ..tensor.clone() },
            dtype => Tensor::new(&tensor.name, dtype, &tensor.shape, &values),
        };
    }
    family.write();
    let stages =
        ["row", "column", "element", "layer", "tensor"].map(|g| format!("granularity: {g}, keep: 0.5, rescale: l1"));
    for method in methods() {
        let mut texts = vec![Text::of(method).models(&[2, 1, 3][..models_of(method)])];
        if method.takes_stages {
            let plain = texts[0].clone();
            texts.extend(stages.iter().map(|s| plain.clone().lwptv(s)));
        }
        for (i, text) in texts.iter().enumerate() {
            let recipe = family.recipe(&format!("{}-{i}", method.name), &text.yaml());
            match merge(&recipe, &family.path(&format!("out-{}-{i}", method.name))) {
                Ok(done) => assert!(method.name == "cart" || done.manifest.totals.nonfinite.output > 0 || i > 0),
                Err(error) => assert_eq!(error.exit_code(), 1, "{}: {error}", method.name),
            }
        }
    }
}

#[test]
fn cart_names_the_tensor_and_the_model_of_a_nan() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut family = family(3);
        let name = "model.layers.1.mlp.down_proj.weight";
        let tensor = family.members[2].iter_mut().find(|t| t.name == name).unwrap();
        let mut values = tensor.values();
        values[77] = bad;
        *tensor = Tensor::new(name, tensor.dtype, &tensor.shape, &values);
        family.write();
        let text = Text::of(find("cart").unwrap());
        for (i, text) in [text.clone(), text.clone().lwptv("granularity: row, keep: 0.9")].iter().enumerate() {
            let recipe = family.recipe("cart", &text.yaml());
            let error = merge(&recipe, &family.path(&format!("out-{i}"))).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            let message = error.to_string();
            assert!(message.contains(name) && message.contains("`model-2`"), "{message}");
            assert!(message.contains("NaN or an infinity (element 77)"), "{message}");
            assert!(error.hints().iter().any(|h| h.contains("copy:")), "{:?}", error.hints());
        }
        let text = Text::of(find("cart").unwrap()).more(&format!("copy: ['{name}']"));
        let merged = family.merged("copied", &text.yaml());
        assert!(merged.bytes(name) == family.tensor(0, name).bytes);
    }
}

#[test]
fn what_overflows_the_stored_dtype_is_counted_as_introduced() {
    let tensor = |values: &[f64]| vec![Tensor::new("w", F32, &[4], values), Tensor::new("v", F32, &[2], &[1.0, 2.0])];
    let family =
        Family::of(vec![tensor(&[1.0, -60_000.0, 60_000.0, 5.0]), tensor(&[2.0, -70_000.0, 66_000.0, f64::INFINITY])]);
    let of = |dtype: &str| {
        family.merged(dtype, &Text::plain("task_arithmetic", 1).more(&format!("out_dtype: {dtype}")).yaml())
    };
    for (dtype, output, introduced) in
        [("float32", 1, 0), ("float16", 3, 2), ("bfloat16", 1, 0), ("float8_e4m3fn", 3, 2), ("float8_e5m2", 3, 2)]
    {
        let merged = of(dtype);
        let counted = crate::support::stated(&merged.out, "w").nonfinite;
        assert_eq!((counted.output, counted.introduced), (output, introduced), "{dtype}");
        let counted = crate::support::stated(&merged.out, "v").nonfinite;
        assert_eq!((counted.output, counted.introduced), (0, 0), "{dtype}");
        let values = merged.values("w");
        assert_eq!(values.iter().filter(|v| !v.is_finite()).count() as u64, output, "{dtype}: {values:?}");
    }
}

#[test]
fn an_overflow_of_a_low_rank_matrix_is_counted_as_introduced() {
    let name = "layers.0.mlp.w.weight";
    let mut rng = crate::support::family::Rng(1);
    let mut tensor = || {
        let values: Vec<f64> = (0..600).map(|_| 5000.0 * rng.normal()).collect();
        vec![Tensor::new(name, F16, &[20, 30], &values)]
    };
    let family = Family::of(vec![tensor(), tensor(), tensor(), tensor()]);
    let merged = family.merged("cart", &Text::plain("cart", 3).set("lambda", "100.0").set("rank", "5").yaml());
    let bad = merged.values(name).iter().filter(|v| !v.is_finite()).count() as u64;
    let counted = crate::support::stated(&merged.out, name).nonfinite;
    assert!(bad > 0);
    assert_eq!((counted.output, counted.introduced), (bad, bad));
}

#[test]
fn means_of_directions_do_not_depend_on_the_order_of_the_models() {
    let family = family(3);
    let cases =
        [("karcher", false), ("karcher", true), ("multislerp", true), ("multislerp", false), ("model_stock", true)];
    for (method, base) in cases {
        let of = |models: &[usize], name: &str| {
            let mut text = Text::of(find(method).unwrap()).models(models).more("out_dtype: float32");
            text.base = base;
            family.merged(&format!("{method}-{base}-{name}"), &text.yaml())
        };
        let (one, other) = (of(&[1, 2, 3], "one"), of(&[3, 1, 2], "other"));
        // Sums in another order round otherwise, in float32.
        assert_near(method, &family, &one, |name| other.values(name), 1e-5);
    }
}

#[test]
fn the_mean_direction_of_one_model_is_the_model() {
    let family = family(2);
    for (method, base) in [("karcher", false), ("multislerp", true), ("multislerp", false)] {
        let mut text = Text::of(find(method).unwrap()).models(&[1]).more("out_dtype: float32");
        text.base = base;
        let merged = family.merged(&format!("{method}-{base}"), &text.yaml());
        let of = |name: &str| family.members[1].iter().find(|t| t.name == name).unwrap().values();
        assert_near(method, &family, &merged, of, 1e-5);
    }
}
