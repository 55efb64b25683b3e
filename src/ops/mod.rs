//! The language of a merge: what is computed for a tensor, as data that every other module shares.
//!
//! A method turns parameters into a [`Program`]; the plan counts it, a backend carries it out, the report tells it. This
//! module imports nothing but element types and errors, and knows neither files nor threads nor instruction sets.

mod geometry;
mod matrix;
mod measured;
pub mod pairs;
pub mod philox;
mod program;
mod real;
pub mod search;
mod stage;
mod sums;

pub use geometry::Geometry;
pub use matrix::{Centre, LowRank, LowRankFacts, MatrixRule, Rank};
pub use measured::{Mask, Measured, RunFacts, StageState};
pub use program::{Blend, Combine, Program, Side, Sparsify};
pub use real::Real;
pub use stage::{Granularity, Prune, RELATIVE_EPSILON, Rescale, Score, kept_of};
pub use sums::Sums;

/// Elements of one partial sum of a statistic. Chunks are multiples of it, so that partial sums do not depend on chunks.
pub const SEGMENT: usize = 1 << 16;
