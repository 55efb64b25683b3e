//! Compares two checkpoints tensor by tensor: streamed, in memory that does not grow with them, on many threads.
//!
//! **Invariant:** every sum is taken in an order that the tensor's shape alone fixes, so that a comparison says the same on
//! any number of threads.

mod elements;
mod stream;

use serde::{Serialize, Serializer};

use crate::checkpoint::{Checkpoint, Tensor};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::Result;
use elements::{Sums, power_near};
use stream::Pair;

/// What a comparison of A and B found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Comparison {
    /// A's path.
    pub a: String,
    /// B's path.
    pub b: String,
    /// Whether both have tensors of the same names and shapes, of dtypes that can be compared.
    pub same_layout: bool,
    /// Whether, beyond that, every dtype is the same and no element differs.
    pub identical: bool,
    /// Names of tensors that only A has.
    pub only_in_a: Vec<String>,
    /// Names of tensors that only B has.
    pub only_in_b: Vec<String>,
    /// Tensors that both have and that cannot be compared.
    pub mismatched: Vec<Mismatch>,
    /// Tensors that were compared, in A's order.
    pub tensors: Vec<TensorComparison>,
    /// All of these together.
    #[serde(rename = "totals")]
    pub total: Measures,
}

/// A tensor whose shapes differ, or whose dtypes have no values in common to compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mismatch {
    /// Its name.
    pub name: String,
    /// Its dtype in A.
    #[serde(serialize_with = "dtype_name")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub dtype_a: Dtype,
    /// Its dtype in B.
    #[serde(serialize_with = "dtype_name")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub dtype_b: Dtype,
    /// Its shape in A.
    pub shape_a: Vec<u64>,
    /// Its shape in B.
    pub shape_b: Vec<u64>,
}

/// One tensor that both have.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TensorComparison {
    /// Its name.
    pub name: String,
    /// Its dtype in A.
    #[serde(serialize_with = "dtype_name")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub dtype_a: Dtype,
    /// Its dtype in B.
    #[serde(serialize_with = "dtype_name")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub dtype_b: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// How its elements were compared.
    pub compared_as: Way,
    /// What was found.
    #[serde(flatten)]
    pub measures: Measures,
}

/// How elements are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Both widened to f64: exact but for 64-bit integers beside floats.
    Floats,
    /// As whole numbers, exactly.
    Integers,
    /// By their stored bits: types that have no arithmetic here.
    Bits,
}

/// What is measured of a tensor, or of all tensors together.
///
/// `max_difference`, `relative_error` and `cosine` are over tensors compared as floats; `None` (JSON null) where there are
/// none, where an element is NaN or infinite (the counts say so), and where the number itself is not defined.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Measures {
    /// Elements of each side.
    pub elements: u64,
    /// Elements whose values differ. NaN differs from everything, as no number tells how far.
    pub differing: u64,
    /// max |a − b|.
    pub max_difference: Option<f64>,
    /// ‖A − B‖_F / ‖A‖_F; 0 where both are all zeros, undefined where only A is.
    pub relative_error: Option<f64>,
    /// ⟨A, B⟩ / (‖A‖_F ‖B‖_F); undefined where one is all zeros.
    pub cosine: Option<f64>,
    /// NaN in A.
    pub nan_a: u64,
    /// NaN in B.
    pub nan_b: u64,
    /// Infinities in A.
    pub inf_a: u64,
    /// Infinities in B.
    pub inf_b: u64,
}

impl Measures {
    /// Elements of both sides that are NaN or infinite.
    pub fn nonfinite(&self) -> u64 {
        self.nan_a + self.nan_b + self.inf_a + self.inf_b
    }

    fn add_counts(&mut self, other: &Self) {
        self.elements += other.elements;
        self.differing += other.differing;
        self.nan_a += other.nan_a;
        self.nan_b += other.nan_b;
        self.inf_a += other.inf_a;
        self.inf_b += other.inf_b;
    }
}

fn dtype_name<S: Serializer>(dtype: &Dtype, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(dtype)
}

