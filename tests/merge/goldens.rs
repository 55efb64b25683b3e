//! Every golden of the float64 reference, merged and compared by the rule that stands beside them.

use std::collections::BTreeMap;

use merganser::dtype::Dtype;
use merganser::engine::{self, Progress, Request, Stop};
use merganser::ops::{ParamDefault, ParamKind};

use crate::support::goldens::{self, Golden, compare};
use crate::support::quick_folder;
use crate::support::tensor::Tensor;

#[test]
fn every_golden_is_reproduced() {
    let goldens = goldens::all();
    assert!(goldens.len() >= 72, "{} goldens", goldens.len());
    goldens::assert_all(&goldens, check);
}

#[test]
fn every_method_and_every_score_and_granularity_has_a_golden() {
    let texts: Vec<String> =
        goldens::all().iter().map(|golden| std::fs::read_to_string(golden.path()).unwrap()).collect();
    for method in crate::support::recipes::methods() {
        let line = format!("merge_method: {}\n", method.name);
        assert!(texts.iter().any(|t| t.contains(&line)), "no golden of {}", method.name);
    }
    let stage = merganser::methods::find("lwptv").unwrap();
    for parameter in stage.parameters {
        if let ParamKind::Choice(words) = parameter.kind {
            for word in words.iter().filter(|w| parameter.default != ParamDefault::Word(w)) {
                assert!(texts.iter().any(|t| t.contains(word)), "no golden with `{}: {word}`", parameter.name);
            }
        }
    }
}

/// The most that a golden may be off on the CPU, relative to the change: the worst that was seen of matrices is a fifth of it.
const LEAST_TOLERANCE: f64 = 1e-5;

/// What is wrong with each tensor.
fn check(golden: &Golden) -> Vec<String> {
    let golden = &Golden { tolerance: golden.tolerance.min(LEAST_TOLERANCE), ..golden.clone() };
    let scratch = quick_folder();
    let out = scratch.path().join("out");
    let plan = match golden.run().plan(&golden.path()) {
        Ok(plan) => plan,
        Err(error) => return vec![error.to_string()],
    };
    let request = Request { plan: &plan, out: &out, resume: false, overwrite: false };
    match engine::merge(&request, &Progress::default(), &Stop::default()) {
        Err(error) => vec![error.to_string()],
        Ok(_) => golden.wrong(&plan, &out),
    }
}

#[test]
fn the_comparison_itself_can_fail() {
    let tensor = |dtype, values: &[f64]| Tensor::new("x", dtype, &[values.len() as u64], values);
    let expected = tensor(Dtype::F64, &[1.0, 2.0]);
    let start = tensor(Dtype::BF16, &[0.5, 1.0]);
    let found = |values: &[f64]| compare(&expected, &tensor(Dtype::F32, values), &start, 1e-5);
    assert_eq!(found(&[1.0, 2.0]), None);
    assert!(found(&[1.0, 2.0001]).is_some());
    assert!(found(&[1.0, f64::NAN]).is_some());
    assert!(found(&[1.0]).is_some());
    let copied = BTreeMap::from([(true, &[1.0, 2.0]), (false, &[1.0, 3.0])]);
    for (same, values) in copied {
        let found = compare(&expected, &tensor(Dtype::F64, values), &start, 1e-5);
        assert_eq!(found.is_none(), same);
    }
}
