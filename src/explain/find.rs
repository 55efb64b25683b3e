//! Which tensor and which element are meant.

use crate::checkpoint::quoted;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::suggest::nearest;

/// The place of an output tensor among the plan's, by its name.
///
/// # Errors
/// `Input`, with the nearest name, if the output has no such tensor.
pub fn find(plan: &Plan, name: &str) -> Result<usize> {
    let names = || plan.tensors.iter().map(|tensor| tensor.name.as_str());
    if let Some(at) = names().position(|known| known == name) {
        return Ok(at);
    }
    let error = Error::input(format!("the output of {} has no tensor {}", plan.recipe.path.display(), quoted(name)));
    // The longest tail that names share says more than the number of different letters: names differ in their layers.
    let near = nearest(name, names()).or_else(|| {
        let shared = |known: &&str| known.bytes().rev().zip(name.bytes().rev()).take_while(|(a, b)| a == b).count();
        names().max_by_key(shared).filter(|known| shared(known) >= 4)
    });
    Err(match near {
        Some(near) => error.hint(format!("did you mean {}?", quoted(near))),
        None => error.hint("`merganser plan RECIPE --json | jq '.tensors[].name'` lists them all"),
    })
}

/// An element of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Along each dimension, from 0.
    pub along: Vec<u64>,
    /// In the order in which elements are stored, from 0.
    pub flat: u64,
}

impl Index {
    /// Reads `7`, an element's number, or `3,5`, its place along each dimension.
    ///
    /// # Errors
    /// `Input`, for what is no index, or none of the tensor.
    pub fn parse(text: &str, tensor: &str, shape: &[u64]) -> Result<Self> {
        let wrong = |what: String| {
            let (one, each) = (shape.iter().product::<u64>(), shape.len());
            let error = Error::input(format!("{} is no element of {}: {what}", quoted(text), quoted(tensor)));
            let error = error.of_tensor(tensor);
            if one == 0 {
                return error.hint("it has no elements: leave the index out");
            }
            let number = format!("a number from 0 to {}", one - 1);
            let last: Vec<String> = shape.iter().map(|dim| (dim - 1).to_string()).collect();
            match each {
                0 | 1 => error.hint(format!("give {number}")),
                _ => error.hint(format!("give {number}, or one along each dimension, at most {}", last.join(","))),
            }
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let parse =
            |part: &&str| part.parse::<u64>().map_err(|_| wrong(format!("{} is no whole number", quoted(part))));
        let numbers = parts.iter().map(parse).collect::<Result<Vec<u64>>>()?;
        // Validated headers: no product of a shape overflows.
        let elems: u64 = shape.iter().product();
        if let [flat] = numbers[..] {
            if flat >= elems {
                return Err(wrong(format!("its shape {shape:?} has {elems} elements")));
            }
            let mut rest = flat;
            let mut along: Vec<u64> = shape
                .iter()
                .rev()
                .map(|dim| {
                    let here = rest % dim;
                    rest /= dim;
                    here
                })
                .collect();
            along.reverse();
            return Ok(Self { along, flat });
        }
        if numbers.len() != shape.len() {
            return Err(wrong(format!(
                "it has {} numbers, and the shape {shape:?} has {}",
                numbers.len(),
                shape.len()
            )));
        }
        if let Some(at) = (0..shape.len()).find(|at| numbers[*at] >= shape[*at]) {
            return Err(wrong(format!("its shape {shape:?} has {} along dimension {at}", shape[at])));
        }
        let flat = numbers.iter().zip(shape).fold(0, |flat, (number, dim)| flat * dim + number);
        Ok(Self { along: numbers, flat })
    }
}