/// Compares `a` with `b` on up to `threads` threads; `progress` is told the number of bytes just read.
///
/// # Errors
/// `Input` if a file changes meanwhile, `Environment` if one cannot be read or a thread cannot be started.
pub fn compare(a: &Checkpoint, b: &Checkpoint, threads: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<Comparison> {
    let names_only_in = |one: &Checkpoint, other: &Checkpoint| -> Vec<String> {
        one.tensors().iter().filter(|t| other.get(&t.name).is_none()).map(|t| t.name.clone()).collect()
    };
    let (only_in_a, only_in_b) = (names_only_in(a, b), names_only_in(b, a));
    let (mut pairs, mut mismatched) = (Vec::new(), Vec::new());
    for left in a.tensors() {
        let Some(right) = b.get(&left.name) else { continue };
        match way(left, right) {
            Some(way) => pairs.push(Pair { a: (left, a.shard_of(left)), b: (right, b.shard_of(right)), way }),
            None => mismatched.push(Mismatch {
                name: left.name.clone(),
                dtype_a: left.dtype,
                dtype_b: right.dtype,
                shape_a: left.shape.clone(),
                shape_b: right.shape.clone(),
            }),
        }
    }
    let sums = stream::sums(&pairs, threads, progress)?;
    a.check_unchanged()?;
    b.check_unchanged()?;

    let total = total(&pairs, &sums);
    let tensors: Vec<TensorComparison> = pairs
        .iter()
        .zip(&sums)
        .map(|(pair, sums)| TensorComparison {
            name: pair.a.0.name.clone(),
            dtype_a: pair.a.0.dtype,
            dtype_b: pair.b.0.dtype,
            shape: pair.a.0.shape.clone(),
            compared_as: pair.way,
            measures: measures(pair, sums),
        })
        .collect();
    let same_layout = only_in_a.is_empty() && only_in_b.is_empty() && mismatched.is_empty();
    let same_dtypes = tensors.iter().all(|t| t.dtype_a == t.dtype_b);
    Ok(Comparison {
        a: a.path().display().to_string(),
        b: b.path().display().to_string(),
        same_layout,
        identical: same_layout && same_dtypes && total.differing == 0,
        only_in_a,
        only_in_b,
        mismatched,
        tensors,
        total,
    })
}

/// Bytes that comparing the two will read.
pub fn bytes_to_read(a: &Checkpoint, b: &Checkpoint) -> u64 {
    let both = a.tensors().iter().filter_map(|left| b.get(&left.name).map(|right| (left, right)));
    both.filter(|(left, right)| way(left, right).is_some()).map(|(left, right)| left.bytes + right.bytes).sum()
}

/// How two tensors of one name are compared; `None` where they cannot be.
fn way(a: &Tensor, b: &Tensor) -> Option<Way> {
    if a.shape != b.shape {
        return None;
    }
    let is_number = |dtype: Dtype| dtype.is_mergeable_float() || elements::is_integer(dtype);
    match (a.dtype, b.dtype) {
        (x, y) if elements::is_integer(x) && elements::is_integer(y) => Some(Way::Integers),
        (x, y) if is_number(x) && is_number(y) => Some(Way::Floats),
        (x, y) if x == y => Some(Way::Bits),
        _ => None,
    }
}

fn measures(pair: &Pair<'_>, sums: &Sums) -> Measures {
    let mut measures = Measures {
        elements: pair.a.0.elems,
        differing: sums.differing,
        nan_a: sums.nan_a,
        nan_b: sums.nan_b,
        inf_a: sums.inf_a,
        inf_b: sums.inf_b,
        ..Measures::default()
    };
    if is_measured(pair) && measures.nonfinite() == 0 {
        let [norm_a, _, norm_d] = sums.norms(power_near(sums.max_a.max(sums.max_b)));
        measures.max_difference = finite(sums.max_d);
        measures.relative_error = relative(norm_d, norm_a);
        measures.cosine = finite(sums.cosine()).map(|c| c.clamp(-1.0, 1.0));
    }
    measures
}

fn is_measured(pair: &Pair<'_>) -> bool {
    pair.way == Way::Floats && pair.a.0.elems > 0
}

fn relative(difference: f64, of: f64) -> Option<f64> {
    if difference == 0.0 { Some(0.0) } else { finite(difference / of) }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// All tensors as one vector.
fn total(pairs: &[Pair<'_>], sums: &[Sums]) -> Measures {
    let mut total = Measures::default();
    pairs.iter().zip(sums).for_each(|(pair, sums)| total.add_counts(&measures(pair, sums)));
    let measured: Vec<&Sums> = pairs.iter().zip(sums).filter(|(pair, _)| is_measured(pair)).map(|(_, s)| s).collect();
    if measured.is_empty() || total.nonfinite() > 0 {
        return total;
    }
    let max = |of: fn(&Sums) -> f64| measured.iter().map(|sums| of(sums)).fold(0.0, f64::max);
    let unit = power_near(max(|s| s.max_a).max(max(|s| s.max_b)));
    let mut all = [0.0_f64; 3];
    for norms in measured.iter().map(|sums| sums.norms(unit)) {
        // Norms, as their squares may be beyond f64 where they are not.
        all = std::array::from_fn(|i| all[i].hypot(norms[i]));
    }
    let [norm_a, norm_b, norm_d] = all;
    total.max_difference = finite(max(|s| s.max_d));
    total.relative_error = relative(norm_d, norm_a);
    let parts = measured.iter().map(|sums| {
        let [a, b, _] = sums.norms(unit);
        // A tensor of zeros, whose own cosine is not defined, adds nothing to the product.
        if a == 0.0 || b == 0.0 { 0.0 } else { sums.cosine() * (a / norm_a) * (b / norm_b) }
    });
    let cosine: f64 = parts.sum();
    total.cosine = (norm_a > 0.0 && norm_b > 0.0).then(|| cosine.clamp(-1.0, 1.0));
    total
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "compare/tests.rs"]
mod tests;
