//! A merge whose devices were found and not asked for, and fail to open, run out of memory or are lost, goes on on the CPU.

use std::process::{Command, Stdio};

use merganser::dtype::Dtype::{BF16, F32};
use merganser::report::manifest::Manifest;

use crate::both::stand_in;
use crate::support::child::{self, Ended};
use crate::support::family::{Family, Rng};
use crate::support::recipes::Text;
use crate::support::tensor::Tensor;
use crate::support::{Run, binary, digests, partial};

/// Two matrices that the models changed.
const CHANGED: [(&str, &[u64]); 2] =
    [("model.layers.0.mlp.up_proj.weight", &[24, 40]), ("model.layers.1.mlp.down_proj.weight", &[40, 24])];
/// Matrices that they left as they were: by their shapes these take the CPU most of a second, so that `auto` gives matrices to the
/// device; but what is zero is not decomposed.
const FROZEN: usize = 4;
const SIDE: u64 = 1024;

/// A card whose rates are known.
const CARD: (&str, &str) = ("MERGANSER_STANDIN_NAME", "NVIDIA H100 80GB HBM3 (merganser stand-in)");

struct Merge {
    family: Family,
    recipe: std::path::PathBuf,
}

impl Merge {
    fn of(text: &Text) -> Self {
        let mut rng = Rng(83);
        let mut noise = |elems: u64| (0..elems).map(|_| rng.normal()).collect::<Vec<f64>>();
        let frozen: Vec<Tensor> = (0..FROZEN)
            .map(|i| {
                let name = format!("model.layers.{}.mlp.w.weight", i + 2);
                Tensor::new(&name, BF16, &[SIDE, SIDE], &noise(SIDE * SIDE))
            })
            .collect();
        let norm = Tensor::new("model.layers.0.norm.weight", BF16, &[33], &noise(33));
        let base: Vec<Vec<f64>> = CHANGED.iter().map(|(_, shape)| noise(shape.iter().product())).collect();
        let members = (0..3).map(|model| {
            let mut tensors = frozen.clone();
            tensors.push(norm.clone());
            for ((name, shape), base) in CHANGED.iter().zip(&base) {
                let by = if model == 0 { 0.0 } else { 0.1 };
                let values: Vec<f64> = base.iter().zip(noise(base.len() as u64)).map(|(b, c)| b + by * c).collect();
                tensors.push(Tensor::new(name, F32, shape, &values));
            }
            tensors
        });
        let family = Family::of(members.collect());
        let recipe = family.recipe("going-on", &text.yaml());
        Run::default().merge(&recipe, &family.path("cpu")).unwrap();
        Self { family, recipe }
    }

    fn run(&self, fail: &str, args: &[&str]) -> Ended {
        let args = [&["--threads", "1"], args].concat();
        let mut command = child::command(&self.recipe, &self.family.path("out"), &args, None);
        command.env("MERGANSER_STANDIN_FAIL", fail).env(CARD.0, CARD.1);
        child::end(command.spawn().unwrap())
    }

    fn manifest(&self) -> Manifest {
        Manifest::read(&self.family.path("out")).unwrap()
    }
}

fn low_rank() -> Text {
    Text::plain("low_rank", 2).set("rank", "2")
}

#[test]
fn auto_gives_matrices_to_a_device_where_that_ends_sooner_and_says_so() {
    let Some(_) = stand_in("auto by step") else { return };
    let merge = Merge::of(&low_rank());
    let document = merge.run("", &["--device", "auto"]).expect(0, &["computing on cuda:0"]).json();
    assert_eq!((&document["device"]["backend"], &document["reproducible"]), (&"cuda".into(), &true.into()));
    for tensor in merge.manifest().tensors {
        let is_matrix = tensor.facts.get("rank").is_some();
        assert_eq!(tensor.facts["computed_on"], if is_matrix { "cuda:0" } else { "cpu" }, "{}", tensor.name);
    }
    let plan = |threads: &str, args: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["plan", "--json", "--threads", threads]).arg(&merge.recipe).args(args).env(CARD.0, CARD.1);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child::end(command.spawn().unwrap()).expect(0, &[]).json()
    };
    let auto = plan("1", &[])["auto"].clone();
    assert_eq!(auto["devices"], true, "{auto}");
    assert!(auto["device_seconds"].as_f64() <= auto["cpu_seconds"].as_f64().map(|s| 1.1 * s), "{auto}");
    assert!(auto["why"].as_str().unwrap().contains("with matrices on cuda:0"), "{auto}");
    // Two hundred threads of a CPU are as fast.
    let fast = plan("200", &["--memory-budget", "64GiB"]);
    assert_eq!(
        (&fast["auto"]["devices"], &fast["devices"]),
        (&false.into(), &serde_json::Value::Null),
        "{}",
        fast["auto"]
    );
    // What was asked for gets everything.
    assert!(plan("1", &["--device", "cuda"])["auto"].is_null());
}

