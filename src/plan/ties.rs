//! Tied tensors: one parameter that a model uses twice, such as its embedding of tokens and its head, under two names.
//!
//! Who saves such a model stores it once, under either name, or twice. So a name that a source lacks is its twin's; and where the
//! output has both names, both are merged with the seed and the parameters of one, so that copies that are equal in every source
//! are equal in the output.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::Source;
use super::files::config_of;
use crate::checkpoint::quoted;
use crate::error::{Cause, Error, Result};

/// The key of a configuration that says whether embedding and head are one.
pub(super) const KEY: &str = "tie_word_embeddings";

/// What the last segments of an embedding's name are.
const EMBEDDINGS: [&str; 7] =
    ["embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "shared", "backbone.embeddings"];
/// And of a head's.
const HEADS: [&str; 8] = [
    "lm_head",
    "embed_out",
    "output_layer",
    "output",
    "predictions.decoder",
    "lm_head.decoder",
    "vocab_projector",
    "generator_lm_head",
];
/// One bias under two names: the module's, and that of its projection.
const BIASES: [(&str, &str); 2] =
    [("predictions.bias", "predictions.decoder.bias"), ("lm_head.bias", "lm_head.decoder.bias")];
/// Architectures that tie where their configuration does not say.
const TIED_BY_DEFAULT: [&str; 36] = [
    "albert",
    "bart",
    "bert",
    "blenderbot",
    "bloom",
    "camembert",
    "cohere",
    "cohere2",
    "ctrl",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "led",
    "longformer",
    "m2m_100",
    "mamba",
    "marian",
    "mbart",
    "mobilebert",
    "mpnet",
    "mpt",
    "opt",
    "pegasus",
    "roberta",
    "t5",
    "xlm-roberta",
];

/// Names of one parameter.
struct Group {
    /// The first that the reference stores is the one by which it is merged.
    names: Vec<String>,
    /// Whether its names mean one parameter whatever the configuration says.
    is_always: bool,
}

/// Which outputs are one parameter.
#[derive(Debug, Default)]
pub(super) struct Ties(BTreeMap<String, String>);

impl Ties {
    /// The name by which an output's seed and parameters are found: its own, or that of the output that it is tied to.
    pub fn name<'a>(&'a self, output: &'a str) -> &'a str {
        self.0.get(output).map_or(output, String::as_str)
    }

    /// Whether an output is one of several names of a parameter.
    pub fn has(&self, output: &str) -> bool {
        self.0.contains_key(output)
    }

    /// The outputs that are tied, each with the one that leads.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter(|(name, leader)| name != leader).map(|(name, leader)| (name.as_str(), leader.as_str()))
    }
}

/// Gives every source the names that it lacks and its twins have. `sources[0]` is the reference. Gives warnings too.
///
/// # Errors
/// `Input`, where a source has a head of its own, and the reference ties it to the embedding.
pub(super) fn tie(sources: &mut [Source]) -> Result<(Ties, Vec<String>)> {
    let (mut ties, mut warnings) = (Ties::default(), Vec::new());
    let names: BTreeSet<&str> = sources.iter().flat_map(|s| s.checkpoint.tensors()).map(|t| t.name.as_str()).collect();
    let groups = groups(&names);
    if groups.is_empty() {
        return Ok((ties, warnings));
    }
    let flags: Vec<Option<bool>> = sources.iter().map(|s| config_of(&s.checkpoint).and_then(|c| flag(&c))).collect();
    // A file by itself has no configuration: it is of the others' kind.
    let usual = flags.iter().flatten().next().copied().unwrap_or(false);
    let flags: Vec<bool> = flags.into_iter().map(|flag| flag.unwrap_or(usual)).collect();
    for group in groups {
        let stored = |source: &Source| -> Vec<String> {
            let is_own = |name: &&String| source.checkpoint.get(name).is_some_and(|t| t.name == **name);
            group.names.iter().filter(is_own).cloned().collect()
        };
        let kept: Vec<String> = sources.first().map(stored).unwrap_or_default();
        let is_tied = |source: usize| group.is_always || flags[source];
        for at in 0..sources.len() {
            let own = stored(&sources[at]);
            let left = own.iter().find(|name| !kept.contains(name)).filter(|_| own.len() > kept.len());
            if let (Some(left), Some(kept), true) = (left, kept.first(), is_tied(0)) {
                let (written, reference) = (quoted(&sources[at].written), quoted(&sources[0].written));
                if !is_tied(at) {
                    return Err(Error::input(format!(
                        "{written} has {} beside its embedding and says `{KEY}: false`, {reference} ties both in {}",
                        quoted(left),
                        quoted(kept)
                    ))
                    .hint("merge models that all tie head and embedding, or that all have a head of their own")
                    .because(Cause::Checkpoint));
                }
                warnings.push(format!(
                    "{} of {written} is left out: the model ties it to its twin, and {reference} stores {} alone",
                    quoted(left),
                    quoted(kept)
                ));
            }
            if is_tied(at) {
                super::unshared(&mut sources[at].checkpoint)?.tie(&group.names);
            }
        }
        if kept.len() > 1 && (0..sources.len()).all(is_tied) {
            ties.0.extend(kept.iter().map(|name| (name.clone(), kept[0].clone())));
        }
    }
    Ok((ties, warnings))
}

