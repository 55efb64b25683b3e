//! A recipe for each field and combination that published recipes use, against what mergekit 0.1.5 makes of it in float32.
//! `scripts/parity/make-recipes` makes the models and the expected sums.

use std::collections::BTreeMap;

use merganser::engine::{self, Progress, Request, Stop};
use merganser::plan::{Options, Plan};
use merganser::recipe::Recipe;

use crate::support::{assert_whole, quick_folder, read, root};

/// Shape, and sums of elements, of magnitudes, and of elements times a ramp.
type Sums = (Vec<u64>, f64, f64, f64);

/// Relative to the sum of magnitudes: a fine-tune differs from its base by a twentieth of them, of which 10⁻⁵ is allowed.
const TOLERANCE: f64 = 5e-7;
/// Of an output in bfloat16: sums of values that are rounded either way where both are near the middle.
const ROUNDED: f64 = 1e-4;

#[test]
fn published_kinds_of_recipes_give_mergekits_values() {
    let folder = root().join("tests/recipes");
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Sums>> = serde_json::from_str(&text).unwrap();
    let mut recipes: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".yml").map(str::to_owned))
        .collect();
    recipes.sort();
    assert_eq!(recipes, expected.keys().cloned().collect::<Vec<_>>(), "every recipe has its expected sums");
    let outputs = quick_folder();
    let mut wrong = Vec::new();
    for (name, tensors) in &expected {
        let text = std::fs::read_to_string(folder.join(format!("{name}.yml"))).unwrap();
        let recipe = Recipe::parse(&text, &folder.join("models").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let tolerance = if recipe.out_dtype == Some(merganser::dtype::Dtype::BF16) { ROUNDED } else { TOLERANCE };
        let options = Options { threads: 2, memory_budget: 1 << 28, seed: 0, shard_bytes: 1 << 30 };
        let plan = Plan::new(recipe, options).unwrap_or_else(|e| panic!("{name}: {e}"));
        let out = outputs.path().join(name);
        let request = Request { plan: &plan, out: &out, resume: false, overwrite: false };
        engine::merge(&request, &Progress::default(), &Stop::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_whole(&out);
        let found = read(&out);
        assert_eq!(found.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, (shape, sum, magnitudes, ramp)) in tensors {
            let values = found[tensor].values();
            assert_eq!(found[tensor].shape, *shape, "{name}: {tensor}");
            let step = |at: usize| (at * 7919 % 101) as f64 / 101.0;
            let own = [
                values.iter().sum::<f64>(),
                values.iter().map(|v| v.abs()).sum(),
                values.iter().enumerate().map(|(at, v)| v * step(at)).sum(),
            ];
            for (own, theirs) in own.into_iter().zip([*sum, *magnitudes, *ramp]) {
                // A NaN is never near.
                let is_near = (own - theirs).abs() <= tolerance * magnitudes;
                if !is_near {
                    wrong.push(format!("{name}: {tensor}: {own}, mergekit {theirs}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), expected.len(), wrong.join("\n"));
}
