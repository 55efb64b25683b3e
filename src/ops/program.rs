//! How a tensor of the output comes about, as data.

use super::{LowRank, Prune};

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
