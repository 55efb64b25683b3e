//! Checkpoints that are damaged or do not fit together: exit 1 and a message that says what to do. And those that differ
//! where they may: dtypes, integers that only the base has, tensors that `copy:` sets aside.

use std::fs;
use std::path::PathBuf;

use merganser::dtype::Dtype::{self, *};
use merganser::dtype::RECIPE_DTYPES;

use crate::support::child;
use crate::support::family::{Family, relative};
use crate::support::files::copy_folder;
use crate::support::recipes::{Text, methods};
use crate::support::tensor::{Tensor, write_folder};
use crate::support::{Run, assert_whole, merge, quick_folder, read, stated};

const SPECS: &[(&str, Dtype, &[u64])] = &[
    ("embed.weight", BF16, &[20, 8]),
    ("layers.0.mlp.up.weight", BF16, &[16, 8]),
    ("layers.0.norm.weight", F32, &[8]),
    ("layers.1.mlp.up.weight", BF16, &[16, 8]),
    ("position_ids", I64, &[20]),
];

fn family() -> Family {
    Family::new(quick_folder(), SPECS, 2, 41)
}

/// Merges in this process; the error's message and hints.
fn refused(family: &Family, text: &Text) -> (String, String) {
    let recipe = family.recipe("refused", &text.yaml());
    let out = family.path("out");
    let error = merge(&recipe, &out).unwrap_err();
    assert_eq!(error.exit_code(), 1, "{error}");
    assert!(!out.exists() && !crate::support::partial(&out).exists(), "nothing was begun");
    (error.to_string(), error.hints().join("\n"))
}

fn task_arithmetic() -> Text {
    Text::plain("task_arithmetic", 2)
}

#[test]
fn a_share_that_differs_between_tensors_needs_a_granularity_that_ranks_inside_them() {
    let family = family();
    let keep = "keep: [{filter: mlp, value: 0.25}]";
    let (message, hint) = refused(&family, &task_arithmetic().lwptv(keep));
    let expected = "the stage `lwptv` ranks layers or tensors against each other, so its parameters must be the same for all, \
                    but they differ at `layers.0.mlp.up.weight`";
    assert_eq!(message, expected);
    assert!(hint.contains("name `granularity: row`, `column` or `element`"), "{hint}");
    family.merged("named", &task_arithmetic().lwptv(&format!("{keep}, granularity: column")).yaml());
}

const COPY_HINT: &str = "to keep the base's tensor there, list it under `copy:` in the recipe";

#[test]
fn a_shape_that_differs_is_named_with_both_shapes_and_copy_rescues() {
    let mut family = family();
    family.members[2][1] = Tensor::new("layers.0.mlp.up.weight", BF16, &[8, 16], &[0.5; 128]);
    family.write();
    let (message, hint) = refused(&family, &task_arithmetic());
    let expected = "shape mismatch in `layers.0.mlp.up.weight`: `model-2` has [8, 16], the base has [16, 8]";
    assert_eq!((message.as_str(), hint.as_str()), (expected, COPY_HINT));
    for pattern in ["layers.0.mlp.up.weight", "'.*up.weight'"] {
        let _ = fs::remove_dir_all(family.path("out-rescued"));
        let merged = family.merged("rescued", &task_arithmetic().more(&format!("copy: [{pattern}]")).yaml());
        assert!(merged.bytes("layers.0.mlp.up.weight") == family.members[0][1].bytes);
        assert!(merged.bytes("embed.weight") != family.members[0][0].bytes);
        assert_eq!(merged.facts("layers.0.mlp.up.weight")["copied"], true);
    }
}

#[test]
fn a_missing_tensor_is_named_and_copy_rescues() {
    let mut family = family();
    family.members[1].remove(2);
    family.write();
    let (message, hint) = refused(&family, &task_arithmetic());
    assert_eq!(message, "`model-1` lacks the tensor `layers.0.norm.weight`, which the base has as F32 [8]");
    assert_eq!(hint, COPY_HINT);
    let merged = family.merged("rescued", &task_arithmetic().more("copy: layers.0.norm.weight").yaml());
    assert!(merged.bytes("layers.0.norm.weight") == family.members[0][2].bytes);
}

