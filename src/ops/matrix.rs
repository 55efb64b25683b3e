//! Merges of whole matrices by their singular vectors, as data.

use serde::Serialize;

use crate::ops::Prune;

/// A merge of one matrix: what task vectors are measured from, plus λ times what a rule makes of them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LowRank {
    /// Stages in front of the method, in order.
    pub stages: Vec<Prune>,
    /// Weights as given, by model; what is summed is scaled by w' (the weights scaled to mean 1).
    pub weights: Vec<f64>,
    /// What task vectors are measured from.
    pub centre: Centre,
    /// How the task vectors become one matrix.
    pub rule: MatrixRule,
    /// λ.
    pub lambda: f64,
}

impl LowRank {
    /// Whether θ₀ is read.
    pub fn reads_base(&self) -> bool {
        self.centre == Centre::Base || !self.stages.is_empty()
    }

    /// w'_t: the weights scaled to mean 1.
    pub fn scaled_weights(&self) -> Vec<f64> {
        let mean = self.weights.iter().sum::<f64>() / self.weights.len() as f64;
        self.weights.iter().map(|w| w / mean).collect()
    }
}

/// What was done to a matrix.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LowRankFacts {
    /// Singular triples kept, by model.
    pub rank: Vec<u64>,
    /// Σ_{i≤k} σ² / Σ σ², by model.
    pub energy: Vec<f64>,
    /// ‖A_t − L_t‖_F / ‖A_t‖_F, measured on what was summed, by model; of truncations only.
    pub residual: Vec<f64>,
    /// The arithmetic that the factors come from, `float32` (certified) or `float64`, by model; of truncations only.
    pub precision: Vec<&'static str>,
    /// What every singular value was set to; of isotropic merges only.
    pub singular_value: Option<f64>,
}

/// What the task vectors of a matrix merge are measured from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Centre {
    /// The weighted average of the models.
    Average,
    /// θ₀.
    Base,
}

/// How the task vectors A_t of a matrix become one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatrixRule {
    /// Σ w'_t SVD_k(A_t): CART and its uncentred control (arXiv 2412.12153).
    Truncate(Rank),
    /// The top ⌊min(m, n)/T⌋ singular triples of every w'_t A_t, their vectors orthonormalised together (arXiv 2412.00081).
    TaskSingular,
    /// mean(σ)·U Vᵀ of Σ w'_t A_t = U Σ Vᵀ (arXiv 2502.04959).
    Isotropic,
    /// The same of a common subspace and what each task has outside it (arXiv 2502.04959).
    CommonAndSpecific {
        /// Share of min(m, n) that the common subspace takes.
        common: f64,
    },
}

/// How many singular triples of a matrix are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rank {
    /// k = max(1, ⌊ratio · min(m, n)⌋).
    Ratio(f64),
    /// The least k ≥ 1 with Σ_{i≤k} σ² ≥ energy · Σ σ².
    Energy(f64),
    /// This many, at most min(m, n).
    Count(u64),
}

impl Rank {
    /// Most singular triples that this can keep of an m×n matrix.
    pub fn most(self, m: u64, n: u64) -> u64 {
        let r = m.min(n);
        match self {
            Rank::Ratio(ratio) => ((ratio * r as f64) as u64).clamp(1, r.max(1)).min(r),
            Rank::Count(k) => k.min(r),
            Rank::Energy(_) => r,
        }
    }

    /// Singular triples kept of an m×n matrix whose σ², descending, are `squares`.
    pub fn of(self, m: u64, n: u64, squares: &[f64]) -> u64 {
        let Rank::Energy(share) = self else { return self.most(m, n) };
        let total: f64 = squares.iter().sum();
        let mut sum = 0.0;
        let reached = squares.iter().position(|s| {
            sum += s;
            sum >= share * total
        });
        reached.map_or(squares.len(), |i| i + 1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energy_keeps_the_least_rank_that_reaches_it() {
        let squares = [4.0, 3.0, 2.0, 1.0];
        for (energy, rank) in [(1e-9, 1), (0.4, 1), (0.41, 2), (0.7, 2), (0.9, 3), (0.91, 4), (1.0, 4)] {
            assert_eq!(Rank::Energy(energy).of(4, 4, &squares), rank, "{energy}");
        }
        assert_eq!(Rank::Energy(0.5).of(4, 4, &[0.0; 4]), 1);
    }

    #[test]
    fn a_ratio_keeps_at_least_one_and_a_count_at_most_all() {
        assert_eq!([0.0, 0.08, 0.5, 1.0].map(|ratio| Rank::Ratio(ratio).most(30, 25)), [1, 2, 12, 25]);
        assert_eq!(
            (Rank::Count(99).most(30, 25), Rank::Count(3).most(30, 25), Rank::Ratio(0.5).most(0, 4)),
            (25, 3, 0)
        );
    }
}
