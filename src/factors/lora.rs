//! LoRA adapters in the form of PEFT: which matrices an adapter can change, and `adapter_config.json`.
//!
//! PEFT adds `B A x · lora_alpha / r` to what a Linear module makes of x. With A = Vᵀ, B = U Σ and `lora_alpha` = r that is
//! L_t x, so that an adapter on the centre is the task's model.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Side;

/// The name of an adapter's configuration.
pub const CONFIG_NAME: &str = "adapter_config.json";

/// What PEFT puts before the names of modules.
const PREFIX: &str = "base_model.model.";

/// Modules that hold their matrix transposed in some models (GPT-2's `Conv1D`) and not in others.
const TRANSPOSED: [&str; 4] = ["c_attn", "c_fc", "c_proj", "q_attn"];

/// The Linear module that a matrix belongs to, or why an adapter cannot change it. `exists`: whether the model has a tensor
/// of a name.
///
/// # Errors
/// The reason, as the end of a sentence about the matrix.
pub fn module_of(tensor: &str, exists: impl Fn(&str) -> bool) -> Result<&str, &'static str> {
    let module = tensor.strip_suffix(".weight").ok_or("which is no `.weight` of a module")?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !module.split('.').all(|part| !part.is_empty() && part.chars().all(is_plain)) {
        return Err("whose name PEFT cannot match");
    }
    let (parent, last) = module.rsplit_once('.').unwrap_or(("", module));
    if TRANSPOSED.contains(&last) {
        return Err("which may be a `Conv1D`, whose matrix is stored transposed");
    }
    if last == "out_proj" && exists(&format!("{parent}.in_proj_weight")) {
        return Err("which PyTorch's fused attention reads past any adapter");
    }
    let embeds = |part: &str| matches!(part, "wte" | "wpe" | "shared") || part.to_ascii_lowercase().contains("embed");
    if module.split('.').any(embeds) {
        return Err("which belongs to an embedding");
    }
    Ok(module)
}

/// The name in an adapter's file of the factor of a module's matrix.
pub fn factor_name(module: &str, side: Side) -> String {
    let word = match side {
        Side::Left => "lora_B",
        Side::Right => "lora_A",
    };
    format!("{PREFIX}{module}.{word}.weight")
}

/// The name in an adapter's file of a tensor that stands for the base's: of a module that is saved whole, or a bias.
pub fn whole_name(tensor: &str, is_bias: bool) -> String {
    match tensor.rsplit_once('.').filter(|_| is_bias) {
        Some((module, bias)) => format!("{PREFIX}{module}.base_layer.{bias}"),
        None => format!("{PREFIX}{tensor}"),
    }
}

/// What an adapter changes.
#[derive(Debug, Clone, Default)]
pub struct Modules {
    /// Modules with factors, and their ranks.
    pub factors: Vec<(String, u64)>,
    /// Modules that are stored whole.
    pub saved: Vec<String>,
    /// Whether biases of modules with factors are stored.
    pub has_biases: bool,
}

/// The text of `adapter_config.json`.
pub fn config(of: &Modules, base_name: &str, task_type: Option<&str>) -> String {
    let modules = &of.factors;
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    modules.iter().for_each(|(_, rank)| *counts.entry(*rank).or_default() += 1);
    // The commonest; of equally common ones the least.
    let usual = counts.iter().rev().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
    let others: Value = modules.iter().filter(|(_, rank)| *rank != usual).map(|(m, rank)| (m.clone(), *rank)).collect();
    let config = json!({
        "alpha_pattern": others,
        "base_model_name_or_path": base_name,
        "bias": if of.has_biases { "lora_only" } else { "none" },
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": (!of.saved.is_empty()).then_some(&of.saved),
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": others,
        "target_modules": modules.iter().map(|(module, _)| module).collect::<Vec<_>>(),
        "task_type": task_type,
        "use_dora": false,
        "use_rslora": false,
    });
    format!("{config:#}\n")
}

/// PEFT's word for what a model is for, where its configuration says so beyond doubt.
pub fn task_type(config: &Value) -> Option<&'static str> {
    let architecture = config.get("architectures")?.get(0)?.as_str()?;
    let causal = architecture.ends_with("ForCausalLM") || architecture.ends_with("LMHeadModel");
    causal.then_some("CAUSAL_LM")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_linear_modules_are_adapted_and_all_others_stay_out_with_a_reason() {
        let exists = |name: &str| name == "a.in_proj_weight";
        for name in ["model.layers.0.self_attn.q_proj.weight", "b.out_proj.weight", "dense.weight"] {
            assert_eq!(module_of(name, exists), Ok(name.strip_suffix(".weight").unwrap()));
        }
        for (name, reason) in [
            ("visual.attn.in_proj_weight", "no `.weight`"),
            ("proj", "no `.weight`"),
            ("a.out_proj.weight", "fused attention"),
            ("h.0.attn.c_attn.weight", "Conv1D"),
            ("h.0.mlp.c_proj.weight", "Conv1D"),
            ("model.embed_tokens.weight", "embedding"),
            ("transformer.wte.weight", "embedding"),
            ("a b.weight", "cannot match"),
            ("a..b.weight", "cannot match"),
            ("(x).weight", "cannot match"),
        ] {
            let found = module_of(name, exists).unwrap_err();
            assert!(found.contains(reason), "{name}: {found}");
        }
    }

    #[test]
    fn the_commonest_rank_is_the_adapters_and_the_scale_of_every_module_is_one() {
        let modules = [("a".to_owned(), 3), ("b".to_owned(), 7), ("c".to_owned(), 7), ("d".to_owned(), 1)];
        let modules = Modules { factors: modules.to_vec(), ..Modules::default() };
        let config: Value = serde_json::from_str(&config(&modules, "avg", Some("CAUSAL_LM"))).unwrap();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(7), &json!(7)));
        assert_eq!(config["rank_pattern"], json!({"a": 3, "d": 1}));
        assert_eq!(config["rank_pattern"], config["alpha_pattern"]);
        assert_eq!(config["target_modules"], json!(["a", "b", "c", "d"]));
    }

    #[test]
    fn only_a_causal_language_model_is_named_one() {
        let of = |name: &str| task_type(&json!({"architectures": [name]}));
        assert_eq!((of("LlamaForCausalLM"), of("GPT2LMHeadModel")), (Some("CAUSAL_LM"), Some("CAUSAL_LM")));
        assert_eq!((of("BertModel"), task_type(&json!({})), task_type(&json!([1]))), (None, None, None));
    }
}
