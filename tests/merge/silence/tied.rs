//! Tied embeddings: an absent twin is the other, and copies that are equal in every source are equal in the output.

use std::fs;

use merganser::dtype::Dtype::{BF16, F32};

use crate::support::family::{Family, name};
use crate::support::recipes::{Text, methods};
use crate::support::tensor::{Tensor, write_folder};
use crate::support::{Run, merge, quick_folder, read};

/// A base and two models whose head is their embedding, under these names.
fn tied(embedding: &str, head: &str, config: &str) -> Family {
    let specs = [(embedding, BF16, &[40, 8][..]), ("model.layers.0.mlp.up_proj.weight", F32, &[8, 8])];
    let mut family = Family::new(quick_folder(), &specs, 3, 5);
    for member in &mut family.members {
        let twin = Tensor { name: head.into(), ..member[0].clone() };
        member.push(twin);
    }
    rewrite(&family, config);
    family
}

fn rewrite(family: &Family, config: &str) {
    for (i, tensors) in family.members.iter().enumerate() {
        let folder = family.path(&name(i));
        fs::remove_dir_all(&folder).unwrap();
        write_folder(&folder, tensors, 1);
        fs::write(folder.join("config.json"), config).unwrap();
    }
}

fn remove(family: &mut Family, member: usize, tensor: &str) {
    family.members[member].retain(|t| t.name != tensor);
}

const TIED: &str = "{\"tie_word_embeddings\": true}";

#[test]
fn an_absent_tied_tensor_is_its_twin() {
    let cases = [
        ("model.embed_tokens.weight", "lm_head.weight", TIED),
        ("transformer.wte.weight", "lm_head.weight", "{\"model_type\": \"gpt2\"}"),
        ("model.embed_tokens.weight", "lm_head.weight", "{\"text_config\": {\"tie_word_embeddings\": true}}"),
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight", "{\"model_type\": \"bert\"}"),
        ("shared.weight", "encoder.embed_tokens.weight", "{\"tie_word_embeddings\": false}"),
    ];
    for (embedding, head, config) in cases {
        let text = Text::plain("task_arithmetic", 2).set("lambda", "0.7").yaml();
        let mut family = tied(embedding, head, config);
        let whole = family.merged("whole", &text);
        assert_eq!(whole.bytes(embedding), whole.bytes(head), "{head}");
        // A fine-tune lacks one, another the other: the result is the same.
        remove(&mut family, 1, head);
        remove(&mut family, 2, embedding);
        rewrite(&family, config);
        let merged = family.merged("models", &text);
        assert_eq!(merged.bytes(embedding), whole.bytes(embedding), "{head}");
        assert_eq!(merged.bytes(head), whole.bytes(head), "{head}");
        // The base stores one alone, and the output too.
        for (absent, kept) in [(head, embedding), (embedding, head)] {
            let mut family = tied(embedding, head, config);
            remove(&mut family, 0, absent);
            remove(&mut family, 1, kept);
            rewrite(&family, config);
            let recipe = family.recipe("base", &text);
            let out = family.path("out");
            merge(&recipe, &out).unwrap();
            let merged = read(&out);
            assert_eq!(merged[kept].bytes, whole.bytes(kept), "{absent}");
            assert!(!merged.contains_key(absent), "{absent}");
            // The third stored both.
            let plan = Run::default().plan(&recipe).unwrap();
            assert!(
                plan.warnings.iter().any(|w| w.contains("is left out") && w.contains(absent)),
                "{:?}",
                plan.warnings
            );
        }
    }
}

#[test]
fn copies_that_are_equal_in_every_source_are_equal_in_the_output() {
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let family = tied(embedding, head, TIED);
    for method in methods() {
        let text = Text::of(method);
        let merged = family.merged(method.name, &text.yaml());
        assert_eq!(merged.bytes(embedding), merged.bytes(head), "{}", method.name);
    }
    let lwptv = Text::plain("task_arithmetic", 2).lwptv("score: magnitude, granularity: element, keep: 0.4");
    let merged = family.merged("lwptv", &lwptv.yaml());
    assert_eq!(merged.bytes(embedding), merged.bytes(head));
    // A filter that names one of them would part them: the embedding's value counts.
    let filtered = "merge_method: dare_linear\nbase_model: base\nmodels: [{model: model-1}, {model: model-2}]\n\
                    parameters:\n  density: [{filter: lm_head, value: 0.9}, {value: 0.3}]\n";
    let merged = family.merged("filtered", filtered);
    assert_eq!(merged.bytes(embedding), merged.bytes(head));
    // Where nothing ties them, masks are drawn for each.
    rewrite(&family, "{\"tie_word_embeddings\": false}");
    let apart = family.merged("untied", &Text::plain("dare_linear", 2).set("density", "0.5").yaml());
    assert_ne!(apart.bytes(embedding), apart.bytes(head));
}

#[test]
fn a_recipe_that_parts_tied_tensors_is_told() {
    let family = tied("model.embed_tokens.weight", "lm_head.weight", TIED);
    let text = Text::plain("task_arithmetic", 2).more("copy: ['lm_head.weight']");
    let plan = Run::default().plan(&family.recipe("copied", &text.yaml())).unwrap();
    assert!(plan.warnings.iter().any(|w| w.contains("one parameter in every model")), "{:?}", plan.warnings);
}

#[test]
fn nothing_is_untied_and_no_hint_says_to() {
    let refused = |family: &Family, words: &str| {
        let error = Run::default().plan(&family.recipe("r", &Text::plain("ties", 2).yaml())).unwrap_err();
        let all = format!("{error} {}", error.hints().join(" "));
        assert!(all.contains(words) && !all.contains("copy:"), "{all}");
    };
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    for config in ["{\"tie_word_embeddings\": false}", "{\"model_type\": \"llama\"}"] {
        let mut family = tied(embedding, head, config);
        remove(&mut family, 1, head);
        rewrite(&family, config);
        refused(&family, "its `config.json` must be beside it and say `tie_word_embeddings: true`");
        let mut family = tied(embedding, head, config);
        remove(&mut family, 0, head);
        rewrite(&family, config);
        refused(&family, "models with a head of their own do not merge with those that have none");
    }
    // The base is tied, a model has a head of its own.
    let mut family = tied(embedding, head, TIED);
    remove(&mut family, 0, head);
    rewrite(&family, TIED);
    fs::write(family.path("model-2/config.json"), "{\"tie_word_embeddings\": false}").unwrap();
    refused(&family, "`model-2` has `lm_head.weight` beside its embedding and says `tie_word_embeddings: false`");
}