/// Which of these names may mean one parameter.
fn groups(names: &BTreeSet<&str>) -> Vec<Group> {
    let outside = |name: &&&str| !name.split('.').any(|segment| segment.bytes().all(|b| b.is_ascii_digit()));
    let mut embeddings: Vec<Vec<&str>> = Vec::new();
    for name in names.iter().filter(outside).filter(|name| before(name, &EMBEDDINGS).is_some()) {
        embeddings.push(vec![name]);
    }
    let mut groups = Vec::new();
    // Encoder and decoder share one embedding: T5's, BART's.
    let shared = embeddings.iter().find_map(|e| e[0].strip_suffix("shared.weight"));
    if let Some(prefix) = shared {
        let both =
            ["shared", "encoder.embed_tokens", "decoder.embed_tokens"].map(|end| format!("{prefix}{end}.weight"));
        embeddings.retain(|e| !both.iter().any(|name| name == e[0]));
        embeddings.push(both.iter().filter_map(|name| names.get(name.as_str()).copied()).collect());
    }
    let mut heads: Vec<Option<&str>> = vec![None; embeddings.len()];
    for head in names.iter().filter(outside) {
        let Some(prefix) = before(head, &HEADS) else { continue };
        let beside = |e: &(usize, &Vec<&str>)| e.1[0].starts_with(prefix);
        let near: Vec<_> = embeddings.iter().enumerate().filter(beside).collect();
        match (&near[..], embeddings.len()) {
            ([(at, _)], _) if heads[*at].is_none() => heads[*at] = Some(head),
            ([], 1) if heads[0].is_none() => heads[0] = Some(head),
            _ => {}
        }
    }
    for (embedding, head) in embeddings.iter().zip(heads) {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        if embedding.len() > 1 {
            groups.push(Group { names: own(embedding), is_always: true });
        }
        if let Some(head) = head {
            let all: Vec<&str> = embedding.iter().copied().chain([head]).collect();
            groups.push(Group { names: own(&all), is_always: false });
        }
    }
    for (module, projection) in BIASES {
        for name in names.iter().filter(|name| before_end(name, module).is_some()) {
            let twin = format!("{}{projection}", &name[..name.len() - module.len()]);
            if names.contains(twin.as_str()) {
                groups.push(Group { names: vec![(*name).to_owned(), twin], is_always: true });
            }
        }
    }
    groups
}

/// What stands before one of these modules, if the name is that of its weight.
fn before<'a>(name: &'a str, modules: &[&str]) -> Option<&'a str> {
    let module = name.strip_suffix(".weight")?;
    modules.iter().find_map(|end| before_end(module, end))
}

/// What stands before the last segments `end` of a name.
fn before_end<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    name.strip_suffix(end).filter(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a tensor's absence may mean that it is tied.
pub(super) fn may_be_tied(name: &str) -> bool {
    before(name, &EMBEDDINGS).is_some() || before(name, &HEADS).is_some()
}

/// Whether a configuration ties head and embedding, if it tells: the language model's section counts first.
fn flag(config: &Map<String, Value>) -> Option<bool> {
    const SECTIONS: [&str; 4] = ["text_config", "language_config", "llm_config", "decoder"];
    let inner = SECTIONS.iter().find_map(|section| config.get(*section)?.as_object());
    let said = |of: &Map<String, Value>| of.get(KEY).and_then(Value::as_bool);
    let usual = |of: &Map<String, Value>| {
        let model_type = of.get("model_type").and_then(Value::as_str)?;
        TIED_BY_DEFAULT.contains(&model_type).then_some(true)
    };
    inner.and_then(said).or_else(|| said(config)).or_else(|| inner.and_then(usual)).or_else(|| usual(config))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(names: &[&str]) -> Vec<Vec<String>> {
        groups(&names.iter().copied().collect()).into_iter().map(|group| group.names).collect()
    }

    #[test]
    fn embeddings_and_heads_are_paired_by_their_names() {
        let pairs = [
            ["model.embed_tokens.weight", "lm_head.weight"],
            ["transformer.wte.weight", "lm_head.weight"],
            ["gpt_neox.embed_in.weight", "embed_out.weight"],
            ["tok_embeddings.weight", "output.weight"],
            ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"],
            ["distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"],
            ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"],
            ["backbone.embeddings.weight", "lm_head.weight"],
        ];
        for pair in pairs {
            assert_eq!(found(&pair), [pair.to_vec()]);
        }
        assert_eq!(found(&["model.layers.3.embed_tokens.weight", "lm_head.weight"]), [[""; 0]; 0]);
        // Which of two is the head's is not known, but where they stand beside it.
        let two = ["a.model.embed_tokens.weight", "b.model.embed_tokens.weight"];
        assert_eq!(found(&[two[0], two[1], "lm_head.weight"]), [[""; 0]; 0]);
        assert_eq!(found(&[two[0], two[1], "b.lm_head.weight"]), [[two[1], "b.lm_head.weight"]]);
        let t5 = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
        let all: Vec<&str> = t5.iter().copied().chain(["lm_head.weight"]).collect();
        assert_eq!(found(&all), [t5.to_vec(), all.clone()]);
        let bias = ["cls.predictions.bias", "cls.predictions.decoder.bias"];
        assert_eq!(found(&bias), [bias]);
    }

    #[test]
    fn the_flag_may_stand_in_a_section_or_be_the_architectures() {
        let flag = |config: Value| flag(config.as_object().unwrap());
        assert_eq!(flag(json!({"tie_word_embeddings": true})), Some(true));
        assert_eq!(
            flag(json!({"text_config": {"tie_word_embeddings": true}, "tie_word_embeddings": false})),
            Some(true)
        );
        assert_eq!(flag(json!({"text_config": {}, "tie_word_embeddings": true})), Some(true));
        assert_eq!(flag(json!({"model_type": "gpt2"})), Some(true));
        assert_eq!(flag(json!({"model_type": "x", "text_config": {"model_type": "gemma2"}})), Some(true));
        assert_eq!(flag(json!({"model_type": "gpt2", "tie_word_embeddings": false})), Some(false));
        assert_eq!(flag(json!({"model_type": "llama"})), None);
    }
}
