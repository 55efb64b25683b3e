//! Every document that the program prints is valid by the committed schema, failures too.

use serde_json::Value;

use crate::place::{FIXED, Place};

const SCHEMA: &str = include_str!("../../docs/reference/documents.schema.json");

/// What is wrong with a value by a schema of the few keywords that ours uses; any other is a panic.
fn problem(schema: &Value, value: &Value, at: &str) -> Option<String> {
    let Some(schema) = schema.as_object() else {
        return (*schema == Value::Bool(false)).then(|| format!("{at}: nothing is allowed here"));
    };
    schema.iter().find_map(|(keyword, rule)| match keyword.as_str() {
        "$schema" | "title" | "description" | "format" | "default" => None,
        "const" => (rule != value).then(|| format!("{at}: expected {rule}, found {value}")),
        "enum" => (!rule.as_array().unwrap().contains(value)).then(|| format!("{at}: {value} is none of {rule}")),
        "type" => {
            let named = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
            (!named.iter().any(|name| is_a(name.as_str().unwrap(), value)))
                .then(|| format!("{at}: {value} is no {rule}"))
        }
        "minimum" => (value.as_f64().is_some_and(|value| Some(value) < rule.as_f64()))
            .then(|| format!("{at}: {value} is below {rule}")),
        "maximum" => (value.as_f64().is_some_and(|value| Some(value) > rule.as_f64()))
            .then(|| format!("{at}: {value} is above {rule}")),
        "required" => rule.as_array().unwrap().iter().find_map(|key| {
            let has = value.get(key.as_str().unwrap()).is_some();
            (value.is_object() && !has).then(|| format!("{at}: {key} is missing"))
        }),
        "properties" => rule
            .as_object()
            .unwrap()
            .iter()
            .find_map(|(key, schema)| problem(schema, value.get(key)?, &format!("{at}.{key}"))),
        "additionalProperties" => {
            let known = schema.get("properties").and_then(Value::as_object);
            let others =
                value.as_object()?.iter().filter(|(key, _)| known.is_none_or(|known| !known.contains_key(*key)));
            others.into_iter().find_map(|(key, value)| problem(rule, value, &format!("{at}.{key}")))
        }
        "items" => {
            value.as_array()?.iter().enumerate().find_map(|(i, item)| problem(rule, item, &format!("{at}[{i}]")))
        }
        "anyOf" => {
            let problems: Vec<_> = rule.as_array().unwrap().iter().map(|one| problem(one, value, at)).collect();
            problems.iter().all(Option::is_some).then(|| format!("{at}: {problems:?}"))
        }
        "oneOf" => {
            let problems: Vec<_> = rule.as_array().unwrap().iter().map(|one| problem(one, value, at)).collect();
            let fits = problems.iter().filter(|problem| problem.is_none()).count();
            (fits != 1).then(|| format!("{at}: fits {fits} of {problems:#?}"))
        }
        other => panic!("{at}: unhandled keyword {other}"),
    })
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unhandled type {other}"),
    }
}

/// Runs the program; its document, which must be valid, be the command's, and come with this exit code.
#[track_caller]
fn document(place: &Place, args: &[&str], code: i32) -> Value {
    let ended = place.run(&[args, &["--json"]].concat());
    assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    if let Some(problem) = problem(&schema, &document, "") {
        panic!("{args:?}: {problem}");
    }
    assert_eq!(document["command"], args[0]);
    document
}

/// A matrix of the family.
const TENSOR: &str = "model.layers.0.mlp.up_proj.weight";

