//! What a recipe's settings resolve to: filters, gradients, fall-through and defaults, with values worked out by hand
//! from mergekit's rules.

use merganser::dtype::Dtype;
use merganser::methods::REGISTRY;
use merganser::ops::{ParamDefault, ParamKind, Role, Value};
use merganser::recipe::{Listed, Recipe, parse_bytes};
use serde_json::json;

fn recipe(text: &str) -> Recipe {
    parse_bytes(text.as_bytes()).unwrap_or_else(|e| panic!("{e} {:?}\n{text}", e.hints()))
}

/// A recipe of `ties` over models `b` and `c` whose own `parameters` are these, in flow style.
fn ties(own_b: &str, global: &str) -> Recipe {
    recipe(&format!(
        "merge_method: ties\nbase_model: a\nmodels: [{{model: b, parameters: {own_b}}}, {{model: c}}]\nparameters: {global}\n"
    ))
}

#[test]
fn mergekits_slerp_example_interpolates_by_filter_over_the_layers() {
    let recipe = recipe(
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters:\n  t:\n\
         \x20   - filter: self_attn\n      value: [0, 0.5, 0.3, 0.7, 1]\n\
         \x20   - filter: mlp\n      value: [1, 0.5, 0.7, 0.3, 0]\n    - value: 0.5\n",
    );
    // Nine layers over five values: every second layer falls on a value, the others halfway between two.
    let attention = [0.0, 0.25, 0.5, 0.4, 0.3, 0.5, 0.7, 0.85, 1.0];
    for (layer, expected) in attention.into_iter().enumerate() {
        let t = layer as f64 / 8.0;
        let name = format!("model.layers.{layer}.self_attn.q_proj.weight");
        let found = recipe.global("t", &name, t).unwrap().float().unwrap();
        assert!((found - expected).abs() < 1e-15, "{layer}: {found}");
        let found =
            recipe.global("t", &format!("model.layers.{layer}.mlp.up_proj.weight"), t).unwrap().float().unwrap();
        assert!((found - (1.0 - expected)).abs() < 1e-15, "{layer}: {found}");
        assert_eq!(recipe.global("t", "model.norm.weight", t).unwrap(), Value::Float(0.5));
    }
    assert_eq!(recipe.models.len(), 1);
    assert_eq!(recipe.listed(), [Listed::Base, Listed::Model(0)]);
}

#[test]
fn the_first_matching_filter_wins() {
    let rules =
        "{density: [{filter: mlp.up, value: 0.1}, {filter: mlp, value: 0.2}, {filter: '*', value: 0.3}, {value: 0.4}]}";
    let recipe = ties("{}", rules);
    for (name, expected) in [("l.mlp.up.w", 0.1), ("l.mlp.down.w", 0.2), ("l.MLP.w", 0.3), ("", 0.3)] {
        assert_eq!(recipe.per_model(0, "density", name, 0.0).unwrap(), Value::Float(expected), "{name}");
    }
    assert_eq!(
        recipe.warnings,
        ["recipe.yaml:4: values of `density` from here on are never used: the one before matches every tensor"]
    );
}

#[test]
fn a_model_whose_filters_do_not_match_takes_the_recipes_value_then_the_default() {
    let recipe = ties("{density: [{filter: mlp, value: 0.1}]}", "{density: [{filter: attn, value: 0.2}]}");
    let density = |i, name| recipe.per_model(i, "density", name, 0.0).unwrap().float().unwrap();
    assert_eq!(density(0, "l.mlp.w"), 0.1);
    assert_eq!(density(0, "l.attn.w"), 0.2);
    assert_eq!(density(0, "norm"), 1.0);
    assert_eq!(density(1, "l.mlp.w"), 1.0);
    assert_eq!(density(1, "l.attn.w"), 0.2);
}

#[test]
fn one_condition_may_stand_without_a_list() {
    let recipe = ties("{}", "{weight: {filter: mlp, value: [0.5, 1.5]}, lambda: {value: 2}}");
    assert_eq!(recipe.per_model(0, "weight", "mlp", 0.5).unwrap(), Value::Float(1.0));
    assert_eq!(recipe.per_model(0, "weight", "attn", 0.5).unwrap(), Value::Float(1.0));
    assert_eq!(recipe.per_model(0, "weight", "mlp", 0.25).unwrap(), Value::Float(0.75));
    assert_eq!(recipe.global("lambda", "x", 0.0).unwrap(), Value::Float(2.0));
}

