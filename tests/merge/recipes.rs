//! Whole merges of what mergekit's recipes ask for beyond whole models: slices, modules, vocabularies. Values are worked
//! out from the sources here.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::support::Run;
use crate::support::family::{Family, Merged};
use crate::support::tensor::Tensor;

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Three models of four layers and six tokens, in float32, with a config.json.
fn llamas() -> Family {
    let layers: Vec<String> = (0..4).map(|i| format!("model.layers.{i}.mlp.w")).collect();
    let mut specs: Vec<(&str, Dtype, &[u64])> = vec![(EMBED, Dtype::F32, &[6, 2])];
    specs.extend(layers.iter().map(|name| (name.as_str(), Dtype::F32, &[2, 3][..])));
    specs.extend([(NORM, Dtype::F32, &[2][..]), (HEAD, Dtype::F32, &[6, 2][..])]);
    let family = Family::new(crate::support::quick_folder(), &specs, 3, 5);
    let config = json!({"num_hidden_layers": 4, "vocab_size": 6, "layer_types": ["a", "b", "c", "d"], "rope": [1, 2, 3, 4],
        "bos_token_id": 0});
    for member in ["base", "model-1", "model-2", "model-3"] {
        std::fs::write(family.path(member).join("config.json"), config.to_string()).unwrap();
    }
    family
}

fn layer(i: usize) -> String {
    format!("model.layers.{i}.mlp.w")
}

fn json_of(merged: &Merged, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(merged.out.join(name)).unwrap()).unwrap()
}

fn error(family: &Family, text: &str) -> merganser::Error {
    Run::default().plan(&family.recipe("wrong", text)).unwrap_err()
}

#[test]
fn a_stack_numbers_layers_on_and_takes_the_ends_of_its_first_and_last_slice() {
    let family = llamas();
    let merged = family.merged(
        "stack",
        "merge_method: passthrough\nslices:\n- sources: [{model: model-1, layer_range: [0, 3]}]\n\
         - sources: [{model: model-2, layer_range: [1, 4]}]\n",
    );
    let sources = [(1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)];
    for (out, (model, from)) in sources.into_iter().enumerate() {
        assert_eq!(merged.bytes(&layer(out)), family.tensor(model, &layer(from)).bytes, "{out}");
    }
    assert_eq!(merged.bytes(EMBED), family.tensor(1, EMBED).bytes);
    assert_eq!(merged.bytes(NORM), family.tensor(2, NORM).bytes);
    assert_eq!(merged.bytes(HEAD), family.tensor(2, HEAD).bytes);
    assert_eq!(merged.tensors.len(), 9);
    let config = json_of(&merged, "config.json");
    assert_eq!(config["num_hidden_layers"], 6);
    assert_eq!(config["layer_types"], json!(["a", "b", "c", "b", "c", "d"]));
    assert_eq!(config["rope"], json!([1, 2, 3, 4]), "a list that is as long by coincidence stays");
    crate::support::assert_whole(&merged.out);
}

#[test]
fn one_slice_over_whole_models_is_the_merge_of_whole_models() {
    let family = llamas();
    let parameters =
        "merge_method: slerp\nbase_model: base\nparameters: {t: [{filter: mlp, value: [0, 0.5, 1]}, {value: 0.25}]}\n";
    let whole = family.merged("whole", &format!("{parameters}models: [{{model: model-1}}]\n"));
    for (name, slices) in [
        ("slices", "slices: [{sources: [{model: base, layer_range: [0, 4]}, {model: model-1, layer_range: [0, 4]}]}]"),
        (
            "module",
            "modules: {default: {slices: [{sources: [{model: model-1, layer_range: [0, 4]}, {model: base, layer_range: [0, 4]}]}]}}",
        ),
        ("models", "modules: {default: {models: [{model: model-1}, {model: base}]}}"),
    ] {
        let sliced = family.merged(name, &format!("{parameters}{slices}\n"));
        assert_eq!(sliced.tensors, whole.tensors, "{name}");
    }
}

