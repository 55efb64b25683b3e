//! The committed goldens of the float64 reference: recipes, what they give, and how near a merge must come to that.

use std::path::{Path, PathBuf};

use merganser::dtype::Dtype;
use merganser::plan::Plan;
use serde::Deserialize;

use super::tensor::Tensor;
use super::{Run, read, root};

#[derive(Debug, Clone, Deserialize)]
pub struct Golden {
    pub recipe: String,
    pub expected: String,
    pub seed: u64,
    pub tolerance: f64,
}

pub fn folder() -> PathBuf {
    root().join("tests/goldens")
}

/// All of them.
pub fn all() -> Vec<Golden> {
    let list = std::fs::read_to_string(folder().join("goldens.json")).unwrap();
    serde_json::from_str(&list).unwrap()
}

impl Golden {
    pub fn path(&self) -> PathBuf {
        folder().join(&self.recipe)
    }

    /// How it is merged.
    pub fn run(&self) -> Run {
        Run { seed: self.seed, ..Run::default() }
    }

    /// What is wrong with each tensor of an output.
    pub fn wrong(&self, plan: &Plan, out: &Path) -> Vec<String> {
        let bytes = std::fs::read(folder().join(&self.expected)).unwrap();
        let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut found = read(out);
        let mut wrong = Vec::new();
        for (name, view) in expected.tensors() {
            let shape = view.shape().iter().map(|d| *d as u64).collect();
            let expected = Tensor { name: name.clone(), dtype: view.dtype(), shape, bytes: view.data().to_vec() };
            let Some(found) = found.remove(&name) else {
                wrong.push(format!("`{name}` is missing"));
                continue;
            };
            // θ₀, or the first model where there is no base.
            let start = plan.reference().get(&name).unwrap();
            let shard = plan.reference().shard_of(start);
            let stored = shard.bytes(start.range(), &mut Vec::new()).unwrap().to_vec();
            let start = Tensor { name: name.clone(), dtype: start.dtype, shape: start.shape.clone(), bytes: stored };
            wrong.extend(compare(&expected, &found, &start, self.tolerance).map(|what| format!("`{name}` {what}")));
        }
        wrong.extend(found.into_keys().map(|name| format!("`{name}` should not be there")));
        wrong
    }
}

/// Fails, naming them, if any golden differs as `check` sees it.
#[track_caller]
pub fn assert_all(goldens: &[Golden], mut check: impl FnMut(&Golden) -> Vec<String>) {
    let mut failed = Vec::new();
    for golden in goldens {
        let wrong = check(golden);
        if !wrong.is_empty() {
            failed.push(format!("{}:\n    {}", golden.recipe, wrong.join("\n    ")));
        }
    }
    assert!(failed.is_empty(), "{} of {} goldens differ\n{}", failed.len(), goldens.len(), failed.join("\n"));
}

pub fn compare(expected: &Tensor, found: &Tensor, start: &Tensor, tolerance: f64) -> Option<String> {
    if found.shape != expected.shape {
        return Some(format!("has shape {:?}, expected {:?}", found.shape, expected.shape));
    }
    let was_copied = expected.dtype == found.dtype;
    if was_copied || expected.dtype != Dtype::F64 {
        return (expected != found).then(|| "was to be copied and differs".into());
    }
    let (expected, found, start) = (expected.values(), found.values(), start.values());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = |a: &[f64], b: &[f64]| -> f64 { norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) };
    let apart = pairs(&found, &expected);
    let allowed = tolerance * pairs(&expected, &start) + norm(&mut expected.iter().copied()) * 2_f64.powi(-24);
    // Not `>`: a NaN must fail.
    let agrees = apart <= allowed;
    (!agrees).then(|| format!("is {apart:e} away, allowed {allowed:e}"))
}