#[test]
fn an_empty_filter_matches_every_named_tensor() {
    let recipe = ties("{}", "{lambda: [{filter: '', value: 2}]}");
    assert_eq!(recipe.global("lambda", "x", 0.0).unwrap(), Value::Float(2.0));
    assert_eq!(recipe.global("lambda", "", 0.0).unwrap(), Value::Float(1.0));
}

#[test]
fn truth_values_and_words_jump_at_the_floor_of_their_place() {
    let recipe = recipe(
        "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {normalize: [yes, off]}\n\
         task_vector_stages: [{stage: lwptv, parameters: {score: [tall, magnitude, relative]}}]\n",
    );
    for (t, normalize, score) in [
        (0.0, true, "tall"),
        (0.49, true, "tall"),
        (0.5, true, "magnitude"),
        (0.99, true, "magnitude"),
        (1.0, false, "relative"),
    ] {
        assert_eq!(recipe.global("normalize", "x", t).unwrap(), Value::Bool(normalize), "{t}");
        assert_eq!(recipe.stages[0].global("score", "x", t).unwrap(), Value::Word(score), "{t}");
    }
}

#[test]
fn scalars_read_as_in_mergekit() {
    for (written, expected) in [
        ("1e-5", 1e-5),
        ("'0.5'", 0.5),
        (".5", 0.5),
        ("1_000", 1000.0),
        ("3", 3.0),
        ("!!float 2", 2.0),
        ("!!str 4", 4.0),
    ] {
        let recipe = ties("{}", &format!("{{lambda: {written}}}"));
        assert_eq!(recipe.global("lambda", "x", 0.0).unwrap(), Value::Float(expected), "{written}");
    }
    for (written, expected) in
        [("yes", true), ("Off", false), ("'true'", true), ("1", true), ("0", false), ("n", false)]
    {
        let recipe = ties("{}", &format!("{{normalize: {written}}}"));
        assert_eq!(recipe.global("normalize", "x", 0.0).unwrap(), Value::Bool(expected), "{written}");
    }
    let recipe = recipe("merge_method: cart\nmodels: [{model: b}]\nparameters: {rank: 8.0, eligible: attn}\n");
    assert_eq!(recipe.global("rank", "x", 0.0).unwrap(), Value::Int(8));
    assert_eq!(recipe.global("eligible", "x", 0.0).unwrap().patterns().unwrap().texts(), ["attn"]);
    assert_eq!(recipe.global("energy", "x", 0.0).unwrap(), Value::Absent);
}

#[test]
fn a_whole_number_may_be_a_gradient_of_equal_values_only() {
    let recipe = recipe("merge_method: cart\nmodels: [{model: b}]\nparameters: {rank: [8, 8, 8]}\n");
    for t in [0.0, 0.1, 0.7, 1.0] {
        assert_eq!(recipe.global("rank", "x", t).unwrap(), Value::Int(8), "{t}");
    }
}

#[test]
fn null_is_absent() {
    let recipe = recipe(
        "merge_method: linear\nbase_model: null\nmodels: [{model: b, parameters: ~}]\nparameters: {weight: null}\n\
         task_vector_stages:\ncopy: null\ndtype: ~\nslices: null\ntokenizer_source:\n",
    );
    assert!(recipe.base.is_none() && recipe.stages.is_empty() && recipe.copy.is_empty() && recipe.out_dtype.is_none());
    assert!(!recipe.global_is_set("weight"));
    assert_eq!(recipe.per_model(0, "weight", "x", 0.0).unwrap(), Value::Float(1.0));
    assert_eq!(recipe.warnings, [""; 0]);
}

