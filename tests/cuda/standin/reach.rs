//! Which machines a merge on devices runs on: drivers from 12.0 on, cards from 7.5 on, libraries of CUDA 12 and of CUDA 13
//! wherever they lie; and what is said where it does not run.

use std::path::Path;
use std::process::Command;

use merganser::backend::cuda::module::Kernels;
use merganser::dtype::Dtype::{self, *};

use super::libraries_of;
use crate::both::{Both, stand_in};
use crate::support::child::{self, Ended};
use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::{Run, binary, digests, quick_folder};

const LAYERS: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.self_attn.q_proj.weight", F32, &[13, 40]),
    ("model.layers.0.mlp.up_proj.weight", BF16, &[40, 13]),
    ("model.layers.0.norm.weight", F32, &[33]),
];

fn run(mut command: Command, variables: &[(&str, &str)]) -> Ended {
    command.envs(variables.iter().copied());
    child::end(command.spawn().unwrap())
}

fn merge(recipe: &Path, out: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ended {
    run(child::command(recipe, out, &[&["--overwrite"], args].concat(), None), variables)
}

/// What the stand-in counted of a run.
fn counted(family: &Family, run: impl FnOnce(&str) -> Ended) -> (Ended, serde_json::Value) {
    let report = family.path("report.json");
    let ended = run(report.to_str().unwrap());
    let counts = std::fs::read(&report).map(|bytes| serde_json::from_slice(&bytes).unwrap());
    let _ = std::fs::remove_file(report);
    (ended, counts.unwrap_or_default())
}

#[test]
fn drivers_from_12_0_on_and_cards_from_7_5_on_merge_to_the_same_bytes_with_libraries_of_either_cuda() {
    let Some(_) = stand_in("drivers and cards") else { return };
    let family = Family::new(quick_folder(), LAYERS, 3, 113);
    let [ties, cart] = [Text::plain("ties", 3).set("density", "0.4"), Text::plain("cart", 3).set("rank", "2")];
    let (twelve, both) = (libraries_of("12"), libraries_of("both"));
    for text in [ties, cart] {
        let recipe = family.recipe(&text.method, &text.yaml());
        let [cpu, cuda] = ["cpu", "cuda"].map(|kind| family.path(&format!("{kind}-{}", text.method)));
        Run::default().merge(&recipe, &cpu).unwrap();
        // A driver of 12.0 knows no card of 12.0; kernels are then compiled to the newest PTX that its NVRTC knows.
        for (driver, capability, libraries) in [
            ("12000", "75", &twelve),
            ("12000", "120", &twelve),
            ("12040", "86", &both),
            ("12080", "100", &twelve),
            ("13000", "89", &both),
            ("13010", "120", &twelve),
        ] {
            let variables = [
                ("MERGANSER_STANDIN_DRIVER", driver),
                ("MERGANSER_STANDIN_CAPABILITY", capability),
                ("LD_LIBRARY_PATH", libraries.to_str().unwrap()),
            ];
            if Kernels::are_embedded() && driver < "13000" {
                continue;
            }
            merge(&recipe, &cuda, &["--device", "cuda"], &variables).expect(0, &["lanes at work"]);
            match text.method.as_str() {
                "ties" => assert_eq!(digests(&cuda), digests(&cpu), "{driver} {capability}"),
                name => Both { cpu: cpu.clone(), cuda: cuda.clone(), name: name.into() }.agree(&family, 5e-3),
            }
        }
    }
}

#[test]
fn libraries_are_found_where_wheels_conda_and_the_toolkit_put_them() {
    let Some(_) = stand_in("places of libraries") else { return };
    let family = Family::new(quick_folder(), LAYERS, 2, 127);
    let recipe = family.recipe("places", &Text::plain("cart", 2).set("rank", "2").yaml());
    let (driver, libraries) = (libraries_of("driver"), libraries_of("12"));
    let wheel = |root: &Path, place: &str, names: &[&str]| {
        let folder = root.join(place);
        std::fs::create_dir_all(&folder).unwrap();
        for name in names {
            std::os::unix::fs::symlink(libraries.join(name), folder.join(name)).unwrap();
        }
    };
    let environment = family.path("venv");
    for (place, names) in [
        ("cublas", &["libcublas.so.12", "libcublasLt.so.12"][..]),
        ("cusolver", &["libcusolver.so.11"]),
        ("cuda_nvrtc", &["libnvrtc.so.12"]),
    ] {
        wheel(&environment, &format!("lib/python3.11/site-packages/nvidia/{place}/lib"), names);
    }
    let all = ["libcublas.so.12", "libcublasLt.so.12", "libcusolver.so.11", "libnvrtc.so.12"];
    let (conda, toolkit) = (family.path("conda"), family.path("cuda"));
    wheel(&conda, "lib", &all);
    wheel(&toolkit, "lib64", &all);
    let out = family.path("out");
    for (variable, root) in [("VIRTUAL_ENV", &environment), ("CONDA_PREFIX", &conda), ("CUDA_HOME", &toolkit)] {
        let variables = [(variable, root.to_str().unwrap()), ("LD_LIBRARY_PATH", driver.to_str().unwrap())];
        merge(&recipe, &out, &["--device", "cuda"], &variables).expect(0, &["at work"]);
        let mut command = Command::new(binary());
        command.args(["devices", "--json"]).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let told = run(command, &variables).json();
        for library in told["cuda"]["libraries"].as_array().unwrap() {
            assert!(library["path"].as_str().unwrap().starts_with(root.to_str().unwrap()), "{library}");
        }
    }
    let nowhere = [("LD_LIBRARY_PATH", driver.to_str().unwrap())];
    merge(&recipe, &out, &["--device", "cuda"], &nowhere).expect(3, &["was not found"]);
}

#[test]
fn what_cannot_be_used_is_named_and_left_to_the_cpu_where_it_was_not_asked_for() {
    let Some(_) = stand_in("machines that are not as they should be") else { return };
    let family = Family::new(quick_folder(), LAYERS, 2, 131);
    let recipe = family.recipe("named", &Text::plain("cart", 2).set("rank", "2").yaml());
    let (stub, newest) = (libraries_of("stub"), libraries_of("unbatched"));
    let cases: &[(&str, &str, &[&str])] = &[
        ("CUDA_VISIBLE_DEVICES", "", &["CUDA_VISIBLE_DEVICES is set and empty"]),
        ("CUDA_VISIBLE_DEVICES", "7", &["CUDA_VISIBLE_DEVICES is `7`, which leaves none"]),
        (
            "LD_LIBRARY_PATH",
            stub.to_str().unwrap(),
            &["lib-stub/libcuda.so`, a stub or another driver, before the driver's own"],
        ),
        ("MERGANSER_STANDIN_CAPABILITY", "70", &["its compute capability is 7.0, and 7.5 is needed"]),
        ("MERGANSER_STANDIN_COMPUTE_MODE", "2", &["its compute mode is `prohibited`"]),
        (
            "MERGANSER_STANDIN_FAIL",
            "context:1",
            &["cuda:0", "another program has it for itself", "busy or unavailable"],
        ),
        ("MERGANSER_STANDIN_DRIVER", "11080", &["it supports CUDA 11.8, and 12.0 is needed"]),
        ("MERGANSER_STANDIN_MEMORY", "1MiB", &["too little"]),
    ];
    let check = |variables: &[(&str, &str)], said: &[&str]| {
        let out = family.path("out");
        merge(&recipe, &out, &["--device", "cuda"], variables).expect(3, said);
        // What does not open is not told where nothing would have been given to it.
        let auto = merge(&recipe, &out, &[], variables).expect(0, &[]);
        assert_eq!(auto.json()["device"]["backend"], "cpu", "{variables:?}");
        std::fs::remove_dir_all(out).unwrap();
    };
    for (variable, value, said) in cases {
        check(&[(variable, value)], said);
    }
    if !Kernels::are_embedded() {
        // Libraries of CUDA 13 under a driver of 12.4.
        let variables = [("MERGANSER_STANDIN_DRIVER", "12040"), ("LD_LIBRARY_PATH", newest.to_str().unwrap())];
        check(&variables, &["is of CUDA 13, and the driver supports CUDA 12.4: install the library of CUDA 12"]);
    }
}

#[test]
fn a_plan_opens_no_device() {
    let Some(_) = stand_in("a plan") else { return };
    let family = Family::new(quick_folder(), LAYERS, 2, 137);
    for text in [Text::plain("ties", 2), Text::plain("cart", 2).set("rank", "2")] {
        let recipe = family.recipe("plan", &text.yaml());
        let (ended, counts) = counted(&family, |report| {
            let mut command = Command::new(binary());
            command.arg("plan").arg(&recipe).args(["--device", "cuda", "--json"]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            run(command, &[("MERGANSER_STANDIN_REPORT", report)])
        });
        assert!(ended.expect(0, &[]).json()["devices"].is_object());
        assert_eq!(counts["context"], 0, "{counts}");
    }
}

#[test]
fn a_finished_merge_gives_everything_back_and_keeps_no_time() {
    let Some(_) = stand_in("what is left") else { return };
    let family = Family::new(quick_folder(), LAYERS, 2, 139);
    for text in [Text::plain("ties", 2), Text::plain("cart", 2).set("rank", "2"), Text::plain("iso_c", 2)] {
        let recipe = family.recipe(&text.method, &text.yaml());
        let (ended, counts) = counted(&family, |report| {
            let variables = [("MERGANSER_STANDIN_REPORT", report), ("MERGANSER_STANDIN_DEVICES", "2")];
            merge(&recipe, &family.path("out"), &["--device", "cuda"], &variables)
        });
        ended.expect(0, &[]);
        assert!(counts["context"].as_u64().unwrap() >= 2, "{counts}");
        for (what, nothing) in [
            ("left_bytes", serde_json::json!([0, 0])),
            ("left_contexts", serde_json::json!([0, 0])),
            ("left_handles", 0.into()),
            ("timed_events", 0.into()),
        ] {
            assert_eq!(counts[what], nothing, "{what} of {}: {counts}", text.method);
        }
    }
}
