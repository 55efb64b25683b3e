//! How a tensor of the output comes about, as data.

use serde::Serialize;

use super::rules::{Numbers, RuleId};
use super::{Fit, LowRank, Overlap, Prune};

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

/// What is done for the size of a task vector of which elements were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Restore {
    /// Nothing.
    None,
    /// What is kept is multiplied by what gives the tensor the L1 norm back that it had.
    L1,
    /// What is kept is multiplied by one over the probability with which it was kept, or the share that is kept.
    Inverse,
}

/// What a method drops from each task vector before it combines them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Sparsify {
    /// Nothing.
    None,
    /// All but the `density` largest magnitudes of the tensor (ties at the cut are kept).
    TopK {
        /// Share kept, by model.
        density: Vec<f64>,
        /// What what is kept is multiplied by.
        restore: Restore,
        /// Whether the cut is one for all tensors of a model, not each tensor's own.
        whole_model: bool,
    },
    /// The smallest magnitudes of the tensor and the `gamma` largest, so that a share of `density` stays (see
    /// [`band_of`](super::band_of); ties at either cut are kept).
    Band {
        /// Share kept, by model.
        density: Vec<f64>,
        /// Share of the largest that goes, by model.
        gamma: Vec<f64>,
        /// What what is kept is multiplied by.
        restore: Restore,
    },
    /// Of every task vector the same elements: all but those where the models differ most ([`super::search::Ranked::Spread`]).
    Spread {
        /// Share kept of the elements where they differ at all; ties at the cut are kept.
        share: f64,
    },
    /// All elements but those whose magnitude times the divergence of their row ([`super::search::Ranked::Importance`]) is far above its median.
    Importance,
    /// Each element independently, with a probability by its rank among the magnitudes of its row, along the last dimension of more than
    /// one element; equal magnitudes by position.
    Ranked {
        /// Mean probability of keeping an element, by model; 1 or more keeps all, 0 nothing.
        density: Vec<f64>,
        /// The probabilities, by model.
        slopes: Vec<Slope>,
        /// What what is kept is multiplied by; [`Restore::Inverse`]: by one over each element's own probability.
        restore: Restore,
        /// Element keys of the Philox generator, by model.
        #[serde(skip)]
        keys: Vec<[u32; 2]>,
    },
    /// Each element independently with probability 1 − `density`.
    Random {
        /// Probability of keeping an element, by model.
        density: Vec<f64>,
        /// What what is kept is multiplied by.
        restore: Restore,
        /// Element keys of the Philox generator, by model.
        #[serde(skip)]
        keys: Vec<[u32; 2]>,
    },
}

/// The probability with which an element is kept by its rank in its row, in the order of magnitudes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Slope {
    /// Of the smallest of a row.
    pub least: f64,
    /// What the largest has more.
    pub rise: f64,
}

impl Slope {
    /// Of the element of this rank, from 0, of a row of `n`; both ways to it are exact where they are whole numbers of f64.
    pub fn at(self, rank: u64, n: u64) -> f64 {
        self.least + self.rise * rank as f64 / (n - 1).max(1) as f64
    }
}

impl Sparsify {
    /// Keys of magnitudes that must be found for each model before anything can be dropped.
    pub fn cuts(&self) -> usize {
        match self {
            Sparsify::None | Sparsify::Random { .. } | Sparsify::Ranked { .. } => 0,
            Sparsify::TopK { .. } | Sparsify::Spread { .. } => 1,
            Sparsify::Band { .. } => 2,
            // Three quartiles.
            Sparsify::Importance => 3,
        }
    }

    /// Whether the cuts are those of whole models.
    pub fn cuts_whole_models(&self) -> bool {
        matches!(self, Sparsify::TopK { whole_model: true, .. })
    }

    /// Whether the L1 norm of what is kept is measured, to be restored.
    pub fn restores_norm(&self) -> bool {
        match self {
            Sparsify::TopK { restore, .. }
            | Sparsify::Band { restore, .. }
            | Sparsify::Ranked { restore, .. }
            | Sparsify::Random { restore, .. } => *restore == Restore::L1,
            Sparsify::None | Sparsify::Spread { .. } | Sparsify::Importance => false,
        }
    }

    /// One over the share of a model's elements that is kept, where that is what they are multiplied by.
    pub fn inverse(&self, model: usize) -> Option<f64> {
        let (Sparsify::TopK { density, restore: Restore::Inverse, .. }
        | Sparsify::Band { density, restore: Restore::Inverse, .. }
        | Sparsify::Random { density, restore: Restore::Inverse, .. }) = self
        else {
            return None;
        };
        density.get(model).filter(|d| **d > 0.0 && **d < 1.0).map(|d| 1.0 / d)
    }
}

/// How parameters or task vectors become one: a rule, and its numbers for the tensor. Sums run in model order.
#[derive(Debug, Clone, PartialEq)]
pub struct Combine {
    /// The rule.
    pub rule: RuleId,
    /// Weights, by model; empty where the rule has none.
    pub weights: Vec<f64>,
    /// The rule's other numbers.
    pub numbers: Numbers,
    /// What of these follows from the vectors that are combined; `None` where all are known.
    pub fit: Option<Fit>,
    /// Weights that follow from what the task vectors change together; `None` where they are known.
    pub overlap: Option<Overlap>,
}

impl Combine {
    /// By a rule that has no weights.
    pub fn new(rule: RuleId, numbers: Numbers) -> Self {
        Self { rule, weights: Vec::new(), numbers, fit: None, overlap: None }
    }

    /// By a rule with weights.
    pub fn weighted(rule: RuleId, weights: Vec<f64>, numbers: Numbers) -> Self {
        Self { rule, weights, numbers, fit: None, overlap: None }
    }

    /// Σ w θ / divisor, over all models.
    pub fn average(weights: Vec<f64>, divisor: f64) -> Self {
        Self::weighted(RuleId::Average, weights, Numbers { divisor, ..Numbers::default() })
    }

    /// θ₀ + λ (Σ w τ) / divisor.
    pub fn sum(weights: Vec<f64>, divisor: f64, lambda: f64) -> Self {
        Self::weighted(RuleId::Sum, weights, Numbers { divisor, lambda, ..Numbers::default() })
    }

    /// The same, with numbers that `fit` measures.
    #[must_use]
    pub fn fitted(mut self, fit: Fit) -> Self {
        self.fit = Some(fit);
        self
    }

    /// Whether θ₀ is read.
    pub fn reads_base(&self) -> bool {
        self.rule.reads_base()
    }

    /// Whether it is one model's tensor as it is.
    pub fn is_copy(&self) -> bool {
        self.rule == RuleId::Average && self.weights == [1.0] && self.numbers.divisor == 1.0 && self.fit.is_none()
    }
}
