//! Recipes on disk, and recipes that mean harm: wrong bytes, bombs, depth, and random mutations of valid ones.

use std::fs;
use std::path::Path;

use merganser::recipe::{Recipe, parse_bytes};
use proptest::prelude::*;

use crate::allocated;

const VALID: [&str; 3] = [
    "merge_method: cart\nbase_model: models/clip\nmodels:\n  - model: models/cars\n    parameters: {weight: 1.0}\n  - model: models/dtd\n\
     parameters:\n  rank_ratio: [0.12, .2, 1e-1]\n  lambda: [{filter: mlp, value: [1, 2]}, {value: 2.0}]\n  eligible: ['.*mlp.*', attn]\n\
     task_vector_stages:\n  - stage: lwptv\n    parameters: {keep: 0.7, score: tall, granularity: [row, column], rescale: none}\n\
     dtype: float32\nout_dtype: torch.bfloat16\ncopy: ['lm_head.*', \"a|b\"]\n",
    "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters:\n  t:\n    - filter: self_attn\n      value: [0, 0.5, 1]\n    - value: 0.5\n",
    "merge_method: ties\nbase_model: a\nmodels:\n- {model: b, parameters: &p {weight: 1, density: .5}}\n- {model: c, parameters: {<<: *p, weight: 2}}\n\
     parameters: {normalize: yes, int8_mask: [on, off], rescale: \"false\"}\n",
];

fn message(bytes: &[u8]) -> String {
    parse_bytes(bytes).unwrap_err().to_string()
}

/// The message, and that it did not cost much more than reading the text: what is refused late has been built before.
fn cheap_message(text: &str) -> String {
    let (message, cost) = allocated::during(|| message(text.as_bytes()));
    assert!(cost <= (64 << 20) + 1000 * text.len(), "{message}: {cost} bytes allocated for {}", text.len());
    message
}

#[test]
fn bombs_of_aliases_are_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..30 {
        text += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
    }
    assert_eq!(cheap_message(&text), "recipe.yaml:5: more than 100000 values, aliases expanded");
    let mut text = String::from("a0: &a0 {x: 1}\n");
    for i in 1..64 {
        text += &format!("a{i}: &a{i} {{l: *a{0}, r: *a{0}, <<: *a{0}}}\n", i - 1);
    }
    assert!(cheap_message(&text).ends_with("more than 100000 values, aliases expanded"));
}

#[test]
fn depth_is_bounded_however_it_is_made() {
    let deep = |line: usize| format!("recipe.yaml:{line}: nested more than 64 levels deep");
    assert_eq!(cheap_message(&"- ".repeat(100_000)), deep(1));
    assert_eq!(cheap_message(&"? ".repeat(100_000)), deep(1));
    assert_eq!(cheap_message(&format!("{}1{}", "[".repeat(65), "]".repeat(65))), deep(1));
    let recursion = "recipe.yaml:1: not valid YAML: recursion limit exceeded";
    assert_eq!(cheap_message(&"[".repeat(100_000)), recursion);
    assert_eq!(cheap_message(&"{".repeat(100_000)), recursion);
    let stairs: String = (0..100).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert_eq!(cheap_message(&stairs), deep(65));
    // Shallow as text, deep through aliases: 41 levels, then twice as many.
    let half = format!("{}1{}", "[".repeat(40), "]".repeat(40));
    let other = format!("{}*a{}", "[".repeat(40), "]".repeat(40));
    assert_eq!(cheap_message(&format!("x: &a {half}\ny: {other}\n")), deep(2));
}

#[test]
fn long_texts_of_every_shape_are_answered_promptly() {
    // Large enough that anything quadratic would take minutes.
    let size = 1 << 18;
    for unit in ["a,", "a,\n", "a: b, ", "\"a\":", "? ", "[],", "*x,", ","] {
        for open in ["[", "{", "a: &x 1\nb: [", "- {"] {
            cheap_message(&format!("{open}{}", unit.repeat((size - 100) / unit.len())));
        }
    }
    for unit in
        ["#\n", "\n", " ", "\t", "- a\n", "%TAG !a! b\n", "...\n", "'", "x\n ", "&a ", "!a ", "|\n", "a: ", "\r", "\0"]
    {
        cheap_message(&unit.repeat((size - 100) / unit.len()));
    }
    let keys: String = (0..60_000).map(|i| format!("k{i}: 1\n")).collect();
    assert_eq!(cheap_message(&keys), "recipe.yaml:50000: more than 100000 values, aliases expanded");
}

