//! The operations that methods are made of, as data: what a backend computes for one tensor.
//!
//! Operations are fused: an element-wise merge is one pass that reads every source in its stored dtype and writes the
//! merged elements, whatever stages and rules it is made of. The CPU backend is the oracle of every other.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod device;
mod matrix;
pub mod philox;

pub use matrix::{Centre, LowRank, MatrixRule, Rank};

/// How one tensor of the output comes about.
#[derive(Debug, Clone, PartialEq)]
pub enum Program {
    /// The base's bytes as they are.
    Copy,
    /// An element-wise merge.
    Blend(Blend),
    /// A merge of matrices by their singular vectors.
    LowRank(LowRank),
    /// A factor of a low-rank part, made along with the matrix.
    Factor {
        /// The matrix, as a position among the output's tensors.
        of: usize,
        /// Whose low-rank part, in model order.
        task: usize,
        /// Which factor.
        side: Side,
    },
}

/// Which factor of L = left · right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// U Σ, m×k.
    Left,
    /// Vᵀ, k×n.
    Right,
}

impl Side {
    /// Both, in the order in which they are stored.
    pub const BOTH: [Side; 2] = [Side::Left, Side::Right];

    /// `left` or `right`.
    pub fn word(self) -> &'static str {
        match self {
            Side::Left => "left",
            Side::Right => "right",
        }
    }
}

/// An element-wise merge: task vectors are pruned by stages, sparsified, then combined.
#[derive(Debug, Clone, PartialEq)]
pub struct Blend {
    /// Stages in front of the method, in order.
    pub stages: Vec<Prune>,
    /// What the method itself drops from each task vector.
    pub sparsify: Sparsify,
    /// How the parameters or task vectors become one.
    pub combine: Combine,
}

/// What a method drops from each task vector before it combines them.
#[derive(Debug, Clone, PartialEq)]
pub enum Sparsify {
    /// Nothing.
    None,
    /// All but the `density` largest magnitudes of the tensor (ties at the cut are kept).
    TopK {
        /// Share kept, by model.
        density: Vec<f64>,
        /// Whether the L1 norm is restored.
        rescale: bool,
    },
    /// Each element independently with probability 1 − `density`.
    Random {
        /// Probability of keeping an element, by model.
        density: Vec<f64>,
        /// Whether what is kept is multiplied by 1/density.
        rescale: bool,
        /// Element keys of the Philox generator, by model.
        keys: Vec<[u32; 2]>,
    },
}

/// How parameters or task vectors become one; sums run in model order.
#[derive(Debug, Clone, PartialEq)]
pub enum Combine {
    /// Σ w θ / divisor, over all sources.
    Average {
        /// Weights, by model.
        weights: Vec<f64>,
        /// What the sum is divided by (1: nothing).
        divisor: f64,
    },
    /// θ₀ + λ (Σ w τ) / divisor.
    Sum {
        /// Weights, by model.
        weights: Vec<f64>,
        /// What the sum is divided by (1: nothing).
        divisor: f64,
        /// λ.
        lambda: f64,
    },
    /// θ₀ + λ · (sum or weighted mean of the w τ that have the elected sign).
    Elect {
        /// Weights, by model.
        weights: Vec<f64>,
        /// Whether to divide by the weights that agree.
        normalize: bool,
        /// λ.
        lambda: f64,
    },
    /// θ₀ + λ · (the τ of largest magnitude; on a tie the later).
    MaxMagnitude {
        /// λ.
        lambda: f64,
    },
    /// Spherical interpolation from θ₀ to the one model.
    Slerp {
        /// Position, 0 at the base.
        t: f64,
    },
    /// The one model's tensor times a factor.
    Scale {
        /// The factor.
        factor: f64,
    },
}

impl Combine {
    /// Whether θ₀ is read.
    pub fn reads_base(&self) -> bool {
        !matches!(self, Combine::Average { .. } | Combine::Scale { .. })
    }
}

/// One `lwptv` stage, resolved for a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prune {
    /// Its place among the recipe's stages.
    pub stage: usize,
    /// Saliency of an element or group.
    pub score: Score,
    /// What is kept or pruned as one.
    pub granularity: Granularity,
    /// Share kept, strictly between 0 and 1, or 0 (1 means that there is no stage).
    pub keep: f64,
    /// Keep the lowest scores instead of the highest.
    pub keep_redundant: bool,
    /// The norm restored inside each layer.
    pub rescale: Rescale,
}

/// Saliency scores of `lwptv`; R is the sum of the other tasks' τ at the element, Q the sum of their magnitudes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// |τ|
    Magnitude,
    /// |τ| / (|θ₀| + 1e-6)
    Relative,
    /// |τ − mean over all tasks|
    Deviation,
    /// (1 + sign(τ) R / Q) / 2
    Agreement,
    /// |τ| / (|τ| + |R|)
    Tall,
}

impl Score {
    /// Whether the score looks at other tasks, so that it needs two models.
    pub fn is_relational(self) -> bool {
        matches!(self, Score::Deviation | Score::Agreement | Score::Tall)
    }
}

/// What a stage keeps or prunes as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// All tensors of one transformer block.
    Layer,
    /// One tensor.
    Tensor,
    /// One output neuron: an index along dimension 0.
    Row,
    /// One input feature: an index along dimension 1.
    Column,
    /// One element.
    Element,
}

/// Norm that a stage restores inside a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescale {
    /// None.
    None,
    /// Σ |τ|
    L1,
    /// (Σ τ²)^½
    L2,
}

/// k largest of n: none for 0, all for 1, else max(1, ⌊share · n⌋).
pub fn kept_of(share: f64, n: u64) -> u64 {
    if share <= 0.0 || n == 0 {
        0
    } else if share >= 1.0 {
        n
    } else {
        ((share * n as f64) as u64).clamp(1, n)
    }
}
