//! How the task vectors of a tensor stand to each other: products and signs of every pair, as they are added up.

use super::Sums;

/// Elements where neither of two vectors is 0 (or NaN), and those of them where their signs are equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signs {
    /// Both have a sign.
    pub both: u64,
    /// And the same.
    pub same: u64,
}

impl Signs {
    pub(crate) fn add(&mut self, other: Signs) {
        self.both += other.both;
        self.same += other.same;
    }

    /// The share of equal signs; `None` where no element has two.
    pub fn agreement(&self) -> Option<f64> {
        (self.both > 0).then(|| self.same as f64 / self.both as f64)
    }
}

/// Two task vectors.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pair {
    /// Σ τ_s τ_t
    pub dot: f64,
    /// Their signs.
    pub signs: Signs,
}

/// One task vector.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Task {
    /// Norms, and products with R, the sum of the other task vectors.
    pub sums: Sums,
    /// Its signs and those of R.
    pub others: Signs,
    /// Elements that are not 0.
    pub changed: u64,
    /// Elements that are NaN or infinite.
    pub nonfinite: u64,
}

/// What is measured of a segment, a tensor or a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Measures {
    /// By model.
    pub tasks: Vec<Task>,
    /// Pairs of models: (0, 1), (0, 2) …, (1, 2) ….
    pub pairs: Vec<Pair>,
}

impl Measures {
    /// Of no elements.
    pub fn new(models: usize) -> Self {
        Self { tasks: vec![Task::default(); models], pairs: vec![Pair::default(); pairs_of(models)] }
    }

    /// Adds the elements that follow.
    pub fn add(&mut self, next: &Self) {
        for (a, b) in self.tasks.iter_mut().zip(&next.tasks) {
            a.sums.add(&b.sums);
            a.others.add(b.others);
            a.changed += b.changed;
            a.nonfinite += b.nonfinite;
        }
        for (a, b) in self.pairs.iter_mut().zip(&next.pairs) {
            a.dot += b.dot;
            a.signs.add(b.signs);
        }
    }

    /// Two different models, in either order.
    pub fn pair(&self, s: usize, t: usize) -> Pair {
        let (s, t) = (s.min(t), s.max(t));
        // Rows of the triangle before s, and the place within it.
        self.pairs[s * (2 * self.tasks.len() - s - 1) / 2 + t - s - 1]
    }

    /// Bytes of the measures of this many models.
    pub fn bytes(models: usize) -> u64 {
        (size_of::<Self>() + models * size_of::<Task>() + pairs_of(models) * size_of::<Pair>()) as u64
    }
}

fn pairs_of(models: usize) -> usize {
    models * models.saturating_sub(1) / 2
}
