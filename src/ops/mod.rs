//! The language of a merge: what is computed for a tensor, as data that every other module shares.
//!
//! A method turns parameters into a [`Program`]; the plan counts it, a backend carries it out, the report tells it. This
//! module imports nothing but element types and errors, and knows neither recipes nor files, threads or instruction sets.
//! What a method declares of itself ([`MethodSpec`]) and what it is told of a tensor ([`TensorContext`]) belong to it.

mod fit;
mod geometry;
mod lines;
mod matrix;
mod measured;
mod overlap;
pub mod pairs;
pub(crate) mod patterns;
pub mod philox;
mod program;
mod real;
pub mod rules;
pub mod search;
pub mod spec;
mod stage;
mod sums;
mod value;
mod values;

pub use fit::{Fit, Gram, Vectors};
pub use geometry::Geometry;
pub use lines::{Along, LineWeights, Lines};
pub use matrix::{Centre, LowRank, LowRankFacts, MatrixRule, Rank};
pub use measured::{Mask, Measured, RunFacts, StageState};
pub use overlap::{Changes, Overlap};
pub use patterns::Patterns;
pub use program::{Blend, Combine, Program, Side, Sparsify};
pub use real::Real;
pub use spec::{BaseModel, Matrices, MethodSpec, ParamDefault, ParamKind, ParamSpec, Role, Rule, Scope};
pub use stage::{Granularity, Prune, RELATIVE_EPSILON, Rescale, Score, band_of, kept_of};
pub use sums::Sums;
pub use value::Value;
pub use values::{Resolved, StageContext, TensorContext, Values};

/// Elements of one partial sum of a statistic. Chunks are multiples of it, so that partial sums do not depend on chunks.
pub const SEGMENT: usize = 1 << 16;
