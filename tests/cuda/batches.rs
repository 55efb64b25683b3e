//! Matrices of one shape are decomposed together on CUDA devices: to results that are as near to the CPU's as those of single
//! ones, whatever fits into the device's memory, over failures, resumes and several devices. Skipped where no device is there.

use std::path::Path;

use merganser::dtype::Dtype::{self, *};
use merganser::engine;

use crate::both::{Both, Way, devices, stand_in};
use crate::support::child::{self, Ended};
use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::{MIB, Run, digests, quick_folder};

/// Layers of four shapes, stored in several types, between tensors that are no matrices.
const LAYERS: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.self_attn.q_proj.weight", F32, &[13, 40]),
    ("model.layers.0.self_attn.k_proj.weight", BF16, &[13, 40]),
    ("model.layers.0.mlp.up_proj.weight", F32, &[40, 13]),
    ("model.layers.0.mlp.row.weight", F32, &[1, 9]),
    ("model.layers.0.norm.weight", F32, &[33]),
    ("model.layers.1.self_attn.q_proj.weight", F16, &[13, 40]),
    ("model.layers.1.self_attn.k_proj.weight", F64, &[13, 40]),
    ("model.layers.1.mlp.up_proj.weight", F32, &[40, 13]),
    ("model.layers.1.mlp.row.weight", F32, &[1, 9]),
    ("model.layers.1.mlp.column.weight", F32, &[9, 1]),
    ("model.layers.2.self_attn.q_proj.weight", F32, &[13, 40]),
    ("model.layers.2.mlp.column.weight", BF16, &[9, 1]),
    ("model.layers.2.mlp.lone.weight", F32, &[7, 8]),
];

/// What rounding to short floats allows of a low-rank merge, beside its bound of 10⁻⁴.
const ROUNDED: f64 = 5e-3;

fn batch(both: &Both, tensor: &str) -> Option<u64> {
    both.stated(&format!("model.layers.{tensor}.weight")).facts.get("batch").and_then(serde_json::Value::as_u64)
}

#[test]
fn layers_of_one_shape_are_decomposed_together_and_agree_with_the_cpu() {
    let Some(device) = devices("batches") else { return };
    let family = Family::new(quick_folder(), LAYERS, 3, 61);
    for (name, text) in [
        ("ratio", Text::plain("cart", 3).set("rank_ratio", "0.3").set("lambda", "1.3")),
        ("energy", Text::plain("cart", 3).set("energy", "0.6")),
        ("uncentred", Text::plain("low_rank", 3).set("rank", "2")),
        ("staged", Text::plain("cart", 3).set("rank", "3").lwptv("keep: 0.6, granularity: row")),
        ("ranked", Text::plain("low_rank", 3).set("rank", "3").lwptv("keep: 0.6, granularity: layer, rescale: l2")),
        ("factors", Text::plain("cart", 2).set("rank", "3").more("output: factors")),
    ] {
        let both = Both::of(&family, &device, Way::default(), name, &text);
        if name != "factors" {
            // Each factor's sign is the solver's.
            both.agree(&family, ROUNDED);
        }
        let together = ["0.self_attn.q_proj", "2.self_attn.q_proj", "0.mlp.up_proj", "1.mlp.column", "2.mlp.lone"];
        assert_eq!(together.map(|t| batch(&both, t)), [Some(5), Some(5), Some(2), Some(2), None], "{name}");
    }
}

#[test]
fn factors_of_a_batch_multiply_to_the_cpus() {
    use crate::support::matrix::Matrix;
    let Some(device) = devices("factors of a batch") else { return };
    let family = Family::new(quick_folder(), &LAYERS[..3], 2, 67);
    let text = Text::plain("cart", 2).set("rank", "3").more("output: factors").more("out_dtype: float32");
    let both = Both::of(&family, &device, Way::default(), "factors", &text);
    let [cpu, cuda] = [&both.cpu, &both.cuda].map(|out| crate::support::read(out));
    let lefts: Vec<&String> = cpu.keys().filter(|name| name.contains("left")).collect();
    assert_eq!((lefts.len(), batch(&both, "0.self_attn.k_proj")), (3 * 2, Some(2)));
    for left in lefts {
        let right = left.replace("left", "right");
        let [a, b] = [&cpu, &cuda].map(|all| Matrix::of(&all[left]).times(&Matrix::of(&all[&right])));
        assert!(a.zip(&b, |a, b| a - b).norm() <= 1e-4 * a.norm(), "{left}");
    }
}

