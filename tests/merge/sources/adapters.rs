//! `merganser extract --lora`: the adapter that makes a fine-tune of its base.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;

use merganser::dtype::Dtype;
use merganser::engine::Stop;
use merganser::factors::adapter::{Adaptation, Done, Keep, Pair, extract};
use merganser::report::manifest::Manifest;
use serde_json::{Value, json};

use crate::support::family::{Family, Rng, relative};
use crate::support::tensor::Tensor;
use crate::support::{assert_whole, binary, read};

const EMBED: &str = "model.embed_tokens.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";
const UP_BIAS: &str = "model.layers.0.mlp.up_proj.bias";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const SAME: &str = "model.layers.1.mlp.up_proj.weight";
const NORM: &str = "model.norm.weight";
const POSITIONS: &str = "model.layers.0.mlp.table";

const ALL: Keep = Keep { rank: 128, energy: None, epsilon: None };

fn normal(rng: &mut Rng, n: u64) -> Vec<f64> {
    (0..n).map(|_| rng.normal()).collect()
}

/// A base, and a fine-tune: `up` changed by rank 2 (σ of about 30 and 3), `down` by full rank, its bias, the embedding and
/// the norm; `same` did not.
fn family(dtype: Dtype) -> Family {
    let mut rng = Rng(21);
    let specs: [(&str, &[u64]); 7] = [
        (EMBED, &[6, 8]),
        (UP, &[12, 8]),
        (UP_BIAS, &[12]),
        (DOWN, &[8, 12]),
        (SAME, &[12, 8]),
        (NORM, &[8]),
        (POSITIONS, &[3, 4]),
    ];
    let base: Vec<Tensor> = specs
        .iter()
        .map(|(name, shape)| Tensor::new(name, dtype, shape, &normal(&mut rng, shape.iter().product())))
        .collect();
    let tuned = base
        .iter()
        .map(|tensor| {
            let n = tensor.shape.iter().product();
            let change: Vec<f64> = match tensor.name.as_str() {
                SAME => vec![0.0; n as usize],
                UP => {
                    let (a, b) = (normal(&mut rng, 24), normal(&mut rng, 16));
                    (0..96).map(|i| 3.0 * a[i / 8] * b[i % 8] + 0.3 * a[12 + i / 8] * b[8 + i % 8]).collect()
                }
                _ => normal(&mut rng, n),
            };
            let values: Vec<f64> = tensor.values().iter().zip(&change).map(|(v, c)| v + c).collect();
            Tensor::new(&tensor.name, dtype, &tensor.shape, &values)
        })
        .collect();
    Family::of(vec![base, tuned])
}

