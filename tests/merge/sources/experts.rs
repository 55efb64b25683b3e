//! Mixtures of experts of dense models.

use merganser::dtype::Dtype;
use merganser::plan::Plan;
use merganser::recipe::{ExpertLayout, Recipe};
use serde_json::{Value, json};

use crate::support::family::{Family, Merged, Rng};
use crate::support::tensor::Tensor;
use crate::support::{assert_whole, read};

const LAYERS: usize = 2;
const HIDDEN: u64 = 4;
const WIDTH: u64 = 6;

fn mlp(layer: usize, projection: &str) -> String {
    format!("model.layers.{layer}.mlp.{projection}.weight")
}

/// A base and three models of two layers, of this type.
fn family(kind: &str) -> Family {
    let mut rng = Rng(31);
    let mut member = || {
        let mut tensor = |name: &str, shape: &[u64]| {
            let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
            Tensor::new(name, Dtype::BF16, shape, &values)
        };
        let mut all = vec![tensor("model.embed_tokens.weight", &[5, HIDDEN]), tensor("model.norm.weight", &[HIDDEN])];
        for layer in 0..LAYERS {
            all.push(tensor(&format!("model.layers.{layer}.self_attn.q_proj.weight"), &[HIDDEN, HIDDEN]));
            all.push(tensor(&mlp(layer, "gate_proj"), &[WIDTH, HIDDEN]));
            all.push(tensor(&mlp(layer, "up_proj"), &[WIDTH, HIDDEN]));
            all.push(tensor(&mlp(layer, "down_proj"), &[HIDDEN, WIDTH]));
        }
        all
    };
    let family = Family::of((0..4).map(|_| member()).collect());
    let config = json!({"model_type": kind, "architectures": ["Dense"], "num_hidden_layers": LAYERS, "hidden_size": HIDDEN,
        "intermediate_size": WIDTH});
    for name in ["base", "model-1", "model-2", "model-3"] {
        std::fs::write(family.path(name).join("config.json"), config.to_string()).unwrap();
    }
    family
}

fn merged(family: &Family, name: &str, text: &str, layout: ExpertLayout, seed: u64) -> merganser::Result<Merged> {
    use merganser::engine::{Progress, Request, Stop, merge};
    let mut recipe = Recipe::load(&family.recipe(name, text))?;
    recipe.experts.as_mut().unwrap().layout = layout;
    let options = merganser::plan::Options { threads: 2, memory_budget: 1 << 28, seed, shard_bytes: 1 << 30 };
    let plan = Plan::new(recipe, options)?;
    let out = family.path(&format!("out-{name}"));
    merge(
        &Request { plan: &plan, out: &out, resume: false, overwrite: false },
        &Progress::default(),
        &Stop::default(),
    )?;
    assert_whole(&out);
    Ok(Merged { tensors: read(&out), out })
}

fn config(merged: &Merged) -> Value {
    serde_json::from_slice(&std::fs::read(merged.out.join("config.json")).unwrap()).unwrap()
}

const TWO: &str = "base_model: base\ngate_mode: random\nexperts:\n- source_model: model-1\n- source_model: model-2\n- source_model: model-3\n";

