//! What a finished merge did to numbers, told once, at its end.

use super::tensor::ALL_ZERO;
use crate::checkpoint::quoted;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::Program;
use crate::output::nonfinite;
use crate::plan::{Plan, SourceTensor, TensorPlan};
use crate::report::manifest::{Manifest, OutputTensor, Source};

/// Sentences about elements that are not finite, and about sources that turned out to be the same model.
pub(super) fn notes(manifest: &Manifest) -> Vec<String> {
    let mut notes = Vec::new();
    let tell = |count: &dyn Fn(&OutputTensor) -> u64, what: &str, more: fn(Dtype) -> String| {
        let damaged: Vec<&OutputTensor> = manifest.tensors.iter().filter(|t| count(t) > 0).collect();
        let sum: u64 = damaged.iter().map(|t| count(t)).sum();
        let first = damaged.first()?;
        Some(format!(
            "{sum} element{} {what}, in {} tensor{}: {} ({}) first, with {}{}",
            if sum == 1 { "" } else { "s" },
            damaged.len(),
            if damaged.len() == 1 { "" } else { "s" },
            quoted(&first.name),
            first.dtype,
            count(first),
            more(first.dtype)
        ))
    };
    notes.extend(tell(&|t| t.nonfinite.introduced, "became NaN or infinite where every source is finite", greatest));
    notes.extend(tell(
        &|t| t.nonfinite.output - t.nonfinite.introduced.min(t.nonfinite.output),
        "came NaN or infinite from a source",
        |_| String::new(),
    ));
    notes.extend(twins(&manifest.sources));
    notes
}

/// The greatest number of a small type, which what became infinite or NaN may have been beyond.
fn greatest(dtype: Dtype) -> String {
    let most = match dtype {
        Dtype::F16 => "65504",
        Dtype::F8_E4M3 => "448",
        Dtype::F8_E5M2 => "57344",
        _ => return String::new(),
    };
    format!("; {dtype} holds numbers up to {most}")
}

/// Tensors of zeros, none of whose sources is one.
pub(super) fn vanished(plan: &Plan, manifest: &Manifest) -> Result<Option<String>> {
    let mut gone: Vec<&TensorPlan> = Vec::new();
    for tensor in manifest.tensors.iter().filter(|t| t.facts[ALL_ZERO] == true) {
        let Some(tensor) = plan.tensors.iter().find(|t| t.name == tensor.name) else { continue };
        let mut is_new = !matches!(tensor.program, Program::Factor { .. });
        for at in tensor.reads() {
            is_new = is_new && !is_zero(plan, at)?;
        }
        gone.extend(is_new.then_some(tensor));
    }
    Ok(gone.first().map(|first| {
        format!(
            "{} tensor{} became all zero where no source is: {} first",
            gone.len(),
            if gone.len() == 1 { "" } else { "s" },
            quoted(&first.name)
        )
    }))
}

/// Whether a source's tensor holds zeros alone; read up to the first other number.
fn is_zero(plan: &Plan, at: SourceTensor) -> Result<bool> {
    const PIECE_BYTES: u64 = 1 << 18;
    let (stored, shard) = plan.stored(at);
    let mut raw = Vec::new();
    for from in (0..stored.bytes).step_by(PIECE_BYTES as usize) {
        let range = stored.begin + from..stored.begin + (from + PIECE_BYTES).min(stored.bytes);
        if !nonfinite::is_zero(stored.dtype, shard.bytes(range, &mut raw)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Sources of the same content under two names.
fn twins(sources: &[Source]) -> Option<String> {
    let content = |source: &Source| -> Vec<String> {
        let read = source.files.iter().filter(|f| f.tensors_read > 0 && f.tensors_read == f.tensors);
        read.map(|f| f.digest.clone()).collect()
    };
    sources.iter().enumerate().find_map(|(i, a)| {
        let known = content(a);
        let b =
            sources[..i].iter().find(|b| known.len() == a.files.len() && !known.is_empty() && content(b) == known)?;
        Some(format!("{} and {} are the same model", quoted(&b.path), quoted(&a.path)))
    })
}
