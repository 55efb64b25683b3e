//! Every operation of a merge on any two lanes ([`merganser::backend::contract`]), which must give the same bits: one body for
//! the CPU's instruction sets and for devices.

pub mod cases;
mod cuts;
mod merges;
mod passes;

pub use cuts::{cuts_are_the_kth_key, cuts_of_many_models_behind_stages};
pub use merges::{
    cuts_and_random_words, every_length, every_rule_and_type, numbers_that_are_none, sixty_four_models, stages_prune,
    weights_of_lines,
};
pub use passes::{norms_and_products, products_of_lines, scores_of_rows_and_columns};

use merganser::backend::contract::{Lane, Run};
use merganser::backend::cpu::prune::Sources;
use merganser::backend::cpu::stored::{Stored, Widen};
use merganser::dtype::{Dtype, DtypeExt};
use merganser::ops::{Geometry, Prune, StageState};

use crate::support::family::Rng;

/// An operation on two lanes.
pub type Body = fn(&mut dyn Lane, &mut dyn Lane);

/// All of them, by name.
pub const ALL: [(&str, Body); 12] = [
    ("every rule and type", every_rule_and_type),
    ("every length", every_length),
    ("64 models", sixty_four_models),
    ("cuts and random words", cuts_and_random_words),
    ("stages", stages_prune),
    ("NaN and infinities", numbers_that_are_none),
    ("the kth key", cuts_are_the_kth_key),
    ("cuts of many models", cuts_of_many_models_behind_stages),
    ("norms and products", norms_and_products),
    ("scores of rows and columns", scores_of_rows_and_columns),
    ("weights of lines", weights_of_lines),
    ("products of lines", products_of_lines),
];

/// Every type that is merged.
pub const DTYPES: [Dtype; 6] = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F8_E4M3, Dtype::F8_E5M2, Dtype::F64];
/// Lengths around the ends of vectors, warps and segments.
pub const LENGTHS: [usize; 8] = [1, 7, 8, 31, 33, 2047, 5000, 65_537];

/// Sources of one tensor: θ₀ first.
pub struct Family {
    pub stored: Vec<(Dtype, Vec<u8>)>,
    pub start: u64,
    pub len: usize,
}

impl Family {
    /// θ₀ and `models` fine-tunes of it, near it, with ties, zeros of both signs, subnormals and large numbers among them.
    pub fn new(seed: u64, dtypes: &[Dtype], models: usize, len: usize) -> Self {
        let mut rng = Rng(seed);
        let base: Vec<f64> = (0..len).map(|_| value(&mut rng)).collect();
        let of = |t: usize| dtypes[t % dtypes.len()];
        let mut stored = vec![(of(0), narrow(of(0), &base))];
        for t in 1..=models {
            let values: Vec<f64> = base.iter().map(|b| b + change(&mut rng)).collect();
            stored.push((of(t), narrow(of(t), &values)));
        }
        Self { stored, start: 0, len }
    }

    /// Puts numbers in place of some of a source's.
    pub fn set(&mut self, source: usize, at: usize, value: f64) {
        let (dtype, bytes) = &mut self.stored[source];
        let size = dtype.size_bytes().unwrap() as usize;
        bytes[at * size..(at + 1) * size].copy_from_slice(&narrow(*dtype, &[value]));
    }

    pub fn models(&self) -> usize {
        self.stored.len() - 1
    }

    pub fn wide(&self) -> bool {
        self.stored.iter().any(|(dtype, _)| *dtype == Dtype::F64)
    }

    /// Calls `take` with the sources of the whole run.
    pub fn sources<T>(&self, take: impl FnOnce(&Sources<'_>) -> T) -> T {
        let runs: Vec<Stored<'_>> = self.stored.iter().map(|(dtype, bytes)| Stored { dtype: *dtype, bytes }).collect();
        take(&Sources { base: Some(runs[0]), models: &runs[1..], start: self.start, len: self.len })
    }

    /// Calls `take` with the run behind these stages.
    pub fn run<T>(&self, geometry: Geometry, stages: &[(Prune, StageState)], take: impl FnOnce(&Run<'_>) -> T) -> T {
        self.sources(|sources| take(&Run { geometry, stages, sources, wide: self.wide() }))
    }
}

/// Values as stored bytes.
pub fn narrow(dtype: Dtype, values: &[f64]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.size_bytes().unwrap() as usize];
    f64::narrow(values, dtype, &mut bytes);
    bytes
}

/// Stored bytes as values.
pub fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let mut values = vec![0.0; bytes.len() / dtype.size_bytes().unwrap() as usize];
    Stored { dtype, bytes }.widen(0, &mut values);
    values
}

/// Fails at the first element whose bits differ; NaNs are equal.
#[track_caller]
pub fn assert_same(expected: &[f64], found: &[f64], what: &dyn std::fmt::Debug) {
    assert_eq!(expected.len(), found.len(), "{what:?}");
    for (i, (a, b)) in expected.iter().zip(found).enumerate() {
        let is_same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(is_same, "{what:?}: element {i} is {b:e} and not {a:e}");
    }
}

/// In −1..1.
pub fn unit(rng: &mut Rng) -> f64 {
    2.0 * rng.unit() - 1.0
}

fn value(rng: &mut Rng) -> f64 {
    match rng.bits() % 40 {
        0 => 0.0,
        1 => -0.0,
        2 => unit(rng) * 1e-42,
        3 => unit(rng) * 200.0,
        _ => unit(rng) * 0.1,
    }
}

fn change(rng: &mut Rng) -> f64 {
    match rng.bits() % 8 {
        0 | 1 => 0.0,
        2 => 0.015_625,
        3 => -0.015_625,
        4 => unit(rng) * 1e-3,
        _ => unit(rng) * 0.02,
    }
}
