//! Whole outputs of every command, text and JSON, with exit codes: `tests/cli/*.txt`.
//!
//! After a change that is meant, `SNAPSHOTS=overwrite cargo test --test cli snapshots` writes them anew; read the diff.

use crate::place::{FIXED, Place};

fn with_fixed<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, &FIXED].concat()
}

#[test]
fn help_of_every_command() {
    let place = Place::new();
    place.snapshot("help", &["--help"]);
    for command in [
        "merge",
        "extract",
        "plan",
        "explain",
        "saliency",
        "inspect",
        "compare",
        "verify",
        "methods",
        "devices",
        "bench",
        "completions",
        "man",
    ] {
        place.snapshot(&format!("help-{command}"), &[command, "--help"]);
    }
}

#[test]
fn methods_and_what_is_none() {
    let place = Place::new();
    place.snapshot("methods", &["methods"]);
    place.snapshot("methods-one", &["methods", "ties"]);
    place.snapshot("methods-stage", &["methods", "lwptv"]);
    place.snapshot("methods-one-json", &["methods", "slerp", "--json"]);
    place.snapshot("methods-unknown", &["methods", "dare_tie"]);
    place.snapshot("methods-unknown-json", &["methods", "colour", "--json"]);
}

#[test]
fn inspect_of_a_file_of_shards_and_of_nothing() {
    let place = Place::new();
    place.snapshot("inspect-shards", &["inspect", "family/b"]);
    place.snapshot("inspect-file", &["inspect", "family/c.safetensors"]);
    place.snapshot("inspect-shards-json", &["inspect", "family/b", "--json"]);
    place.snapshot("inspect-missing", &["inspect", "family/d"]);
    place.snapshot("inspect-missing-json", &["inspect", "family/d", "--json"]);
    place.write("cut.safetensors", "\u{10}\0\0\0\0\0\0\0{\"w\":");
    place.snapshot("inspect-cut", &["inspect", "cut.safetensors"]);
}

#[test]
fn plans() {
    let place = Place::new();
    place.snapshot("plan", &with_fixed(&["plan", "cart.yaml"]));
    place.snapshot("plan-json", &with_fixed(&["plan", "ties.yaml", "--json"]));
}

