//! The recipe reader on arbitrary bytes: an error or a recipe whose every parameter resolves, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use merganser::recipe::{compile_names, parse_bytes};

fuzz_target!(|bytes: &[u8]| {
    let Ok(recipe) = parse_bytes(bytes) else { return };
    for t in [0.0, 0.3, 1.0] {
        for spec in recipe.method.parameters {
            let _ = recipe.global(spec.name, "model.layers.0.mlp.up_proj.weight", t);
            let _ = recipe.of_base(spec.name, "", t);
            for i in 0..recipe.models.len() {
                let _ = recipe.per_model(i, spec.name, "lm_head.weight", t);
            }
        }
        for stage in &recipe.stages {
            for spec in stage.spec.parameters {
                let _ = stage.global(spec.name, "model.norm.weight", t);
            }
        }
    }
    compile_names(&recipe.copy).expect("patterns of a valid recipe compile together");
    let json = recipe.to_json();
    assert_eq!(json, recipe.to_json());
    assert_eq!(recipe.listed().len(), json["models"].as_array().map_or(0, Vec::len));
});
