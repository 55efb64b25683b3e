//! Where one output tensor comes from and how it is made, and what becomes of one of its elements, step by step.
//!
//! Everything but an element follows from the plan, which reads headers alone. An element is traced by the functions that merge
//! it: the tensor's statistics are measured first, as a merge does, and a matrix is merged whole.

mod document;
mod element;
mod find;
mod text;

#[cfg(test)]
mod tests;

pub use document::{
    Explanation, OfDrop, OfElement, OfMatrix, OfOutput, OfPart, OfPath, OfProgram, OfSource, OfStep, OfValues,
};
pub use element::element;
pub use find::{Index, find};