#[test]
fn less_memory_makes_smaller_batches_and_no_other_model() {
    let Some(device) = devices("batches in little memory") else { return };
    let names: Vec<String> = (0..6).map(|i| format!("model.layers.{i}.mlp.up_proj.weight")).collect();
    let specs: Vec<(&str, Dtype, &[u64])> = names.iter().map(|name| (name.as_str(), F32, &[12, 6000][..])).collect();
    let family = Family::new(quick_folder(), &specs, 2, 71);
    let text = Text::plain("cart", 2).set("rank", "1").lwptv("keep: 0.5, granularity: row");
    let recipe = family.recipe("least", &text.yaml());
    // In the least of the host's memory, sources come in runs of one segment.
    let narrow = (16..200).map(|mib| Run { budget: mib * MIB, threads: 1, ..Run::default() }).find(|run| {
        let planned = run.plan(&recipe).and_then(|mut plan| {
            engine::plan_for_devices(&mut plan, &device, Some(18 * MIB))?;
            Ok(plan.memory.chunk_elems)
        });
        planned.is_ok_and(|chunk| chunk == 65_536)
    });
    let [much, little] = [(64, Run::default()), (18, narrow.unwrap())].map(|(mib, run)| {
        let way = Way { run, device_memory: Some(mib * MIB) };
        let both = Both::of(&family, &device, way, &format!("in-{mib}"), &text);
        both.agree(&family, 1e-4);
        both
    });
    assert_eq!(batch(&much, "0.mlp.up_proj"), Some(6));
    if device.cuda[0].name.contains("stand-in") {
        // What other libraries ask for besides is theirs, and they need not give the bits of a small batch in a larger one.
        assert_eq!(batch(&little, "0.mlp.up_proj"), Some(3));
        assert_eq!(digests(&little.cuda), digests(&much.cuda));
    }
}

#[test]
fn a_nan_in_one_matrix_of_a_batch_is_told_as_on_the_cpu() {
    let Some(device) = devices("NaN in a batch") else { return };
    let mut family = Family::new(quick_folder(), &LAYERS[..11], 2, 73);
    let tensor = &mut family.members[2][10];
    tensor.bytes[4 * 70..4 * 71].copy_from_slice(&f32::NAN.to_le_bytes());
    family.write();
    let recipe = family.recipe("nan", &Text::plain("cart", 2).yaml());
    let errors = [
        Run::default().merge(&recipe, &family.path("cpu")).unwrap_err(),
        Way::default().merge(&device, &recipe, &family.path("cuda")).unwrap_err(),
    ];
    assert_eq!(errors[0].to_string(), errors[1].to_string());
    assert_eq!(errors[1].exit_code(), 1);
}

/// A merge on the devices in a process of its own, where `variables` are set.
fn merge(recipe: &Path, out: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = child::command(recipe, out, &[&["--device", "cuda"], args].concat(), None);
    child::end(command.envs(variables.iter().copied()).spawn().unwrap())
}

#[test]
fn a_batch_that_fails_is_gone_on_from_to_the_same_bytes_also_on_two_devices() {
    let Some(_) = stand_in("batches that fail") else { return };
    let family = Family::new(quick_folder(), LAYERS, 2, 79);
    for (method, failures) in [
        ("cart", &[("solver:11", "cuSOLVER"), ("launch:90", "cuda:0")][..]),
        ("tsv_m", &[("converge:3", "did not converge"), ("blas:15", "cuBLAS")][..]),
    ] {
        let recipe = family.recipe(method, &Text::plain(method, 2).yaml());
        let whole = family.path(&format!("whole-{method}"));
        merge(&recipe, &whole, &[], &[]).expect(0, &[]);
        if method == "cart" {
            let two = family.path("two");
            merge(&recipe, &two, &[], &[("MERGANSER_STANDIN_DEVICES", "2")]).expect(0, &["cuda:1"]);
            assert_eq!(digests(&two), digests(&whole));
        }
        for (fail, said) in failures {
            let out = family.path(&format!("{fail}-{method}"));
            let failed = merge(&recipe, &out, &[], &[("MERGANSER_STANDIN_FAIL", fail)]);
            failed.expect(3, &["error: ", said]);
            merge(&recipe, &out, &["--resume"], &[]).expect(0, &[]);
            assert_eq!(digests(&out), digests(&whole), "{fail}, {method}");
        }
    }
}

#[test]
fn what_a_plan_says_of_batches_is_what_is_done() {
    let Some(device) = devices("batches in a plan") else { return };
    let family = Family::new(quick_folder(), LAYERS, 2, 83);
    let recipe = family.recipe("plan", &Text::plain("cart", 2).set("rank", "2").yaml());
    let mut plan = Run::default().plan(&recipe).unwrap();
    engine::plan_for_devices(&mut plan, &device, None).unwrap();
    let said = serde_json::to_value(plan.document()).unwrap();
    assert_eq!(said["devices"]["batches"], 4);
    assert!(
        plan.to_text().contains("11 matrices in 4 batches of one shape each, 5 together at most"),
        "{}",
        plan.to_text()
    );
    let tensors = said["tensors"].as_array().unwrap();
    let of = |name: &str| tensors.iter().find(|t| t["name"] == format!("model.layers.{name}.weight")).unwrap();
    assert_eq!(of("0.self_attn.q_proj")["batch"], of("2.self_attn.q_proj")["batch"]);
    assert_ne!(of("0.self_attn.q_proj")["batch"], of("0.mlp.up_proj")["batch"]);
    assert!(of("2.mlp.lone")["batch"].is_null() && of("0.norm")["batch"].is_null());
}
