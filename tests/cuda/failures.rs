//! What fails on a CUDA device ends in a clean error, exit code 3, from which `--resume` goes on to the same bytes. Failures are
//! those of the stand-in driver; without it these tests are skipped.

use std::path::Path;

use merganser::dtype::Dtype::{self, *};

use crate::both::stand_in;
use crate::support::child::{self, Ended};
use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::{Run, digests, quick_folder};

const SPECS: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.self_attn.q_proj.weight", F32, &[20, 12]),
    ("model.layers.0.mlp.up_proj.weight", BF16, &[24, 40]),
    ("model.layers.0.norm.weight", F32, &[33]),
    ("model.layers.1.norm.weight", F16, &[2049]),
];

/// A merge on the devices in a process of its own, which fails as `fail` says.
fn merge(recipe: &Path, out: &Path, fail: &str, args: &[&str]) -> Ended {
    let mut command = child::command(recipe, out, &[&["--device", "cuda"], args].concat(), None);
    if !fail.is_empty() {
        command.env("MERGANSER_STANDIN_FAIL", fail);
    }
    child::end(command.spawn().unwrap())
}

/// The merge fails as it should, leaves nothing that looks finished, and goes on to the CPU's bytes.
fn fails_and_resumes(family: &Family, name: &str, text: &Text, fail: &str, said: &[&str]) {
    let recipe = family.recipe(name, &text.yaml());
    let out = family.path(&format!("out-{name}"));
    let failed = merge(&recipe, &out, fail, &[]);
    failed.expect(3, said);
    assert!(!out.exists(), "{name}: there is an output after a failure");
    merge(&recipe, &out, "", &["--resume"]).expect(0, &[]);
    let cpu = family.path(&format!("cpu-{name}"));
    Run::default().merge(&recipe, &cpu).unwrap();
    if text.method != "cart" {
        assert_eq!(digests(&out), digests(&cpu), "{name}");
    }
}

#[test]
fn every_call_that_fails_ends_in_an_error_that_can_be_gone_on_from() {
    let Some(_) = stand_in("calls that fail") else { return };
    let family = Family::new(quick_folder(), SPECS, 2, 19);
    let ties = Text::plain("ties", 2).set("density", "0.4");
    for (name, fail, said) in [
        ("pinned", "pinned:1", "out of memory"),
        ("stream", "stream:1", "cuda:0"),
        ("copy-1", "copy:1", "cuda:0"),
        ("copy-9", "copy:9", "cuda:0"),
        ("launch-1", "launch:1", "cuda:0"),
        ("launch-5", "launch:5", "cuda:0"),
        ("fault", "fault:2", "cuda:0"),
        ("lost", "lost:120", "cuda:0"),
    ] {
        fails_and_resumes(&family, name, &ties, fail, &["error: ", said]);
    }
    let cart = Text::plain("cart", 2).set("rank", "2");
    for (name, fail, said) in [
        ("blas", "blas:1", "cuBLAS"),
        ("solver", "solver:1", "cuSOLVER"),
        ("converge", "converge:1", "did not converge"),
    ] {
        fails_and_resumes(&family, name, &cart, fail, &["error: ", said]);
    }
}

#[test]
fn a_device_that_refuses_memory_gives_less_and_the_merge_goes_on() {
    let Some(_) = stand_in("memory that is refused") else { return };
    let family = Family::new(quick_folder(), SPECS, 2, 43);
    let text = Text::plain("task_arithmetic", 2);
    let recipe = family.recipe("refused", &text.yaml());
    let (out, cpu) = (family.path("refused"), family.path("cpu"));
    merge(&recipe, &out, "alloc:1", &[]).expect(0, &["asking for half"]);
    Run::default().merge(&recipe, &cpu).unwrap();
    assert_eq!(digests(&out), digests(&cpu));
    merge(&recipe, &family.path("all"), "alloc:1+", &[]).expect(3, &["too little free memory", "--device-memory"]);
}

#[test]
fn a_driver_that_is_too_old_and_devices_that_are_not_there_are_told() {
    let Some(_) = stand_in("drivers and devices") else { return };
    let family = Family::new(quick_folder(), SPECS, 2, 47);
    let recipe = family.recipe("told", &Text::plain("linear", 2).yaml());
    for (variable, value, device, said) in [
        ("MERGANSER_STANDIN_DRIVER", "11080", "cuda", ["supports CUDA 11.8", "12.0 is needed"]),
        ("MERGANSER_STANDIN_DEVICES", "0", "cuda", ["no device", "nvidia-smi"]),
        ("MERGANSER_STANDIN_DEVICES", "2", "cuda:2", ["no device 2", "cuda:1"]),
    ] {
        let mut command = child::command(&recipe, &family.path("told"), &["--device", device], None);
        child::end(command.env(variable, value).spawn().unwrap()).expect(3, &said);
        // Elements are the CPU's under `auto`, wherever there are devices.
        for (request, expected) in
            [("auto", "cpu"), ("cuda", "cuda")].into_iter().take(if value == "2" { 2 } else { 1 })
        {
            let out = family.path(&format!("{request}-{value}-{device}"));
            let mut command = child::command(&recipe, &out, &["--device", request], None);
            let ended = child::end(command.env(variable, value).spawn().unwrap()).expect(0, &[]);
            assert_eq!(ended.json()["device"]["backend"], expected, "{variable}={value}");
        }
    }
}

#[test]
fn two_devices_share_a_merge() {
    let Some(_) = stand_in("two devices") else { return };
    let family = Family::new(quick_folder(), SPECS, 2, 53);
    for text in [Text::plain("ties", 2).set("density", "0.4"), Text::plain("task_arithmetic", 2).lwptv("keep: 0.5")] {
        let name = format!("two-{}", text.method);
        let recipe = family.recipe(&name, &text.yaml());
        let (out, cpu) = (family.path(&name), family.path(&format!("cpu-{name}")));
        let mut command = child::command(&recipe, &out, &["--device", "cuda"], None);
        let ended = child::end(command.env("MERGANSER_STANDIN_DEVICES", "2").spawn().unwrap()).expect(0, &["cuda:1"]);
        assert!(ended.json()["device"]["name"].as_str().unwrap().contains("cuda:1"));
        Run::default().merge(&recipe, &cpu).unwrap();
        assert_eq!(digests(&out), digests(&cpu));
    }
}
