//! What a recipe asks for that can be done and is most likely not meant.

use super::ties::Ties;
use super::{Plan, TensorPlan};
use crate::methods::matrices;
use crate::ops::rules::RuleId;
use crate::ops::{Blend, Centre, Matrices, MatrixRule, Program};
use crate::recipe::Recipe;
use crate::report::manifest::Coverage;

/// The share of parameters from which on it is said that they stay average.
const TOLD_SHARE: f64 = 0.01;

/// Names by which decoders of text store the table that turns tokens into vectors.
const TOKEN_TABLES: [&str; 5] =
    ["embed_tokens.weight", "wte.weight", "tok_embeddings.weight", "embed_in.weight", "word_embeddings.weight"];

/// What is known of methods on matrices where the model is a language model: no warning, since it may serve all the same.
pub(super) fn advice(tensors: &[TensorPlan]) -> Option<&'static str> {
    let is_merged = tensors.iter().any(|t| matches!(t.program, Program::LowRank(_)));
    let has_tokens = tensors.iter().any(|t| TOKEN_TABLES.iter().any(|table| t.name.ends_with(table)));
    let has_encoder = tensors.iter().any(|t| t.name.split('.').any(|segment| segment == "encoder"));
    (is_merged && has_tokens && !has_encoder).then_some(
        "on large language models the one systematic comparison (arXiv 2511.21437) found reliable gains from task_arithmetic alone",
    )
}

/// Warnings about a plan's tensors.
pub(super) fn warnings(recipe: &Recipe, tensors: &[TensorPlan], coverage: Option<&Coverage>) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(coverage.and_then(|c| averaged(recipe, tensors, c)));
    warnings.extend(collinear(tensors));
    let merged = || tensors.iter().filter(|t| !matches!(t.program, Program::Copy | Program::Factor { .. }));
    if !recipe.copy.is_empty() && merged().next().is_none() {
        warnings.push("every tensor is copied from the first of the sources: `copy:` leaves nothing to merge".into());
    }
    if merged().next().is_some() && merged().all(|t| lambda(t) == Some(0.0)) {
        warnings.push("`lambda` is 0 for every tensor: of the models' changes nothing is added".into());
    }
    let is_negative = |t: &&TensorPlan| match &t.program {
        Program::Blend(Blend { combine, .. }) => {
            combine.rule == RuleId::Elect && combine.numbers.normalize && combine.weights.iter().any(|w| *w < 0.0)
        }
        _ => false,
    };
    if let Some(first) = merged().find(is_negative) {
        warnings.push(format!(
            "a negative weight under `normalize: true` adds its task vector instead of subtracting it, in `{}` first: \
             `normalize: false` subtracts",
            first.name
        ));
    }
    warnings
}

/// How much of a merge by a method on matrices is merged as matrices; `None` for other methods.
pub(super) fn coverage(recipe: &Recipe, tensors: &[TensorPlan]) -> Option<Coverage> {
    if recipe.methods().any(|method| method.matrices == Matrices::No) {
        return None;
    }
    let mut found = Coverage::default();
    for tensor in tensors {
        match &tensor.program {
            Program::LowRank(_) => {
                found.matrices += 1;
                found.matrix_parameters += tensor.elems;
            }
            Program::Blend(_) if is_averaged(tensor) => {
                found.averaged += 1;
                found.averaged_parameters += tensor.elems;
            }
            _ => {}
        }
    }
    Some(found)
}

/// Whether a tensor might have been expected to be merged as a matrix.
fn is_averaged(tensor: &TensorPlan) -> bool {
    tensor.shape.len() >= 2 && tensor.elems > 0 && !matrices::is_table(&tensor.name)
}

fn averaged(recipe: &Recipe, tensors: &[TensorPlan], coverage: &Coverage) -> Option<String> {
    let all = coverage.matrix_parameters + coverage.averaged_parameters;
    let share = coverage.averaged_parameters as f64 / all.max(1) as f64;
    let first = tensors.iter().find(|t| matches!(t.program, Program::Blend(_)) && is_averaged(t))?;
    (share > TOLD_SHARE).then(|| {
        format!(
            "{} of {} tensors ({:.1} % of the parameters without embeddings, heads, norms and biases) are averaged and not merged as matrices \
             by `{}`, `{}` {:?} first",
            coverage.averaged,
            coverage.averaged + coverage.matrices,
            share * 100.0,
            recipe.method.name,
            first.name,
            first.shape
        )
    })
}

/// Centred task vectors that are multiples of one cancel, whatever is kept of them.
fn collinear(tensors: &[TensorPlan]) -> Option<String> {
    let is_so = |t: &&TensorPlan| match &t.program {
        Program::LowRank(work) if work.centre == Centre::Average && matches!(work.rule, MatrixRule::Truncate(_)) => {
            let mut counted: Vec<usize> =
                t.models.iter().zip(&work.weights).filter(|(_, w)| **w != 0.0).map(|(m, _)| m.source).collect();
            counted.sort_unstable();
            counted.dedup();
            counted.len() <= 2
        }
        _ => false,
    };
    let matrices = tensors.iter().filter(|t| matches!(t.program, Program::LowRank(_))).count();
    let first = tensors.iter().find(is_so)?;
    let count = tensors.iter().filter(is_so).count();
    Some(format!(
        "in {count} of {matrices} matrices, `{}` first, no more than two different models count: what they differ by from their average \
         cancels, so `lambda` and the rank change nothing and the result is the average; give three models or more, or \
         `merge_method: low_rank` with a base",
        first.name
    ))
}

/// Outputs that every source ties to another, of which the recipe merges one and copies the other.
pub(super) fn untied(ties: &Ties, tensors: &[TensorPlan]) -> Vec<String> {
    let is_copied = |name: &str| tensors.iter().find(|t| t.name == name).map(|t| t.program == Program::Copy);
    let apart = ties.pairs().filter(|(name, leader)| is_copied(name) != is_copied(leader));
    let told = |(name, leader)| {
        format!(
            "`{name}` and `{leader}` are one parameter in every model, and the recipe copies one and merges the other: who loads the \
             output ties them again and takes either"
        )
    };
    apart.map(told).collect()
}

fn lambda(tensor: &TensorPlan) -> Option<f64> {
    match &tensor.program {
        Program::LowRank(work) => Some(work.lambda),
        Program::Blend(Blend { combine, .. }) if combine.rule.takes_task_vectors() => Some(combine.numbers.lambda),
        _ => None,
    }
}

impl Plan {
    /// How much is merged as matrices, by a method that does so.
    pub fn coverage(&self) -> Option<Coverage> {
        coverage(&self.recipe, &self.tensors)
    }
}