#[test]
fn an_extra_tensor_is_named_and_copy_leaves_it_out() {
    let mut family = family();
    family.members[2].push(Tensor::new("extra.weight", F16, &[2, 3], &[1.0; 6]));
    family.write();
    let (message, hint) = refused(&family, &task_arithmetic());
    assert_eq!(message, "`model-2` has the tensor `extra.weight` (F16 [2, 3]), which the base (`base`) lacks");
    assert_eq!(hint, "to leave it out of the merge, list it under `copy:` in the recipe");
    let merged = family.merged("without", &task_arithmetic().more("copy: [extra.weight]").yaml());
    assert_eq!(merged.tensors.len(), SPECS.len());
}

#[test]
fn of_several_misfits_the_first_is_named_and_the_others_counted() {
    let mut family = family();
    family.members[1].truncate(1);
    family.write();
    let (message, _) = refused(&family, &task_arithmetic());
    assert!(message.starts_with("`model-1` lacks the tensor `"), "{message}");
    assert!(message.ends_with("(and 2 more tensors do not fit)"), "{message}");
}

#[test]
fn without_a_base_the_first_model_is_what_the_others_must_fit() {
    let mut family = family();
    family.members[2].remove(0);
    family.write();
    let (message, _) = refused(&family, &Text { base: false, ..Text::plain("linear", 2) });
    assert_eq!(message, "`model-2` lacks the tensor `embed.weight`, which the first model has as BF16 [20, 8]");
}

#[test]
fn models_need_not_have_the_integers_of_the_base_nor_the_same_ones() {
    let mut family = family();
    family.members[1].retain(|t| t.name != "position_ids");
    let other = Tensor::new("position_ids", I32, &[3], &[7.0; 3]);
    family.members[2].retain(|t| t.name != "position_ids");
    family.members[2].push(other);
    family.write();
    for method in methods() {
        let merged = family.merged(method.name, &Text::of(method).models(&[1, 2][..method.models.1.min(2)]).yaml());
        assert!(merged.bytes("position_ids") == family.members[0][4].bytes, "{}", method.name);
    }
}

#[test]
fn a_float_that_a_model_stores_as_integers_is_an_error() {
    let mut family = family();
    family.members[1][2] = Tensor::new("layers.0.norm.weight", I32, &[8], &[1.0; 8]);
    family.write();
    let (message, hint) = refused(&family, &task_arithmetic());
    assert_eq!(
        message,
        "`layers.0.norm.weight` of `model-1` is stored as I32, which cannot be merged with the base's F32"
    );
    assert_eq!(hint, COPY_HINT);
}

#[test]
fn every_mixture_of_dtypes_merges_into_every_dtype() {
    let of = |dtype: Dtype, member: u64| {
        let values: Vec<f64> = (0..96).map(|i| ((i * 37 + member * 11) % 64) as f64 / 16.0 - 2.0).collect();
        vec![Tensor::new("layers.0.mlp.w.weight", dtype, &[8, 12], &values)]
    };
    let dtypes: Vec<Dtype> = RECIPE_DTYPES.iter().map(|(_, d)| *d).collect();
    for (i, base) in dtypes.iter().enumerate() {
        // The models in the dtypes after the base's, so that every one stands beside several others.
        let (first, second) = (dtypes[(i + 1) % 6], dtypes[(i + 3) % 6]);
        let family = Family::of(vec![of(*base, 0), of(first, 1), of(second, 2)]);
        let [theta, one, two] = [0, 1, 2].map(|m| family.members[m][0].values());
        let exact: Vec<f64> = (0..96).map(|j| theta[j] + 0.5 * ((one[j] - theta[j]) + (two[j] - theta[j]))).collect();
        let text = task_arithmetic().set("lambda", "0.5");
        let kept = family.merged("kept", &text.yaml());
        assert_eq!(kept.tensors["layers.0.mlp.w.weight"].dtype, *base, "without `out_dtype` the base's stays");
        for (name, dtype) in RECIPE_DTYPES {
            let merged = family.merged(name, &text.clone().more(&format!("out_dtype: {name}")).yaml());
            assert_whole(&merged.out);
            let tensor = &merged.tensors["layers.0.mlp.w.weight"];
            assert_eq!(tensor.dtype, dtype);
            assert_eq!(stated(&merged.out, &tensor.name).dtype, dtype);
            // The sources are multiples of 2⁻⁶ at most: the exact result is one of 2⁻⁷ and short in every wide dtype.
            let expected = Tensor::new("x", dtype, &[96], &exact).values();
            assert_eq!(
                relative(&tensor.values(), &expected, &[100.0; 96]),
                0.0,
                "{base} + {first} + {second} as {dtype}"
            );
        }
    }
}

