//! Audits of merges: what a device got wrong in silence is found by the CPU, ends the merge, and is not kept; and `devices --check`.

use std::process::{Command, Stdio};

use merganser::dtype::Dtype::{self, *};
use serde_json::{Value, json};

use super::cases::Case;
use crate::both::stand_in;
use crate::support::child::{self, Ended};
use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::{Run, binary, quick_folder};

/// Mistakes of each kind that are tried, and those that are enough.
const TRIED: u64 = 12;
const ENOUGH: usize = 3;

/// Takes calls away until some leave wrong bytes and status 0 where nothing is audited; the audit must find each.
fn finds_what_is_silently_wrong(name: &str) {
    let Some(case) = Case::of(name) else { return };
    let mut found = 0;
    'all: for kind in ["upload", "wait", "clear"] {
        for nth in 1..=case.count(&format!("{kind}s")).min(TRIED) {
            for seed in ["2", "1"] {
                let variables = [("SEED", seed), ("SABOTAGE", &format!("{kind}:{nth}"))];
                let silent = case.run("wrong", &variables, &[]);
                case.remove("wrong");
                let is_wrong = silent.code == Some(0) && bytes_of(&silent.tensors) != bytes_of(&case.right);
                if !is_wrong {
                    continue;
                }
                let audited = case.run_audited("wrong", &variables, &[]);
                let said = &audited.stderr;
                assert_eq!(audited.code, Some(3), "{name}, {kind}:{nth}, seed {seed}: {said}");
                for text in
                    ["cuda:0 (merganser stand-in 0) merged element ", "`model.layers.0.mlp.w`", "devices --check"]
                {
                    assert!(said.contains(text), "{text}: {said}");
                }
                // Nothing is left that the next run would take for finished.
                let resumed = case.run_audited("wrong", &[("SEED", seed)], &["--resume"]);
                assert_eq!((resumed.code, &resumed.tensors), (Some(0), &case.right), "{}", resumed.stderr);
                case.remove("wrong");
                found += 1;
                if found == ENOUGH {
                    break 'all;
                }
            }
        }
    }
    assert!(found > 0, "{name}: no mistake leaves wrong bytes in silence");
    eprintln!("{name}: {found} silent mistakes, all found");
}

/// Digests of the tensors: facts may differ where bytes do not.
fn bytes_of(tensors: &Value) -> Vec<&Value> {
    tensors.as_array().into_iter().flatten().map(|tensor| &tensor["digest"]).collect()
}

#[test]
fn an_audit_finds_what_is_silently_wrong_element_by_element() {
    finds_what_is_silently_wrong("task_arithmetic");
}

#[test]
fn an_audit_finds_what_is_silently_wrong_in_a_streamed_tensor() {
    finds_what_is_silently_wrong("streamed");
}

#[test]
fn an_audit_finds_what_is_silently_wrong_in_a_matrix() {
    finds_what_is_silently_wrong("cart");
}

#[test]
fn an_audit_finds_what_is_silently_wrong_in_orthogonal_factors() {
    finds_what_is_silently_wrong("tsv_m");
}

const SPECS: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.mlp.up_proj.weight", F32, &[24, 40]),
    ("model.layers.0.mlp.down_proj.weight", F64, &[40, 24]),
    ("model.layers.0.norm.weight", BF16, &[33]),
    ("model.layers.1.mlp.long", F16, &[200_001]),
];

fn merged(family: &Family, text: &Text, args: &[&str]) -> Value {
    let recipe = family.recipe("audited", &text.yaml());
    let all = [&["--device", "cuda", "--overwrite"], args].concat();
    child::run(&recipe, &family.path("out"), &all).expect(0, &[]).json()
}

#[test]
fn the_manifest_says_how_much_was_audited_and_the_number_is_the_users() {
    let Some(_) = stand_in("how much is audited") else { return };
    let family = Family::new(quick_folder(), SPECS, 2, 67);
    let (ties, cart) = (Text::plain("ties", 2).set("density", "0.4"), Text::plain("cart", 2).set("rank", "2"));
    let counts = |segments: u64, of: u64, elements: u64, matrices: u64, of_matrices: u64| {
        json!({
            "segments": segments, "of_segments": of, "elements": elements,
            "matrices": matrices, "of_matrices": of_matrices,
        })
    };
    let audit = |text, args: &[&str]| merged(&family, text, args)["device"]["audit"].clone();
    // Seven segments: of each small tensor one, of the long one four.
    assert_eq!(audit(&ties, &[]), counts(7, 7, 960 + 960 + 33 + 200_001, 0, 0));
    assert_eq!(audit(&ties, &["--audit", "none"]), counts(0, 0, 0, 0, 0));
    let three = audit(&ties, &["--audit", "3"]);
    assert_eq!((&three["segments"], &three["of_segments"]), (&3.into(), &7.into()));
    assert_eq!(three, audit(&ties, &["--audit", "3"]), "the seed alone chooses");
    assert_eq!(audit(&cart, &[]), counts(5, 5, 33 + 200_001, 1, 2));
    for wrong in ["0", "-1", "some", "1.5"] {
        let recipe = family.recipe("audited", &ties.yaml());
        child::run(&recipe, &family.path("out"), &["--audit", wrong]).expect(1, &["above 0, or `none`"]);
    }
    // Nothing of the CPU's own is audited.
    let recipe = family.recipe("audited", &ties.yaml());
    let cpu = child::run(&recipe, &family.path("out"), &["--device", "cpu", "--overwrite"]).expect(0, &[]).json();
    assert!(cpu["device"]["audit"].is_null() && cpu["reproducible"] == true, "{cpu}");
}

