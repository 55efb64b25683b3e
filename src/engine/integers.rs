//! Tensors that are no floats are the reference's: whether another source has other values there.

use std::cmp::min;
use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, Tensor, quoted};
use crate::dtype::DtypeExt;
use crate::error::Result;
use crate::ops::Program;
use crate::plan::Plan;
use crate::recipe::compile_names;

/// Bytes that are compared at a time.
const PIECE_BYTES: u64 = 1 << 18;

/// One sentence for all sources with other values in the same of such tensors.
pub(super) fn notes(plan: &Plan) -> Result<Vec<String>> {
    let mut found = BTreeMap::<Vec<&str>, Vec<&str>>::new();
    if !plan.recipe.modules.is_empty() || plan.recipe.method.name == "passthrough" {
        return Ok(Vec::new());
    }
    let copied = compile_names(&plan.recipe.copy)?;
    let reference = plan.reference();
    let numbers: Vec<&Tensor> = plan
        .tensors
        .iter()
        .filter(|t| t.program == Program::Copy && !copied.is_match(&t.name))
        .filter_map(|t| t.base.filter(|from| from.source == 0))
        .map(|from| &reference.tensors()[from.tensor])
        .filter(|tensor| !tensor.dtype.is_mergeable_float())
        .collect();
    for source in plan.sources.iter().skip(1) {
        let mut apart = Vec::new();
        for own in &numbers {
            let Some(other) = source.checkpoint.get(&own.name) else { continue };
            // Other types and shapes are told by the plan.
            let is_alike = (other.dtype, &other.shape) == (own.dtype, &own.shape);
            if is_alike && !is_equal((reference, own), (&source.checkpoint, other))? {
                apart.push(own.name.as_str());
            }
        }
        if !apart.is_empty() {
            found.entry(apart).or_default().push(&source.written);
        }
    }
    let told = found.iter().map(|(tensors, sources)| {
        let (one, count) = (tensors.len() == 1, tensors.len());
        format!(
            "{count} tensor{} of {}, {} first, {} no float{} and differ{} from {}, whose values are kept",
            if one { "" } else { "s" },
            sources.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", "),
            tensors.first().map(|name| quoted(name)).unwrap_or_default(),
            if one { "is" } else { "are" },
            if one { "" } else { "s" },
            if one { "s" } else { "" },
            quoted(&plan.sources[0].written)
        )
    });
    Ok(told.collect())
}

fn is_equal(a: (&Checkpoint, &Tensor), b: (&Checkpoint, &Tensor)) -> Result<bool> {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < a.1.bytes {
        let end = min(at + PIECE_BYTES, a.1.bytes);
        let range = |t: &Tensor| t.begin + at..t.begin + end;
        let own = a.0.shard_of(a.1).bytes(range(a.1), &mut one)?;
        if own != b.0.shard_of(b.1).bytes(range(b.1), &mut two)? {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}
