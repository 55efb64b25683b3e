//! `--unsafe-truncate-embeddings`.

use std::process::Command;

use merganser::dtype::Dtype;

use crate::support::family::{Family, Rng};
use crate::support::tensor::Tensor;
use crate::support::{assert_whole, binary, read};

const EMBED: &str = "model.embed_tokens.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";

#[test]
fn embeddings_are_cut_to_the_fewest_rows_where_that_is_asked_for() {
    let mut rng = Rng(9);
    let mut member = |rows: u64| {
        let mut tensor = |name: &str, shape: &[u64]| {
            let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
            Tensor::new(name, Dtype::F32, shape, &values)
        };
        vec![tensor(EMBED, &[rows, 3]), tensor(UP, &[2, 3])]
    };
    let family = Family::of(vec![member(7), member(5), member(6)]);
    std::fs::write(family.path("base/config.json"), r#"{"vocab_size": 7}"#).unwrap();
    let text = "merge_method: linear\nbase_model: base\nmodels: [{model: base}, {model: model-1}, {model: model-2}]\nparameters: {weight: 1}\n";
    let recipe = family.recipe("cut", text);
    let merge = |out: &str, more: &[&str]| {
        let run = Command::new(binary()).arg("merge").arg(&recipe).arg("-o").arg(family.path(out)).args(more).output();
        let run = run.unwrap();
        (run.status.code(), String::from_utf8(run.stderr).unwrap())
    };
    let (status, told) = merge("refused", &[]);
    assert!(status == Some(1) && told.contains(EMBED), "{told}");
    let (status, told) = merge("cut", &["--unsafe-truncate-embeddings"]);
    assert_eq!(status, Some(0), "{told}");
    assert!(
        told.contains("of `base` is cut from 7 to 5 rows") && told.contains("of `model-2` is cut from 6 to 5"),
        "{told}"
    );
    let merged = read(&family.path("cut"));
    assert_eq!(merged[EMBED].shape, [5, 3]);
    for name in [EMBED, UP] {
        let all: Vec<Vec<f64>> = (0..3).map(|member| family.tensor(member, name).values()).collect();
        for (at, found) in merged[name].values().into_iter().enumerate() {
            let mean = all.iter().map(|values| values[at]).sum::<f64>() / 3.0;
            assert!((found - mean).abs() <= 1e-6 * (1.0 + mean.abs()), "{name} at {at}: {found}, {mean}");
        }
    }
    let config = std::fs::read_to_string(family.path("cut/config.json")).unwrap();
    assert!(config.contains("\"vocab_size\": 7"));
    assert_whole(&family.path("cut"));
}
