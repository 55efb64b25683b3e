//! How fast matrices are multiplied, and the one path that is bound by that.

use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, Mat, Par};

use super::data::{Family, MODELS, Models};
use super::{Bench, Unit, rounds};
use crate::backend::cpu::low_rank::{self, ReadRuns};
use crate::backend::cpu::prune::{Scratch, Sources};
use crate::engine::Stop;
use crate::error::{Error, Result};
use crate::ops::{Centre, LowRank, MatrixRule, Rank};

/// Names of the limits.
pub(super) const F32: &str = "matrix product, f32";
const F64: &str = "matrix product, f64";

/// Longest side of matrices, and what sides are multiples of.
const LONGEST_PRODUCT: usize = 1024;
const LONGEST_TRUNCATION: usize = 768;
const STEP: usize = 32;

/// A square product on every thread at once, as the engine works on one matrix a thread.
pub(super) fn products(bench: &mut Bench<'_>) -> Result<()> {
    let threads = bench.settings.threads;
    // Three matrices a thread in f64.
    let side = side((bench.settings.size_bytes / 24) as usize / threads, LONGEST_PRODUCT);
    let work = (threads, Unit::Operations, 2.0 * threads as f64 * (side as f64).powi(3));
    bench.limit(F32, work, product::<f32>(side, threads, 1.0))?;
    bench.limit(F64, work, product::<f64>(side, threads, 1.0))
}

/// The longest side of a square matrix of at most `elems` elements.
pub(super) fn side(elems: usize, longest: usize) -> usize {
    (elems.isqrt() / STEP * STEP).clamp(STEP, longest)
}

fn product<T: ComplexField + Send + Sync>(side: usize, threads: usize, one: T) -> impl FnMut(&Stop) -> Result<f64> {
    let mut matrices: Vec<[Mat<T>; 3]> =
        (0..threads).map(|_| std::array::from_fn(|_| Mat::from_fn(side, side, |_, _| one.clone()))).collect();
    move |stop| {
        rounds::in_parallel(matrices.iter_mut().collect(), |[to, a, b]| {
            rounds::check(stop)?;
            matmul(to.as_mut(), Accum::Replace, a.as_ref(), b.as_ref(), one.clone(), Par::Seq);
            std::hint::black_box(to);
            Ok(())
        })
    }
}

/// CART of a matrix a thread: the low-rank parts of every centred model, rank ratio 0.08, and their sum.
pub(super) fn truncation(bench: &mut Bench<'_>) -> Result<()> {
    let threads = bench.settings.threads;
    let mut family = Family::within(bench.take_block()?, threads)?;
    let side = side(family.elems() / threads, LONGEST_TRUNCATION) as u64;
    let rule = MatrixRule::Truncate(Rank::Ratio(0.08));
    let work = LowRank { stages: Vec::new(), weights: vec![1.0; MODELS], centre: Centre::Average, rule, lambda: 2.0 };
    let operations = threads as f64 * low_rank::operations(&work, (side, side), false);
    let (models, _) = family.parts();
    bench.path("cart, rank ratio 0.08", F32, (Unit::Operations, operations), |stop| {
        rounds::in_parallel((0..threads).collect(), |thread| {
            let mut source = Matrix { models, first: (thread as u64 * side * side) as usize, stop };
            let (mut scratch, mut wide) = (Scratch::<f32>::new(MODELS), Scratch::<f64>::new(MODELS));
            let mut emit = |values: &[f64]| {
                std::hint::black_box(values);
                Ok(())
            };
            low_rank::merge(&work, (side, side), &[], &mut source, &mut scratch, &mut wide, &mut emit).map(drop)
        })
    })?;
    bench.block = family.into_block();
    Ok(())
}

/// A matrix that begins at some element of a family.
struct Matrix<'a> {
    models: Models<'a>,
    first: usize,
    stop: &'a Stop,
}

impl ReadRuns for Matrix<'_> {
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()> {
        rounds::check(self.stop)?;
        let at = usize::try_from(start).map_err(|_| Error::internal("a matrix beyond memory"))?;
        // Without stages the base is not read.
        self.models.with_run(self.first + at, len, |sources| take(&Sources { base: None, start, ..*sources }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_whole_steps_and_never_too_long() {
        assert_eq!([0, 1024, 4095, 4096, 1 << 40].map(|elems| side(elems, 768)), [STEP, 32, 32, 64, 768]);
    }
}
