//! What a finished merge did to numbers, told once, at its end.

use crate::checkpoint::quoted;
use crate::report::manifest::{Manifest, OutputTensor, Source};

/// Sentences about elements that are not finite, and about sources that turned out to be the same model.
pub(super) fn notes(manifest: &Manifest) -> Vec<String> {
    let mut notes = Vec::new();
    let tell = |count: &dyn Fn(&OutputTensor) -> u64, what: &str| {
        let damaged: Vec<&OutputTensor> = manifest.tensors.iter().filter(|t| count(t) > 0).collect();
        let sum: u64 = damaged.iter().map(|t| count(t)).sum();
        let first = damaged.first()?;
        Some(format!(
            "{sum} element{} {what}, in {} tensor{}: {} ({}) first, with {}",
            if sum == 1 { "" } else { "s" },
            damaged.len(),
            if damaged.len() == 1 { "" } else { "s" },
            quoted(&first.name),
            first.dtype,
            count(first)
        ))
    };
    notes.extend(tell(&|t| t.nonfinite.introduced, "became NaN or infinite where every source is finite"));
    notes.extend(tell(
        &|t| t.nonfinite.output - t.nonfinite.introduced.min(t.nonfinite.output),
        "came NaN or infinite from a source",
    ));
    notes.extend(twins(&manifest.sources));
    notes
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
