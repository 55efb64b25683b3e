//! Progress without a terminal, and recipes from standard input.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::place::{FIXED, Place};

/// Makes matrices of `base` large enough that merging them by CART takes a second.
fn slow(place: &Place) {
    use safetensors::tensor::{Dtype, TensorView};
    std::fs::create_dir_all(place.path("slow")).unwrap();
    for (model, name) in ["base", "a", "b", "c"].iter().enumerate() {
        let value = |i: usize| ((i * 2_654_435_761 + model * 40_503) % 65_537) as f32 / 65_537.0;
        let bytes: Vec<u8> = (0..320 * 320).flat_map(|i| value(i).to_le_bytes()).collect();
        let names: Vec<String> = (0..16).map(|layer| format!("layers.{layer}.mlp.weight")).collect();
        let view = || TensorView::new(Dtype::F32, vec![320, 320], &bytes).unwrap();
        let file = safetensors::serialize(names.iter().map(|name| (name, view())), None).unwrap();
        std::fs::write(place.path(&format!("slow/{name}.safetensors")), file).unwrap();
    }
    let models = "[{model: slow/a.safetensors}, {model: slow/b.safetensors}, {model: slow/c.safetensors}]";
    place.write("slow.yaml", &format!("merge_method: cart\nbase_model: slow/base.safetensors\nmodels: {models}\n"));
}

#[test]
fn lines_of_json_begin_at_nothing_and_end_with_all() {
    let place = Place::new();
    slow(&place);
    let merge = ["merge", "slow.yaml", "-o", "out", "--threads", "1", "--log-format", "json"];
    let ended = place.run(&[&merge[..], &["--progress-interval", "0.05"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<&Value> = lines.iter().filter(|line| line["message"] == "progress").collect();
    assert!(steps.len() > 3, "{}", ended.stderr);
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
    assert_eq!(number(steps[0], "done"), 0.0);
    assert!(steps[0]["left_seconds"].is_null());
    let last = steps[steps.len() - 1];
    assert_eq!(last["done"], last["total"]);
    assert_eq!(number(last, "left_seconds"), 0.0);
    for pair in steps.windows(2) {
        assert!(number(pair[0], "done") <= number(pair[1], "done"), "{pair:?}");
        assert!(number(pair[0], "seconds") <= number(pair[1], "seconds"), "{pair:?}");
    }
}

#[test]
fn lines_for_people_come_at_their_interval_and_only_where_they_are_wanted() {
    let place = Place::new();
    slow(&place);
    let run = |args: &[&str]| {
        let merge = ["merge", "slow.yaml", "-o", "out", "--overwrite", "--threads", "1", "--progress-interval", "0.05"];
        let ended = place.run(&[&merge[..], args].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stderr.lines().filter(|line| line.contains(" % after ")).count()
    };
    assert!(run(&[]) > 1);
    assert!(run(&["-q", "--progress", "lines"]) > 1, "asked for by name");
    assert_eq!(run(&["-q"]), 0);
    assert_eq!(run(&["--progress", "none"]), 0);
}

#[test]
fn an_interval_that_is_none_is_refused() {
    let place = Place::new();
    for interval in ["0", "-1", "x", "nan", "1e9"] {
        let ended = place.run(&["merge", "cart.yaml", "-o", "out", "--progress-interval", interval, "--json"]);
        assert_eq!(ended.code, Some(1), "{interval}");
        let document: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(document["error"]["kind"], "usage");
    }
}

#[test]
fn a_recipe_from_standard_input_is_the_same_recipe() {
    let place = Place::new();
    let text = std::fs::read(place.path("ties.yaml")).unwrap();
    let piped = |args: &[&str], text: &[u8]| {
        let mut command = place.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text).unwrap();
        let output = child.wait_with_output().unwrap();
        let read = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), read(output.stdout), read(output.stderr))
    };
    let (code, _, stderr) = piped(&[&["merge", "-", "-o", "piped"][..], &FIXED].concat(), &text);
    assert_eq!(code, Some(0), "{stderr}");
    // Its identity is its text's: the file's merge finds its own output there.
    let again = [&["merge", "ties.yaml", "-o", "piped", "--resume", "--json"][..], &FIXED].concat();
    let document: Value = serde_json::from_str(&place.run(&again).stdout).unwrap();
    assert_eq!(document["already_done"], true);
    let (code, _, stderr) = piped(&["plan", "-"], b"merge_method: ties\nmodel: x\n");
    assert_eq!(code, Some(1));
    // All mistakes are told at once, each with its line.
    assert!(stderr.starts_with("error: <stdin>:1: ") && stderr.contains("\n<stdin>:2: unknown key"), "{stderr}");
    let (code, stdout, _) = piped(&["plan", "-", "--json"], b"\xff");
    let document: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &document["error"]["kind"]), (Some(1), &"recipe".into()));
}
