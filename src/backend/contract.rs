//! What any device answers: whether it takes a tensor, and the operations of a merge on a run of stored elements.
//!
//! The CPU is the oracle of every other device: the same run gives the same bits on all of them, but for the payload of a NaN.
//! One test body (`tests/support/operations`) runs every operation on any two lanes and compares. The engine drives CUDA's
//! operations by streams and buffers of its own (`engine::lanes`), which a lane of this contract knows nothing of.

use super::cpu::prune::Sources;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::search::{Cut, Ranked, Search};
use crate::ops::{Geometry, Lines, Measured, Program, Prune, RunFacts, Score, StageState, Vectors};

/// What a tensor asks of a device.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// What is done.
    pub program: &'a Program,
    /// Its elements.
    pub elems: u64,
    /// Rows and columns, of a matrix.
    pub matrix: (u64, u64),
    /// Models that take part.
    pub models: usize,
    /// Whether it is computed in f64.
    pub wide: bool,
}

/// Whether a device takes a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It does.
    Yes {
        /// Bytes of the device's memory that it takes at least, beside buffers through which elements stream.
        bytes: u64,
    },
    /// It does not, and why: a clause that follows "on the CPU:".
    No(&'static str),
}

/// Something that computes.
pub trait Device {
    /// What messages call it.
    fn label(&self) -> String;
    /// Whether it takes a job, whatever else it has to do.
    fn supports(&self, job: &Job<'_>) -> Support;
}

/// A run of elements of one tensor, which begins at a segment where it is measured.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Rows and columns of the tensor.
    pub geometry: Geometry,
    /// Stages that task vectors have gone through.
    pub stages: &'a [(Prune, StageState)],
    /// The stored elements.
    pub sources: &'a Sources<'a>,
    /// Whether it is computed in f64.
    pub wide: bool,
}

/// What is measured of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pass<'a> {
    /// By segment and model: Σ|τ|, Σ τ², Σ|τ − mean|, Σ τ R, Σ R², Σ θ₀², with R the sum of the other models' τ.
    Norms,
    /// By segment and model: Σ|τ| before and after what lies below the first keys is dropped, and what lies above the second where
    /// there are any; a key a model.
    TrimNorms([&'a [u64]; 2]),
    /// By segment: the products of every two vectors.
    Gram(Vectors),
    /// By line of a whole tensor: the products of every two vectors.
    Lines(Vectors, Lines),
    /// By model: how many τ above this threshold no other model's is above, and how many others'.
    Changes(f64),
    /// By model and row: the mean score.
    Rows(Score),
    /// By model and column: the mean score of a whole tensor.
    Columns(Score),
}

/// Where operations are carried out, one after another.
pub trait Lane {
    /// What messages call it.
    fn label(&self) -> String;

    /// The cut of every model that searches for one, in a whole tensor.
    ///
    /// # Errors
    /// If the device fails; here and below.
    fn cuts(&mut self, run: &Run<'_>, ranked: Ranked, searches: &[Option<Search>]) -> Result<Vec<Option<Cut>>>;

    /// What a pass measures, one value after the other.
    fn pass(&mut self, run: &Run<'_>, pass: Pass<'_>) -> Result<Vec<f64>>;

    /// Merges a run into `out`, stored as `dtype`. Stages and numbers are those of `m`.
    fn merge(
        &mut self,
        m: &Measured,
        sources: &Sources<'_>,
        wide: bool,
        dtype: Dtype,
        out: &mut [u8],
    ) -> Result<RunFacts>;
}
