//! Half models, quantised ones, adapters and optimizers' states are refused by name; nobody is sent to `copy:` for them.

use std::fs;
use std::path::Path;

use merganser::dtype::Dtype::{self, F8_E4M3, F32, U8};

use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::tensor::{Tensor, write_folder};
use crate::support::{Run, child, quick_folder};

const SPECS: &[(&str, Dtype, &[u64])] = &[
    ("model.embed_tokens.weight", F32, &[10, 4]),
    ("model.layers.0.mlp.up_proj.weight", F32, &[8, 4]),
    ("model.layers.1.mlp.up_proj.weight", F32, &[8, 4]),
];

fn family() -> Family {
    Family::new(quick_folder(), SPECS, 2, 3)
}

/// Whether planning (and so merging) is refused with these words and without `copy:`.
#[track_caller]
fn refused(family: &Family, text: &Text, words: &[&str]) {
    let recipe = family.recipe("refused", &text.yaml());
    let error = Run::default().plan(&recipe).unwrap_err();
    let all = format!("{error} {}", error.hints().join(" "));
    for word in words {
        assert!(all.contains(word), "{word:?} is not in: {all}");
    }
    assert_eq!(error.exit_code(), 1);
    assert!(!all.contains("copy:"), "{all}");
}

fn task_arithmetic() -> Text {
    Text::plain("task_arithmetic", 2)
}

fn warnings(family: &Family, text: &Text) -> Vec<String> {
    Run::default().plan(&family.recipe("warned", &text.yaml())).unwrap().warnings
}

#[test]
fn a_part_of_a_model_is_not_taken_for_the_whole() {
    let family = family();
    let folder = family.path("model-1");
    fs::rename(folder.join("model.safetensors"), folder.join("model-00001-of-00003.safetensors")).unwrap();
    let told = ["`model-1` is not whole", "of its 3 parts `model-00002-of-00003.safetensors` is missing (and 1 more)"];
    refused(&family, &task_arithmetic(), &told);
    // By name.
    let text = task_arithmetic().yaml().replace("model-1", "model-1/model-00001-of-00003.safetensors");
    let error = Run::default().plan(&family.recipe("named", &text)).unwrap_err();
    assert!(error.hints()[0].contains("give the folder with all of its parts"), "{error} {:?}", error.hints());
    // An index that names one of two, whose second lies there.
    fs::rename(folder.join("model-00001-of-00003.safetensors"), folder.join("model-00001-of-00002.safetensors"))
        .unwrap();
    let map: Vec<String> =
        SPECS.iter().map(|(name, ..)| format!("\"{name}\": \"model-00001-of-00002.safetensors\"")).collect();
    let index = format!("{{\"metadata\": {{\"total_size\": 7}}, \"weight_map\": {{{}}}}}", map.join(", "));
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    refused(&family, &task_arithmetic(), &["of its 2 parts `model-00002-of-00002.safetensors` is missing"]);
    fs::copy(folder.join("model-00001-of-00002.safetensors"), folder.join("model-00002-of-00002.safetensors")).unwrap();
    refused(&family, &task_arithmetic(), &["is there, but the index does not name it"]);
    // `plan` says the same.
    let recipe = family.recipe("plan", &task_arithmetic().yaml());
    let mut command = std::process::Command::new(crate::support::binary());
    command.arg("plan").arg(&recipe).stdin(std::process::Stdio::null());
    let ended = command.output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8(ended.stderr).unwrap().contains("is not whole"));
}

fn empty(name: &str) -> Tensor {
    Tensor { name: name.into(), dtype: F32, shape: vec![0], bytes: Vec::new() }
}

