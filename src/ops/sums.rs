//! Partial sums of task vectors, and what scores they give layers and tensors.

use super::Score;

/// Sums over elements for one model; R is the sum of the other tasks' τ at an element.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Σ |τ|
    pub l1: f64,
    /// Σ τ²
    pub squares: f64,
    /// Σ (τ − τ̄)²
    pub deviation: f64,
    /// Σ τ R
    pub dot: f64,
    /// Σ R²
    pub rest: f64,
    /// Σ θ₀²
    pub base: f64,
}

impl Sums {
    /// Adds another part of the same layer or tensor.
    pub fn add(&mut self, other: &Sums) {
        self.l1 += other.l1;
        self.squares += other.squares;
        self.deviation += other.deviation;
        self.dot += other.dot;
        self.rest += other.rest;
        self.base += other.base;
    }

    /// The numbers, in the order of the fields.
    pub fn numbers(&self) -> [f64; 6] {
        [self.l1, self.squares, self.deviation, self.dot, self.rest, self.base]
    }

    /// From what [`Self::numbers`] gave.
    pub fn of([l1, squares, deviation, dot, rest, base]: [f64; 6]) -> Self {
        Self { l1, squares, deviation, dot, rest, base }
    }

    /// The form that a score takes for a whole layer or tensor of `elems` elements.
    pub fn score(&self, score: Score, elems: u64) -> f64 {
        let ratio = |a: f64, b: f64| if b == 0.0 { if a > 0.0 { f64::INFINITY } else { 0.0 } } else { (a / b).sqrt() };
        match score {
            Score::Magnitude => ratio(self.squares, elems as f64),
            Score::Relative => ratio(self.squares, self.base),
            Score::Deviation => ratio(self.deviation, self.base),
            Score::Agreement => {
                let norms = (self.squares * self.rest).sqrt();
                if norms == 0.0 { 0.5 } else { (1.0 + self.dot / norms) * 0.5 }
            }
            Score::Tall => {
                let (own, rest) = (self.squares.sqrt(), self.rest.sqrt());
                if own + rest == 0.0 { 0.0 } else { own / (own + rest) }
            }
        }
    }
}