#[test]
fn explanations() {
    let place = Place::new();
    let with = |args: &[&'static str]| with_fixed(&[&["explain"][..], args].concat());
    place.snapshot("explain", &with(&["ties.yaml", "model.layers.0.mlp.up_proj.weight", "5"]));
    place.snapshot("explain-matrix", &with(&["cart.yaml", "model.layers.0.mlp.up_proj.weight"]));
    place.snapshot("explain-json", &with(&["ties.yaml", "model.layers.0.mlp.up_proj.weight", "1,2", "--json"]));
    place.snapshot("explain-unknown", &with(&["ties.yaml", "model.layers.0.mlp.up_porj.weight"]));
    place.snapshot("explain-index-json", &with(&["ties.yaml", "model.layers.0.mlp.up_proj.weight", "-1", "--json"]));
}

#[test]
fn surveys_of_task_vectors() {
    let place = Place::new();
    let stage = "merge_method: ties\ntask_vector_stages: [{stage: lwptv, parameters: {keep: 0.5}}]\n";
    place.recipe("staged", stage, "base");
    place.snapshot("saliency", &with_fixed(&["saliency", "staged.yaml", "-o", "report.html", "--keep", "0.25,0.75"]));
    place.snapshot("saliency-json", &with_fixed(&["saliency", "cart.yaml", "-o", "report.json", "--json"]));
    place.snapshot("saliency-quiet", &with_fixed(&["saliency", "cart.yaml", "-o", "report.json", "-q", "--overwrite"]));
    place.snapshot("saliency-exists", &with_fixed(&["saliency", "cart.yaml", "-o", "report.json"]));
    place.snapshot("saliency-exists-json", &with_fixed(&["saliency", "cart.yaml", "-o", "report.json", "--json"]));
    place.snapshot("saliency-extension", &with_fixed(&["saliency", "cart.yaml", "-o", "report.txt"]));
    place.snapshot("saliency-no-folder", &with_fixed(&["saliency", "cart.yaml", "-o", "none/report.html"]));
    place.snapshot("saliency-keep", &with_fixed(&["saliency", "cart.yaml", "-o", "r.html", "--keep", "1.5"]));
    let into_source = ["saliency", "cart.yaml", "-o", "family/base/config.json", "--overwrite"];
    place.snapshot("saliency-into-source", &with_fixed(&into_source));
    let small = ["saliency", "cart.yaml", "-o", "r.html", "--threads", "2", "--memory-budget", "64KiB"];
    place.snapshot("saliency-small-budget", &small);
    place.write("no-base.yaml", "merge_method: linear\nmodels: [{model: family/a}, {model: family/b}]\n");
    place.snapshot("saliency-no-base", &with_fixed(&["saliency", "no-base.yaml", "-o", "r.html"]));
    assert!(place.path("report.html").is_file() && !place.path("r.html").exists());
}

#[test]
fn merges_and_their_verification() {
    let place = Place::new();
    place.snapshot("merge", &with_fixed(&["merge", "cart.yaml", "-o", "out"]));
    place.snapshot("merge-quiet", &with_fixed(&["merge", "cart.yaml", "-o", "quiet", "-q"]));
    place.snapshot("merge-json", &with_fixed(&["merge", "ties.yaml", "-o", "out-json", "--json", "--seed", "7"]));
    place.snapshot("merge-again", &with_fixed(&["merge", "cart.yaml", "-o", "out", "--resume"]));
    place.snapshot("merge-out-exists", &with_fixed(&["merge", "cart.yaml", "-o", "out"]));
    place.snapshot("merge-out-exists-json", &with_fixed(&["merge", "cart.yaml", "-o", "out", "--json"]));
    place.snapshot("merge-overwrite", &with_fixed(&["merge", "cart.yaml", "-o", "out", "--overwrite"]));
    place.snapshot("merge-log-json", &with_fixed(&["merge", "cart.yaml", "-o", "out", "--log-format", "json"]));
    place.snapshot("verify", &["verify", "out"]);
    place.snapshot("verify-json", &["verify", "out-json", "--json"]);
    place.snapshot("verify-no-output", &["verify", "family/base"]);

    let weights = place.path("out/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    std::fs::remove_file(place.path("out/config.json")).unwrap();
    place.snapshot("verify-damaged", &["verify", "out"]);
    place.snapshot("verify-damaged-json", &["verify", "out", "--json"]);
}

#[test]
fn factors_adapters_and_models_rebuilt_from_them() {
    let place = Place::new();
    place.recipe("factors", "merge_method: cart\noutput: factors\nparameters: {rank: 2}\n", "base");
    place.recipe("lora", "merge_method: cart\noutput: lora\nparameters: {rank: 2}\n", "base");
    place.snapshot("plan-factors", &with_fixed(&["plan", "factors.yaml"]));
    place.snapshot("plan-lora", &with_fixed(&["plan", "lora.yaml"]));
    place.snapshot("merge-factors", &with_fixed(&["merge", "factors.yaml", "-o", "factors"]));
    place.snapshot("merge-lora", &with_fixed(&["merge", "lora.yaml", "-o", "lora"]));
    place.snapshot("verify-lora", &["verify", "lora"]);
    place.snapshot("extract", &with_fixed(&["extract", "factors", "--task", "b", "-o", "task"]));
    place.snapshot("extract-again", &with_fixed(&["extract", "factors", "--task", "b", "-o", "task"]));
    place.snapshot(
        "extract-json",
        &with_fixed(&["extract", "factors", "--task", "c", "-o", "task-c", "--lambda", "-0.5", "--json"]),
    );
    place.snapshot("extract-unknown-task", &["extract", "factors", "--task", "bb", "-o", "other"]);
    place.snapshot("extract-unknown-task-json", &["extract", "factors", "--task", "math", "-o", "other", "--json"]);
    place.snapshot("extract-no-factors", &["extract", "family/base", "--task", "b", "-o", "other"]);
    place.snapshot("extract-lambda", &["extract", "factors", "--task", "b", "-o", "other", "--lambda", "nan"]);
}

#[test]
fn recipes_and_models_at_fault() {
    let place = Place::new();
    place.snapshot("recipe-missing", &["merge", "none.yaml", "-o", "out"]);
    place.recipe("typo", "merge_metod: ties\n", "base");
    place.snapshot("recipe-unknown-key", &["merge", "typo.yaml", "-o", "out"]);
    place.recipe("unknown", "merge_method: tie\n", "base");
    place.snapshot("recipe-unknown-method", &["plan", "unknown.yaml", "--json"]);
    place.recipe("range", "merge_method: ties\nparameters: {density: 1.5}\n", "base");
    place.snapshot("recipe-out-of-range", &["plan", "range.yaml"]);
    place.variant("family/other.safetensors", |tensors| {
        let norm = tensors.iter_mut().find(|(name, ..)| name == "model.norm.weight").unwrap();
        norm.2 = vec![5, 2];
    });
    place.recipe("misfit", "merge_method: ties\n", "other.safetensors");
    place.snapshot("merge-shape-mismatch", &with_fixed(&["merge", "misfit.yaml", "-o", "out"]));
    place.snapshot(
        "merge-small-budget",
        &["merge", "cart.yaml", "-o", "out", "--threads", "2", "--memory-budget", "64KiB"],
    );
    place.snapshot("merge-cuda", &["merge", "cart.yaml", "-o", "out", "--device", "cuda"]);
    place.snapshot("merge-cuda-json", &["merge", "cart.yaml", "-o", "out", "--device", "cuda:1", "--json"]);
}

#[test]
fn comparisons() {
    let place = Place::new();
    place.snapshot("compare", &["compare", "family/base", "family/a"]);
    place.snapshot("compare-same", &["compare", "family/a", "family/a"]);
    place.variant("few.safetensors", |tensors| {
        tensors.retain(|(name, ..)| ["logit_scale", "model.norm.weight", "model.causal"].contains(&name.as_str()));
    });
    place.variant("other.safetensors", |tensors| {
        tensors.retain(|(name, ..)| ["logit_scale", "model.norm.weight"].contains(&name.as_str()));
        tensors[0].3 = f32::NAN.to_le_bytes().to_vec();
        tensors[1].2 = vec![2, 5];
        tensors.push(("new.weight".into(), safetensors::Dtype::U8, vec![2], vec![1, 2]));
    });
    place.snapshot("compare-different", &["compare", "few.safetensors", "other.safetensors"]);
    place.snapshot("compare-different-json", &["compare", "few.safetensors", "other.safetensors", "--json"]);
    place.snapshot("compare-missing", &["compare", "few.safetensors", "none.safetensors"]);
}

#[test]
fn usage_errors() {
    let place = Place::new();
    place.snapshot("usage-unknown-flag", &["merge", "cart.yaml", "-o", "out", "--resum"]);
    place.snapshot("usage-missing-out", &["merge", "cart.yaml"]);
    place.snapshot("usage-missing-out-json", &["merge", "cart.yaml", "--json"]);
    place.snapshot("usage-unknown-command", &["mereg"]);
    place.snapshot("value-size", &["plan", "cart.yaml", "--memory-budget", "5G"]);
    place.snapshot("value-size-json", &["plan", "cart.yaml", "--memory-budget", "5G", "--json"]);
}
