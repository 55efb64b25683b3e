//! How far task vectors change the same elements, and the weights that follow from it: `ramplus_tl` (arXiv 2601.13572).

use super::Combine;

/// Weights of what one task vector alone changed, by how much else of it others changed too. An element is changed where its |τ| is
/// above [`Numbers::threshold`](super::rules::Numbers::threshold), or NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overlap {
    /// The weight is 1 + `share` · (shared elements / elements alone, at most `most`).
    pub share: f64,
    /// See there.
    pub most: f64,
}

/// Elements that a task vector changed: those that no other did, and the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// No other task vector changed these.
    pub alone: u64,
    /// Others changed these too.
    pub shared: u64,
}

impl Changes {
    /// Adds those of other elements.
    pub fn add(&mut self, other: &Self) {
        self.alone += other.alone;
        self.shared += other.shared;
    }
}

impl Overlap {
    /// Sets the weights, by model.
    pub fn settle(self, changes: &[Changes], combine: &mut Combine) {
        let least = combine.numbers.threshold;
        let weight = |of: &Changes| {
            let ratio = of.shared as f64 / (of.alone as f64).max(least);
            // Without anything alone there is nothing to weigh, and with a threshold of 0 no ratio.
            1.0 + self.share * if ratio.is_nan() { 0.0 } else { ratio.clamp(0.0, self.most) }
        };
        combine.weights = changes.iter().map(weight).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::rules::{Numbers, RuleId};

    #[test]
    fn the_more_is_shared_the_more_counts_what_is_not() {
        let numbers = Numbers { threshold: 1e-5, ..Numbers::default() };
        let mut combine = Combine::weighted(RuleId::Reinforced, vec![1.0; 4], numbers);
        let changes = [(100, 0), (100, 10), (100, 900), (0, 5)].map(|(alone, shared)| Changes { alone, shared });
        Overlap { share: 0.1, most: 0.2 }.settle(&changes, &mut combine);
        let expected = [1.0, 1.01, 1.02, 1.02];
        assert!(combine.weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{:?}", combine.weights);
    }

    #[test]
    fn a_model_that_changed_nothing_has_the_weight_1_whatever_the_threshold() {
        for threshold in [0.0, 1e-5] {
            let numbers = Numbers { threshold, ..Numbers::default() };
            let mut combine = Combine::weighted(RuleId::Reinforced, vec![1.0], numbers);
            Overlap { share: 0.1, most: 0.2 }.settle(&[Changes::default()], &mut combine);
            assert_eq!(combine.weights, [1.0]);
        }
    }
}
