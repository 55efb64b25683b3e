//! `output: lora` of adapters alone: an adapter again, merged in the space that they span.

use merganser::dtype::Dtype;
use serde_json::{Value, json};

use crate::support::family::{Family, Rng, relative};
use crate::support::tensor::{Tensor, write_file};
use crate::support::{Run, assert_whole, read};

const UP: &str = "model.layers.0.mlp.up_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";
const HEAD: &str = "lm_head";
const M: u64 = 12;
const N: u64 = 9;

fn tensor(rng: &mut Rng, name: &str, shape: &[u64]) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::new(name, Dtype::F32, shape, &values)
}

/// A base, and three adapters: of ranks 2, 3 and 1 on `up`, two of which change `down`, one with a head of its own.
fn family() -> Family {
    let mut rng = Rng(77);
    let base = vec![
        tensor(&mut rng, &format!("{UP}.weight"), &[M, N]),
        tensor(&mut rng, &format!("{DOWN}.weight"), &[N, M]),
        tensor(&mut rng, &format!("{HEAD}.weight"), &[4, N]),
    ];
    let family = Family::of(vec![base]);
    for (index, rank) in [2_u64, 3, 1].into_iter().enumerate() {
        let name = |module: &str, side: &str| format!("base_model.model.{module}.lora_{side}.weight");
        let mut held = vec![tensor(&mut rng, &name(UP, "A"), &[rank, N]), tensor(&mut rng, &name(UP, "B"), &[M, rank])];
        if index < 2 {
            held.push(tensor(&mut rng, &name(DOWN, "A"), &[rank, M]));
            held.push(tensor(&mut rng, &name(DOWN, "B"), &[N, rank]));
        }
        if index == 1 {
            held.push(tensor(&mut rng, &format!("base_model.model.{HEAD}.weight"), &[4, N]));
        }
        adapter(
            &family,
            &format!("a{}", index + 1),
            &held,
            json!({"r": rank, "lora_alpha": 3, "use_rslora": index == 0}),
        );
    }
    family
}

fn adapter(family: &Family, name: &str, tensors: &[Tensor], config: Value) {
    let folder = family.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    write_file(&folder.join("adapter_model.safetensors"), tensors);
    let mut all = json!({"peft_type": "LORA", "base_model_name_or_path": "base"});
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    std::fs::write(folder.join("adapter_config.json"), all.to_string()).unwrap();
}

fn models(weights: [f64; 3]) -> String {
    let model =
        |(at, weight): (usize, &f64)| format!("- model: base+a{}\n  parameters: {{weight: {weight}}}\n", at + 1);
    format!("models:\n{}", weights.iter().enumerate().map(model).collect::<String>())
}

/// B·A of an adapter's module.
fn product(tensors: &std::collections::BTreeMap<String, Tensor>, module: &str) -> Vec<f64> {
    let of = |side: &str| &tensors[&format!("base_model.model.{module}.lora_{side}.weight")];
    let (a, b) = (of("A"), of("B"));
    let (rank, n) = (a.shape[0] as usize, a.shape[1] as usize);
    assert_eq!(b.shape[1] as usize, rank);
    let (a, b) = (a.values(), b.values());
    (0..b.len() / rank * n).map(|at| (0..rank).map(|k| b[at / n * rank + k] * a[k * n + at % n]).sum()).collect()
}

const LORA: &str = "output: lora\nadapter_space: core\n";