#[test]
fn a_required_parameter_without_a_value_for_a_tensor_is_an_error_that_names_both() {
    let recipe = recipe(
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters:\n  t: [{filter: mlp, value: 0.5}]\n",
    );
    assert_eq!(recipe.global("t", "l.mlp.w", 0.0).unwrap(), Value::Float(0.5));
    let error = recipe.global("t", "model.norm.weight", 0.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "recipe.yaml:5: parameter `t` has no value for `model.norm.weight`: no filter matches"
    );
    assert_eq!(error.hints(), ["end its list with `- value: …`, which matches every tensor"]);
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn asking_for_a_parameter_that_the_method_has_not_is_an_internal_error() {
    let recipe = ties("{}", "{}");
    assert_eq!(recipe.global("rank", "x", 0.0).unwrap_err().to_string(), "`ties` has no parameter `rank`");
    assert_eq!(recipe.per_model(2, "weight", "x", 0.0).unwrap_err().to_string(), "the recipe has no model 2");
}

#[test]
fn the_base_among_the_models_keeps_its_place_and_its_parameters() {
    let recipe = recipe(
        "merge_method: linear\nbase_model: ./b\nmodels:\n- {model: a}\n- {model: x/../b, parameters: {weight: 3}}\n- {model: c}\n",
    );
    assert_eq!(recipe.listed(), [Listed::Model(0), Listed::Base, Listed::Model(1)]);
    assert_eq!(recipe.models.iter().map(|m| m.model.written.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(recipe.of_base("weight", "x", 0.0).unwrap(), Value::Float(3.0));
    assert_eq!(recipe.warnings, [""; 0]);
}

#[test]
fn the_base_alone_is_a_model_where_the_rule_does_not_read_the_base() {
    let recipe = recipe("merge_method: passthrough\nbase_model: a\nmodels: [{model: a, parameters: {scale: 2}}]\n");
    assert_eq!(recipe.listed(), [Listed::Base]);
    assert_eq!(recipe.of_base("scale", "x", 0.0).unwrap(), Value::Float(2.0));
}

#[test]
fn what_has_no_effect_is_said() {
    let recipe = recipe(
        "merge_method: task_arithmetic\nbase_model: a\nmodels:\n- {model: a, parameters: {weight: 1}}\n\
         - {model: b, parameters: {density: 0.5}}\n- {model: c, layer_range: [0, 4]}\nparameters:\n  rescale: true\n  lambda: 0.5\n\
         dtype: bf16\nout_dtype: float32\n",
    );
    assert_eq!(
        recipe.warnings,
        [
            "recipe.yaml:4: `weight` of the base has no effect with task_arithmetic",
            "recipe.yaml:5: `density` has no effect with task_arithmetic; mergekit ignores it too",
            "recipe.yaml:6: `layer_range` has no effect under `models`, which merges whole models; mergekit ignores it too",
            "recipe.yaml:8: `rescale` has no effect with task_arithmetic; mergekit ignores it too",
            "recipe.yaml:10: `dtype` has no effect beside `out_dtype`: merging computes in float32 or better",
        ]
    );
    assert_eq!(recipe.parameters.names().collect::<Vec<_>>(), ["lambda"]);
}

#[test]
fn what_mergekit_ignores_is_a_warning() {
    for (text, expected) in [
        (
            "normalize: true\nmerge_method: linear\nmodels: [{model: b}]\n",
            "1: `normalize` has no effect outside `parameters`",
        ),
        ("name: n\nmerge_method: linear\nmodels: [{model: b}]\n", "1: `name` has no effect here"),
        ("merge_method: linear\nmodels: [{model: b, weight: 2}]\n", "2: `weight` has no effect outside `parameters`"),
        (
            "merge_method: linear\nmodels: [{model: b}]\nparameters: {int8_mask: true}\n",
            "3: `int8_mask` has no effect with linear",
        ),
        (
            "merge_method: linear\nmodels: [{model: b, parameters: {normalize: false}}]\n",
            "2: `normalize` under a model has no effect: it is one value for the whole merge",
        ),
        (
            "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {lamda: 2}\n",
            "4: `lamda` has no effect with ties (did you mean `lambda`?)",
        ),
        (
            "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\nparameters: {dtype: bfloat16}\n",
            "4: `dtype` has no effect with ties",
        ),
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: b, parameters: {weight: [{filter: x, value: 1}]}}]\nparameters: {t: 1}\n",
            "3: `weight` has no effect with slerp",
        ),
    ] {
        let warnings = recipe(text).warnings;
        assert_eq!(warnings, [format!("recipe.yaml:{expected}; mergekit ignores it too")], "{text}");
    }
}

