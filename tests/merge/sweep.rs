//! Many settings of one recipe, from one reading of the sources.

use std::fs;
use std::path::{Path, PathBuf};

use merganser::dtype::Dtype;
use serde_json::{Value, json};

use crate::support::child::{self, Ended};
use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::{assert_whole, binary, digests};

const OPTIONS: [&str; 4] = ["--threads", "2", "--memory-budget", "128MiB"];

fn family() -> Family {
    let mut specs: Vec<(String, Dtype, Vec<u64>)> = vec![("embed.weight".into(), Dtype::BF16, vec![300, 200])];
    for i in 0..3 {
        let at = |what: &str| format!("model.layers.{i}.{what}.weight");
        specs.push((at("self_attn.q_proj"), Dtype::BF16, vec![96, 200]));
        specs.push((at("mlp.up_proj"), Dtype::F32, vec![120, 96]));
        specs.push((at("input_layernorm"), Dtype::F32, vec![96]));
    }
    specs.push(("steps".into(), Dtype::I64, vec![3]));
    let specs: Vec<_> = specs.iter().map(|(n, d, s)| (n.as_str(), *d, &s[..])).collect();
    Family::new(tempfile::tempdir().unwrap(), &specs, 3, 7)
}

/// `merganser sweep RECIPE -o OUT --json ARGS`.
fn command(recipe: &Path, out: &Path, more: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(binary());
    command.args(["sweep", "--json"]).arg(recipe).arg("-o").arg(out).args(OPTIONS).args(more);
    command.stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

fn sweep(recipe: &Path, out: &Path, more: &[&str]) -> Ended {
    child::end(command(recipe, out, more).spawn().unwrap())
}

fn bytes_read(out: &Path) -> u64 {
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("merganser.json")).unwrap()).unwrap();
    manifest["timings"]["bytes_read"].as_u64().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Fails unless a sweep's output is what `merge` makes of the recipe that its manifest states, and gives that output.
fn assert_merged(family: &Family, name: &str, out: &Path) -> PathBuf {
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("merganser.json")).unwrap()).unwrap();
    let recipe = family.recipe(name, manifest["recipe_text"].as_str().unwrap());
    let alone = family.path(&format!("alone-{name}"));
    child::run(&recipe, &alone, &OPTIONS).expect(0, &[]);
    assert_whole(out);
    let stated = |out: &Path| -> Value {
        let manifest: Value = serde_json::from_slice(&fs::read(out.join("merganser.json")).unwrap()).unwrap();
        json!([manifest["tensors"], manifest["sources"], manifest["totals"]])
    };
    assert_eq!(stated(out), stated(&alone), "{name}");
    alone
}

#[test]
fn settings_of_the_last_step_share_one_reading_and_give_the_bytes_of_merge() {
    let family = family();
    let lambda = "parameters.lambda=0.2:1.0:0.4";
    for (i, (text, set)) in [
        (Text::plain("task_arithmetic", 3), lambda),
        (Text::plain("ties", 3).set("density", "0.4"), lambda),
        (Text::plain("dare_ties", 3).set("density", "0.5"), lambda),
        (Text::plain("cart", 3), lambda),
        (Text::plain("cart", 3).lwptv("granularity: row, keep: 0.6"), lambda),
        (Text::plain("iso_c", 3), lambda),
        (Text::plain("task_arithmetic", 3).lwptv("granularity: tensor, keep: 0.5"), lambda),
        (Text::plain("linear", 3), "models.1.parameters.weight=0.5,2,3"),
        (Text::plain("slerp", 1).set("t", "0.5"), "parameters.t=0.2:0.6:0.2"),
        (Text::plain("multislerp", 3).set("weight", "1.0"), "models.1.parameters.weight=0.5,2,3"),
    ]
    .into_iter()
    .enumerate()
    {
        let (recipe, out) = (family.recipe(&format!("r{i}"), &text.yaml()), family.path(&format!("sweep-{i}")));
        let document = sweep(&recipe, &out, &["--set", set]).expect(0, &[]).json();
        assert_eq!(
            (&document["totals"]["outputs"], &document["totals"]["readings"]),
            (&3.into(), &1.into()),
            "{}",
            text.method
        );
        let mut seen = Vec::new();
        for (j, point) in document["points"].as_array().unwrap().iter().enumerate() {
            let out = PathBuf::from(point["out"].as_str().unwrap());
            let alone = assert_merged(&family, &format!("{i}-{j}"), &out);
            seen.push(digests(&out));
            if j == 0 && !["iso_c", "cart"].contains(&text.method.as_str()) {
                assert_eq!(document["totals"]["bytes_read"].as_u64(), Some(bytes_read(&alone)), "{}", text.method);
            }
        }
        assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2], "{}: the setting matters", text.method);
    }
}

#[test]
fn settings_that_change_what_is_measured_are_merged_by_themselves() {
    let family = family();
    let recipe = family.recipe("r", &Text::plain("ties", 3).lwptv("granularity: row, keep: 0.6").yaml());
    let out = family.path("sweep");
    let sets = [
        "--set",
        "parameters.density=0.3,0.6",
        "--set",
        "parameters.lambda=1:2:1",
        "--set",
        "task_vector_stages.0.parameters.keep=0.5,0.7",
    ];
    let document = sweep(&recipe, &out, &sets).expect(0, &[]).json();
    // Two densities and two shares: four readings, each for two λ.
    assert_eq!((&document["totals"]["outputs"], &document["totals"]["readings"]), (&8.into(), &4.into()));
    let folders: Vec<String> = names(&out).into_iter().filter(|name| name != "sweep.csv").collect();
    assert_eq!((folders.len(), &folders[0][..]), (8, "density=0.3,lambda=1,keep=0.5"));
    for (i, name) in folders.iter().enumerate() {
        assert_merged(&family, &format!("{i}"), &out.join(name));
    }
    let csv = fs::read_to_string(out.join("sweep.csv")).unwrap();
    assert!(csv.starts_with("out,parameters.density,parameters.lambda,task_vector_stages.0.parameters.keep,score\n"));
    assert!(csv.contains("\"density=0.3,lambda=1,keep=0.5\",0.3,1,0.5,\n"), "{csv}");
}

