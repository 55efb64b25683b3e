//! Sources that have the same tensors and do not belong together: what their configurations, tokenizers and integers say.

use std::fs;

use merganser::dtype::Dtype::{F32, I64};

use crate::support::family::Family;
use crate::support::recipes::Text;
use crate::support::tensor::{Tensor, write_folder};
use crate::support::{Run, child, merge, quick_folder, read};

fn family() -> Family {
    let specs = [("model.embed_tokens.weight", F32, &[10, 4][..]), ("ids", I64, &[6])];
    Family::new(quick_folder(), &specs, 2, 3)
}

fn write(family: &Family, file: &str, texts: [&str; 3]) {
    for (folder, text) in ["base", "model-1", "model-2"].iter().zip(texts) {
        fs::write(family.path(folder).join(file), text).unwrap();
    }
}

fn warnings(family: &Family, text: &Text) -> Vec<String> {
    Run::default().plan(&family.recipe("warned", &text.yaml())).unwrap().warnings
}

fn linear() -> Text {
    Text::plain("linear", 2)
}

#[test]
fn configurations_that_differ_are_told_with_key_and_both_values() {
    let family = family();
    let other = "{\"rope_theta\": 500000.0, \"num_attention_heads\": 8, \"rope_scaling\": {\"factor\": 8.0}, \"torch_dtype\": \"float16\"}";
    let base =
        "{\"rope_theta\": 1e4, \"num_attention_heads\": 4, \"rope_scaling\": null, \"transformers_version\": \"4.1\"}";
    write(&family, "config.json", [base, other, base]);
    assert_eq!(
        warnings(&family, &linear()),
        [
            "`config.json` of `model-1` and of `base` differ: `num_attention_heads` is 8 and 4, `rope_scaling` is {\"factor\":8.0} and \
          absent, `rope_theta` is 500000.0 and 10000.0"
        ]
    );
    // One line for all that differ alike.
    write(&family, "config.json", [base, other, other]);
    let told = warnings(&family, &linear());
    assert!(told.len() == 1 && told[0].contains("of `model-1`, `model-2` and of `base`"), "{told:?}");
    // Without a base the first model is compared with.
    let mut alone = linear();
    alone.base = false;
    write(&family, "config.json", [base, base, other]);
    let told = warnings(&family, &alone);
    assert!(told.len() == 1 && told[0].contains("of `model-2` and of `model-1`"), "{told:?}");
    // Nested, and what says nothing of a model.
    let nested = |theta: &str, more: &str| format!("{{\"text_config\": {{\"rope_theta\": {theta}{more}}}}}");
    let (a, b) = (
        nested("1e4", ", \"use_cache\": true, \"_name_or_path\": \"x\""),
        nested("10000", ", \"dtype\": \"bfloat16\""),
    );
    write(&family, "config.json", [&a, &b, &a]);
    assert_eq!(warnings(&family, &linear()), [""; 0]);
    let c = nested("20000", "");
    write(&family, "config.json", [&a, &b, &c]);
    assert!(warnings(&family, &linear())[0].contains("`text_config.rope_theta` is 20000 and 1"));
    let strict = family.recipe("strict", &Text::plain("ties", 2).yaml());
    child::run(&strict, &family.path("out"), &["--strict"]).expect(1, &["text_config.rope_theta"]);
}

#[test]
fn preprocessors_that_differ_are_told() {
    let family = family();
    for file in ["preprocessor_config.json", "processor_config.json"] {
        let (a, b) = (
            "{\"size\": {\"height\": 224}, \"image_mean\": [0.5, 0.5]}",
            "{\"size\": {\"height\": 384}, \"image_mean\": [0.5, 0.5]}",
        );
        write(&family, file, [a, b, a]);
        let told = warnings(&family, &linear());
        assert_eq!(told, [format!("`{file}` of `model-1` and of `base` differ: `size.height` is 384 and 224")]);
        write(&family, file, [a, a, a]);
        assert_eq!(warnings(&family, &linear()), [""; 0]);
    }
}

