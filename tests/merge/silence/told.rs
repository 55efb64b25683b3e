//! What is computed and is most likely not what was meant is told: on stderr, in the JSON of `merge` and `plan`, once.

use std::fs;

use merganser::dtype::Dtype::{self, BF16, F16, F32};

use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::tensor::Tensor;
use crate::support::{Run, child, merge, quick_folder};

const MATRICES: &[(&str, Dtype, &[u64])] = &[
    ("model.embed_tokens.weight", F32, &[30, 8]),
    ("model.layers.0.feed_forward.w1.weight", F32, &[16, 8]),
    ("model.layers.0.norm.weight", F32, &[8]),
];
const EXPERTS: (&str, Dtype, &[u64]) = ("model.layers.0.mlp.experts.down_proj", F32, &[2, 8, 8]);

fn warnings(family: &Family, text: &Text) -> Vec<String> {
    Run::default().plan(&family.recipe("warned", &text.yaml())).unwrap().warnings
}

#[test]
fn what_a_method_on_matrices_averages_is_counted_and_told() {
    let specs: Vec<_> = MATRICES.iter().copied().chain([EXPERTS]).collect();
    let family = Family::new(quick_folder(), &specs, 3, 7);
    let text = Text::plain("cart", 3);
    let told = warnings(&family, &text);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("1 of 2 tensors (50.0 % of the parameters"), "{told:?}");
    assert!(told[0].contains("experts.down_proj") && told[0].contains("[2, 8, 8]"), "{told:?}");
    let recipe = family.recipe("cart", &text.yaml());
    let plan = Run::default().plan(&recipe).unwrap();
    let counted =
        serde_json::json!({"matrices": 1, "matrix_parameters": 128, "averaged": 1, "averaged_parameters": 128});
    let mut command = std::process::Command::new(crate::support::binary());
    let output = command.arg("plan").arg("--json").arg(&recipe).stdin(std::process::Stdio::null()).output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["matrices"], counted);
    assert_eq!(document["warnings"], serde_json::json!(told));
    assert!(String::from_utf8(output.stderr).unwrap().contains("warning: 1 of 2 tensors"));
    assert!(plan.to_text().contains("matrices  1, 1 other tensors averaged: 50.0 %"), "{}", plan.to_text());
    let done = merge(&recipe, &family.path("out")).unwrap();
    assert_eq!(serde_json::to_value(done.manifest.matrices).unwrap(), counted);
    // The user's own choice is counted and not told.
    let chosen = text.more("parameters: {eligible: ['w1']}");
    assert!(Run::default().plan(&family.recipe("chosen", &chosen.yaml())).unwrap().coverage().is_some());
    let whole = Family::new(quick_folder(), MATRICES, 3, 7);
    assert_eq!(warnings(&whole, &Text::plain("cart", 3)), [""; 0]);
}