#[test]
fn a_file_that_is_no_recipe_is_refused_whole() {
    assert_eq!(message(&vec![b' '; (1 << 20) + 1]), "recipe.yaml: longer than 1 MiB, which no recipe is");
    assert_eq!(message(b"a: 1\nb: \xff\n"), "recipe.yaml:2: not UTF-8 text");
}

#[test]
fn hundreds_of_patterns_are_refused_before_they_are_compiled() {
    let text = format!("merge_method: linear\nmodels: [{{model: a}}]\ncopy: [{}]\n", "'(\\w{50}){50}',".repeat(300));
    assert_eq!(cheap_message(&text), "recipe.yaml:3: `copy` has 300 patterns, more than 256");
    let text = "merge_method: linear\nmodels: [{model: a}]\ncopy: ['((\\w{100}){100}){100}']\n";
    assert_eq!(
        cheap_message(text),
        r"recipe.yaml:3: pattern `((\w{100}){100}){100}` of `copy` does not compile: too large when compiled"
    );
}

#[test]
fn patterns_that_are_small_alone_and_large_together_are_refused() {
    let patterns: Vec<_> = (0..256).map(|i| format!("'\\w{{10}}{i}'")).collect();
    let text = format!("merge_method: linear\nmodels: [{{model: a}}]\ncopy: [{}]\n", patterns.join(", "));
    // Compiled one by one first, each within its own limit: bounded, and dear.
    assert_eq!(message(text.as_bytes()), "recipe.yaml:3: the patterns of `copy` together: too large when compiled");
}

#[test]
fn thousands_of_models_are_refused_before_they_are_looked_up() {
    let text = format!("merge_method: linear\nmodels:\n{}", "- {model: a}\n".repeat(20_000));
    assert_eq!(cheap_message(&text), "recipe.yaml:2: method `linear` takes 1 to 64 models, found 20000");
}

#[test]
fn relative_paths_start_at_the_recipes_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("models/a")).unwrap();
    fs::write(folder.path().join("models/b.safetensors"), b"").unwrap();
    let path = folder.path().join("recipe.yaml");
    fs::write(&path, "merge_method: ties\nbase_model: models/a\nmodels: [{model: ./models/b.safetensors}, {model: models/../models/a/}]\n").unwrap();
    let recipe = Recipe::load(&path).unwrap();
    assert_eq!(recipe.path, path);
    assert_eq!(recipe.base.as_ref().unwrap().path, folder.path().join("models/a"));
    assert_eq!(recipe.models[0].model.path, folder.path().join("./models/b.safetensors"));
    assert_eq!(recipe.models.len(), 1);
    assert!(recipe.base_in_models.is_some());
}

#[cfg(unix)]
#[test]
fn a_link_to_the_base_is_the_base() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("a")).unwrap();
    fs::create_dir(folder.path().join("b")).unwrap();
    std::os::unix::fs::symlink("a", folder.path().join("link")).unwrap();
    let text = "merge_method: ties\nbase_model: a\nmodels: [{model: link}, {model: b}]\n";
    let recipe = Recipe::parse(text, &folder.path().join("r.yaml")).unwrap();
    assert_eq!(recipe.base_in_models.unwrap().0, 0);
}