#[test]
fn placeholders_are_no_tensors() {
    let mut family = family();
    family.members[1] = SPECS.iter().map(|(name, ..)| empty(name)).collect();
    family.write();
    refused(&family, &task_arithmetic(), &["every tensor of `model-1` is empty", "placeholders"]);
    let mut one = self::family();
    one.members[1][1] = empty(SPECS[1].0);
    one.write();
    refused(
        &one,
        &task_arithmetic(),
        &["`model.layers.0.mlp.up_proj.weight` of model-1 is an empty placeholder", "gather"],
    );
    for member in &mut one.members {
        member[1] = empty(SPECS[1].0);
    }
    one.write();
    let told = warnings(&one, &task_arithmetic());
    assert!(told.iter().any(|w| w.contains("1 tensor of `base` without elements")), "{told:?}");
}

#[test]
fn a_model_without_tensors_is_refused_and_one_with_too_few_layers_told() {
    let family = family();
    fs::write(family.path("base/config.json"), "{\"num_hidden_layers\": 4}").unwrap();
    let told = warnings(&family, &task_arithmetic());
    assert_eq!(told, ["`base` has 2 layers, its `config.json` says `num_hidden_layers: 4`"]);
    fs::write(family.path("base/config.json"), "{\"text_config\": {\"num_hidden_layers\": 2}}").unwrap();
    assert_eq!(warnings(&family, &task_arithmetic()), [""; 0]);
    write_folder(&family.path("model-1"), &[], 1);
    refused(&family, &task_arithmetic(), &["`model-1` holds no tensors"]);
}

#[test]
fn quantised_models_are_refused_by_what_tells_of_them() {
    let put = |name: &str, text: &'static str| {
        let name = name.to_owned();
        move |folder: &Path| fs::write(folder.join(&name), text).unwrap()
    };
    type Make = Box<dyn Fn(&Path)>;
    let cases: [(Make, &str); 5] = [
        (
            Box::new(put("config.json", "{\"quantization_config\": {\"quant_method\": \"fp8\"}}")),
            "`quantization_config`",
        ),
        (
            Box::new(put("config.json", "{\"llm\": {\"text\": {\"quantization_config\": {\"bits\": 4}}}}")),
            "`llm.text.quantization_config`",
        ),
        (Box::new(put("config.json", "{\"quantization\": {\"group_size\": 64, \"bits\": 4}}")), "`quantization`"),
        (Box::new(put("quantize_config.json", "{}")), "`quantize_config.json` lies beside it"),
        (Box::new(put("hf_quant_config.json", "{}")), "`hf_quant_config.json` lies beside it"),
    ];
    for (make, word) in cases {
        let family = family();
        make(&family.path("model-2"));
        refused(&family, &task_arithmetic(), &["`model-2` is quantised", word]);
        refused(&family, &Text::plain("linear", 2), &["`model-2` is quantised"]);
    }
    let codes: [(&str, Dtype, &[u64]); 7] = [
        ("model.layers.0.mlp.up_proj.weight_scale_inv", F32, &[1, 1]),
        ("model.layers.0.mlp.up_proj.weight_scale", F32, &[1]),
        ("model.layers.0.mlp.up_proj.qweight", Dtype::I32, &[2, 4]),
        ("model.layers.0.mlp.up_proj.weight.absmax", F32, &[4]),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", U8, &[4]),
        ("model.layers.0.mlp.up_proj.SCB", F32, &[8]),
        ("model.layers.0.mlp.up_proj.weight_packed", Dtype::I32, &[8, 1]),
    ];
    for spec in codes {
        let specs: Vec<_> = SPECS.iter().copied().chain([spec]).collect();
        let family = Family::new(quick_folder(), &specs, 2, 3);
        refused(&family, &task_arithmetic(), &["is quantised", spec.0]);
    }
    let pair = [("a.0.gate_up_proj_blocks", U8, &[2, 4][..]), ("a.0.gate_up_proj_scales", U8, &[2][..])];
    refused(&Family::new(quick_folder(), &pair, 2, 3), &task_arithmetic(), &["a.0.gate_up_proj_scales"]);
}

