//! Every golden of the float64 reference, merged and compared by the rule that stands beside them.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod merge_support;

use std::collections::BTreeMap;
use std::path::Path;

use merganser::dtype::Dtype;
use merganser::engine::{self, Progress, Request, Stop};
use merganser::methods::{ParamDefault, ParamKind};
use merge_support::tensor::Tensor;
use merge_support::{Run, quick_folder, read};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Golden {
    recipe: String,
    expected: String,
    seed: u64,
    tolerance: f64,
}

#[test]
fn every_golden_is_reproduced() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let list = std::fs::read_to_string(folder.join("goldens.json")).unwrap();
    let goldens: Vec<Golden> = serde_json::from_str(&list).unwrap();
    assert!(goldens.len() >= 72, "{} goldens", goldens.len());
    let mut failed = Vec::new();
    for golden in &goldens {
        let wrong = check(&folder, golden);
        if !wrong.is_empty() {
            failed.push(format!("{}:\n    {}", golden.recipe, wrong.join("\n    ")));
        }
    }
    assert!(failed.is_empty(), "{} of {} goldens differ\n{}", failed.len(), goldens.len(), failed.join("\n"));
}

#[test]
fn every_method_and_every_score_and_granularity_has_a_golden() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let list = std::fs::read_to_string(folder.join("goldens.json")).unwrap();
    let goldens: Vec<Golden> = serde_json::from_str(&list).unwrap();
    let texts: Vec<String> = goldens.iter().map(|g| std::fs::read_to_string(folder.join(&g.recipe)).unwrap()).collect();
    for method in merge_support::recipes::methods() {
        let line = format!("merge_method: {}\n", method.name);
        assert!(texts.iter().any(|t| t.contains(&line)), "no golden of {}", method.name);
    }
    let stage = merganser::methods::find("lwptv").unwrap();
    for parameter in stage.parameters {
        if let ParamKind::Choice(words) = parameter.kind {
            for word in words.iter().filter(|w| parameter.default != ParamDefault::Word(w)) {
                assert!(texts.iter().any(|t| t.contains(word)), "no golden with `{}: {word}`", parameter.name);
            }
        }
    }
}

/// What is wrong with each tensor.
fn check(folder: &Path, golden: &Golden) -> Vec<String> {
    let scratch = quick_folder();
    let out = scratch.path().join("out");
    let plan = match (Run { seed: golden.seed, ..Run::default() }).plan(&folder.join(&golden.recipe)) {
        Ok(plan) => plan,
        Err(error) => return vec![error.to_string()],
    };
    let request = Request { plan: &plan, out: &out, resume: false, overwrite: false };
    if let Err(error) = engine::merge(&request, &Progress::default(), &Stop::default()) {
        return vec![error.to_string()];
    }
    let bytes = std::fs::read(folder.join(&golden.expected)).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut found = read(&out);
    let mut wrong = Vec::new();
    for (name, view) in expected.tensors() {
        let shape = view.shape().iter().map(|d| *d as u64).collect();
        let expected = Tensor { name: name.clone(), dtype: view.dtype(), shape, bytes: view.data().to_vec() };
        let Some(found) = found.remove(&name) else {
            wrong.push(format!("`{name}` is missing"));
            continue;
        };
        // θ₀, or the first model where there is no base.
        let start = plan.reference().get(&name).unwrap();
        let shard = plan.reference().shard_of(start);
        let stored = shard.bytes(start.range(), &mut Vec::new()).unwrap().to_vec();
        let start = Tensor { name: name.clone(), dtype: start.dtype, shape: start.shape.clone(), bytes: stored };
        wrong.extend(compare(&expected, &found, &start, golden.tolerance).map(|what| format!("`{name}` {what}")));
    }
    wrong.extend(found.into_keys().map(|name| format!("`{name}` should not be there")));
    wrong
}

fn compare(expected: &Tensor, found: &Tensor, start: &Tensor, tolerance: f64) -> Option<String> {
    if found.shape != expected.shape {
        return Some(format!("has shape {:?}, expected {:?}", found.shape, expected.shape));
    }
    let was_copied = expected.dtype == found.dtype;
    if was_copied || expected.dtype != Dtype::F64 {
        return (expected != found).then(|| "was to be copied and differs".into());
    }
    let (expected, found, start) = (expected.values(), found.values(), start.values());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = |a: &[f64], b: &[f64]| -> f64 { norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) };
    let apart = pairs(&found, &expected);
    let allowed = tolerance * pairs(&expected, &start) + norm(&mut expected.iter().copied()) * 2_f64.powi(-24);
    // Not `>`: a NaN must fail.
    let agrees = apart <= allowed;
    (!agrees).then(|| format!("is {apart:e} away, allowed {allowed:e}"))
}

#[test]
fn the_comparison_itself_can_fail() {
    let tensor = |dtype, values: &[f64]| Tensor::new("x", dtype, &[values.len() as u64], values);
    let expected = tensor(Dtype::F64, &[1.0, 2.0]);
    let start = tensor(Dtype::BF16, &[0.5, 1.0]);
    let found = |values: &[f64]| compare(&expected, &tensor(Dtype::F32, values), &start, 1e-5);
    assert_eq!(found(&[1.0, 2.0]), None);
    assert!(found(&[1.0, 2.0001]).is_some());
    assert!(found(&[1.0, f64::NAN]).is_some());
    assert!(found(&[1.0]).is_some());
    let copied = BTreeMap::from([(true, &[1.0, 2.0]), (false, &[1.0, 3.0])]);
    for (same, values) in copied {
        let found = compare(&expected, &tensor(Dtype::F64, values), &start, 1e-5);
        assert_eq!(found.is_none(), same);
    }
}
