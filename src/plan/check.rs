//! Whether checkpoints fit together: every merged tensor is in every model, in the base's shape and as floats.

use regex::RegexSet;

use super::Source;
use super::outputs::Part;
use crate::checkpoint::Tensor;
use crate::dtype::DtypeExt;
use crate::error::{Cause, Error, Result};
use crate::recipe::{OutputKind, Recipe};

/// One tensor that does not fit, and what to do about it.
struct Misfit {
    message: String,
    hint: String,
}

/// Checks every model against the reference (`sources[0]`).
///
/// # Errors
/// `Input`, naming the first tensor that does not fit, in the reference's order, and how many more there are.
pub(super) fn tensors_fit(sources: &[Source], models: &[usize], copied: &RegexSet) -> Result<()> {
    let reference = &sources[0];
    let reference_label = if reference.is_base { "the base" } else { "the first model" };
    let mut misfits = Vec::new();
    for source in models.iter().filter(|s| **s != 0).map(|s| &sources[*s]) {
        let label = &source.written;
        for tensor in reference.checkpoint.tensors() {
            if copied.is_match(&tensor.name) || !tensor.dtype.is_mergeable_float() {
                continue;
            }
            let found = source.checkpoint.get(&tensor.name);
            misfits.extend(misfit(tensor, found, label, reference_label));
        }
        for tensor in source.checkpoint.tensors() {
            if reference.checkpoint.get(&tensor.name).is_none() && !copied.is_match(&tensor.name) {
                misfits.push(Misfit {
                    message: format!(
                        "`{label}` has the tensor `{}` ({} {:?}), which {reference_label} (`{}`) lacks",
                        tensor.name, tensor.dtype, tensor.shape, reference.written
                    ),
                    hint: "to leave it out of the merge, list it under `copy:` in the recipe".into(),
                });
            }
        }
    }
    let more = misfits.len().saturating_sub(1);
    match misfits.into_iter().next() {
        None => Ok(()),
        Some(Misfit { message, hint }) => {
            let others = match more {
                0 => String::new(),
                1 => " (and 1 more tensor does not fit)".into(),
                n => format!(" (and {n} more tensors do not fit)"),
            };
            Err(Error::input(message + &others).because(Cause::Checkpoint).hint(hint))
        }
    }
}

/// Whether the rest of a recipe can be done slice by slice.
///
/// # Errors
/// `Input`, if it stores factors, or prunes task vectors of slices with different numbers of models.
pub(super) fn takes_slices(recipe: &Recipe, parts: &[Part]) -> Result<()> {
    let file = recipe.path.display();
    let line = recipe.modules.first().map_or(1, |module| module.line);
    if recipe.output.kind != OutputKind::Merged {
        let word = recipe.output.kind.word();
        return Err(Error::input(format!(
            "{file}:{line}: `output: {word}` stores factors of whole models, not of slices"
        )));
    }
    let first = parts.first().map_or(0, |part| part.participants.len());
    if !recipe.stages.is_empty() && parts.iter().any(|part| part.participants.len() != first) {
        let message = "`task_vector_stages` weighs tensors of all slices against each other: each needs as many models";
        return Err(Error::input(format!("{file}:{line}: {message}")));
    }
    Ok(())
}

fn misfit(tensor: &Tensor, found: Option<&Tensor>, label: &str, reference: &str) -> Option<Misfit> {
    let name = &tensor.name;
    let keep = "to keep the base's tensor there, list it under `copy:` in the recipe".to_owned();
    let Some(found) = found else {
        return Some(Misfit {
            message: format!(
                "`{label}` lacks the tensor `{name}`, which {reference} has as {} {:?}",
                tensor.dtype, tensor.shape
            ),
            hint: keep,
        });
    };
    if found.shape != tensor.shape {
        return Some(Misfit {
            message: format!(
                "shape mismatch in `{name}`: `{label}` has {:?}, {reference} has {:?}",
                found.shape, tensor.shape
            ),
            hint: keep,
        });
    }
    (!found.dtype.is_mergeable_float()).then(|| Misfit {
        message: format!(
            "`{name}` of `{label}` is stored as {}, which cannot be merged with {}'s {}",
            found.dtype, reference, tensor.dtype
        ),
        hint: keep,
    })
}