#[test]
fn gradients_run_within_each_slice_and_filters_see_the_names_of_their_side() {
    let family = llamas();
    // Weights by the input's name, λ by the output's.
    let merged = family.merged(
        "filters",
        "merge_method: task_arithmetic\nbase_model: base\nslices:\n- sources:\n  - {model: base, layer_range: [0, 2]}\n\
         \x20 - {model: model-1, layer_range: [2, 4], parameters: {weight: [{filter: layers.3., value: 2}, {value: 1}]}}\n\
         - sources:\n  - {model: base, layer_range: [1, 4]}\n  - {model: model-2, layer_range: [1, 4], parameters: {weight: [0, 1]}}\n\
         parameters: {lambda: [{filter: layers.4., value: 3}, {value: 1}]}\n",
    );
    let expected = |base: usize, model: usize, from: usize, factor: f64| -> Vec<f64> {
        let (b, m) = (family.tensor(0, &layer(base)).values(), family.tensor(model, &layer(from)).values());
        b.iter().zip(&m).map(|(b, m)| b + factor * (m - b)).collect()
    };
    for (out, base, model, from, factor) in
        [(0, 0, 1, 2, 1.0), (1, 1, 1, 3, 2.0), (2, 1, 2, 1, 0.0), (3, 2, 2, 2, 0.5), (4, 3, 2, 3, 3.0)]
    {
        for (found, expected) in merged.values(&layer(out)).iter().zip(expected(base, model, from, factor)) {
            assert!((found - expected).abs() < 1e-6, "{out}: {found} {expected}");
        }
    }
    // Behind the layers stand the last slice's sources; outside of them a gradient has its first value.
    assert_eq!(merged.bytes(NORM), family.tensor(0, NORM).bytes);
}

#[test]
fn slices_that_do_not_fit_are_refused_with_their_lines_all_at_once() {
    let family = llamas();
    let wrong = error(
        &family,
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: model-1, layer_range: [0, 5]}\n- sources:\n  - {model: model-2, layer_range: [4, 6]}\n",
    );
    let file = family.path("wrong.yaml");
    let file = file.display();
    assert_eq!(
        wrong.to_string(),
        format!(
            "{file}:4: `layer_range: [0, 5]` ends behind the 4 layers of `model-1` (`model.layers`)\n\
             {file}:6: `layer_range: [4, 6]` ends behind the 4 layers of `model-2` (`model.layers`)"
        )
    );
    let wrong = error(
        &family,
        "merge_method: ties\nbase_model: base\nslices:\n- sources: [{model: model-1, layer_range: [0, 2]}]\n",
    );
    assert_eq!(
        wrong.to_string(),
        format!("{file}:4: method `ties` needs the base `base` among the sources of this slice")
    );
}