#[test]
fn files_that_are_cut_are_refused_before_any_work() {
    let whole = family();
    let file = |family: &Family| family.path("model-1/model.safetensors");
    let bytes = fs::read(file(&whole)).unwrap();
    let recipe = whole.recipe("cut", &task_arithmetic().yaml());
    let out = whole.path("out");
    for len in [0, 7, 8, 100, bytes.len() - 1] {
        fs::write(file(&whole), &bytes[..len]).unwrap();
        let ended = child::run(&recipe, &out, &[]).expect(1, &["model-1/model.safetensors", "error: ", "hint: "]);
        assert!(ended.stdout.contains("\"exit_code\": 1"), "{}", ended.stdout);
        assert!(!out.exists() && !crate::support::partial(&out).exists(), "cut to {len}");
    }
    // A longer file is not the one that its header describes either.
    fs::write(file(&whole), [&bytes[..], &[0; 5]].concat()).unwrap();
    child::run(&recipe, &out, &[]).expect(1, &["model-1/model.safetensors"]);
    fs::write(file(&whole), &bytes).unwrap();
    child::run(&recipe, &out, &[]).expect(0, &[]);
}

#[test]
fn a_shard_that_is_cut_or_missing_is_named() {
    let family = family();
    let recipe = family.recipe("shards", &task_arithmetic().yaml());
    let shard = family.path("model-2/model-00002-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 3]).unwrap();
    child::run(&recipe, &family.path("out"), &[]).expect(1, &["model-00002-of-00002.safetensors"]);
    fs::remove_file(&shard).unwrap();
    child::run(&recipe, &family.path("out"), &[]).expect(1, &["model-00002-of-00002.safetensors", "hint: "]);
}

#[test]
fn what_the_base_brings_along_comes_along_and_readers_find_their_way() {
    let family = family();
    fs::write(family.path("base/tokenizer.json"), "{}").unwrap();
    let recipe = family.recipe("files", &task_arithmetic().yaml());
    let out = family.path("out");
    let run = Run { shard_bytes: 300, ..Run::default() };
    run.merge(&recipe, &out).unwrap();
    assert_whole(&out);
    for name in ["config.json", "tokenizer.json", "README.md", "merganser.json", "model.safetensors.index.json"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), SPECS.len());
    // An output is a checkpoint: it can be merged again.
    let mut again = Text::plain("linear", 1);
    again.base = false;
    fs::rename(family.path("model-1"), family.path("away")).unwrap();
    copy_folder(&out, &family.path("model-1"));
    let again = family.merged("again", &again.yaml());
    assert_eq!(again.tensors, read(&out));
}

#[test]
fn a_model_may_be_a_file_a_link_or_the_base_itself() {
    let family = family();
    let names: [PathBuf; 2] = [family.path("model-1/model.safetensors"), family.path("link")];
    std::os::unix::fs::symlink(family.path("model-2"), &names[1]).unwrap();
    let text = |models: [&str; 2]| {
        let models: String = models.iter().map(|m| format!("  - model: {m}\n")).collect();
        format!("merge_method: task_arithmetic\nbase_model: base\nmodels:\n{models}")
    };
    let plain = family.merged("plain", &text(["model-1", "model-2"]));
    let same = family.merged("same", &text([names[0].to_str().unwrap(), "link"]));
    assert_eq!(plain.tensors, same.tensors);
}

#[test]
fn tensors_of_one_name_in_files_of_another_order_and_number_are_matched_by_name() {
    let family = family();
    let plain = family.merged("plain", &task_arithmetic().yaml());
    let mut reversed = family.members[1].clone();
    reversed.reverse();
    fs::remove_dir_all(family.path("model-1")).unwrap();
    write_folder(&family.path("model-1"), &reversed, 5);
    let same = family.merged("same", &task_arithmetic().yaml());
    assert_eq!(plain.tensors, same.tensors);
}
