//! The recipe as resolved, as JSON: the same recipe gives the same text.

use serde_json::{Map, Value as Json, json};

use super::value::default_of;
use super::{
    ChatTemplate, Expert, ExpertLayout, Experts, Gate, Listed, Module, Recipe, SliceSource, Stage, Token, TokenFrom,
    Tokenizer, TokenizerSource,
};
use crate::dtype::DtypeExt;
use crate::ops::Value;

pub(super) fn recipe(recipe: &Recipe) -> Json {
    let listed = recipe.listed().into_iter().filter_map(|listed| match listed {
        Listed::Model(i) => recipe.models.get(i).map(|m| (&m.model, &m.parameters)),
        Listed::Base => recipe.base.as_ref().zip(recipe.base_in_models.as_ref().map(|(_, own)| own)),
    });
    let models: Vec<_> = listed.map(|(m, own)| json!({"model": m.written, "parameters": own.to_json()})).collect();
    let defaults: Map<_, _> = recipe
        .method
        .parameters
        .iter()
        .filter(|p| !recipe.parameters.setting(p.name).is_some_and(|s| s.is_total()))
        .filter_map(|p| Some((p.name.to_string(), default_of(p)?.given()?.to_json())))
        .collect();
    let mut all = json!({
        "merge_method": recipe.method.name,
        "base_model": recipe.base.as_ref().map(|b| b.written.as_str()),
        "models": models,
        "parameters": recipe.parameters.to_json(),
        "defaults": defaults,
        "task_vector_stages": recipe.stages.iter().map(stage).collect::<Vec<_>>(),
        "copy": recipe.copy,
        "out_dtype": recipe.out_dtype.and_then(DtypeExt::recipe_name),
    });
    if !recipe.modules.is_empty() {
        all["modules"] = recipe.modules.iter().map(module).collect();
    }
    if !recipe.before.is_empty() {
        all["before"] = recipe
            .before
            .iter()
            .map(|(name, recipe)| (name.clone(), self::recipe(recipe)))
            .collect::<Map<_, _>>()
            .into();
    }
    if let Some(tokenizer) = &recipe.tokenizer {
        all["tokenizer"] = tokens(tokenizer);
    }
    match &recipe.chat_template {
        None => {}
        Some(ChatTemplate::Auto) => all["chat_template"] = "auto".into(),
        Some(ChatTemplate::Text(text)) => all["chat_template"] = text.as_str().into(),
    }
    if recipe.cuts_embeddings {
        all["cuts_embeddings"] = true.into();
    }
    if let Some(experts) = &recipe.experts {
        all["experts"] = self::experts(experts);
    }
    // A recipe that merges a model reads as it did before there was anything else to write.
    if let Some(factors) = recipe.output.to_json() {
        all["output"] = recipe.output.kind.word().into();
        all["factors"] = factors;
    }
    all
}

/// A module with its slices.
fn module(module: &Module) -> Json {
    let source = |source: &SliceSource| {
        json!({
            "model": source.model.written,
            "layer_range": source.layers.as_ref().map(|layers| [layers.start, layers.end]),
            "parameters": source.parameters.to_json(),
        })
    };
    let slices = module.slices.iter().map(|slice| {
        json!({
            "sources": slice.sources.iter().map(source).collect::<Vec<_>>(),
            "base_model": slice.base.as_ref().map(|base| base.written.as_str()),
            "parameters": slice.parameters.to_json(),
        })
    });
    let mut all =
        json!({"name": module.name, "slices": slices.collect::<Vec<_>>(), "parameters": module.parameters.to_json()});
    if let Some(method) = module.method {
        all["merge_method"] = method.name.into();
    }
    all
}

/// A mixture of experts.
fn experts(of: &Experts) -> Json {
    let expert = |expert: &Expert| json!({ "source_model": expert.model.written, "noise_scale": expert.noise, "residual_scale": expert.residual });
    let gate = match of.gate {
        Gate::Random => "random",
        Gate::UniformRandom => "uniform_random",
    };
    let layout = match of.layout {
        ExpertLayout::Packed => "packed",
        ExpertLayout::Old => "old",
    };
    json!({
        "experts": of.experts.iter().map(expert).collect::<Vec<_>>(),
        "shared_experts": of.shared.iter().map(expert).collect::<Vec<_>>(),
        "gate_mode": gate,
        "experts_per_token": of.per_token,
        "architecture": of.architecture,
        "layout": layout,
    })
}

/// The output's vocabulary.
fn tokens(tokenizer: &Tokenizer) -> Json {
    let from = |from: &TokenFrom| match from {
        TokenFrom::Zero => json!({"kind": "zero"}),
        TokenFrom::Model(model) => model.written.as_str().into(),
        TokenFrom::Token(model, Token::Text(text)) => {
            json!({"kind": "model_token", "model": model.written, "token": text})
        }
        TokenFrom::Token(model, Token::Id(id)) => {
            json!({"kind": "model_token", "model": model.written, "token_id": id})
        }
    };
    let rules = tokenizer
        .tokens
        .iter()
        .map(|rule| (rule.token.clone(), json!({"source": rule.source.as_ref().map(from), "force": rule.force})));
    let source = match &tokenizer.source {
        TokenizerSource::Union => "union",
        TokenizerSource::Base => "base",
        TokenizerSource::Model(model) => &model.written,
    };
    let rules: Map<String, Json> = rules.collect();
    json!({"source": source, "tokens": rules, "pad_to_multiple_of": tokenizer.pad_to_multiple_of})
}

/// A stage with its defaults filled in, in the order of its specification.
fn stage(stage: &Stage) -> Json {
    let mut parameters = Map::new();
    for spec in stage.spec.parameters {
        let default = default_of(spec).filter(|v| *v != Value::Absent).map(|v| v.to_json());
        let json = match (stage.parameters.setting(spec.name), default) {
            (Some(setting), Some(default)) if !setting.is_total() => {
                // What no filter matches takes the default: the rule that says so.
                let mut rules = match setting.to_json() {
                    Json::Array(rules) => rules,
                    rule => vec![rule],
                };
                rules.push(json!({"value": default}));
                rules.into()
            }
            (Some(setting), _) => setting.to_json(),
            (None, Some(default)) => default,
            (None, None) => continue,
        };
        parameters.insert(spec.name.to_string(), json);
    }
    json!({"stage": stage.spec.name, "parameters": parameters})
}
