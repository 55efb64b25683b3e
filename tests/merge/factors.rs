//! Factors instead of their sum: what is stored, that models rebuilt from it are what they should be, and that the bytes are
//! always the same. Singular value decompositions here are one-sided Jacobi rotations, written for these tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use merganser::dtype::Dtype::{self, *};
use merganser::engine::Stop;
use merganser::factors::extract::Done;
use merganser::factors::{Extraction, Header, METADATA_KEY, Side, Store, extract, factor_name};
use rustix::process::Signal;

use crate::support::family::Family;
use crate::support::matrix::Matrix;
use crate::support::recipes::Text;
use crate::support::tensor::Tensor;
use crate::support::{MIB, Run, assert_whole, child, digests, journalled, quick_folder, read};

const SPECS: &[(&str, Dtype, &[u64])] = &[
    ("model.embed.weight", BF16, &[70, 33]),
    ("model.layers.0.self_attn.q_proj.weight", F32, &[33, 65]),
    ("model.layers.0.mlp.up_proj.weight", BF16, &[96, 40]),
    ("model.layers.0.norm.weight", F32, &[33]),
    ("model.layers.1.self_attn.q_proj.weight", F64, &[40, 24]),
    ("model.layers.1.mlp.row.weight", F32, &[1, 500]),
    ("model.layers.1.mlp.column.weight", F16, &[300, 1]),
    ("model.layers.1.mlp.long.weight", BF16, &[5, 20_001]),
    ("model.layers.1.mlp.codes.weight", F8_E4M3, &[30, 20]),
    ("model.layers.1.mlp.in_proj_weight", F32, &[12, 12]),
    ("model.layers.1.mlp.out_proj.weight", F32, &[12, 12]),
    ("model.layers.1.empty.mlp.weight", F32, &[0, 7]),
    ("model.steps", I64, &[3]),
];

/// Of which two can have no adapter.
const MATRICES: usize = 9;

fn family() -> Family {
    Family::new(quick_folder(), SPECS, 3, 5)
}

fn text(kind: &str, dtype: &str) -> Text {
    Text::plain("cart", 3)
        .set("rank_ratio", "0.3")
        .set("lambda", "[{filter: layers.0, value: 1.5}, {value: 0.7}]")
        .more(&format!("output: {kind}\nfactors: {{dtype: {dtype}}}"))
}

/// The recipe, in which the second model weighs more.
fn yaml(text: &Text) -> String {
    text.yaml().replace("model: model-2\n", "model: model-2\n    parameters: {weight: 2.5}\n")
}

/// Rebuilds a task's model.
fn rebuild(out: &Path, task: &str, to: &Path, lambda: f64, way: Run) -> merganser::Result<()> {
    rebuild_until(out, task, to, lambda, way, &Stop::default()).map(drop)
}

fn rebuild_until(out: &Path, task: &str, to: &Path, lambda: f64, way: Run, stop: &Stop) -> merganser::Result<Done> {
    let store = Store::open(out)?;
    let extraction = Extraction {
        task: store.task(task)?,
        store: &store,
        lambda,
        to,
        threads: way.threads,
        memory_budget: way.budget,
        shard_bytes: way.shard_bytes,
        resume: way.resume,
        overwrite: way.overwrite,
    };
    extract(&extraction, &AtomicU64::new(0), stop)
}

/// Half the distance between neighbouring numbers of a type, relative to them, at most.
fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        F64 => 2_f64.powi(-53),
        F32 => 2_f64.powi(-24),
        F16 => 2_f64.powi(-11),
        BF16 => 2_f64.powi(-8),
        F8_E4M3 => 2_f64.powi(-4),
        other => panic!("{other}"),
    }
}

fn header(out: &Path) -> Header {
    Store::open(out).unwrap().header
}

