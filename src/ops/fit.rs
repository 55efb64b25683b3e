//! Numbers of a rule that follow from the lengths of the vectors that are combined, and from the angles between them.

use super::{Along, Combine};

/// How to find a rule's numbers from the products of a tensor's vectors.
#[derive(Debug, Clone)]
pub struct Fit {
    /// What it is called, in a plan and a manifest.
    pub name: &'static str,
    /// The vectors.
    pub of: Vectors,
    /// Whether they are whole tensors, or each vector along a dimension has numbers of its own; these are weights alone.
    pub along: Along,
    /// What the recipe says of it: its parameters, in an order of its own.
    pub parameters: Vec<f64>,
    /// Sets the numbers. Products are finite unless a source holds a NaN or an infinity, or a sum overflows. What the user
    /// should know of the tensor is returned: a clause that follows "so many tensors:".
    pub settle: fn(&Gram, &[f64], &mut Combine) -> Option<&'static str>,
}

impl PartialEq for Fit {
    fn eq(&self, other: &Self) -> bool {
        (self.name, self.of, self.along, &self.parameters) == (other.name, other.of, other.along, &other.parameters)
    }
}

/// Vectors whose products are taken, each a tensor flattened, or a line of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vectors {
    /// θ₀ where the rule reads it, then every θ_t.
    Parameters,
    /// Every τ_t, as stages leave it.
    TaskVectors,
    /// θ₀, then every τ_t as stages leave it.
    BaseAndTaskVectors,
}

/// The products of every two vectors, summed in f64 over a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    vectors: usize,
    /// (0, 0), (0, 1) …, (1, 1), (1, 2) ….
    products: Vec<f64>,
}

impl Gram {
    /// Of so many vectors, from [`Gram::len`] products.
    pub fn new(vectors: usize, products: Vec<f64>) -> Self {
        debug_assert_eq!(products.len(), Self::len(vectors));
        Self { vectors, products }
    }

    /// Products of so many vectors.
    pub const fn len(vectors: usize) -> usize {
        vectors * (vectors + 1) / 2
    }

    /// Pairs of vectors in the order of their products.
    pub fn pairs(vectors: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..vectors).flat_map(move |a| (a..vectors).map(move |b| (a, b)))
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// The product of two of them.
    pub fn product(&self, a: usize, b: usize) -> f64 {
        let (a, b) = (a.min(b), a.max(b));
        // Rows of the triangle before a, and the place within it.
        self.products[a * (2 * self.vectors - a + 1) / 2 + b - a]
    }

    /// Whether every product is a number: else there are no lengths and angles to go by.
    pub fn is_finite(&self) -> bool {
        self.products.iter().all(|p| p.is_finite())
    }

    /// The length of one.
    pub fn norm(&self, a: usize) -> f64 {
        self.product(a, a).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_found_where_they_were_put() {
        for vectors in 1..6 {
            let products: Vec<f64> = (0..Gram::len(vectors)).map(|i| i as f64).collect();
            let gram = Gram::new(vectors, products);
            for (i, (a, b)) in Gram::pairs(vectors).enumerate() {
                assert_eq!((gram.product(a, b), gram.product(b, a)), (i as f64, i as f64), "{a} {b} of {vectors}");
            }
        }
    }
}
