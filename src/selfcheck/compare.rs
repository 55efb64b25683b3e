//! Two outputs of one plan: the same bits, or matrices within their bound.

use std::path::Path;

use super::Operation;
use crate::backend::cpu::stored::Stored;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::ops::Program;
use crate::plan::{Plan, TensorPlan};

/// How far a merged matrix may be from the CPU's, relative to what its merge changes of the base.
const BOUND: f64 = 5e-3;

/// Compares what the CPU made with what the device made.
pub(super) fn outputs(plan: &Plan, ours: &Path, theirs: &Path) -> Result<Operation> {
    let [ours, theirs] = [Checkpoint::open(ours)?, Checkpoint::open(theirs)?];
    let mut found = Operation { name: String::new(), same_bits: 0, within_bound: 0, furthest: 0.0, problem: None };
    for tensor in &plan.tensors {
        let [a, b] = [bytes_of(&ours, &tensor.name)?, bytes_of(&theirs, &tensor.name)?];
        if matches!(tensor.program, Program::LowRank(_)) {
            let origin = match tensor.base.or(tensor.models.first().copied()) {
                Some(at) => {
                    let (stored, shard) = plan.stored(at);
                    let mut raw = Vec::new();
                    let bytes = shard.bytes(stored.begin..stored.begin + stored.bytes, &mut raw)?;
                    widened(tensor, Stored { dtype: stored.dtype, bytes })
                }
                None => vec![0.0; tensor.elems as usize],
            };
            let of = |bytes: &[u8]| widened(tensor, Stored { dtype: tensor.dtype, bytes });
            let apart = relative(&of(&b), &of(&a), &origin);
            // A NaN passes no comparison.
            let is_near = apart <= BOUND;
            if is_near {
                found.within_bound += 1;
                found.furthest = found.furthest.max(apart);
            } else if found.problem.is_none() {
                found.problem = Some(format!("`{}` is {apart:.1e} from the CPU's, {BOUND} allowed", tensor.name));
            }
        } else if a == b {
            found.same_bits += 1;
        } else if found.problem.is_none() {
            let size = tensor.elem_bytes as usize;
            let element = a.chunks(size).zip(b.chunks(size)).position(|(x, y)| x != y).unwrap_or_default();
            found.problem = Some(format!("element {element} of `{}` has other bits than the CPU's", tensor.name));
        }
    }
    Ok(found)
}

fn bytes_of(checkpoint: &Checkpoint, name: &str) -> Result<Vec<u8>> {
    let Some(tensor) = checkpoint.tensors().iter().find(|t| t.name == name) else {
        return Err(Error::internal(format!("an output has no `{name}`")));
    };
    let mut raw = Vec::new();
    let shard = checkpoint.shard_of(tensor);
    Ok(shard.bytes(tensor.begin..tensor.begin + tensor.bytes, &mut raw)?.to_vec())
}

fn widened(tensor: &TensorPlan, stored: Stored<'_>) -> Vec<f64> {
    let mut values = vec![0.0; tensor.elems as usize];
    stored.widen(0, &mut values);
    values
}

/// ‖a − b‖ over ‖b − origin‖.
fn relative(a: &[f64], b: &[f64], origin: &[f64]) -> f64 {
    let squares = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>();
    let difference = squares(a, b);
    if difference == 0.0 { 0.0 } else { (difference / squares(b, origin)).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::relative;

    #[test]
    fn a_distance_is_relative_to_what_changed_and_no_number_where_one_is_none() {
        assert_eq!(relative(&[1.0, 3.0], &[1.0, 2.0], &[1.0, 0.0]), 0.5);
        assert_eq!(relative(&[1.0], &[1.0], &[1.0]), 0.0);
        assert_eq!(relative(&[2.0], &[1.0], &[1.0]), f64::INFINITY);
        assert!(relative(&[f64::NAN], &[1.0], &[0.0]).is_nan());
    }
}