#[test]
fn the_jacobi_rotations_of_these_tests_decompose() {
    let matrix = Matrix { m: 3, n: 2, v: vec![3.0, 0.0, 0.0, -2.0, 0.0, 0.0] };
    let (low, values) = matrix.truncated(1);
    assert_eq!(values, [3.0, 2.0]);
    assert_eq!(low.v, [3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    let mixed = Matrix { m: 2, n: 3, v: vec![1.0, 2.0, 3.0, -1.0, 0.5, 4.0] };
    let (whole, values) = mixed.truncated(2);
    assert!(whole.zip(&mixed, |a, b| a - b).norm() < 1e-14);
    assert!((values.iter().map(|s| s * s).sum::<f64>() - mixed.norm().powi(2)).abs() < 1e-12);
}

#[test]
fn factors_are_the_leading_singular_triples_of_the_centred_models() {
    let family = family();
    for (dtype, stored) in [("float32", F32), ("bfloat16", BF16), ("float16", F16)] {
        let merged = family.merged(&format!("f-{dtype}"), &yaml(&text("factors", dtype)));
        let header = header(&merged.out);
        assert_eq!(header.tasks.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["model-1", "model-2", "model-3"]);
        let mut matrices = 0;
        for (name, ..) in SPECS.iter().filter(|(name, ..)| merged.tensors.contains_key(&of(name, 1, Side::Left))) {
            matrices += 1;
            let weights = header.exceptions.get(*name).unwrap_or(&header.usual).weights.clone();
            assert!((weights.iter().sum::<f64>() - 3.0).abs() < 1e-12);
            let models: Vec<Matrix> = (1..=3).map(|t| Matrix::of(family.tensor(t, name))).collect();
            let mut mean = Matrix { v: vec![0.0; models[0].v.len()], ..models[0].clone() };
            for (model, w) in models.iter().zip(&weights) {
                mean = mean.zip(model, |a, b| a + w / 3.0 * b);
            }
            for (t, model) in models.iter().enumerate() {
                let (left, right) =
                    (&merged.tensors[&of(name, t + 1, Side::Left)], &merged.tensors[&of(name, t + 1, Side::Right)]);
                assert_eq!((left.dtype, right.dtype), (stored, stored));
                let (left, right) = (Matrix::of(left), Matrix::of(right));
                let k = 1.max((0.3 * left.m.min(right.n) as f64) as usize);
                assert_eq!((left.n, right.m), (k, k), "{name}");
                let centred = model.zip(&mean, |a, b| a - b);
                let (low, values) = centred.truncated(k);
                let eps = rounding(stored);
                // Each factor is rounded; the sums of products forget most of it.
                let error = left.times(&right).zip(&low, |a, b| a - b).norm();
                assert!(error <= 2.0 * eps * low.norm() + 1e-6 * low.norm(), "{name}: {error:e} of {:e}", low.norm());
                for i in 0..k {
                    let length = |v: Vec<f64>| v.iter().map(|x| x * x).sum::<f64>().sqrt();
                    let (sigma, unit) = (length(left.column(i)), length(right.transposed().column(i)));
                    let tolerance = 2.0 * eps + 1e-6;
                    assert!(
                        (sigma - values[i]).abs() <= tolerance * values[0],
                        "{name}: σ_{i} {sigma} not {}",
                        values[i]
                    );
                    assert!((unit - 1.0).abs() <= tolerance, "{name}: ‖v_{i}‖ = {unit}");
                }
            }
        }
        assert_eq!(matrices, MATRICES);
    }
}

/// The name of a factor.
fn of(tensor: &str, model: usize, side: Side) -> String {
    factor_name(&format!("model-{model}"), tensor, side)
}

#[test]
fn a_rebuilt_model_is_the_centre_plus_the_product_rounded_once() {
    let family = family();
    let merged = family.merged("factors", &yaml(&text("factors", "float32")));
    assert_whole(&merged.out);
    for (lambda, name) in [(1.0, "one"), (-0.5, "half"), (0.0, "none")] {
        let to = family.path(&format!("task-{name}"));
        rebuild(&merged.out, "model-2", &to, lambda, Run::default()).unwrap();
        assert_whole(&to);
        let found = read(&to);
        assert_eq!(found.len(), SPECS.len());
        for (name, tensor) in &found {
            let centre = &merged.tensors[name];
            let Some(left) = merged.tensors.get(&of(name, 2, Side::Left)).filter(|_| lambda != 0.0) else {
                assert_eq!(tensor, centre, "{name} is the centre's");
                continue;
            };
            let low = Matrix::of(left).times(&Matrix::of(&merged.tensors[&of(name, 2, Side::Right)]));
            let exact = Matrix::of(centre).zip(&low, |c, l| c + lambda * l);
            // The smallest codes of eight bits are 2⁻⁹ apart.
            let least = if tensor.dtype == F8_E4M3 { 2_f64.powi(-10) } else { 0.0 };
            for (found, exact) in tensor.values().iter().zip(&exact.v) {
                let allowed = rounding(tensor.dtype) * exact.abs() * (1.0 + 1e-9) + least;
                assert!((found - exact).abs() <= allowed, "{name}: {found}, not {exact}");
            }
        }
    }
    let base = std::fs::read(family.path("base/config.json")).unwrap();
    assert_eq!(std::fs::read(family.path("task-one/config.json")).unwrap(), base);
}

#[test]
fn with_every_rank_a_rebuilt_matrix_is_the_tasks_own() {
    let family = family();
    let text = text("factors", "float32").set("rank_ratio", "1.0");
    let merged = family.merged("whole", &yaml(&text));
    let to = family.path("task");
    rebuild(&merged.out, "model-3", &to, 1.0, Run::default()).unwrap();
    for (name, tensor) in read(&to) {
        if !merged.tensors.contains_key(&of(&name, 3, Side::Left)) {
            continue;
        }
        let (found, own) = (Matrix::of(&tensor), Matrix::of(family.tensor(3, &name)));
        // The centre is rounded, and then the sum.
        let eps = 2.0 * rounding(tensor.dtype) + 1e-6;
        assert!(found.zip(&own, |a, b| a - b).norm() <= 1.5 * eps * own.norm(), "{name}");
    }
}

#[test]
fn what_is_stored_sums_to_the_merged_model() {
    let family = family();
    let stored = family.merged("factors", &yaml(&text("factors", "float32").more("out_dtype: float32")));
    let mut summed = text("factors", "float32");
    summed.more = "out_dtype: float32\n".into();
    let summed = family.merged("summed", &yaml(&summed));
    let header = header(&stored.out);
    for (name, expected) in &summed.tensors {
        if !stored.tensors.contains_key(&of(name, 1, Side::Left)) {
            assert_eq!(&stored.tensors[name], expected, "{name}");
            continue;
        }
        let coefficients = header.exceptions.get(name).unwrap_or(&header.usual);
        assert_eq!(coefficients.lambda, if name.contains("layers.0") { 1.5 } else { 0.7 });
        let mut sum = Matrix::of(&stored.tensors[name]);
        for (t, w) in coefficients.weights.iter().enumerate() {
            let side = |side| Matrix::of(&stored.tensors[&of(name, t + 1, side)]);
            let low = side(Side::Left).times(&side(Side::Right));
            sum = sum.zip(&low, |a, b| a + coefficients.lambda * w * b);
        }
        let expected = Matrix::of(expected);
        assert!(sum.zip(&expected, |a, b| a - b).norm() <= 1e-6 * expected.norm(), "{name}");
    }
}

#[test]
fn factors_adapters_and_rebuilt_models_are_the_same_bytes_in_every_way() {
    let family = family();
    let ways = [
        Run { threads: 1, budget: 128 * MIB, shard_bytes: 1, unmapped: true, ..Run::default() },
        Run { threads: 3, budget: 512 * MIB, shard_bytes: 5000, ..Run::default() },
        Run { threads: 2, ..Run::default() },
    ];
    for kind in ["factors", "lora"] {
        let recipe = family.recipe(kind, &yaml(&text(kind, "bfloat16")));
        let mut expected: Option<(BTreeMap<String, String>, BTreeMap<String, String>)> = None;
        for (i, way) in ways.into_iter().enumerate() {
            let out = family.path(&format!("{kind}-{i}"));
            way.merge(&recipe, &out).unwrap();
            assert_whole(&out);
            let to = family.path(&format!("{kind}-task-{i}"));
            if kind == "factors" {
                let budget = if i == 0 { 16 * MIB } else { way.budget };
                rebuild(&out, "model-1", &to, 0.8, Run { budget, ..way }).unwrap();
                assert_whole(&to);
            }
            let rebuilt = if kind == "factors" { digests(&to) } else { BTreeMap::new() };
            let found = (digests(&out), rebuilt);
            assert_eq!(found.0.len(), SPECS.len() + 6 * if kind == "lora" { MATRICES - 2 } else { MATRICES });
            match &expected {
                None => expected = Some(found),
                Some(expected) => assert_eq!(&found, expected, "{kind} with {way:?}"),
            }
        }
    }
}

#[test]
fn a_budget_that_cannot_do_is_refused_with_the_least_that_can() {
    let family = family();
    let out = family.merged("factors", &yaml(&text("factors", "float32"))).out;
    let to = family.path("task");
    let error = rebuild(&out, "model-1", &to, 1.0, Run { budget: MIB, ..Run::default() }).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let hint = error.hints().join(" ");
    let mib: u64 = hint.split_once("--memory-budget ").unwrap().1.split_once("MiB").unwrap().0.parse().unwrap();
    rebuild(&out, "model-1", &to, 1.0, Run { budget: mib * MIB, ..Run::default() }).unwrap();
    assert_whole(&to);
}

#[test]
fn a_killed_merge_of_factors_goes_on_to_the_same_bytes() {
    let names: Vec<String> = (0..24).map(|i| format!("layers.{i}.mlp.w.weight")).collect();
    let shape: &[u64] = &[96, 120];
    let specs: Vec<_> = names.iter().map(|n| (n.as_str(), BF16, shape)).collect();
    let family = Family::new(tempfile::tempdir().unwrap(), &specs, 3, 3);
    for kind in ["factors", "lora"] {
        let recipe = family.recipe(kind, &Text::plain("cart", 3).more(&format!("output: {kind}")).yaml());
        let (whole, out) = (family.path(&format!("{kind}-whole")), family.path(&format!("{kind}-out")));
        let args = ["--threads", "1", "--memory-budget", "64MiB"];
        child::run(&recipe, &whole, &args).expect(0, &[]);
        let mut kills = 0;
        for tensors in [1, 9, 30, 75] {
            let _ = std::fs::remove_dir_all(&out);
            let _ = std::fs::remove_dir_all(crate::support::partial(&out));
            let mut merge = child::start(&recipe, &out, &args);
            if child::wait_until(&mut merge, || journalled(&out) >= tensors) {
                child::signal(&merge, Signal::KILL);
            }
            let ended = child::end(merge);
            if ended.code() == Some(0) {
                continue;
            }
            kills += 1;
            // A journal that ends between a matrix and its factors, in any order, must do too.
            cut_last_line(&crate::support::partial(&out));
            let resumed = child::run(&recipe, &out, &[&args[..], &["--resume"]].concat()).expect(0, &[]);
            assert!(resumed.json()["resumed_tensors"].as_u64().unwrap() >= tensors as u64 - 1);
            assert_whole(&out);
            assert_eq!(digests(&out), digests(&whole), "{kind} killed after {tensors}");
        }
        assert!(kills > 0, "the merge was always faster than the kill");
    }
}

fn cut_last_line(partial: &Path) {
    let path = partial.join("merganser.journal.jsonl");
    let text = std::fs::read(&path).unwrap();
    let lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n")).collect();
    std::fs::write(&path, lines[..lines.len().saturating_sub(1)].concat()).unwrap();
}

#[test]
fn a_stage_in_front_prunes_what_is_stored() {
    let family = family();
    let staged = |keep: &str| text("factors", "float32").lwptv(&format!("granularity: tensor, keep: {keep}"));
    let merged = family.merged("nothing-kept", &yaml(&staged("0.0")));
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(&merged.tensors[name], family.tensor(0, name), "the centre of nothing is the base");
    for side in Side::BOTH {
        assert!(merged.values(&of(name, 1, side)).iter().all(|v| *v == 0.0), "zeros have zero factors");
    }
}

#[test]
fn adapters_are_named_and_shaped_as_peft_wants_them_and_what_cannot_be_adapted_is_told() {
    let family = family();
    let recipe = family.recipe("lora", &yaml(&text("lora", "float32")));
    let plan = Run::default().plan(&recipe).unwrap();
    let told = plan.warnings.join("\n");
    assert!(told.contains("`model.layers.1.mlp.in_proj_weight`, which is no `.weight`"), "{told}");
    assert!(told.contains("`model.layers.1.mlp.out_proj.weight`, which PyTorch's fused attention"), "{told}");
    let lora = family.merged("lora", &yaml(&text("lora", "float32")));
    let factors = family.merged("factors", &yaml(&text("factors", "float32")));
    assert_whole(&lora.out);
    for (name, ..) in SPECS {
        assert_eq!(lora.tensors[*name].values().len(), factors.tensors[*name].values().len());
    }
    let adapter = read(&lora.out.join("model-2"));
    assert_eq!(adapter.len(), 2 * (MATRICES - 2));
    for (name, tensor) in &adapter {
        let (module, word) = name.strip_prefix("base_model.model.").unwrap().rsplit_once(".lora_").unwrap();
        let side = if word == "B.weight" { Side::Left } else { Side::Right };
        let same = &factors.tensors[&of(&format!("{module}.weight"), 2, side)];
        assert_eq!((&tensor.shape, &tensor.bytes), (&same.shape, &same.bytes), "{name}");
    }
    let text = std::fs::read_to_string(lora.out.join("model-2/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!(config["base_model_name_or_path"], "out-lora");
    let targets = config["target_modules"].as_array().unwrap();
    assert_eq!(targets.len(), MATRICES - 2);
    for target in targets {
        let target = target.as_str().unwrap();
        let rank = config["rank_pattern"].get(target).unwrap_or(&config["r"]).as_u64().unwrap();
        assert_eq!(config["alpha_pattern"].get(target).unwrap_or(&config["lora_alpha"]).as_u64(), Some(rank));
        assert_eq!(adapter[&format!("base_model.model.{target}.lora_A.weight")].shape[0], rank);
    }
}

#[test]
fn verification_looks_into_adapters_and_never_out_of_the_folder() {
    let family = family();
    let out = family.merged("lora", &yaml(&text("lora", "float32"))).out;
    let problems = || {
        let report = merganser::report::verify::verify(&out, 2, &|_| {}).unwrap();
        report.problems.iter().map(|p| p.message.clone()).collect::<Vec<_>>().join("\n")
    };
    let adapter = out.join("model-1/adapter_model.safetensors");
    let whole = std::fs::read(&adapter).unwrap();
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&adapter, bytes).unwrap();
    assert!(problems().contains("digest differs"), "{}", problems());
    std::fs::write(&adapter, &whole).unwrap();
    std::fs::write(out.join("model-1/more.safetensors"), "").unwrap();
    assert!(problems().contains("`model-1/more.safetensors` is not in the manifest"), "{}", problems());
    std::fs::remove_file(out.join("model-1/more.safetensors")).unwrap();
    assert_eq!(problems(), "");
    // The same bytes behind a link are not the output's.
    std::fs::rename(out.join("model-1"), family.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(family.path("elsewhere"), out.join("model-1")).unwrap();
    assert!(problems().contains("leads out of the folder"), "{}", problems());
    std::fs::remove_file(out.join("model-1")).unwrap();
    assert!(problems().contains("is missing"), "{}", problems());
}

#[test]
fn a_stopped_extraction_goes_on_and_starts_again_only_as_the_options_allow() {
    let family = family();
    let out = family.merged("factors", &yaml(&text("factors", "float32"))).out;
    let (whole, to) = (family.path("whole"), family.path("task"));
    rebuild(&out, "model-1", &whole, 1.0, Run::default()).unwrap();
    let stop = Stop::default();
    stop.flag().store(15, std::sync::atomic::Ordering::Relaxed);
    let stopped = rebuild_until(&out, "model-1", &to, 1.0, Run::default(), &stop).unwrap_err();
    assert_eq!(stopped.exit_code(), 143);
    assert!(stopped.hints().iter().any(|h| h.contains("--resume")));
    assert!(!to.exists() && crate::support::partial(&to).exists());
    let again = rebuild(&out, "model-1", &to, 1.0, Run::default()).unwrap_err().to_string();
    assert!(again.contains("interrupted"), "{again}");
    let resume = Run { resume: true, ..Run::default() };
    let other = rebuild(&out, "model-1", &to, 0.5, resume).unwrap_err().to_string();
    assert!(other.contains("`lambda` was 1.0, is now 0.5"), "{other}");
    rebuild(&out, "model-1", &to, 1.0, resume).unwrap();
    assert_whole(&to);
    assert_eq!(digests(&to), digests(&whole));
    assert!(rebuild_until(&out, "model-1", &to, 1.0, resume, &Stop::default()).unwrap().was_done);
    rebuild(&out, "model-2", &to, 1.0, Run { overwrite: true, ..Run::default() }).unwrap();
    assert_ne!(digests(&to), digests(&whole));
}

#[test]
fn what_has_no_factors_can_be_stored_for_every_task_and_comes_back_bit_for_bit() {
    let family = family();
    let others = text("factors", "float32");
    let others = Text { more: others.more.replace("float32", "float32, others: task"), ..others };
    let merged = family.merged("others", &yaml(&others));
    assert_whole(&merged.out);
    let to = family.path("task");
    rebuild(&merged.out, "model-2", &to, 1.0, Run::default()).unwrap();
    assert_whole(&to);
    let found = read(&to);
    let mut kept = 0;
    for tensor in &family.members[2] {
        if merged.tensors.contains_key(&of(&tensor.name, 2, Side::Left)) {
            continue;
        }
        kept += 1;
        assert_eq!(&found[&tensor.name], tensor, "the task's own");
    }
    assert_eq!(kept, SPECS.len() - MATRICES);
    rebuild(&merged.out, "model-2", &family.path("centre"), 0.0, Run::default()).unwrap();
    for (name, tensor) in read(&family.path("centre")) {
        assert_eq!(tensor, merged.tensors[&name], "{name}");
    }
    rebuild(&merged.out, "model-2", &family.path("half"), 0.5, Run::default()).unwrap();
    let name = "model.layers.0.norm.weight";
    let half = read(&family.path("half"))[name].values();
    for ((half, own), centre) in half.iter().zip(found[name].values()).zip(merged.values(name)) {
        assert!((half - (own + centre) / 2.0).abs() <= 1e-7 * (own.abs() + centre.abs()));
    }
    let mut forged =
        Forged { tensors: merged.tensors.clone(), header: serde_json::to_value(header(&merged.out)).unwrap() };
    forged.tensors.remove(&format!("merganser.tasks.model-3.{name}")).unwrap();
    let folder = family.path("forged-others");
    std::fs::create_dir(&folder).unwrap();
    forged.write(&folder);
    let error = Store::open(&folder).unwrap_err().to_string();
    assert!(error.contains("task `model-3` has nothing of its own of `model.layers.0.norm.weight`"), "{error}");
    forged.tensors.insert(format!("merganser.tasks.model-3.{name}"), Tensor::new("x", F32, &[32], &[0.0; 32]));
    forged.write(&folder);
    let error = Store::open(&folder).unwrap_err().to_string();
    assert!(error.contains("has shape [32], expected [33]"), "{error}");
}

#[test]
fn around_the_base_the_centre_is_the_base_everywhere() {
    let family = family();
    let text = Text::plain("low_rank", 3).set("rank", "2").more("output: factors");
    let merged = family.merged("low-rank", &text.yaml());
    for tensor in &family.members[0] {
        assert_eq!(&merged.tensors[&tensor.name], tensor);
    }
    // The same where the stored type differs, or a stage ranks every tensor against the others.
    let text = text.more("out_dtype: float64").lwptv("granularity: tensor, keep: 0.5");
    let merged = family.merged("low-rank-wide", &text.yaml());
    for tensor in family.members[0].iter().filter(|t| t.is_float()) {
        assert_eq!(merged.values(&tensor.name), tensor.values(), "{}", tensor.name);
    }
}

/// The tensors of an output of factors in one file, and the metadata's header.
struct Forged {
    tensors: BTreeMap<String, Tensor>,
    header: serde_json::Value,
}

impl Forged {
    fn write(&self, folder: &Path) -> PathBuf {
        let metadata = match &self.header {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        };
        let metadata = metadata.map(|text| std::collections::HashMap::from([(METADATA_KEY.to_owned(), text)]));
        let views = self.tensors.iter().map(|(name, t)| {
            let shape = t.shape.iter().map(|d| *d as usize).collect();
            (name.as_str(), safetensors::tensor::TensorView::new(t.dtype, shape, &t.bytes).unwrap())
        });
        let path = folder.join("model.safetensors");
        std::fs::write(&path, safetensors::serialize(views, metadata).unwrap()).unwrap();
        path
    }
}

#[test]
fn forged_and_damaged_factors_are_told_and_nothing_is_written() {
    let family = family();
    let out = family.merged("factors", &yaml(&text("factors", "float32"))).out;
    let name = "model.layers.0.self_attn.q_proj.weight";
    let (left, right) = (of(name, 1, Side::Left), of(name, 1, Side::Right));
    let zeros = |shape: &[u64], dtype: Dtype| {
        let n = shape.iter().product::<u64>() as usize;
        Tensor::new("x", dtype, shape, &vec![0.0; n])
    };
    type Forge<'a> = Box<dyn Fn(&mut Forged) + 'a>;
    let cases: Vec<(Forge<'_>, &str)> = vec![
        (
            Box::new(|f| drop(f.tensors.remove(&left))),
            "`merganser.factors.model-1.model.layers.0.self_attn.q_proj.weight.left` is missing",
        ),
        (Box::new(|f| drop(f.tensors.remove(&right))), "q_proj.weight.right` is missing"),
        (
            Box::new(|f| drop((f.tensors.remove(&left), f.tensors.remove(&right)))),
            "task `model-1` has nothing of its own of `model.layers.0.self_attn.q_proj.weight`, and task `model-2` has",
        ),
        (Box::new(|f| drop(f.tensors.remove(name))), "is of a tensor that is not there"),
        (
            Box::new(|f| drop(f.tensors.insert(left.clone(), zeros(&[32, 9], F32)))),
            "has shape [32, 9], expected [33, k] with k of at most 33",
        ),
        (
            Box::new(|f| drop(f.tensors.insert(left.clone(), zeros(&[33, 34], F32)))),
            "has shape [33, 34], expected [33, k] with k of at most 33",
        ),
        (Box::new(|f| drop(f.tensors.insert(left.clone(), zeros(&[33], F32)))), "has shape [33], expected [33, k]"),
        (
            Box::new(|f| drop(f.tensors.insert(right.clone(), zeros(&[9, 64], F32)))),
            "has shape [9, 64], expected [9, 65]",
        ),
        (
            Box::new(|f| drop(f.tensors.insert(right.clone(), zeros(&[8, 65], F32)))),
            "has shape [8, 65], expected [9, 65]",
        ),
        (
            Box::new(|f| drop(f.tensors.insert(right.clone(), zeros(&[9, 65], I64)))),
            "is stored as I64, expected floats",
        ),
        (Box::new(|f| drop(f.tensors.insert(name.into(), zeros(&[33, 65], I64)))), "is stored as I64, expected floats"),
        (Box::new(|f| drop(f.tensors.insert(name.into(), zeros(&[33, 65, 1], F32)))), "is no matrix"),
        (
            Box::new(|f| drop(f.tensors.insert(factor_name("ghost", name, Side::Left), zeros(&[33, 9], F32)))),
            "of a task that the header does not name",
        ),
        (Box::new(|f| f.tensors.retain(|n, _| !n.starts_with("merganser"))), "there are no factors"),
        (Box::new(|f| f.header = serde_json::Value::Null), "holds no low-rank factors"),
        (Box::new(|f| f.header = "{".into()), "is no JSON"),
        (Box::new(|f| f.header = "[".repeat(200_000).into()), "is no JSON"),
        (Box::new(|f| f.header = "[]".into()), "states no version"),
        (Box::new(|f| f.header["version"] = 2.into()), "laid out as version 2"),
        (Box::new(|f| f.header["tasks"] = serde_json::json!([])), "names no task"),
        (Box::new(|f| f.header["tasks"] = 7.into()), "cannot be read"),
        (Box::new(|f| f.header["tasks"][1] = f.header["tasks"][0].clone()), "names the task `model-1` twice"),
        (Box::new(|f| f.header["tasks"][0]["name"] = "../x".into()), "`../x` is no name of a task"),
        (Box::new(|f| f.header["tasks"][0]["name"] = "".into()), "is no name of a task"),
    ];
    let tensors = read(&out);
    let header = serde_json::to_value(header(&out)).unwrap();
    for (i, (forge, expected)) in cases.iter().enumerate() {
        let mut forged = Forged { tensors: tensors.clone(), header: header.clone() };
        forge(&mut forged);
        let folder = family.path(&format!("forged-{i}"));
        std::fs::create_dir(&folder).unwrap();
        forged.write(&folder);
        let to = family.path(&format!("forged-task-{i}"));
        let error = rebuild(&folder, "model-1", &to, 1.0, Run::default()).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        assert!(error.to_string().contains(expected), "{expected:?} is not in: {error}");
        assert!(!error.hints().is_empty(), "{error}");
        assert!(!to.exists() && !crate::support::partial(&to).exists());
    }
    let untouched = Forged { tensors: tensors.clone(), header: header.clone() };
    let folder = family.path("untouched");
    std::fs::create_dir(&folder).unwrap();
    let file = untouched.write(&folder);
    rebuild(&file, "model-1", &family.path("from-file"), 1.0, Run::default()).unwrap();
    assert_whole(&family.path("from-file"));
}

#[test]
fn factors_that_are_not_finite_are_rebuilt_into_what_verification_states() {
    let family = family();
    let out = family.merged("factors", &yaml(&text("factors", "float32"))).out;
    let name = of("model.layers.0.self_attn.q_proj.weight", 1, Side::Left);
    let mut tensors = read(&out);
    tensors.get_mut(&name).unwrap().bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let folder = family.path("nan");
    std::fs::create_dir(&folder).unwrap();
    Forged { tensors, header: serde_json::to_value(header(&out)).unwrap() }.write(&folder);
    let to = family.path("nan-task");
    rebuild(&folder, "model-1", &to, 1.0, Run::default()).unwrap();
    assert_whole(&to);
    let stated = crate::support::stated(&to, "model.layers.0.self_attn.q_proj.weight").nonfinite;
    assert_eq!((stated.output, stated.introduced), (65, 0), "one row");
}

#[test]
fn shards_that_disagree_about_their_factors_do_not_belong_together() {
    let family = family();
    let recipe = family.recipe("factors", &yaml(&text("factors", "float32")));
    let (out, other) = (family.path("shards"), family.path("others"));
    let run = Run { shard_bytes: 20_000, ..Run::default() };
    run.merge(&recipe, &out).unwrap();
    let changed = family.recipe("changed", &yaml(&text("factors", "float32").set("lambda", "9")));
    run.merge(&changed, &other).unwrap();
    let file = "model-00002-of-";
    let name = |folder: &Path| {
        let mut names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        names.find(|p| p.file_name().unwrap().to_string_lossy().starts_with(file)).unwrap()
    };
    std::fs::copy(name(&other), name(&out)).unwrap();
    let error = Store::open(&out).unwrap_err().to_string();
    assert!(error.contains("says something else of its factors"), "{error}");
}