#[test]
fn a_merge_without_matrices_is_left_to_the_cpu_and_no_device_is_opened() {
    let Some(_) = stand_in("nothing for a device") else { return };
    let merge = Merge::of(&Text::plain("ties", 2).set("density", "0.4"));
    // Whatever is asked of the device fails.
    merge.run("module:1+", &["--device", "auto"]).expect(0, &["computing on the CPU", "element by element"]);
    assert_eq!(digests(&merge.family.path("out")), digests(&merge.family.path("cpu")));
    assert_eq!(merge.manifest().device.backend, "cpu");
}

#[test]
fn matrices_that_go_on_on_the_cpu_are_said_to_and_strict_refuses() {
    let Some(_) = stand_in("matrices that go on on the CPU") else { return };
    let merge = Merge::of(&low_rank());
    // Of opening, of memory, of a library, of a call, of the device itself.
    for fail in ["module:1+", "alloc:1+", "solver-memory:1+", "solver:1", "blas:2", "fault:3", "lost:120"] {
        let ended = merge.run(fail, &["--device", "auto", "--overwrite"]).expect(0, &[]);
        let said = "the CPU computes in its stead";
        let told = ended.json()["warnings"].to_string().matches(said).count();
        assert_eq!((ended.stderr.matches(said).count(), told), (1, 1), "{fail}: {}", ended.stderr);
        let manifest = merge.manifest();
        assert!(manifest.device.left.is_some(), "{fail}");
        let (cpu, out) = (digests(&merge.family.path("cpu")), digests(&merge.family.path("out")));
        let mut on_the_cpu = 0;
        for tensor in &manifest.tensors {
            if tensor.facts.get("rank").is_none() {
                assert_eq!(out[&tensor.name], cpu[&tensor.name], "{fail}: {}", tensor.name);
            } else if tensor.facts["computed_on"] == "cpu" {
                on_the_cpu += 1;
                assert_eq!(tensor.facts["why_there"], "the device that was to make it failed", "{fail}");
                assert_eq!(out[&tensor.name], cpu[&tensor.name], "{fail}: {}", tensor.name);
            }
        }
        let is_whole = on_the_cpu == 0;
        assert_eq!((manifest.reproducible, ended.json()["reproducible"] == true), (is_whole, is_whole), "{fail}");
        assert!(fail != "module:1+" || on_the_cpu == FROZEN + CHANGED.len(), "{fail}: {on_the_cpu}");
        if !is_whole {
            let refused = merge.run(fail, &["--device", "auto", "--overwrite", "--strict"]);
            refused.expect(3, &["error: ", "without --strict the CPU goes on"]);
        }
        // Where it was asked for there is no going on.
        merge.run(fail, &["--device", "cuda", "--overwrite"]).expect(3, &["error: "]);
    }
}

#[test]
fn matrices_of_one_merge_made_on_two_devices_are_not_called_reproducible() {
    let Some(_) = stand_in("matrices of two devices") else { return };
    let merge = Merge::of(&low_rank());
    let out = merge.family.path("out");
    // Late enough that a matrix is finished before.
    let mut left = None;
    for nth in (40..800).step_by(20) {
        let ended = merge.run(&format!("lost:{nth}"), &["--device", "cuda", "--overwrite"]);
        let journal = std::fs::read_to_string(partial(&out).join("merganser.journal.jsonl")).unwrap_or_default();
        let done = journal.lines().filter(|line| line.contains("\"done\"") && line.contains("\"rank\"")).count();
        if ended.code() == Some(3) && done > 0 && done < FROZEN + CHANGED.len() {
            left = Some(nth);
            break;
        }
        assert!(matches!(ended.code(), Some(0 | 3)), "{}", ended.stderr);
    }
    assert!(left.is_some(), "no failure leaves some matrices of all");
    merge.run("", &["--device", "cpu", "--resume", "--strict"]).expect(1, &["on another device", "without --strict"]);
    merge.run("", &["--device", "cpu", "--resume"]).expect(0, &[]);
    assert!(!merge.manifest().reproducible);
    // A whole merge on either device is.
    for device in ["cpu", "cuda"] {
        merge.run("", &["--device", device, "--overwrite", "--strict"]).expect(0, &[]);
        assert!(merge.manifest().reproducible, "{device}");
    }
}