#[test]
fn experts_lie_side_by_side_and_everything_else_is_the_bases() {
    let family = family("mistral");
    let packed = merged(&family, "packed", TWO, ExpertLayout::Packed, 0).unwrap();
    let old = merged(&family, "old", TWO, ExpertLayout::Old, 0).unwrap();
    for layer in 0..LAYERS {
        let of = |member: usize, projection: &str| family.tensor(member, &mlp(layer, projection)).bytes.clone();
        let pairs: Vec<u8> = (1..4).flat_map(|m| [of(m, "gate_proj"), of(m, "up_proj")].concat()).collect();
        let both = &packed.tensors[&format!("model.layers.{layer}.mlp.experts.gate_up_proj")];
        assert_eq!((&both.shape[..], &both.bytes), (&[3, 2 * WIDTH, HIDDEN][..], &pairs));
        let down = &packed.tensors[&format!("model.layers.{layer}.mlp.experts.down_proj")];
        let downs: Vec<u8> = (1..4).flat_map(|m| of(m, "down_proj")).collect();
        assert_eq!((&down.shape[..], &down.bytes), (&[3, HIDDEN, WIDTH][..], &downs));
        for (expert, member) in [(0, 1), (1, 2), (2, 3)] {
            for (name, projection) in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")] {
                let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight");
                assert_eq!(old.tensors[&name].bytes, of(member, projection), "{name}");
            }
        }
        for (merged, name) in [(&packed, "mlp"), (&old, "block_sparse_moe")] {
            assert_eq!(merged.tensors[&format!("model.layers.{layer}.{name}.gate.weight")].shape, [3, HIDDEN]);
        }
        let q = format!("model.layers.{layer}.self_attn.q_proj.weight");
        assert_eq!(packed.bytes(&q), family.tensor(0, &q).bytes);
    }
    assert_eq!(packed.tensors.len(), 2 + LAYERS * 4);
    assert_eq!(old.tensors.len(), 2 + LAYERS * 11);
    let config = config(&packed);
    assert_eq!((&config["model_type"], &config["architectures"]), (&json!("mixtral"), &json!(["MixtralForCausalLM"])));
    assert_eq!((&config["num_local_experts"], &config["num_experts_per_tok"]), (&json!(3), &json!(2)));
    assert_eq!(config["intermediate_size"], WIDTH);
}

#[test]
fn gates_follow_the_seed_and_have_their_distribution() {
    let family = family("llama");
    let gates = |merged: &Merged| merged.values("model.layers.1.mlp.gate.weight");
    let run = |name: &str, mode: &str, seed| {
        let prompts = if mode == "random" { "" } else { "\n  positive_prompts: [a]" };
        let expert = |m: usize| format!("- source_model: model-{m}{prompts}\n");
        let text = format!("base_model: base\ndtype: float32\ngate_mode: {mode}\nexperts:\n{}{}", expert(1), expert(2));
        merged(&family, name, &text, ExpertLayout::Packed, seed).unwrap()
    };
    let (one, again, other) = (run("one", "random", 1), run("again", "random", 1), run("other", "random", 2));
    assert_eq!(gates(&one), gates(&again));
    assert_ne!(gates(&one), gates(&other));
    assert_ne!(gates(&one), one.values("model.layers.0.mlp.gate.weight"));
    assert!(gates(&one).iter().any(|v| v.abs() > 0.6) && gates(&one).iter().all(|v| v.abs() < 6.0));
    let uniform = run("uniform", "uniform_random", 1);
    assert!(gates(&uniform).iter().all(|v| v.abs() < 0.5) && gates(&uniform).iter().any(|v| v.abs() > 0.1));
}

#[test]
fn noise_and_residual_scale_change_the_experts_that_ask_for_them() {
    let family = family("llama");
    let text = "base_model: base\ndtype: float32\ngate_mode: random\nexperts:\n- source_model: model-1\n  residual_scale: 0.5\n\
                - source_model: model-2\n  noise_scale: 0.25\n";
    let merged = merged(&family, "scaled", text, ExpertLayout::Old, 3).unwrap();
    let name = |expert: usize, which: &str| format!("model.layers.0.block_sparse_moe.experts.{expert}.{which}.weight");
    let half: Vec<f64> = family.tensor(1, &mlp(0, "down_proj")).values().iter().map(|v| v / 2.0).collect();
    assert_eq!(merged.values(&name(0, "w2")), half);
    assert_eq!(merged.values(&name(0, "w1")), family.tensor(1, &mlp(0, "gate_proj")).values());
    let mut noise = Vec::new();
    for (which, projection) in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")] {
        let own = family.tensor(2, &mlp(0, projection)).values();
        noise.extend(merged.values(&name(1, which)).iter().zip(own).map(|(v, own)| v - own));
    }
    let deviation = (noise.iter().map(|v| v * v).sum::<f64>() / noise.len() as f64).sqrt();
    assert!((0.17..0.34).contains(&deviation), "{deviation}");
}

