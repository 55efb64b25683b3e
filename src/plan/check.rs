//! Whether checkpoints fit together: every merged tensor is in every model, in the base's shape and as floats.

use regex::RegexSet;

use super::outputs::Part;
use super::{Source, ties, wholeness};
use crate::checkpoint::{Checkpoint, Tensor, quoted};
use crate::dtype::DtypeExt;
use crate::error::{Cause, Error, Result};
use crate::methods::matrices;
use crate::recipe::{OutputKind, Recipe};

/// One tensor that does not fit, and what to do about it.
struct Misfit {
    message: String,
    hint: String,
}

/// Checks every model against the reference (`sources[0]`).
///
/// # Errors
/// `Input`, naming the first tensor that does not fit, in the reference's order, and how many more there are; or that a whole model
/// is of another architecture.
pub(super) fn tensors_fit(sources: &[Source], models: &[usize], copied: &RegexSet) -> Result<()> {
    let reference = &sources[0];
    let reference_label = if reference.is_base { "the base" } else { "the first model" };
    let mut misfits = Vec::new();
    for source in models.iter().filter(|s| **s != 0).map(|s| &sources[*s]) {
        let (label, before) = (&source.written, misfits.len());
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
                    hint: match ties::may_be_tied(&tensor.name) {
                        true => "models with a head of their own do not merge with those that have none".into(),
                        false => "to leave it out of the merge, list it under `copy:` in the recipe".into(),
                    },
                });
            }
        }
        if is_other(misfits.len() - before, reference) {
            return Err(other(source, reference, reference_label, &misfits[before]).because(Cause::Checkpoint));
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

/// Whether so many tensors do not fit that no list of them would help.
fn is_other(misfits: usize, reference: &Source) -> bool {
    const LEAST: usize = 6;
    misfits >= LEAST && misfits * 2 > reference.checkpoint.tensors().len()
}

/// The error for a model most of whose tensors have no counterpart, or another shape.
fn other(source: &Source, reference: &Source, label: &str, first: &Misfit) -> Error {
    let (written, base) = (&source.written, &reference.written);
    if let Some((prefix, is_theirs)) = prefix(source, reference) {
        let (with, without) = if is_theirs { (written, base) } else { (base, written) };
        return Error::input(format!(
            "the tensors of `{with}` are named as those of `{without}` with `{prefix}` in front: one is a part of a larger model"
        ))
        .hint("give the same part of each: save the inner model by itself, or compare with models that are wrapped the same way");
    }
    let kind = |source: &Source| {
        let config = wholeness::json(&wholeness::folder(source)?.join("config.json"))?;
        config.get("model_type").and_then(|t| t.as_str()).map(str::to_owned)
    };
    let kinds = match (kind(source), kind(reference)) {
        (Some(a), Some(b)) if a != b => format!(" (`model_type` {} and {})", quoted(&a), quoted(&b)),
        _ => String::new(),
    };
    Error::input(format!("`{written}` and {label} (`{base}`) are not of one architecture{kinds}: {}", first.message))
        .hint("only models with the same tensors in the same shapes can be merged")
}

/// A prefix that turns the names of one into those of the other, and whether the source has it.
fn prefix(source: &Source, reference: &Source) -> Option<(String, bool)> {
    let find = |long: &Checkpoint, short: &Checkpoint| -> Option<String> {
        let name = short.tensors().iter().map(|t| &t.name).max_by_key(|name| name.len())?;
        let found =
            long.tensors().iter().find(|t| t.name.len() > name.len() && t.name.ends_with(&format!(".{name}")))?;
        let prefix = found.name.strip_suffix(name.as_str())?;
        let shared = short.tensors().iter().filter(|t| long.get(&format!("{prefix}{}", t.name)).is_some()).count();
        (shared * 2 > short.tensors().len()).then(|| prefix.to_owned())
    };
    let (a, b) = (&source.checkpoint, &reference.checkpoint);
    find(a, b).map(|p| (p, true)).or_else(|| find(b, a).map(|p| (p, false)))
}

/// Whether the rest of a recipe can be done slice by slice.
///
/// # Errors
/// `Input`, if it stores factors, or prunes task vectors of slices with different numbers of models.
pub(super) fn takes_slices(recipe: &Recipe, parts: &[Part]) -> Result<()> {
    let file = recipe.path.display().to_string();
    let line = recipe.modules.first().map_or(1, |module| module.line);
    if recipe.output.kind != OutputKind::Merged {
        let word = recipe.output.kind.word();
        let message = format!("`output: {word}` stores factors of whole models, not of slices");
        return Err(Error::at_line(&file, line, message));
    }
    let first = parts.first().map_or(0, |part| part.participants.len());
    if !recipe.stages.is_empty() && parts.iter().any(|part| part.participants.len() != first) {
        let message = "`task_vector_stages` weighs tensors of all slices against each other: each needs as many models";
        return Err(Error::at_line(&file, line, message));
    }
    Ok(())
}

fn misfit(tensor: &Tensor, found: Option<&Tensor>, label: &str, reference: &str) -> Option<Misfit> {
    let name = &tensor.name;
    let keep = "to keep the base's tensor there, list it under `copy:` in the recipe".to_owned();
    let Some(found) = found else {
        let keep = match ties::may_be_tied(name) {
            true => "if the model ties its head to its embedding, its `config.json` must be beside it and say \
                     `tie_word_embeddings: true`; else its files are not whole: download it again"
                .into(),
            false => keep,
        };
        return Some(Misfit {
            message: format!(
                "`{label}` lacks the tensor `{name}`, which {reference} has as {} {:?}",
                tensor.dtype, tensor.shape
            ),
            hint: keep,
        });
    };
    if (found.elems == 0) != (tensor.elems == 0) {
        let (empty, whole) = if found.elems == 0 { (label, reference) } else { (reference, label) };
        return Some(Misfit {
            message: format!("`{name}` of {empty} is an empty placeholder: it has no elements, and {whole} has some"),
            hint: "gather the weights of a sharded training before they are saved, and save again".into(),
        });
    }
    if let ([rows, rest @ ..], [found_rows, found_rest @ ..]) = (&tensor.shape[..], &found.shape[..])
        && rows != found_rows
        && !rest.is_empty()
        && rest == found_rest
        && matrices::is_vocabulary(name)
    {
        return Some(Misfit {
            message: format!(
                "`{name}` of `{label}` has {found_rows} rows, {reference} has {rows}: the vocabularies differ"
            ),
            hint: "`tokenizer_source: union` in the recipe gives every model the rows of all tokens".into(),
        });
    }
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