#[test]
fn a_quantised_model_passes_through_byte_for_byte_and_in_no_other_way() {
    let specs: [(&str, Dtype, &[u64]); 2] = [("a.0.weight", U8, &[4, 4]), ("a.0.weight_scale_inv", F32, &[1, 1])];
    let family = Family::new(quick_folder(), &specs, 1, 3);
    let text = Text { base: false, ..Text::plain("passthrough", 1) };
    let merged = family.merged("through", &text.yaml());
    assert_eq!(merged.bytes("a.0.weight"), family.tensor(1, "a.0.weight").bytes);
    refused(&family, &text.clone().more("out_dtype: bfloat16"), &["is quantised"]);
    // fp8 without scales is a type like others.
    let plain = Family::new(quick_folder(), &[("a.0.weight", F8_E4M3, &[4, 4])], 2, 3);
    assert!(Run::default().plan(&plain.recipe("plain", &task_arithmetic().yaml())).is_ok());
}

#[test]
fn adapters_and_optimizers_are_no_models() {
    for (name, word) in [
        ("base_model.model.model.layers.0.q_proj.lora_A.weight", "factors of an adapter"),
        ("model.layers.0.q_proj.lora_B.default.weight", "factors of an adapter"),
        ("lora_unet_x.lora_down.weight", "factors of an adapter"),
        ("state.0.exp_avg_sq", "an optimizer's state"),
        ("optimizer_state.w", "an optimizer's state"),
    ] {
        let specs: Vec<_> = SPECS.iter().copied().chain([(name, F32, &[2, 4][..])]).collect();
        refused(&Family::new(quick_folder(), &specs, 2, 3), &task_arithmetic(), &[word, name]);
    }
}

#[test]
fn another_architecture_is_named_as_that_and_a_prefix_as_a_prefix() {
    let family = family();
    let names = |prefix: &str| -> Vec<Tensor> {
        let rename = |t: &Tensor| Tensor { name: format!("{prefix}{}", t.name), ..t.clone() };
        family.members[1].iter().map(rename).collect()
    };
    let members = vec![family.members[0].clone(), names("language_model."), family.members[2].clone()];
    let wrapped = Family::of(members);
    refused(&wrapped, &task_arithmetic(), &["named as those of `base` with `language_model.` in front"]);
    let other = Family::of(vec![family.members[0].clone(), names("x"), family.members[2].clone()]);
    fs::write(other.path("base/config.json"), "{\"model_type\": \"llama\"}").unwrap();
    fs::write(other.path("model-1/config.json"), "{\"model_type\": \"mistral\"}").unwrap();
    refused(&other, &task_arithmetic(), &["not of one architecture (`model_type` `mistral` and `llama`)"]);
}

#[test]
fn vocabularies_apart_are_named_as_that_with_both_numbers_of_rows() {
    let mut family = family();
    family.members[2][0] = Tensor::new(SPECS[0].0, F32, &[12, 4], &[0.5; 48]);
    family.write();
    let told = ["has 12 rows, the base has 10: the vocabularies differ", "tokenizer_source: union"];
    refused(&family, &task_arithmetic(), &told);
}

#[test]
fn a_filled_or_closed_stderr_never_ends_a_merge() {
    let family = family();
    let recipe = family.recipe("log", &task_arithmetic().more("copy: [nothing]").yaml());
    for (i, args) in [&["-v"][..], &["--log-format", "json", "-vv"]].into_iter().enumerate() {
        let out = family.path(&format!("full-{i}"));
        let mut command = child::command(&recipe, &out, args, None);
        command.stderr(fs::File::options().write(true).open("/dev/full").unwrap());
        let ended = child::end(command.spawn().unwrap());
        assert_eq!(ended.code(), Some(0));
        assert_eq!(ended.json()["totals"]["tensors"], 3);
        let out = family.path(&format!("gone-{i}"));
        let mut child = child::command(&recipe, &out, args, None).spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child::end(child).code(), Some(0));
        assert!(out.join("merganser.json").is_file());
    }
}