#[test]
fn a_plan_says_what_is_known_of_methods_on_matrices_on_language_models() {
    let note = |names: &[&str], method| {
        let specs: Vec<(&str, Dtype, &[u64])> = names.iter().map(|name| (*name, F32, &[16, 8][..])).collect();
        let family = Family::new(quick_folder(), &specs, 3, 7);
        let plan = Run::default().plan(&family.recipe("noted", &Text::plain(method, 3).yaml())).unwrap();
        assert_eq!(plan.warnings, [""; 0]);
        plan.to_text().lines().filter(|line| line.starts_with("note ") && line.contains("2511.21437")).count()
    };
    let (decoder, block) = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight");
    assert_eq!(note(&[decoder, block], "cart"), 1);
    assert_eq!(note(&[decoder, block], "task_arithmetic"), 0);
    assert_eq!(note(&["vision_model.encoder.layers.0.mlp.fc1.weight"], "cart"), 0);
    assert_eq!(note(&["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "cart"), 0);
}

#[test]
fn cart_of_what_cancels_is_told() {
    let family = Family::new(quick_folder(), MATRICES, 3, 7);
    let told =
        |text: &Text| warnings(&family, text).iter().any(|w| w.contains("no more than two different models count"));
    assert!(told(&Text::plain("cart", 2)));
    assert!(!told(&Text::plain("cart", 3)));
    let mut without = Text::plain("cart", 3);
    without.weights = vec![1.0, 1.0, 0.0];
    assert!(told(&without));
    assert!(!told(&Text::plain("low_rank", 2)), "its task vectors do not cancel");
}

#[test]
fn a_recipe_that_merges_nothing_is_told() {
    let family = Family::new(quick_folder(), MATRICES, 2, 7);
    let told = |text: Text, words: &str| {
        let all = warnings(&family, &text);
        assert!(all.iter().any(|w| w.contains(words)), "{words}: {all:?}");
    };
    told(Text::plain("ties", 2).more("copy: ['.*']"), "`copy:` leaves nothing to merge");
    told(Text::plain("task_arithmetic", 2).set("lambda", "0.0"), "`lambda` is 0 for every tensor");
    told(Text::plain("ties", 2).set("lambda", "0"), "`lambda` is 0 for every tensor");
    let mut negative = Text::plain("ties", 2).set("normalize", "true");
    negative.weights = vec![1.0, -1.0];
    told(negative, "adds its task vector instead of subtracting it");
}

#[test]
fn damage_is_counted_and_told_at_the_end() {
    let mut family = Family::new(quick_folder(), &[("a.weight", F32, &[2, 4]), ("b.weight", F32, &[4])], 2, 7);
    for member in &mut family.members {
        member[0] = Tensor::new("a.weight", F32, &[2, 4], &[1e5, 1.0, 2.0, 3.0, 1e6, 5.0, 6.0, 7.0]);
    }
    family.write();
    let notes = |name: &str, text: &Text| merge(&family.recipe(name, &text.yaml()), &family.path(name)).unwrap().notes;
    let text = Text::plain("linear", 2);
    let told = notes("f16", &text.clone().more("out_dtype: float16"));
    assert_eq!(
        told,
        [
            "2 elements became NaN or infinite where every source is finite, in 1 tensor: `a.weight` (F16) first, with 2; \
          F16 holds numbers up to 65504"
        ]
    );
    assert_eq!(notes("f32", &text), [""; 0]);
    let ended = child::run(&family.recipe("json", &text.more("out_dtype: float16").yaml()), &family.path("json"), &[]);
    let ended = ended.expect(0, &["warning: 2 elements became NaN or infinite"]);
    assert_eq!(ended.stderr.matches("became NaN").count(), 1, "{}", ended.stderr);
    assert!(ended.json()["warnings"].to_string().contains("became NaN"));
    family.members[1][1] = Tensor::new("b.weight", F32, &[4], &[f64::INFINITY, 0.0, 0.0, f64::NEG_INFINITY]);
    family.write();
    let told = merge(&family.recipe("inf", &Text::plain("linear", 2).yaml()), &family.path("inf")).unwrap().notes;
    assert_eq!(told, ["2 elements came NaN or infinite from a source, in 1 tensor: `b.weight` (F32) first, with 2"]);
}

fn huge(dtype: Dtype, values: [[f64; 3]; 3]) -> Family {
    let shape = [3, 1];
    let members = values.map(|v| vec![Tensor::new("model.layers.0.mlp.up_proj.weight", dtype, &shape, &v)]);
    Family::of(members.to_vec())
}

#[test]
fn sums_of_finite_sources_do_not_overflow_on_the_way() {
    for dtype in [BF16, F32] {
        let family = huge(dtype, [[-2e38, 1.0, 0.0], [3e38, 1.0, -3e38], [3e38, 2.0, -3e38]]);
        for method in ["linear", "task_arithmetic", "ties", "dare_linear", "magmax", "cart", "model_stock"] {
            let mut text = Text::plain(method, 2);
            if ["dare_linear", "ties"].contains(&method) {
                text = text.set("density", "1.0");
            }
            if ["task_arithmetic", "dare_linear"].contains(&method) {
                text = text.set("lambda", "0.5");
            }
            let done = merge(&family.recipe(method, &text.yaml()), &family.path(method)).unwrap();
            assert_eq!(done.manifest.totals.nonfinite.output, 0, "{method} {dtype}: {:?}", done.notes);
        }
        let name = "model.layers.0.mlp.up_proj.weight";
        let average = family.merged("average", &Text::plain("linear", 2).yaml());
        assert_eq!(average.bytes(name), Tensor::new(name, dtype, &[3, 1], &[3e38, 1.5, -3e38]).bytes, "{dtype}");
        let text = Text::plain("task_arithmetic", 2).set("lambda", "0.5");
        let changed = family.merged("changed", &text.yaml());
        let expected = family.tensor(1, name).values()[0];
        assert!((changed.values(name)[0] - expected).abs() <= expected * 1e-6, "{dtype}");
    }
}

#[test]
fn small_types_say_what_they_hold_and_tensors_that_became_zero_are_told() {
    let family = huge(F32, [[0.0, 1.0, 0.0], [500.0, 1.0, -600.0], [500.0, 1.0, 2.0]]);
    let notes = |name: &str, text: &Text| merge(&family.recipe(name, &text.yaml()), &family.path(name)).unwrap().notes;
    let linear = Text::plain("linear", 2);
    let told = notes("fp8", &linear.clone().more("out_dtype: float8_e4m3fn"));
    assert!(told[0].starts_with("1 element became NaN or infinite"), "{told:?}");
    assert!(told[0].ends_with("; F8_E4M3 holds numbers up to 448"), "{told:?}");
    let family = huge(F32, [[1e-9, 0.0, 0.0], [-1e-9, 1e-9, 0.0], [1e-9, -1e-9, 0.0]]);
    let notes = |name: &str, text: &Text| merge(&family.recipe(name, &text.yaml()), &family.path(name)).unwrap().notes;
    let zero = ["1 tensor became all zero where no source is: `model.layers.0.mlp.up_proj.weight` first"];
    assert_eq!(notes("cancelled", &linear), zero);
    assert_eq!(notes("flushed", &linear.clone().weights(&[1.0, 3.0]).more("out_dtype: float16")), zero);
    let family = huge(F32, [[1.0, 0.0, 0.0], [0.0; 3], [0.0; 3]]);
    let notes = |name: &str, text: &Text| merge(&family.recipe(name, &text.yaml()), &family.path(name)).unwrap().notes;
    assert!(!notes("zeros", &linear).iter().any(|note| note.contains("all zero")));
}

#[test]
fn the_same_model_under_two_names_is_told() {
    let mut family = Family::new(quick_folder(), &[("a.weight", BF16, &[4, 4]), ("c.weight", F16, &[4])], 2, 7);
    family.members[2] = family.members[1].clone();
    for (i, tensors) in family.members.iter().enumerate() {
        crate::support::tensor::write_folder(&family.path(&crate::support::family::name(i)), tensors, 1);
    }
    for old in ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    {
        let _ = fs::remove_file(family.path("model-2").join(old));
    }
    let told = merge(&family.recipe("same", &Text::plain("linear", 2).yaml()), &family.path("same")).unwrap().notes;
    assert_eq!(told, ["`model-1` and `model-2` are the same model"]);
}

#[test]
fn verify_names_what_was_edited_taken_or_added() {
    let family = Family::new(quick_folder(), &[("a.weight", F32, &[4, 4])], 2, 7);
    let out = family.path("out");
    merge(&family.recipe("merge", &Text::plain("linear", 2).yaml()), &out).unwrap();
    let found = || -> Vec<String> {
        let report = merganser::report::verify::verify(&out, 1, &|_| {}).unwrap();
        assert_eq!(report.ok, report.problems.is_empty());
        report.problems.into_iter().map(|p| p.message).collect()
    };
    assert_eq!(found(), [""; 0]);
    let card = fs::read(out.join("README.md")).unwrap();
    let edited: Vec<u8> = card.iter().map(|b| if *b == b'm' { b'n' } else { *b }).collect();
    fs::write(out.join("README.md"), edited).unwrap();
    assert_eq!(found(), ["`README.md` was changed: its digest differs"]);
    fs::remove_file(out.join("README.md")).unwrap();
    assert_eq!(found(), ["`README.md` is missing"]);
    fs::write(out.join("README.md"), card).unwrap();
    fs::write(out.join("notes.txt"), "").unwrap();
    fs::create_dir(out.join("photos")).unwrap();
    fs::write(out.join(".hidden"), "").unwrap();
    fs::write(out.join("x.safetensors"), "").unwrap();
    let told = [
        "`.hidden` is not in the manifest",
        "`notes.txt` is not in the manifest",
        "`photos` is not in the manifest",
        "`x.safetensors` is not in the manifest, and readers would load it",
    ];
    assert_eq!(found(), told);
}