#[test]
fn averages_and_sums_in_core_space_are_those_of_the_whole_matrices() {
    let family = family();
    for (name, method, weights) in [
        ("linear", "merge_method: linear\n", [1.0, 0.5, 2.0]),
        ("sum", "merge_method: task_arithmetic\nbase_model: base\nparameters: {lambda: 0.7}\n", [1.0, 0.5, -2.0]),
    ] {
        let text = format!("{method}{}", models(weights));
        let whole = family.merged(&format!("{name}-whole"), &format!("{text}out_dtype: float32\n"));
        let core = family.merged(name, &format!("{text}{LORA}"));
        let held = read(&core.out);
        for module in [UP, DOWN] {
            let weight = format!("{module}.weight");
            let base = family.tensor(0, &weight).values();
            let change = product(&held, module);
            let again: Vec<f64> = base.iter().zip(&change).map(|(b, c)| b + c).collect();
            let apart = relative(&again, &whole.values(&weight), &base);
            assert!(apart < 2e-6, "{name} {module}: {apart}");
        }
        // An adapter that lacks a module leaves it as it is, and its weight counts.
        assert_eq!(held[&format!("base_model.model.{UP}.lora_A.weight")].shape, [6, N]);
        assert_eq!(held[&format!("base_model.model.{DOWN}.lora_A.weight")].shape, [5, M]);
        let head = &held[&format!("base_model.model.{HEAD}.weight")];
        assert_eq!(head.bytes, whole.bytes(&format!("{HEAD}.weight")));
        let config: Value =
            serde_json::from_slice(&std::fs::read(core.out.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(config["modules_to_save"], json!([HEAD]));
        assert_eq!(config["base_model_name_or_path"], "base");
        assert_eq!(config["r"], config["lora_alpha"]);
        assert_whole(&core.out);
        assert!(
            !core.out.join("model.safetensors").exists()
                && !family.path(&format!("out-{name}.merganser-core")).exists()
        );
        // And it is an adapter like others.
        let text = format!("merge_method: passthrough\nmodels: [{{model: base+out-{name}}}]\n");
        let put = family.merged(&format!("{name}-put"), &text);
        let weight = format!("{UP}.weight");
        assert!(relative(&put.values(&weight), &whole.values(&weight), &family.tensor(0, &weight).values()) < 2e-6);
    }
}

#[test]
fn a_rank_below_the_exact_one_is_the_best_of_that_rank() {
    let family = family();
    let text = format!("merge_method: task_arithmetic\nbase_model: base\n{}{LORA}", models([1.0, 1.0, 1.0]));
    let exact = product(&read(&family.merged("exact", &text).out), UP);
    let mut last = f64::INFINITY;
    for rank in [1, 2, 4, 6] {
        let held = read(&family.merged(&format!("r{rank}"), &format!("{text}lora_rank: {rank}\n")).out);
        assert_eq!(held[&format!("base_model.model.{UP}.lora_B.weight")].shape, [M, rank]);
        let cut = product(&held, UP);
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let left = square(&mut exact.iter().zip(&cut).map(|(a, b)| a - b));
        // Of a truncated decomposition what is left and what is kept are orthogonal.
        let kept = square(&mut cut.iter().copied());
        let whole = square(&mut exact.iter().copied());
        assert!((left + kept - whole).abs() < 1e-5 * whole, "rank {rank}: {left} + {kept} is not {whole}");
        assert!(left < last);
        last = left;
    }
    assert!(last < 1e-10);
}

#[test]
fn other_methods_merge_core_matrices_and_the_same_bytes_come_of_any_run() {
    let family = family();
    for method in ["ties", "cart", "tsv_m", "dare_ties"] {
        let parameters = if method.contains("ties") { "parameters: {density: 0.5}\n" } else { "" };
        let text = format!("merge_method: {method}\nbase_model: base\n{}{parameters}{LORA}", models([1.0, 1.0, 1.0]));
        let one = family.merged(method, &text);
        assert_whole(&one.out);
        let again = family.merged(&format!("{method}-again"), &text);
        let file = |out: &std::path::Path| std::fs::read(out.join("adapter_model.safetensors")).unwrap();
        assert_eq!(file(&one.out), file(&again.out), "{method}");
        assert!(product(&read(&one.out), UP).iter().any(|v| v.abs() > 0.1), "{method}");
    }
}

#[test]
fn what_core_space_cannot_hold_is_refused_by_name() {
    let family = family();
    let all = models([1.0, 1.0, 1.0]);
    let error = |text: &str| Run::default().plan(&family.recipe("wrong", text)).unwrap_err().to_string();
    for (text, words) in [
        (format!("merge_method: linear\n{all}output: lora\n"), "full, the default, is not there yet"),
        (
            format!("merge_method: linear\n{all}output: lora\nadapter_space: knots\n"),
            "`adapter_space` knots is not there",
        ),
        (format!("merge_method: karcher\n{all}{LORA}"), "`karcher` does not work on differences"),
        (
            format!("merge_method: linear\n{all}{LORA}parameters: {{normalize: false}}\n"),
            "`normalize` cannot be set here",
        ),
        (format!("merge_method: linear\n{all}{LORA}lora_rank: 0\n"), "`lora_rank` must be 1"),
        (format!("merge_method: linear\n{all}adapter_space: core\n"), "is for `output: lora` of adapters alone"),
        (format!("merge_method: linear\n{all}- model: base\n  parameters: {{weight: 1}}\n{LORA}"), "of adapters alone"),
        (format!("merge_method: linear\n{all}{LORA}chat_template: chatml\n"), "`chat_template` has no effect"),
    ] {
        let told = error(&text);
        assert!(told.contains(words), "{text}\n{told}");
    }
    let mut rng = Rng(3);
    let name = |side: &str| format!("base_model.model.{UP}.lora_{side}");
    let pair = |rng: &mut Rng| vec![tensor(rng, &name("A.weight"), &[2, N]), tensor(rng, &name("B.weight"), &[M, 2])];
    let mut dora = pair(&mut rng);
    dora.push(tensor(&mut rng, &name("magnitude_vector"), &[M]));
    adapter(&family, "a3", &dora, json!({"r": 2, "lora_alpha": 2, "use_dora": true}));
    assert!(error(&format!("merge_method: linear\n{all}{LORA}")).contains("DoRA"));
    let half = vec![pair(&mut rng).remove(0)];
    adapter(&family, "a3", &half, json!({"r": 2, "lora_alpha": 2}));
    assert!(error(&format!("merge_method: linear\n{all}{LORA}")).contains("half a pair"));
}
