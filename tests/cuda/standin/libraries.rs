//! Libraries that are old or missing: a cuSOLVER from before CUDA 12.6, which decomposes one matrix a call; no NVRTC.

use std::path::Path;

use merganser::dtype::Dtype::{self, *};

use super::{libraries_of, without_batched};
use crate::both::{Both, stand_in};
use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::{Run, child, digests, quick_folder};

const LAYERS: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.self_attn.q_proj.weight", F32, &[13, 40]),
    ("model.layers.0.mlp.up_proj.weight", BF16, &[40, 13]),
    ("model.layers.0.mlp.row.weight", F32, &[1, 9]),
    ("model.layers.0.norm.weight", F32, &[33]),
    ("model.layers.1.self_attn.q_proj.weight", F16, &[13, 40]),
    ("model.layers.1.mlp.up_proj.weight", F32, &[40, 13]),
    ("model.layers.1.mlp.column.weight", F32, &[9, 1]),
    ("model.layers.2.self_attn.q_proj.weight", F32, &[13, 40]),
];

#[test]
fn without_batched_eigenvectors_matrices_are_decomposed_one_by_one_to_the_same_model() {
    let Some(_) = stand_in("an older cuSOLVER") else { return };
    let family = Family::new(quick_folder(), LAYERS, 3, 89);
    // Eigenvectors of each task of the seven matrices; of the sum of tasks before them; of the two sets of factors behind.
    let (tasks, matrices) = (21, 7);
    for (text, decompositions) in [
        (Text::plain("cart", 3).set("rank", "3"), Some(tasks)),
        (Text::plain("low_rank", 3).set("energy", "0.6").lwptv("keep: 0.6, granularity: row"), Some(tasks)),
        (Text::plain("cart", 3).set("rank", "2").more("output: factors"), Some(tasks)),
        (Text::plain("iso_c", 3), Some(matrices)),
        (Text::plain("tsv_m", 3), None),
        (Text::plain("iso_cts", 3), None),
    ] {
        let name = format!("{}-{}", text.method, text.more.len());
        let recipe = family.recipe(&name, &text.yaml());
        let both = Both { cpu: family.path(&format!("cpu-{name}")), cuda: family.path(&format!("cuda-{name}")), name };
        Run::default().merge(&recipe, &both.cpu).unwrap();
        for seed in ["0", "2", "7"] {
            let report = family.path("report.json");
            let mut command = child::command(&recipe, &both.cuda, &["--device", "cuda", "--overwrite"], None);
            command.env("LD_LIBRARY_PATH", without_batched());
            command.env("MERGANSER_STANDIN_SEED", seed).env("MERGANSER_STANDIN_REPORT", &report);
            child::end(command.spawn().unwrap()).expect(0, &["lanes at work"]);
            if text.more.is_empty() {
                // What rounding to short floats allows, beside the bound of 10⁻⁴.
                both.agree(&family, 5e-3);
            }
            for (name, ..) in LAYERS {
                let facts = both.stated(name).facts;
                assert!(facts.get("batch").is_none(), "{name}: {facts}");
                assert_eq!(facts["computed_on"], "cuda:0", "{name}");
            }
            let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
            assert!(decompositions.is_none_or(|count| report["converge"] == count), "{}: {report}", both.name);
        }
    }
}

#[test]
fn without_nvrtc_what_was_found_is_left_to_the_cpu_and_what_was_asked_for_is_refused() {
    let Some(_) = stand_in("no NVRTC") else { return };
    if merganser::backend::cuda::module::Kernels::are_embedded() {
        return;
    }
    let family = Family::new(quick_folder(), LAYERS, 2, 97);
    for text in [Text::plain("ties", 2), Text::plain("cart", 2).set("rank", "2")] {
        let recipe = family.recipe(&text.method, &text.yaml());
        let run = |out: &str, args: &[&str]| {
            let mut command = child::command(&recipe, &family.path(out), args, None);
            child::end(command.env("LD_LIBRARY_PATH", libraries_of("no-nvrtc")).spawn().unwrap())
        };
        let said =
            "compiles its CUDA kernels at first use with NVRTC, and libnvrtc.so.13 or libnvrtc.so.12 was not found";
        let found = run(&format!("{}-auto", text.method), &[]).expect(0, &[said]);
        assert_eq!(found.json()["device"]["backend"], "cpu");
        assert_eq!(found.stderr.matches(said).count(), 1, "{}", found.stderr);
        run(&format!("{}-cuda", text.method), &["--device", "cuda"]).expect(3, &["CUDA was asked for", said]);
    }
}

#[test]
fn a_device_that_does_not_open_is_left_to_the_cpu_where_it_was_found_and_an_error_where_it_was_asked_for() {
    let Some(_) = stand_in("devices that do not open") else { return };
    let family = Family::new(quick_folder(), LAYERS, 2, 101);
    let recipe = family.recipe("opens", &Text::plain("cart", 2).set("rank", "2").yaml());
    let cpu = family.path("cpu");
    Run::default().merge(&recipe, &cpu).unwrap();
    for (fail, said) in [
        ("module:1", "could not load the kernels"),
        ("pinned:1", "out of memory"),
        ("stream:1", "cuda:0"),
        ("alloc:1+", "too little free memory"),
        ("solver:1", "cuSOLVER"),
        ("blas:1", "cuBLAS"),
    ] {
        let run = |out: &Path, args: &[&str]| {
            let mut command = child::command(&recipe, out, args, None);
            child::end(command.env("MERGANSER_STANDIN_FAIL", fail).spawn().unwrap())
        };
        let auto = family.path(&format!("auto-{fail}"));
        // Matrices as small as these are the CPU's under `auto`, so that nothing is opened; `going_on` has some that are not.
        let found = run(&auto, &[]).expect(0, &[]);
        assert_eq!(found.json()["device"]["backend"], "cpu", "{fail}");
        assert_eq!(digests(&auto), digests(&cpu), "{fail}");
        run(&family.path(&format!("cuda-{fail}")), &["--device", "cuda"]).expect(3, &[said]);
    }
}