fn run(family: &Family, name: &str, keep: Keep) -> merganser::Result<Done> {
    let path = |member: &str| family.path(member).display().to_string();
    let pair = Pair::open(&path("base"), &path("model-1"))?;
    let (to, memory_budget) = (family.path(name), 1 << 30);
    let adaptation =
        Adaptation { pair: &pair, keep, to: &to, threads: 2, memory_budget, resume: false, overwrite: false };
    extract(&adaptation, &AtomicU64::new(0), &Stop::default())
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn an_adapter_on_its_base_is_the_fine_tune() {
    for (dtype, factors, tolerance) in [(Dtype::F32, Dtype::F32, 2e-6), (Dtype::BF16, Dtype::BF16, 2e-2)] {
        let family = family(dtype);
        let done = run(&family, "adapter", ALL).unwrap();
        assert_eq!((done.matrices, done.whole, done.rank), (2, 4, 8));
        assert_whole(&done.path);
        let held = read(&done.path);
        let names: Vec<&str> = held.keys().map(|name| name.strip_prefix("base_model.model.").unwrap()).collect();
        let layer = "model.layers.0.mlp";
        let expected = [
            EMBED.to_owned(),
            format!("{layer}.down_proj.lora_A.weight"),
            format!("{layer}.down_proj.lora_B.weight"),
            POSITIONS.to_owned(),
            format!("{layer}.up_proj.base_layer.bias"),
            format!("{layer}.up_proj.lora_A.weight"),
            format!("{layer}.up_proj.lora_B.weight"),
            NORM.to_owned(),
        ];
        assert_eq!(names, expected);
        let is_factor = |name: &str| name.contains("lora_");
        assert!(held.values().all(|t| t.dtype == if is_factor(&t.name) { factors } else { dtype }));
        let config = config(&done.path);
        assert_eq!(config["modules_to_save"], json!(["model.embed_tokens", "model.norm"]));
        assert_eq!((&config["bias"], &config["r"], &config["lora_alpha"]), (&json!("lora_only"), &json!(8), &json!(8)));
        assert!(done.notes.iter().any(|note| note.contains(POSITIONS) && note.contains("PEFT")), "{:?}", done.notes);
        let text = "merge_method: passthrough\nmodels: [{model: base+adapter, parameters: {scale: 1}}]\n";
        let again = family.merged("again", text);
        for name in [UP, DOWN] {
            let (found, tuned) = (again.values(name), family.tensor(1, name).values());
            let apart = relative(&found, &tuned, &family.tensor(0, name).values());
            assert!(apart <= tolerance, "{name} {dtype}: {apart}");
        }
        for name in [EMBED, UP_BIAS, NORM, POSITIONS] {
            assert_eq!(again.bytes(name), family.tensor(1, name).bytes, "{name}");
        }
        assert_eq!(again.bytes(SAME), family.tensor(0, SAME).bytes);
    }
}

/// Ranks of `up` and `down`, as the manifest has them.
fn ranks(done: &Done) -> [Value; 2] {
    let manifest = Manifest::read(&done.path).unwrap();
    [UP, DOWN].map(|name| {
        let factor = manifest.tensors.iter().find(|t| t.facts["of"] == name).unwrap();
        assert_eq!(factor.shape[1], factor.facts["rank"].as_u64().unwrap());
        factor.facts["rank"].clone()
    })
}

#[test]
fn ranks_follow_from_a_bound_a_share_of_energy_or_a_least_value() {
    let family = family(Dtype::F32);
    assert_eq!(ranks(&run(&family, "three", Keep { rank: 3, ..ALL }).unwrap()), [3, 3].map(Value::from));
    // Of rank 2, whose second value is a tenth of the first.
    let energy = run(&family, "energy", Keep { energy: Some(0.95), ..ALL }).unwrap();
    assert_eq!(ranks(&energy)[0], 1);
    assert!(ranks(&energy)[1].as_u64().unwrap() > 3);
    let all = run(&family, "all", Keep { energy: Some(0.999_999), ..ALL }).unwrap();
    assert_eq!(ranks(&all)[0], 2);
    assert_eq!(config(&all.path)["rank_pattern"].as_object().unwrap().len(), 1);
    let epsilon = run(&family, "epsilon", Keep { epsilon: Some(0.01), ..ALL }).unwrap();
    assert_eq!(ranks(&epsilon), [2, 8].map(Value::from));
    let none = run(&family, "none", Keep { epsilon: Some(1e6), ..ALL }).unwrap();
    assert_eq!(none.matrices, 0);
    assert!(none.notes.iter().any(|note| note.contains("2 matrices changed by no more than")), "{:?}", none.notes);
    // What is stored of the residual is what is left of the change.
    let one = run(&family, "one", Keep { rank: 1, ..ALL }).unwrap();
    let manifest = Manifest::read(&one.path).unwrap();
    let facts = &manifest.tensors.iter().find(|t| t.facts["of"] == UP).unwrap().facts;
    let (residual, energy) = (facts["residual"].as_f64().unwrap(), facts["energy"].as_f64().unwrap());
    assert!((residual * residual - (1.0 - energy)).abs() < 1e-5, "{facts}");
}

#[test]
fn nothing_changed_is_status_1_and_so_are_models_that_do_not_fit() {
    let family = family(Dtype::F32);
    let extract = |base: &str, tuned: &str| {
        let paths = [base, tuned].map(|name| family.path(name));
        let out = family.path("out");
        let run = Command::new(binary()).args(["extract", "--lora"]).args(&paths).arg("-o").arg(&out).output().unwrap();
        assert!(!out.exists());
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    let (status, told) = extract("base", "base");
    assert_eq!(status, Some(1));
    assert!(told.contains("are the same model: no element differs"), "{told}");
    let mut tensors = family.members[1].clone();
    tensors.retain(|t| t.name != NORM);
    crate::support::tensor::write_folder(&family.path("half"), &tensors, 1);
    let (status, told) = extract("base", "half");
    assert!(status == Some(1) && told.contains(&format!("lacks the tensor `{NORM}`")), "{told}");
    let (status, told) = extract("half", "base");
    assert!(status == Some(1) && told.contains(&format!("has the tensor `{NORM}`")), "{told}");
    tensors[0] = Tensor::new(EMBED, Dtype::F32, &[7, 8], &[0.0; 56]);
    crate::support::tensor::write_folder(&family.path("large"), &tensors, 1);
    let (status, told) = extract("half", "large");
    assert!(status == Some(1) && told.contains("[7, 8]") && told.contains("[6, 8]"), "{told}");
    // A number that is none has no low-rank part.
    let mut tensors = family.members[1].clone();
    let at = tensors.iter().position(|t| t.name == UP).unwrap();
    let mut values = tensors[at].values();
    values[3] = f64::NAN;
    tensors[at] = Tensor::new(UP, Dtype::F32, &[12, 8], &values);
    crate::support::tensor::write_folder(&family.path("nan"), &tensors, 1);
    let (status, told) = extract("base", "nan");
    assert!(status == Some(1) && told.contains(UP), "{told}");
}

#[test]
fn the_same_bytes_come_of_any_threads_and_a_finished_adapter_is_not_made_again() {
    let family = family(Dtype::F32);
    let paths = ["base", "model-1"].map(|name| family.path(name));
    let extract = |out: &str, more: &[&str]| {
        let run = Command::new(binary())
            .args(["extract", "--lora", "--json", "--rank", "4"])
            .args(&paths)
            .arg("-o")
            .arg(family.path(out))
            .args(more)
            .output()
            .unwrap();
        assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
        serde_json::from_slice::<Value>(&run.stdout).unwrap()
    };
    let one = extract("one", &["--threads", "1"]);
    assert_eq!((&one["command"], &one["matrices"], &one["rank"]), (&json!("extract"), &json!(2), &json!(4)));
    extract("two", &["--threads", "2"]);
    let file = |out: &str| std::fs::read(family.path(out).join("adapter_model.safetensors")).unwrap();
    assert_eq!(file("one"), file("two"));
    let again = extract("one", &["--resume"]);
    assert_eq!(again["already_done"], true);
    let over = extract("one", &["--overwrite"]);
    assert_eq!(over["already_done"], false);
}