#[test]
fn towers_are_merged_module_by_module_and_none_is_left_out_in_silence() {
    let specs: [(&str, Dtype, &[u64]); 5] = [
        ("shared.weight", Dtype::F32, &[4, 2]),
        ("encoder.block.0.w", Dtype::F32, &[3]),
        ("encoder.block.1.w", Dtype::F32, &[3]),
        ("decoder.block.0.w", Dtype::F32, &[3]),
        ("decoder.final_layer_norm.weight", Dtype::F32, &[2]),
    ];
    let family = Family::new(crate::support::quick_folder(), &specs, 2, 6);
    std::fs::write(family.path("model-1/config.json"), r#"{"num_layers": 2, "num_decoder_layers": 1}"#).unwrap();
    let modules = "encoder: {slices: [{sources: [{model: model-1, layer_range: [1, 2]}]}]}, decoder: {models: [{model: model-2}]}";
    let merged = family.merged(
        "towers",
        &format!("merge_method: passthrough\nmodules: {{{modules}, shared: {{models: [{{model: model-1}}]}}}}\n"),
    );
    for (name, model, from) in [
        ("shared.weight", 1, "shared.weight"),
        ("encoder.block.0.w", 1, "encoder.block.1.w"),
        ("decoder.block.0.w", 2, "decoder.block.0.w"),
        ("decoder.final_layer_norm.weight", 2, "decoder.final_layer_norm.weight"),
    ] {
        assert_eq!(merged.bytes(name), family.tensor(model, from).bytes, "{name}");
    }
    assert_eq!(merged.tensors.len(), 4);
    assert_eq!(json_of(&merged, "config.json"), json!({"num_layers": 1, "num_decoder_layers": 1}));
    let left = error(&family, &format!("merge_method: passthrough\nmodules: {{{modules}}}\n")).to_string();
    assert!(left.contains("no module makes 1 tensors of `model-1`, `shared.weight` first"), "{left}");
    let asked =
        error(&family, "merge_method: passthrough\nslices: [{sources: [{model: model-1, layer_range: [0, 1]}]}]\n");
    assert!(
        asked.to_string().contains("several lists of layers: `decoder` (`decoder.block`, 1 layers), `encoder`"),
        "{asked}"
    );
}

#[test]
fn a_module_may_have_a_method_of_its_own() {
    let specs: [(&str, Dtype, &[u64]); 3] = [
        ("shared.weight", Dtype::F32, &[4, 2]),
        ("encoder.block.0.w", Dtype::F32, &[3]),
        ("decoder.block.0.w", Dtype::F32, &[3]),
    ];
    let family = Family::new(crate::support::quick_folder(), &specs, 2, 6);
    let both = "models: [{model: model-1}, {model: model-2}]";
    let text = format!(
        "base_model: base\nmerge_method: linear\nmodules:\n  encoder: {{merge_method: task_arithmetic, {both}, \
         parameters: {{lambda: 0.5}}}}\n  decoder: {{merge_method: passthrough, models: [{{model: model-2}}]}}\n  shared: {{{both}, \
         parameters: {{weight: 1}}}}\n"
    );
    let values = |member: usize, name: &str| family.tensor(member, name).values();
    let of = |name: &str, value: &dyn Fn([f64; 3]) -> f64| -> Vec<f64> {
        let (b, x, y) = (values(0, name), values(1, name), values(2, name));
        b.iter().zip(x).zip(y).map(|((b, x), y)| value([*b, x, y])).collect()
    };
    // With the recipe's own method for what has none, and with none where every module has its own.
    for (name, text) in [
        ("mixed", text.clone()),
        ("own", text.replace("merge_method: linear\n", "").replace("shared: {", "shared: {merge_method: linear, ")),
    ] {
        let merged = family.merged(name, &text);
        assert_near(
            &merged.values("encoder.block.0.w"),
            &of("encoder.block.0.w", &|[b, x, y]| b + 0.5 * (x + y - 2.0 * b)),
            name,
        );
        assert_eq!(merged.bytes("decoder.block.0.w"), family.tensor(2, "decoder.block.0.w").bytes);
        assert_near(&merged.values("shared.weight"), &of("shared.weight", &|[_, x, y]| (x + y) / 2.0), name);
        let manifest = std::fs::read_to_string(merged.out.join("merganser.json")).unwrap();
        assert!(manifest.contains("\"merge_method\": \"task_arithmetic\""));
    }
    let wrong = error(&family, &text.replace("task_arithmetic", "task_arithmetik")).to_string();
    assert!(wrong.contains("wrong.yaml:4: unknown method `task_arithmetik`"), "{wrong}");
}

#[test]
fn the_base_alone_is_what_a_sum_of_nothing_gives() {
    let family = llamas();
    let merged = family.merged("alone", "merge_method: ties\nbase_model: base\nmodels: [{model: base}]\n");
    assert_eq!(merged.bytes(EMBED), family.tensor(0, EMBED).bytes);
}

/// Writes a tokenizer of these pieces, numbered from 0.
fn tokenizer(family: &Family, member: &str, pieces: &[&str]) {
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(i, p)| ((*p).into(), i.into())).collect();
    let document = json!({"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": []});
    std::fs::write(family.path(member).join("tokenizer.json"), document.to_string()).unwrap();
    let settings = json!({"bos_token": pieces[1], "chat_template": format!("{{{{ {member} }}}}")});
    std::fs::write(family.path(member).join("tokenizer_config.json"), settings.to_string()).unwrap();
}

