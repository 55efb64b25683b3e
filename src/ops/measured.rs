//! What has been measured of a tensor before its merge, and what the merge found.

use super::{Combine, Geometry, LineWeights, Prune, Sparsify};

/// What a stage keeps of one model's task vector in one tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Mask {
    /// Everything.
    All,
    /// Nothing.
    None,
    /// Rows with a 1.
    Rows(Vec<u8>),
    /// Columns with a 1.
    Columns(Vec<u8>),
    /// Elements whose score's key is at or beyond the cut.
    Elements {
        /// Key of the score at the cut.
        cut: u64,
        /// Whether "beyond" means below.
        lowest: bool,
    },
}

/// A stage as measured on one tensor: masks and factors by model.
#[derive(Debug, Clone, PartialEq)]
pub struct StageState {
    /// Masks.
    pub masks: Vec<Mask>,
    /// What is kept is multiplied by this.
    pub factors: Vec<f64>,
}

/// A [`super::Blend`] whose statistics have been measured on its tensor.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Rows and columns of the tensor.
    pub geometry: Geometry,
    /// Stages with their masks.
    pub stages: Vec<(Prune, StageState)>,
    /// What the method drops.
    pub sparsify: Sparsify,
    /// Keys of the least magnitudes that are kept, by model, for [`Sparsify::TopK`] and [`Sparsify::Band`]; a model that keeps
    /// nothing has a key beyond all.
    pub cuts: Vec<u64>,
    /// Keys of the largest magnitudes that are kept, by model, for [`Sparsify::Band`]; empty without.
    pub tops: Vec<u64>,
    /// Factors that restore the L1 norm after [`Sparsify::TopK`] and [`Sparsify::Band`], by model.
    pub factors: Vec<f64>,
    /// Weights by line of each model's vector, where [`super::Fit::along`] asks for them; else none.
    pub lines: Option<LineWeights>,
    /// How the models are combined, with the numbers that have been measured.
    pub combine: Combine,
}

impl Measured {
    /// The same for one element of the tensor: the weights of its line are the models'.
    pub fn of_element(&self, element: u64) -> Self {
        let mut of = self.clone();
        if let Some(by) = of.lines.take() {
            let line = by.lines.line_of(element) as usize;
            of.combine.weights = by.weights.iter().map(|weights| weights[line]).collect();
        }
        of
    }
}

/// What a merge of a run found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunFacts {
    /// Elements that [`Sparsify::Random`] kept, by model.
    pub kept: Vec<u64>,
    /// Stored results that are NaN or infinite.
    pub nonfinite: u64,
    /// Those of them where every source is finite.
    pub introduced: u64,
}
