//! Explanations of the goldens against the float64 reference and against what a merge stores.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use super::{Explanation, Index, element, find};
use crate::backend::cpu::stored::Stored;
use crate::engine::{self, Progress, Request, Stop};
use crate::ops::rules::RuleId;
use crate::plan::{Options, Plan};
use crate::recipe::Recipe;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn plan(recipe: &Path, seed: u64) -> Plan {
    let options = Options { threads: 1, memory_budget: 256 << 20, seed, shard_bytes: 5_000_000_000 };
    Plan::new(Recipe::load(recipe).unwrap(), options).unwrap()
}

/// A tensor's values where they are floats.
fn values(file: &SafeTensors<'_>, name: &str) -> Option<Vec<f64>> {
    let view = file.tensor(name).unwrap();
    let mut values = vec![0.0; view.shape().iter().product()];
    crate::dtype::DtypeExt::is_mergeable_float(view.dtype()).then(|| {
        Stored { dtype: view.dtype(), bytes: view.data() }.widen(0, &mut values);
        values
    })
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| value.as_str().unwrap().parse().unwrap())
}

/// What θ₀ + λ (Σ w τ) / divisor comes to, of the values behind the last step.
fn summed(explained: &Explanation) -> Option<f64> {
    let of = explained.element.as_ref()?;
    if explained.program.rule != Some(RuleId::Sum.words()) {
        return None;
    }
    let last = of.steps.last()?.values.iter().map(float);
    let sum: f64 = last.zip(of.weights.iter().copied().chain(std::iter::repeat(1.0))).map(|(tau, w)| w * tau).sum();
    Some(float(&of.stored[0]) + float(&of.numbers["lambda"]) * sum / float(&of.numbers["divisor"]))
}