fn rows(values: &[f64]) -> Vec<&[f64]> {
    values.chunks(2).collect()
}

#[test]
fn the_union_of_vocabularies_fills_the_rows_that_a_model_lacks() {
    let family = llamas();
    // Six rows each: one of the base's has no token, and two of its tokens no other model has.
    tokenizer(&family, "base", &["<s>", "</s>", "a", "b", "c"]);
    tokenizer(&family, "model-1", &["<s>", "</s>", "b", "a", "x", "y"]);
    tokenizer(&family, "model-2", &["<s>", "</s>", "a", "b", "y", "z"]);
    let merged = family.merged(
        "union",
        "merge_method: linear\nbase_model: base\nmodels:\n- {model: base, parameters: {weight: 0}}\n- {model: model-1, parameters: {weight: 1}}\n\
         - {model: model-2, parameters: {weight: 0}}\ntokenizer_source: union\n",
    );
    let values = merged.values(EMBED);
    let found = rows(&values);
    let (base, one, two) =
        (family.tensor(0, EMBED).values(), family.tensor(1, EMBED).values(), family.tensor(2, EMBED).values());
    let (base, one, two) = (rows(&base), rows(&one), rows(&two));
    // The base's numbers stay: <s> </s> a b c; then model-1's x and y, and model-2's z.
    let expected = [one[0], one[1], one[3], one[2], base[4], one[4], one[5], two[5]];
    assert_eq!(found.len(), 8);
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(*found, expected, "row {row}");
    }
    assert_eq!(merged.tensors[HEAD].shape, [8, 2]);
    let vocab = &json_of(&merged, "tokenizer.json")["model"]["vocab"];
    assert_eq!(*vocab, json!({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "x": 5, "y": 6, "z": 7}));
    assert_eq!(json_of(&merged, "config.json")["vocab_size"], 8);
    crate::support::assert_whole(&merged.out);
}