#[test]
fn qwens_mixtures_have_their_names_and_their_shared_expert() {
    let family = family("qwen2");
    let text = format!("{TWO}shared_experts: [{{source_model: base}}]\nexperts_per_token: 1\n");
    let qwen2 = merged(&family, "qwen2", &text, ExpertLayout::Old, 0).unwrap();
    let name = "model.layers.1.mlp.experts.2.up_proj.weight";
    assert_eq!(qwen2.bytes(name), family.tensor(3, &mlp(1, "up_proj")).bytes);
    let shared = "model.layers.1.mlp.shared_expert.down_proj.weight";
    assert_eq!(qwen2.bytes(shared), family.tensor(0, &mlp(1, "down_proj")).bytes);
    assert_eq!(qwen2.tensors["model.layers.0.mlp.shared_expert_gate.weight"].shape, [1, HIDDEN]);
    let config = config(&qwen2);
    assert_eq!(config["model_type"], "qwen2_moe");
    for (key, value) in [
        ("num_experts", 3),
        ("num_experts_per_tok", 1),
        ("moe_intermediate_size", WIDTH),
        ("shared_expert_intermediate_size", WIDTH),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let family = self::family("qwen3");
    let qwen3 = merged(&family, "qwen3", TWO, ExpertLayout::Packed, 0).unwrap();
    assert_eq!(self::config(&qwen3)["architectures"], json!(["Qwen3MoeForCausalLM"]));
    assert!(qwen3.tensors.contains_key("model.layers.0.mlp.experts.gate_up_proj"));
}

#[test]
fn what_is_not_made_is_refused_by_name() {
    let llama = family("llama");
    let error = |family: &Family, text: &str| {
        let found = merged(family, "wrong", text, ExpertLayout::Packed, 0);
        found.map(|_| ()).unwrap_err().to_string()
    };
    let expert = "- source_model: model-1\n- source_model: model-2\n";
    for (change, words) in [
        ("gate_mode: hidden\n", "takes hidden states of a model that runs"),
        ("", "takes hidden states of a model that runs"),
        ("gate_mode: other\n", "with `gate_mode: other`: it is unknown"),
        ("gate_mode: uniform_random\n", "has no `positive_prompts`"),
        ("gate_mode: random\nexperts_per_token: 3\n", "1 to 2"),
        ("gate_mode: random\narchitecture: deepseek\n", "`deepseek`"),
        ("gate_mode: random\nshared_experts: [{source_model: base}]\n", "shared expert"),
        ("gate_mode: random\nexpert_count: 3\n", "unknown key `expert_count`"),
    ] {
        let told = error(&llama, &format!("base_model: base\n{change}experts:\n{expert}"));
        assert!(told.contains(words), "{change}: {told}");
    }
    let same = "base_model: base\ngate_mode: random\nexperts: [{source_model: model-1}, {source_model: model-1}]\n";
    assert!(error(&llama, same).contains("all experts are `model-1`"));
    assert!(error(&family("gemma2"), TWO).contains("`gemma2`"));
    // A width that is another.
    let narrow: Vec<Tensor> = llama.members[1]
        .iter()
        .map(|t| match t.name.contains("up_proj") {
            true => Tensor::new(&t.name, Dtype::BF16, &[5, HIDDEN], &t.values()[..20]),
            false => t.clone(),
        })
        .collect();
    crate::support::tensor::write_folder(&llama.path("model-1"), &narrow, 1);
    let told = error(&llama, TWO);
    assert!(told.contains("wrong.yaml:3") && told.contains("up_proj.weight` of `model-1` is BF16 [5, 4]"), "{told}");
}