fn tokenizer(vocab: &str, added: &str) -> String {
    format!("{{\"model\": {{\"type\": \"BPE\", \"vocab\": {vocab}, \"merges\": []}}, \"added_tokens\": [{added}]}}")
}

#[test]
fn tokenizers_are_compared_by_their_tokens() {
    let family = family();
    let special = |flag: &str| format!("{{\"id\": 3, \"content\": \"<s>\", \"special\": {flag}}}");
    let base = tokenizer("{\"a\": 0, \"b\": 1, \"c\": 2}", &special("true"));
    let told = |other: &str, text: &Text| {
        write(&family, "tokenizer.json", [&base, other, &base]);
        warnings(&family, text)
    };
    // Other bytes, same tokens.
    assert_eq!(told(&tokenizer("{\"c\": 2, \"a\": 0, \"b\": 1}", &special("true")), &linear()), [""; 0]);
    // Two ids swapped, one more.
    let swapped = tokenizer("{\"b\": 0, \"a\": 1, \"c\": 2, \"d\": 4}", &special("true"));
    let words = "the tokenizers of `model-1` and `base` differ in 3 ids, 0 first, which is `b` and `a`";
    let all = told(&swapped, &linear());
    assert!(all.len() == 1 && all[0].starts_with(words), "{all:?}");
    // A recipe about tokenizers has said what to do.
    let text = linear().more("tokenizer_source: union");
    assert!(!told(&swapped, &text).iter().any(|w| w.contains("differ in")));
    let all = told(&tokenizer("{\"a\": 0, \"b\": 1, \"c\": 2}", &special("false")), &linear());
    assert_eq!(all, ["the tokenizers of `model-1` and `base` treat the added token `<s>` differently"]);
    let all = told(&tokenizer("{\"a\": 0, \"b\": 1, \"c\": 2}", ""), &linear());
    assert!(all[0].contains("differ in 1 id, 3 first, which is no token and `<s>`"), "{all:?}");
    let unigram = tokenizer("[[\"a\", -1.0], [\"x\", -2.5], [\"c\", -3]]", &special("true"));
    let all = told(&unigram, &linear());
    assert!(all[0].contains("differ in 1 id, 1 first, which is `x` and `b`"), "{all:?}");
    assert!(told("{\"model\": 7}", &linear())[0].contains("cannot be compared"));
    // Other forms are compared whole.
    for folder in ["base", "model-1", "model-2"] {
        fs::remove_file(family.path(folder).join("tokenizer.json")).unwrap();
    }
    write(&family, "tokenizer.model", ["one", "two", "one"]);
    assert_eq!(warnings(&family, &linear()), ["`tokenizer.model` of `model-1` and of `base` differ"]);
}

#[test]
fn integers_that_differ_are_the_bases_and_told() {
    let mut family = family();
    let notes = |family: &Family, name: &str, text: &Text| {
        merge(&family.recipe(name, &text.yaml()), &family.path(name)).unwrap().notes
    };
    assert_eq!(notes(&family, "same", &linear()), [""; 0]);
    family.members[2][1] = Tensor::new("ids", I64, &[6], &[9.0; 6]);
    write_folder(&family.path("model-2"), &family.members[2], 2);
    let told = notes(&family, "apart", &linear());
    assert_eq!(
        told,
        ["1 tensor of `model-2`, `ids` first, is no float and differs from `base`, whose values are kept"]
    );
    assert_eq!(read(&family.path("apart"))["ids"].bytes, family.members[0][1].bytes);
    assert_eq!(notes(&family, "copied", &linear().more("copy: ['ids']")), [""; 0]);
    // Another type or shape is known before.
    family.members[2][1] = Tensor::new("ids", I64, &[2, 3], &[9.0; 6]);
    write_folder(&family.path("model-2"), &family.members[2], 2);
    let told = warnings(&family, &linear());
    assert_eq!(told, ["`ids` of `model-2` has another type or shape: it is no float, and that of `base` is kept"]);
}