#[test]
fn the_bases_vocabulary_cuts_rows_and_another_models_brings_its_files() {
    let family = llamas();
    tokenizer(&family, "base", &["<s>", "</s>", "a", "b", "c"]);
    tokenizer(&family, "model-1", &["b", "<s>", "</s>", "a"]);
    let models =
        "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: model-1, parameters: {weight: 1}}]\n";
    let base = family.merged("base", &format!("{models}tokenizer_source: base\n"));
    assert_eq!(base.tensors[EMBED].shape, [5, 2]);
    assert_eq!(json_of(&base, "config.json")["vocab_size"], 5);
    let (zero, one) = (family.tensor(0, EMBED).values(), family.tensor(1, EMBED).values());
    let (zero, one) = (rows(&zero), rows(&one));
    let values = base.values(EMBED);
    for (found, expected) in rows(&values).iter().zip([one[1], one[2], one[3], one[0], zero[4]]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
    let other = family.merged(
        "other",
        &format!("{models}tokenizer: {{source: model-1, pad_to_multiple_of: 4}}\nchat_template: auto\n"),
    );
    assert_eq!(other.tensors[EMBED].shape, [4, 2]);
    assert_eq!(json_of(&other, "config.json")["bos_token_id"], 1, "<s> has another number there");
    assert_eq!(
        std::fs::read(other.out.join("tokenizer.json")).unwrap(),
        std::fs::read(family.path("model-1/tokenizer.json")).unwrap()
    );
    assert_eq!(
        json_of(&other, "tokenizer_config.json")["chat_template"],
        "{{ base }}",
        "of equally frequent ones the first"
    );
}

#[test]
fn single_tokens_take_the_rows_that_the_recipe_says() {
    let family = llamas();
    tokenizer(&family, "base", &["<s>", "</s>", "a"]);
    tokenizer(&family, "model-1", &["<s>", "</s>", "a", "x"]);
    let merged = family.merged(
        "tokens",
        "merge_method: linear\nmodels: [{model: base, parameters: {weight: 1}}, {model: model-1, parameters: {weight: 0}}]\ntokenizer:\n  source: base\n  pad_to_multiple_of: 4\n  tokens:\n\
         \x20   a: {source: model-1, force: true}\n    </s>: {source: {kind: zero}}\n    new: {source: {kind: model_token, model: model-1, token: x}}\n    newer: {source: {kind: zero}}\n",
    );
    let (zero, one) = (family.tensor(0, EMBED).values(), family.tensor(1, EMBED).values());
    let (zero, one) = (rows(&zero), rows(&one));
    let values = merged.values(EMBED);
    let found = rows(&values);
    let start = [zero[0], zero[1], one[2], one[3], &[0.0, 0.0][..]];
    for (found, expected) in found.iter().zip(start) {
        assert_eq!(*found, expected);
    }
    let mean = |at: usize| start.iter().map(|row| row[at]).sum::<f64>() / 5.0;
    assert_eq!(found.len(), 8);
    assert!(
        found[5..].iter().all(|row| (row[0] - mean(0)).abs() < 1e-6 && (row[1] - mean(1)).abs() < 1e-6),
        "{found:?}"
    );
}

/// Writes an adapter: its tensors, and its config beside the usual.
fn adapter(family: &Family, name: &str, tensors: &[Tensor], more: Value) {
    let folder = family.path(name);
    std::fs::create_dir_all(&folder).unwrap();
    crate::support::tensor::write_file(&folder.join("adapter_model.safetensors"), tensors);
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": "base"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

fn seeded(name: &str, shape: &[u64], seed: u64) -> Tensor {
    let mut rng = crate::support::family::Rng(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::new(name, Dtype::F32, shape, &values)
}

/// W + s·B·A for A of [r, n] and B of [m, r].
fn adapted(w: &Tensor, a: &Tensor, b: &Tensor, s: f64) -> Vec<f64> {
    let (w, n, a, r, b) = (w.values(), w.shape[1] as usize, a.values(), a.shape[0] as usize, b.values());
    let change = |at: usize| (0..r).map(|k| b[at / n * r + k] * a[k * n + at % n]).sum::<f64>();
    w.iter().enumerate().map(|(at, w)| w + s * change(at)).collect()
}

fn assert_near(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{what} at {at}: {found} is not {expected}");
    }
}

const FIRST: &str = "base_model.model.model.layers.0.mlp";

#[test]
fn adapters_are_put_on_their_base_as_it_is_read() {
    let family = adaptable();
    let (a, b) =
        (seeded(&format!("{FIRST}.lora_A.weight"), &[2, 3], 1), seeded(&format!("{FIRST}.lora_B.weight"), &[2, 2], 2));
    let (c, d) =
        (seeded(&format!("{FIRST}.lora_A.weight"), &[1, 3], 3), seeded(&format!("{FIRST}.lora_B.weight"), &[2, 1], 4));
    let head = seeded("base_model.model.lm_head.weight", &[6, 2], 5);
    adapter(&family, "one", &[a.clone(), b.clone(), head.clone()], json!({"modules_to_save": ["lm_head"]}));
    adapter(
        &family,
        "two",
        &[c.clone(), d.clone()],
        json!({"rank_pattern": {"layers.0.mlp": 1}, "alpha_pattern": {"mlp": 5}, "use_rslora": true}),
    );
    let weight = "model.layers.0.mlp.weight";
    let merged = family.merged("one", "merge_method: passthrough\nmodels: [{model: base+one}]\n");
    let once = adapted(family.tensor(0, weight), &a, &b, 3.0);
    assert_near(&merged.values(weight), &once, "one adapter");
    assert_eq!(merged.bytes(HEAD), head.bytes);
    assert_eq!(merged.bytes(EMBED), family.tensor(0, EMBED).bytes);
    let both =
        family.merged("both", "merge_method: passthrough\nmodels: [{model: {model: {path: base}, lora: one+two}}]\n");
    let base = Tensor::new(weight, Dtype::F32, &[2, 3], &once);
    assert_near(&both.values(weight), &adapted(&base, &c, &d, 5.0), "two adapters");
    // As one of two models, and as the base.
    let linear = family.merged(
        "linear",
        "merge_method: linear\nmodels: [{model: base+one}, {model: model-1}]\nparameters: {weight: 1}\n",
    );
    let other = family.tensor(1, weight).values();
    let mean: Vec<f64> = once.iter().zip(&other).map(|(a, b)| (a + b) / 2.0).collect();
    assert_near(&linear.values(weight), &mean, "an average");
    crate::support::assert_whole(&linear.out);
}

/// A base and a model of one layer and a head, with names as PEFT has them.
fn adaptable() -> Family {
    let specs: [(&str, Dtype, &[u64]); 3] =
        [(EMBED, Dtype::F32, &[6, 2]), ("model.layers.0.mlp.weight", Dtype::F32, &[2, 3]), (HEAD, Dtype::F32, &[6, 2])];
    Family::new(crate::support::quick_folder(), &specs, 1, 8)
}

#[test]
fn transposed_weights_embeddings_and_magnitudes_are_adapted_by_their_rules() {
    let family = adaptable();
    let weight = "model.layers.0.mlp.weight";
    // W is [in 2, out 3]: A is [r, 2] and B [3, r].
    let (a, b) =
        (seeded(&format!("{FIRST}.lora_A.weight"), &[2, 2], 1), seeded(&format!("{FIRST}.lora_B.weight"), &[3, 2], 2));
    let m = seeded(&format!("{FIRST}.lora_magnitude_vector"), &[3], 3);
    let at = "base_model.model.model.embed_tokens.lora_embedding_";
    let (ea, eb) = (seeded(&format!("{at}A"), &[2, 6], 4), seeded(&format!("{at}B"), &[2, 2], 5));
    adapter(&family, "dora", &[a.clone(), b.clone(), m.clone()], json!({"fan_in_fan_out": true, "use_dora": true}));
    adapter(&family, "embed", &[ea.clone(), eb.clone()], json!({}));
    let merged = family.merged("dora", "merge_method: passthrough\nmodels: [{model: base+dora+embed}]\n");
    let (w, av, bv, mv) = (family.tensor(0, weight).values(), a.values(), b.values(), m.values());
    let changed: Vec<f64> =
        (0..6).map(|i| w[i] + 3.0 * (0..2).map(|k| bv[i % 3 * 2 + k] * av[k * 2 + i / 3]).sum::<f64>()).collect();
    let norm = |j: usize| (changed[j].powi(2) + changed[3 + j].powi(2)).sqrt();
    let expected: Vec<f64> = (0..6).map(|i| changed[i] * mv[i % 3] / norm(i % 3)).collect();
    assert_near(&merged.values(weight), &expected, "DoRA");
    let (e, ea, eb) = (family.tensor(0, EMBED).values(), ea.values(), eb.values());
    let expected: Vec<f64> =
        (0..12).map(|i| e[i] + 3.0 * (0..2).map(|k| ea[k * 6 + i / 2] * eb[i % 2 * 2 + k]).sum::<f64>()).collect();
    assert_near(&merged.values(EMBED), &expected, "an embedding");
}

#[test]
fn adapters_that_do_not_fit_or_do_what_is_not_known_are_refused_by_name() {
    let family = adaptable();
    let a = |shape: &[u64]| seeded(&format!("{FIRST}.lora_A.weight"), shape, 1);
    let b = |shape: &[u64]| seeded(&format!("{FIRST}.lora_B.weight"), shape, 2);
    let stray = seeded("base_model.model.model.layers.9.mlp.weight", &[2, 3], 3);
    for (name, tensors, config, said) in [
        ("half", vec![a(&[2, 3])], json!({}), "half a pair"),
        ("shape", vec![a(&[2, 4]), b(&[2, 2])], json!({}), "do not fit"),
        ("rank", vec![a(&[2, 3]), b(&[2, 2])], json!({"r": 4}), "have rank 2, and `adapter_config.json` says 4"),
        ("stray", vec![stray], json!({}), "matches no tensor"),
        ("kind", vec![a(&[2, 3]), b(&[2, 2])], json!({"peft_type": "IA3"}), "the kind `IA3`"),
        ("bias", vec![a(&[2, 3]), b(&[2, 2])], json!({"lora_bias": true}), "`lora_bias`"),
        ("no-dora", vec![a(&[2, 3]), b(&[2, 2])], json!({"use_dora": true}), "no DoRA magnitudes"),
    ] {
        adapter(&family, name, &tensors, config);
        let wrong =
            error(&family, &format!("merge_method: passthrough\nmodels: [{{model: base+{name}}}]\n")).to_string();
        assert!(wrong.contains(said), "{name}: {wrong}");
    }
    adapter(&family, "other", &[a(&[2, 3]), b(&[2, 2])], json!({"base_model_name_or_path": "org/another"}));
    let recipe = family.recipe("other", "merge_method: passthrough\nmodels: [{model: base+other}]\n");
    let warnings = Run::default().plan(&recipe).unwrap().warnings;
    assert!(warnings[0].contains("was trained on `org/another`, and is put on `base`"), "{warnings:?}");
}

#[test]
fn documents_with_names_are_merged_first_and_leave_nothing_behind() {
    let family = llamas();
    let text = "merge_method: passthrough\nslices:\n- sources: [{model: half, layer_range: [0, 2]}]\n\
                - sources: [{model: model-3, layer_range: [2, 4]}]\n---\n\
                name: half\nmerge_method: linear\nmodels: [{model: sum}, {model: model-2}]\n---\n\
                name: sum\nmerge_method: task_arithmetic\nbase_model: base\nmodels: [{model: model-1}]\nparameters: {lambda: 2}\n";
    let recipe = family.recipe("documents", text);
    let plan = Run::default().plan(&recipe).unwrap();
    assert_eq!(plan.recipe.before.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["sum", "half"]);
    assert_eq!(plan.recipe.warnings, [""; 0]);
    let out = family.path("documents");
    let run =
        std::process::Command::new(crate::support::binary()).arg("merge").arg(&recipe).arg(&out).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found = crate::support::read(&out);
    let [zero, one, two] = [0, 1, 2].map(|member| family.tensor(member, &layer(1)).values());
    let expected: Vec<f64> = (0..6).map(|i| (zero[i] + 2.0 * (one[i] - zero[i]) + two[i]) / 2.0).collect();
    assert_near(&found[&layer(1)].values(), &expected, "a layer of two documents");
    assert_eq!(found[&layer(3)].bytes, family.tensor(3, &layer(3)).bytes);
    assert!(!family.path("documents.merganser-documents").exists());
}

#[test]
fn a_name_of_the_hub_is_its_snapshot_in_the_cache() {
    let family = adaptable();
    let snapshot = family.path("hub/models--org--name/snapshots/abc");
    std::fs::create_dir_all(family.path("hub/models--org--name/refs")).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(family.path("hub/models--org--name/refs/main"), "abc").unwrap();
    let blob = family.path("hub/models--org--name/blob");
    std::fs::copy(family.path("model-1/model.safetensors"), &blob).unwrap();
    std::os::unix::fs::symlink(&blob, snapshot.join("model.safetensors")).unwrap();
    let recipe = family.recipe("hub-name", "merge_method: passthrough\nmodels: [{model: org/name@main}]\n");
    let out = family.path("hub-out");
    let run = std::process::Command::new(crate::support::binary())
        .env("HF_HUB_CACHE", family.path("hub"))
        .arg("merge")
        .arg(&recipe)
        .arg(&out)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(crate::support::read(&out)[HEAD].bytes, family.tensor(1, HEAD).bytes);
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("org/name@main") && !card.contains("abc"), "the card has the name and not the snapshot");
}