#[test]
fn every_document_is_valid() {
    let place = Place::new();
    place.recipe("factors", "merge_method: cart\noutput: factors\n", "base");
    let with = |args: &[&'static str]| [args, &FIXED].concat();
    document(&place, &with(&["merge", "cart.yaml", "-o", "out"]), 0);
    document(&place, &with(&["merge", "cart.yaml", "-o", "out", "--resume"]), 0);
    document(&place, &with(&["merge", "factors.yaml", "-o", "kept"]), 0);
    document(&place, &with(&["extract", "kept", "--task", "a", "-o", "a"]), 0);
    document(&place, &with(&["plan", "ties.yaml"]), 0);
    document(&place, &with(&["plan", "factors.yaml"]), 0);
    document(&place, &with(&["explain", "cart.yaml", TENSOR]), 0);
    document(&place, &with(&["explain", "cart.yaml", TENSOR, "0"]), 0);
    document(&place, &with(&["explain", "ties.yaml", TENSOR, "0"]), 0);
    document(&place, &with(&["saliency", "ties.yaml", "-o", "s.json", "--keep", "0.5"]), 0);
    document(&place, &["inspect", "family/b"], 0);
    document(&place, &["compare", "family/a", "out"], 0);
    document(&place, &["compare", "family/a", "out", "--exit-code"], 1);
    document(&place, &["compare", "out", "out", "--exit-code"], 0);
    document(&place, &["verify", "out"], 0);
    document(&place, &["methods"], 0);
    document(&place, &["methods", "lwptv"], 0);
    document(&place, &["devices"], 0);
    document(&place, &["bench", "--only", "memory", "--size", "1MiB", "--runs", "1"], 0);
    // A report is a document too.
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let report: Value = serde_json::from_slice(&std::fs::read(place.path("s.json")).unwrap()).unwrap();
    assert_eq!(problem(&schema, &report, ""), None);
    std::fs::write(place.path("out/config.json"), "{}").unwrap();
    assert_eq!(document(&place, &["verify", "out"], 1)["ok"], false);
}

#[test]
fn failures_are_documents_that_tell_their_kind() {
    let place = Place::new();
    std::fs::create_dir(place.path("full")).unwrap();
    place.write("full/x", "");
    place.write("wrong.yaml", "merge_method: tie\n");
    place.write("gone.yaml", "merge_method: linear\nmodels: [{model: family/none}]\n");
    place.write("cut.safetensors", "\u{10}\0\0\0\0\0\0\0{\"w\":");
    for (args, code, kind) in [
        (&["merge", "none.yaml", "-o", "out"][..], 1, "recipe"),
        (&["merge", "wrong.yaml", "-o", "out"], 1, "recipe"),
        (&["plan", "gone.yaml"], 1, "checkpoint"),
        (&["inspect", "cut.safetensors"], 1, "checkpoint"),
        (&["verify", "family/base"], 1, "checkpoint"),
        (&["merge", "ties.yaml", "-o", "full"], 1, "usage"),
        (&["merge", "ties.yaml", "-o", "out", "--threads", "0"], 1, "usage"),
        (&["merge", "ties.yaml"], 2, "usage"),
        (&["plan", "ties.yaml", "--memory-budget", "1KiB"], 1, "memory"),
        (&["saliency", "ties.yaml", "-o", "s.json", "--memory-budget", "1KiB"], 1, "memory"),
        (&["merge", "ties.yaml", "-o", "out", "--device", "cuda"], 3, "device"),
    ] {
        let document = document(&place, args, code);
        assert_eq!(document["error"]["kind"], kind, "{args:?}");
        assert_eq!(document["error"]["exit_code"], code, "{args:?}");
    }
    let document: Value = serde_json::from_str(&place.run(&["--json", "marge"]).stdout).unwrap();
    assert!(document["command"].is_null() && document["error"]["kind"] == "usage", "{document}");
}

#[test]
fn the_validator_finds_what_is_wrong() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let place = Place::new();
    let good = document(&place, &["verify", "family/base"], 1);
    for (pointer, value) in [
        ("/schema", 1.into()),
        ("/error/kind", "input".into()),
        ("/error/hints", Value::Null),
        ("/error/exit_code", "1".into()),
        ("/warnings", Value::Null),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        assert!(problem(&schema, &bad, "").is_some(), "{pointer}");
    }
    assert!(problem(&schema, &serde_json::json!({}), "").is_some());
}