#[test]
fn every_golden_is_explained_as_the_reference_computes_it_and_as_a_merge_stores_it() {
    let list: Value = serde_json::from_str(&std::fs::read_to_string(goldens().join("goldens.json")).unwrap()).unwrap();
    let (mut looked_at, mut sums, mut dropped) = (0, 0, 0);
    for golden in list.as_array().unwrap() {
        let recipe = goldens().join(golden["recipe"].as_str().unwrap());
        let plan = plan(&recipe, golden["seed"].as_u64().unwrap());
        let bytes = std::fs::read(goldens().join(golden["expected"].as_str().unwrap())).unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let request = Request { plan: &plan, out: &out, resume: false, overwrite: false };
        engine::merge(&request, &Progress::default(), &Stop::default()).unwrap();
        let stored = std::fs::read(out.join("model.safetensors")).unwrap();
        let stored = SafeTensors::deserialize(&stored).unwrap();
        for (at, tensor) in plan.tensors.iter().enumerate() {
            let what = format!("{} of {}", tensor.name, recipe.display());
            let (Some(expected), Some(stored)) = (values(&expected, &tensor.name), values(&stored, &tensor.name))
            else {
                continue;
            };
            let first = plan.stored(tensor.reads().next().unwrap());
            let mut start = vec![0.0; expected.len()];
            let begin = first.1.bytes(first.0.range(), &mut Vec::new()).unwrap().to_vec();
            Stored { dtype: first.0.dtype, bytes: &begin }.widen(0, &mut start);
            let change = expected.iter().zip(&start).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
            let length = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
            for flat in [0, expected.len() / 2, expected.len().saturating_sub(1)] {
                let Some(wanted) = expected.get(flat) else { continue };
                let index = Index::parse(&flat.to_string(), &tensor.name, &tensor.shape).unwrap();
                let explained = Explanation::of(&plan, at, Some(element(&plan, at, &index).unwrap()));
                let of = explained.element.as_ref().unwrap();
                assert_eq!(float(&of.result), stored[flat], "{what}, element {flat}");
                let sources: Vec<_> = tensor.reads().map(|at| plan.stored(at)).collect();
                for (value, (source, shard)) in of.stored.iter().zip(&sources) {
                    let size = source.bytes / source.elems;
                    let begin = source.begin + flat as u64 * size;
                    let mut read = [0.0];
                    let mut scratch = Vec::new();
                    let bytes = shard.bytes(begin..begin + size, &mut scratch).unwrap();
                    Stored { dtype: source.dtype, bytes }.widen(0, &mut read);
                    assert_eq!(float(value), read[0], "{what}, element {flat}");
                }
                assert_eq!(of.stored.len(), sources.len());
                if let Some(sum) = summed(&explained) {
                    let merged = float(of.merged_in_float64.as_ref().unwrap());
                    assert!((sum - merged).abs() <= 1e-6 * (1.0 + merged.abs()), "{what}: {sum} and {merged}");
                    sums += 1;
                }
                dropped += of.steps.iter().flat_map(|step| &step.values).filter(|value| float(value) == 0.0).count();
                let Some(merged) = &of.merged_in_float64 else {
                    assert_eq!(explained.program.kind, "copy");
                    continue;
                };
                // A decomposition has its tolerance. Else the reference differs by the order of its sums, and by rounding sources
                // and task vectors to float32 before it goes on in float64.
                let rounded: f64 = of.stored.iter().map(|value| float(value).abs()).sum::<f64>() * 2_f64.powi(-22);
                let tolerance = golden["tolerance"].as_f64().unwrap();
                let allowed = match explained.program.kind {
                    "matrix" => tolerance * change + length * 2_f64.powi(-24),
                    _ => 1e-9 * (change + wanted.abs()) + rounded,
                };
                let apart = (float(merged) - wanted).abs();
                // Not `>`: a NaN must fail.
                assert!(apart <= allowed, "{what}, element {flat}: {apart:e} away, allowed {allowed:e}");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 1000 && sums > 100 && dropped > 100, "{looked_at} elements, {sums} sums, {dropped} dropped");
}

#[test]
fn programs_steps_and_sources_are_those_of_the_plan() {
    let plan = plan(&goldens().join("lwptv-ties.yaml"), 0);
    let (at, tensor) =
        plan.tensors.iter().enumerate().find(|(_, t)| t.stages().len() == 1 && t.shape.len() == 2).unwrap();
    let explained = Explanation::of(&plan, at, None);
    assert_eq!((explained.tensor.as_str(), explained.shape.as_slice()), (tensor.name.as_str(), &tensor.shape[..]));
    let roles: Vec<&str> = explained.sources.iter().map(|source| source.role.as_str()).collect();
    assert_eq!(roles, ["base", "model 1", "model 2", "model 3"]);
    for (source, read) in explained.sources.iter().zip(tensor.reads()) {
        let (stored, shard) = plan.stored(read);
        assert_eq!((source.offset, source.bytes, source.made.as_ref()), (Some(stored.begin), stored.bytes, None));
        assert_eq!(source.file.as_deref(), shard.path().to_str());
    }
    assert_eq!(explained.program.stages[0]["stage"], "lwptv");
    assert_eq!(explained.steps.last().unwrap().step, "merge");
    assert!(explained.steps.len() >= 2 && explained.passes >= 2, "{:?}", explained.steps);
    assert!(explained.to_text().contains("program   ties: "));
}

#[test]
fn an_unknown_tensor_is_refused_with_the_nearest() {
    let plan = plan(&goldens().join("ties-default.yaml"), 0);
    let name = &plan.tensors[1].name;
    assert_eq!(find(&plan, name).unwrap(), 1);
    let mistyped = format!("{}x", &name[..name.len() - 1]);
    let error = find(&plan, &mistyped).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains(&mistyped) && error.hints()[0].contains(name), "{error} {:?}", error.hints());
    let error = find(&plan, "§").unwrap_err();
    assert!(error.hints()[0].contains("plan"), "{:?}", error.hints());
}

#[test]
fn an_index_is_a_number_or_a_place_and_nothing_else() {
    let shape = [4, 5, 6];
    for (flat, along) in [(0, [0, 0, 0]), (119, [3, 4, 5]), (67, [2, 1, 1])] {
        let place = along.map(|at: u64| at.to_string()).join(",");
        let both = [flat.to_string(), place].map(|text| Index::parse(&text, "w", &shape).unwrap());
        assert!(both.iter().all(|index| index.flat == flat && index.along == along), "{both:?}");
    }
    for (text, said) in [
        ("120", "has 120 elements"),
        ("3,5,0", "5 along dimension 1"),
        ("1,2", "it has 2 numbers, and the shape [4, 5, 6] has 3"),
        ("-1", "is no whole number"),
        ("", "is no whole number"),
        ("1,,2", "is no whole number"),
        ("18446744073709551616", "is no whole number"),
    ] {
        let error = Index::parse(text, "w", &shape).unwrap_err();
        assert!(error.to_string().contains(said) && error.tensor() == Some("w"), "{text}: {error}");
        assert!(error.hints()[0].contains("at most 3,4,5"), "{:?}", error.hints());
    }
    let scalar = Index::parse("0", "w", &[]).unwrap();
    assert_eq!((scalar.flat, scalar.along.len()), (0, 0));
    assert!(Index::parse("0", "w", &[0, 3]).unwrap_err().hints()[0].contains("no elements"));
}