#[test]
fn a_model_that_is_not_there_is_explained_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("models/cars")).unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let relative = "a relative path starts at the recipe's folder";
    let hub = |id: &str| {
        format!(
            "a model of the Hugging Face Hub is looked for in its cache, and is not there: --download, or `hf download {id}`, fetches it"
        )
    };
    let cases = [
        (
            "models/car",
            format!(": there is no `{}`", at("models/car")),
            vec!["did you mean `cars`?".into(), relative.into(), hub("models/car")],
        ),
        ("org/name", format!(": there is no `{}`", at("org/name")), vec![relative.into(), hub("org/name")]),
        ("gone", format!(": there is no `{}`", at("gone")), vec![relative.into()]),
        ("/no/such/model", ": there is no `/no/such/model`".into(), vec![]),
        ("~/model", String::new(), vec!["`~` is not expanded in a recipe: write the path in full".into()]),
        (
            "org/name@main",
            format!(": there is no `{}`", at("org/name@main")),
            vec![relative.into(), hub("org/name --revision main")],
        ),
    ];
    for (written, what, hints) in cases {
        let text = format!("merge_method: linear\nmodels:\n- model: {written}\n");
        let error = Recipe::parse(&text, &folder.path().join("r.yaml")).unwrap_err();
        let file = at("r.yaml");
        assert_eq!(error.to_string(), format!("{file}:3: model `{written}` is not on this machine{what}"));
        assert_eq!(error.hints(), hints, "{written}");
        assert_eq!(error.exit_code(), 1);
    }
}

#[test]
fn an_adapter_that_is_not_there_is_told_from_its_model() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("base")).unwrap();
    let text = "merge_method: linear\nmodels:\n- model: base+lora\n";
    let error = Recipe::parse(text, &folder.path().join("r.yaml")).unwrap_err().to_string();
    assert!(error.contains(":3: adapter `lora` is not on this machine"), "{error}");
}

#[test]
fn a_name_with_a_plus_or_an_at_that_exists_is_a_path() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("a+b@c")).unwrap();
    let recipe =
        Recipe::parse("merge_method: linear\nmodels: [{model: a+b@c}]\n", &folder.path().join("r.yaml")).unwrap();
    assert_eq!(recipe.models[0].model.path, folder.path().join("a+b@c"));
}

#[test]
fn a_recipe_that_is_not_there_or_a_folder_is_the_users_error() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), &folder.path().join("none.yaml")] {
        let error = Recipe::load(path).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
        assert!(error.to_string().starts_with(&format!("cannot read the recipe `{}`: ", path.display())), "{error}");
    }
    assert!(parse_bytes(VALID[0].as_bytes()).unwrap().path == Path::new("recipe.yaml"));
}

/// Asks a valid recipe for everything, as the plan will.
fn use_all(recipe: &Recipe) {
    for t in [0.0, 0.4, 1.0] {
        for spec in recipe.method.parameters {
            let _ = recipe.global(spec.name, "model.layers.0.mlp.weight", t);
            let _ = recipe.of_base(spec.name, "", t);
            for i in 0..recipe.models.len() {
                let _ = recipe.per_model(i, spec.name, "lm_head.weight", t);
            }
        }
        for stage in &recipe.stages {
            for spec in stage.spec.parameters {
                stage.global(spec.name, "model.norm.weight", t).unwrap();
            }
        }
    }
    merganser::recipe::compile_names(&recipe.copy).unwrap();
    assert_eq!(recipe.to_json()["models"].as_array().unwrap().len(), recipe.listed().len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse_bytes(&bytes).map(|r| use_all(&r));
    }

    #[test]
    fn random_text_of_yamls_own_characters_never_panics(text in "[a-z0-9 \\n:,\\-\\[\\]{}&*!|>'\"%@#?~<.]{0,200}") {
        let _ = parse_bytes(text.as_bytes()).map(|r| use_all(&r));
    }

    #[test]
    fn random_changes_of_valid_recipes_never_panic(
        which in 0..VALID.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = VALID[which].as_bytes().to_vec();
        for (at, kind, other, byte) in changes {
            let (at, other) = (at.index(bytes.len().max(1)), other.index(bytes.len().max(1)));
            match kind {
                _ if bytes.is_empty() => bytes.push(byte),
                0 => bytes[at] = b" \n:-[]{}&*!|>'\"0.9a"[usize::from(byte) % 19],
                1 => { bytes.remove(at); }
                // Moves or repeats a piece: a whole key, a list's end, a quote.
                2 => { let piece = bytes[at.min(other)..at.max(other)].to_vec(); let end = bytes.len(); bytes.splice(at..at.min(end), piece); }
                _ => bytes.truncate(at.max(1)),
            }
        }
        let _ = parse_bytes(&bytes).map(|r| use_all(&r));
    }
}

#[test]
fn the_recipes_that_are_mutated_are_valid() {
    for text in VALID {
        use_all(&parse_bytes(text.as_bytes()).unwrap());
    }
}