#[test]
fn the_base_alone_and_truth_values_and_empty_lists_read_as_in_mergekit() {
    let base = recipe("merge_method: ties\nbase_model: a\nmodels: [{model: a}]\n");
    assert!(base.models.is_empty() && base.base_in_models.is_some());
    let recipe = ties("{weight: true}", "{weight: [], density: false}");
    assert_eq!(recipe.per_model(0, "weight", "x", 0.0).unwrap(), Value::Float(1.0));
    assert_eq!(recipe.per_model(1, "weight", "x", 0.0).unwrap(), Value::Float(1.0));
    assert_eq!(recipe.per_model(0, "density", "x", 0.0).unwrap(), Value::Float(0.0));
}

#[test]
fn parameters_of_a_slice_count_between_a_sources_and_the_recipes() {
    let recipe = recipe(
        "merge_method: linear\nparameters: {weight: 1, normalize: false}\nslices:\n- sources:\n\
         \x20 - {model: a, layer_range: [0, 2], parameters: {weight: 3}}\n  - {model: b, layer_range: [2, 4]}\n\
         \x20 parameters: {weight: 2}\n- sources:\n  - {model: a, layer_range: [2, 4]}\n",
    );
    let module = &recipe.modules[0];
    let [first, second] = [0, 1].map(|at| recipe.of_slice(module, &module.slices[at]));
    let weight = |part: &Recipe, i| part.per_model(i, "weight", "x", 0.0).unwrap();
    assert_eq!([weight(&first, 0), weight(&first, 1), weight(&second, 0)], [3.0, 2.0, 1.0].map(Value::Float));
    assert_eq!(first.global("normalize", "x", 0.0).unwrap(), Value::Bool(false));
    assert_eq!(recipe.models.iter().map(|m| m.model.written.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(module.slices[0].sources[1].layers, Some(2..4));
}

#[test]
fn dtypes_have_their_pytorch_names_and_short_forms() {
    for (keys, expected) in [
        ("dtype: bfloat16", Dtype::BF16),
        ("dtype: torch.float16", Dtype::F16),
        ("out_dtype: BF16", Dtype::BF16),
        ("out_dtype: float8_e4m3", Dtype::F8_E4M3),
        ("dtype: float32\nout_dtype: f64", Dtype::F64),
        ("dtype: float8_e5m2\nout_dtype: ~", Dtype::F8_E5M2),
    ] {
        let recipe = recipe(&format!("merge_method: linear\nmodels: [{{model: b}}]\n{keys}\n"));
        assert_eq!(recipe.out_dtype, Some(expected), "{keys}");
        assert_eq!(recipe.warnings, [""; 0], "{keys}");
    }
}

#[test]
fn aliases_and_merge_keys_stand_for_what_they_name() {
    let recipe = recipe(
        "merge_method: ties\nbase_model: &base a\nmodels:\n- {model: *base}\n- model: b\n  parameters: &p {weight: 2, density: 0.5}\n\
         - model: c\n  parameters: {<<: *p, density: 0.7}\n- model: d\n  parameters: {<<: [{density: 0.9}, *p]}\n",
    );
    let of = |i, name| recipe.per_model(i, name, "x", 0.0).unwrap().float().unwrap();
    assert_eq!(
        (0..3).map(|i| (of(i, "weight"), of(i, "density"))).collect::<Vec<_>>(),
        [(2.0, 0.5), (2.0, 0.7), (2.0, 0.9)]
    );
}

#[test]
fn a_stage_may_stand_twice_and_has_its_own_values() {
    let recipe = recipe(
        "merge_method: ties\nbase_model: a\nmodels: [{model: b}]\ntask_vector_stages:\n- stage: lwptv\n\
         - stage: lwptv\n  parameters: {keep: [{filter: mlp, value: 0.25}], rescale: none}\n",
    );
    let keep = |stage: usize, name| recipe.stages[stage].global("keep", name, 0.0).unwrap().float().unwrap();
    assert_eq!((keep(0, "mlp"), keep(1, "mlp"), keep(1, "attn")), (keep(0, "attn"), 0.25, keep(0, "attn")));
    assert_eq!(recipe.stages[1].global("rescale", "mlp", 0.0).unwrap(), Value::Word("none"));
}

#[test]
fn the_resolved_recipe_as_json_holds_what_was_written_and_the_defaults() {
    let text = "merge_method: magmax\nbase_model: a\nmodels:\n- {model: b}\n- {model: ./a}\n\
                parameters: {lambda: [{filter: mlp, value: [1, 2]}]}\n\
                task_vector_stages: [{stage: lwptv, parameters: {score: tall, keep: {filter: mlp, value: 0.25}}}]\n\
                copy: lm_head.*\ndtype: bf16\n";
    let recipe = recipe(text);
    assert_eq!(recipe.text, text);
    let mut json = recipe.to_json();
    // The stage's parameters are all there, in the specification's order; what no filter matches takes the default.
    let spec = recipe.stages[0].spec;
    let stage = json["task_vector_stages"].take();
    let given = stage[0]["parameters"].as_object().unwrap();
    assert_eq!(given.keys().collect::<Vec<_>>(), spec.parameters.iter().map(|p| p.name).collect::<Vec<_>>());
    for p in spec.parameters {
        let written = match p.default {
            ParamDefault::Float(v) if p.name == "keep" => json!([{"filter": "mlp", "value": 0.25}, {"value": v}]),
            ParamDefault::Word(_) if p.name == "score" => json!("tall"),
            ParamDefault::Float(v) => json!(v),
            ParamDefault::Int(v) => json!(v),
            ParamDefault::Bool(v) => json!(v),
            ParamDefault::Word(v) => json!(v),
            other => panic!("{}: {other:?}", p.name),
        };
        assert_eq!(given[p.name], written, "{}", p.name);
    }
    assert_eq!(
        json.to_string(),
        concat!(
            r#"{"merge_method":"magmax","base_model":"a","models":[{"model":"b","parameters":{}},{"model":"a","parameters":{}}],"#,
            r#""parameters":{"lambda":[{"filter":"mlp","value":[1.0,2.0]}]},"defaults":{"lambda":1.0},"#,
            r#""task_vector_stages":null,"copy":["lm_head.*"],"out_dtype":"bfloat16"}"#,
        )
    );
}

#[test]
fn every_method_resolves_every_parameter_from_its_defaults() {
    for spec in REGISTRY.iter().filter(|m| m.role == Role::Method) {
        let models: String = (0..spec.models.0).map(|i| format!("- model: m{i}\n")).collect();
        let required: String = spec
            .parameters
            .iter()
            .filter(|p| p.default == ParamDefault::Required)
            .map(|p| match p.kind {
                ParamKind::Float { min, max } => format!("  {}: {}\n", p.name, 0.5_f64.clamp(min, max)),
                ParamKind::Int { min, .. } => format!("  {}: {min}\n", p.name),
                ParamKind::Bool | ParamKind::Switch(_) => format!("  {}: true\n", p.name),
                ParamKind::Choice(words) => format!("  {}: {}\n", p.name, words[0]),
                ParamKind::Patterns => format!("  {}: a\n", p.name),
            })
            .collect();
        let stages: String = REGISTRY
            .iter()
            .filter(|s| s.role == Role::Stage && spec.takes_stages)
            .map(|s| format!("- stage: {}\n", s.name))
            .collect();
        let name = spec.name;
        let recipe = recipe(&format!(
            "merge_method: {name}\nbase_model: base\nmodels:\n{models}parameters:\n{required}task_vector_stages:\n{stages}"
        ));
        for p in spec.parameters {
            let value = recipe.global(p.name, "model.norm.weight", 0.5).unwrap();
            assert_eq!(recipe.per_model(0, p.name, "model.norm.weight", 0.5).unwrap(), value, "{name} {}", p.name);
            let fits = match (&value, p.kind) {
                (Value::Absent, _) => p.default == ParamDefault::Absent,
                (Value::Float(v), ParamKind::Float { min, max }) => (min..=max).contains(v),
                (Value::Int(v), ParamKind::Int { min, max }) => (min..=max).contains(v),
                (Value::Bool(_), ParamKind::Bool | ParamKind::Switch(_))
                | (Value::Patterns(_), ParamKind::Patterns) => true,
                (Value::Word(w), ParamKind::Choice(words)) => words.contains(w),
                _ => false,
            };
            assert!(fits, "{name} {}: {value:?} is not of {:?}", p.name, p.kind);
        }
        for stage in &recipe.stages {
            for p in stage.spec.parameters {
                let is_absent = stage.global(p.name, "x", 0.0).unwrap() == Value::Absent;
                assert_eq!(is_absent, p.default == ParamDefault::Absent, "{}", p.name);
            }
        }
        for group in spec.exclusive {
            for member in *group {
                assert!(spec.parameters.iter().any(|p| p.name == *member), "{name}: no parameter `{member}`");
            }
        }
    }
}