#[test]
fn a_commands_number_decides_which_output_is_kept() {
    let family = family();
    let recipe = family.recipe("r", &Text::plain("task_arithmetic", 3).yaml());
    let out = family.path("sweep");
    // Best at 0.6; the one of 0.2 fails.
    let script = family.path("score.sh");
    fs::write(&script, "case $1 in *=0.2) exit 3;; *=0.4) echo 'accuracy: 0.5';; *=0.6) printf 'x 1\\nscore=0.75\\n';; *=0.8) echo 0.7 done;; *) echo none;; esac\n").unwrap();
    let eval = format!("sh '{}'", script.display());
    let set = ["--set", "parameters.lambda=0.2:1.0:0.2", "--eval", &eval];
    let ended =
        sweep(&recipe, &out, &set).expect(0, &["lambda=0.2` ended with exit status: 3", "lambda=1` printed no number"]);
    let document = ended.json();
    assert_eq!(document["best"], json!(out.join("lambda=0.6")));
    let scores: Vec<Value> = document["points"].as_array().unwrap().iter().map(|p| p["score"].clone()).collect();
    assert_eq!(scores, [Value::Null, 0.5.into(), 0.75.into(), 0.7.into(), Value::Null]);
    // What failed is kept to be looked at.
    assert_eq!(names(&out), ["lambda=0.2", "lambda=0.6", "lambda=1", "sweep.csv", "sweep.json", "sweep.svg"]);
    assert_merged(&family, "best", &out.join("lambda=0.6"));
    let svg = fs::read_to_string(out.join("sweep.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("0.7500") && svg.matches("<circle").count() == 4, "{svg}");
    // Going on asks only for what has no score, and makes nothing again.
    let again = sweep(&recipe, &out, &[&set[..], &["--resume"]].concat()).expect(0, &[]).json();
    assert_eq!((&again["best"], &again["totals"]["bytes_written"]), (&document["best"], &0.into()));
    let out = family.path("least");
    let document = sweep(&recipe, &out, &[&set[..], &["--minimize"]].concat()).expect(0, &[]).json();
    assert_eq!(document["best"], json!(out.join("lambda=0.4")));
    sweep(&recipe, &family.path("none"), &["--set", "parameters.lambda=1,2", "--eval", "false"])
        .expect(1, &["gave no score for any of 2 outputs"]);
}

#[test]
fn an_interrupted_sweep_goes_on() {
    let family = family();
    let recipe = family.recipe("r", &Text::plain("ties", 3).set("density", "0.3").yaml());
    let out = family.path("sweep");
    let set = &["--set", "parameters.lambda=0.1:1.0:0.1"][..];
    let mut child = command(&recipe, &out, set).spawn().unwrap();
    let journal = out.join("lambda=1.merganser-partial/merganser.journal.jsonl");
    let lines = || fs::read(&journal).unwrap_or_default().iter().filter(|b| **b == b'\n').count();
    if child::wait_until(&mut child, || lines() > 2) {
        child.kill().unwrap();
    }
    child.wait().unwrap();
    if !out.join("sweep.csv").exists() {
        sweep(&recipe, &out, set).expect(1, &["is not empty", "`--resume` goes on"]);
    }
    sweep(&recipe, &out, &[set, &["--resume"]].concat()).expect(0, &[]);
    for (i, lambda) in ["0.1", "0.5", "1"].iter().enumerate() {
        assert_merged(&family, &format!("{i}"), &out.join(format!("lambda={lambda}")));
    }
    assert_eq!(names(&out).len(), 11);
}

#[test]
fn mistakes_are_found_before_anything_is_written() {
    let family = family();
    let recipe = family.recipe("r", &Text::plain("ties", 3).yaml());
    let out = family.path("sweep");
    let refused = |set: &[&str], code: i32, texts: &[&str]| {
        let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        sweep(&recipe, &out, &args).expect(code, texts);
        assert!(!out.exists());
    };
    refused(&["parameters.lamda=1,2"], 1, &["with lamda=1: ", "lamda"]);
    refused(&["parameters.lambda=1:2"], 1, &["a range has three numbers", "KEY=FROM:TO:STEP"]);
    refused(&["parameters.lambda=1,1.0"], 1, &["lambda=1 and lambda=1.0 are the same merge"]);
    refused(&["parameters.density=0.5,1.5"], 1, &["with density=1.5: ", "1.5"]);
    refused(&["models.7.parameters.weight=1"], 1, &["`models.7.parameters.weight` leads nowhere"]);
    refused(&[], 2, &["--set"]);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("photo.jpg"), "kept").unwrap();
    for more in [&[][..], &["--resume"], &["--overwrite"]] {
        let args = [&["--set", "parameters.lambda=1,2"], more].concat();
        let ended = sweep(&recipe, &out, &args).expect(1, &["holds `photo.jpg`"]);
        assert_eq!(ended.json()["error"]["kind"], "usage");
    }
    assert_eq!(names(&out), ["photo.jpg"]);
}