fn check(cache: &std::path::Path, variables: &[(&str, &str)], args: &[&str]) -> Ended {
    let mut command = Command::new(binary());
    command.args(["devices", "--check"]).args(args).env("XDG_CACHE_HOME", cache);
    command.envs(variables.iter().copied());
    child::end(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

#[test]
fn a_device_that_passes_its_check_has_that_stated_by_its_merges_and_one_that_does_not_is_told_with_the_operation() {
    let Some(_) = stand_in("a check of devices") else { return };
    let cache = quick_folder();
    let family = Family::new(quick_folder(), SPECS, 2, 71);
    let recipe = family.recipe("checked", &Text::plain("ties", 2).set("density", "0.4").yaml());
    let stated = || {
        let mut command = child::command(&recipe, &family.path("out"), &["--device", "cuda", "--overwrite"], None);
        command.env("XDG_CACHE_HOME", cache.path());
        child::end(command.spawn().unwrap()).expect(0, &[]).json()["device"]["check"].clone()
    };
    assert!(stated().is_null());

    // The first copy to the device never happens: whatever comes first is wrong.
    let wrong = check(cache.path(), &[("MERGANSER_STANDIN_SABOTAGE", "upload:1")], &["--json"]);
    assert_eq!(wrong.code(), Some(3), "{}", wrong.stderr);
    let document = wrong.json();
    let checked = &document["checks"][0];
    assert_eq!((&checked["passed"], &checked["device"]), (&false.into(), &"cuda:0 (merganser stand-in 0)".into()));
    let problems: Vec<&Value> =
        checked["operations"].as_array().unwrap().iter().filter(|o| !o["problem"].is_null()).collect();
    assert!(!problems.is_empty(), "{checked}");
    assert!(stated().is_null(), "what did not pass is not stated");

    let right = check(cache.path(), &[("MERGANSER_STANDIN_DEVICES", "2")], &["--json"]).expect(0, &[]).json();
    let checks = right["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 2);
    for checked in checks {
        let operations = checked["operations"].as_array().unwrap();
        assert!(checked["passed"] == true && operations.len() > 20, "{checked}");
        let sum = |key: &str| operations.iter().map(|o| o[key].as_u64().unwrap()).sum::<u64>();
        assert!(sum("same_bits") > 150 && sum("within_bound") > 20, "{checked}");
        for name in ["ties", "cart", "tsv_m", "iso_cts", "slerp", "lwptv, granularity: row"] {
            assert!(operations.iter().any(|o| o["name"] == name), "{name}: {checked}");
        }
    }
    assert!(stated().is_string());

    let told = check(cache.path(), &[], &[]).expect(0, &[]).stdout;
    assert!(told.contains("computes what the CPU does") && told.contains("tensors of the same bits"), "{told}");
}

#[test]
fn counts_of_a_merge_are_those_that_the_plan_predicts_from() {
    let Some(_) = stand_in("counts of a merge") else { return };
    for (text, matrices) in [
        (Text::plain("task_arithmetic", 2), false),
        (Text::plain("ties", 2).set("density", "0.4"), false),
        (Text::plain("cart", 3).set("rank", "3"), true),
        (Text::plain("tsv_m", 2), true),
        (Text::plain("iso_c", 2), true),
        (Text::plain("iso_cts", 2).set("common_space_fraction", "0.6"), true),
    ] {
        let specs: &[(&str, Dtype, &[u64])] = &[
            ("model.layers.0.mlp.up_proj.weight", F32, &[24, 40]),
            ("model.layers.1.mlp.up_proj.weight", F32, &[24, 40]),
            ("model.layers.0.mlp.down_proj.weight", BF16, &[40, 24]),
            ("model.layers.1.mlp.long", F16, &[200_001]),
        ];
        let family = Family::new(quick_folder(), specs, text.models.len(), 73);
        let recipe = family.recipe("counted", &text.yaml());
        let mut plan = Run::default().plan(&recipe).unwrap();
        let card = merganser::cost::cards::named("h100-sxm").unwrap();
        let device = merganser::cost::cards::device_of(card);
        merganser::engine::plan_for_devices(&mut plan, &device, None).unwrap();
        let work = plan.work().unwrap();

        let report = family.path("report.json");
        let mut command = child::command(&recipe, &family.path("out"), &["--device", "cuda", "--audit", "none"], None);
        command.env("MERGANSER_STANDIN_REPORT", &report);
        child::end(command.spawn().unwrap()).expect(0, &[]);
        let counted: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        let of = |key: &str| counted[key].as_u64().unwrap() as f64;
        // Beside sources and results cross stages, numbers of columns, counters.
        let near = |predicted: f64, counted: f64, slack: f64, what: &str| {
            assert!(
                counted >= predicted && counted <= predicted * 1.02 + slack,
                "{}: {what}: {predicted} predicted, {counted} counted",
                text.method
            );
        };
        near(work.to_device_bytes as f64, of("host_to_device_bytes"), 20e3, "bytes to the device");
        near(work.from_device_bytes as f64, of("device_to_host_bytes"), 20e3, "bytes from the device");
        assert_eq!(counted["product_operations"][0], 0, "products in f32");
        let products = counted["product_operations"][1].as_u64().unwrap() as f64;
        let eigen: u64 = work.eigen.iter().map(|e| e.matrices).sum();
        let cubes: u64 = work.eigen.iter().map(|e| e.matrices * e.side.pow(3)).sum();
        if matrices {
            let apart = work.product_operations / products;
            assert!((0.9..1.1).contains(&apart), "{}: {} predicted, {products}", text.method, work.product_operations);
            assert_eq!([eigen, cubes], ["eigen_matrices", "eigen_cubes"].map(|key| of(key) as u64), "{}", text.method);
        } else {
            assert_eq!((products, eigen, of("eigen_matrices")), (0.0, 0, 0.0));
        }
    }
}
