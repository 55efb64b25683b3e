//! What stages do to task vectors before a method combines them, as data.

use serde::Serialize;

/// One `lwptv` stage, resolved for a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rescale {
    /// None.
    None,
    /// Σ |τ|
    L1,
    /// (Σ τ²)^½
    L2,
}

/// ε of the `relative` score.
pub const RELATIVE_EPSILON: f64 = 1e-6;

/// Of n magnitudes in ascending order: how many lie below the band that `breadcrumbs` keeps, and how many it holds. Where the
/// `gamma` largest and those that are kept are more than all, fewer of the largest go.
pub fn band_of(density: f64, gamma: f64, n: u64) -> (u64, u64) {
    if density >= 1.0 {
        return (0, n);
    }
    let share = |share: f64| (share.max(0.0) * n as f64) as u64;
    let held = share(density).min(n);
    ((n - held).saturating_sub(share(gamma)), held)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_holds_its_share_and_lies_below_the_largest() {
        // (smallest that go, kept) of the rest the largest go: 2 of 100, 0 of 50 and of 1, as `int` cuts them.
        assert_eq!(band_of(0.9, 0.02, 100), (8, 90));
        assert_eq!(band_of(0.9, 0.01, 50), (5, 45));
        assert_eq!(band_of(0.9, 0.5, 10), (0, 9), "only one of the largest can go");
        assert_eq!(band_of(0.9, 0.01, 1), (1, 0), "a tensor of one element is lost");
        assert_eq!(band_of(1.0, 0.3, 7), (0, 7));
        assert_eq!(band_of(0.0, 0.3, 7), (5, 0));
        assert_eq!(band_of(0.5, 0.1, 0), (0, 0));
    }
}
