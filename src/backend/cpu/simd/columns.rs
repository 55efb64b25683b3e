//! Sums of scores over columns.

use super::for_level;
use super::lanes::{Lanes, Source};

/// Models whose task vectors are held at once.
const MODELS: usize = 64;
/// As many of them as most merges have.
const FEW: usize = 4;

/// Sources whose task vectors are scored.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Columns<'a> {
    base: Source<'a>,
    models: &'a [Source<'a>],
    row_elems: usize,
}

impl<'a> Columns<'a> {
    /// Of rows of so many elements. `None` for more models than the loop here takes.
    pub fn new(base: Source<'a>, models: &'a [Source<'a>], row_elems: u64) -> Option<Self> {
        let row_elems = usize::try_from(row_elems).ok()?;
        (models.len() <= MODELS).then_some(Self { base, models, row_elems })
    }
}

for_level! {
    /// Adds |τ − mean over all tasks|, rounded to f32, of elements `at..at + n` (a multiple of [`super::STEP`]) to each
    /// model's totals from `first` on. The same elements of the next row are asked for meanwhile.
    fn add_column_deviations(columns: &Columns<'_>, at: usize, n: usize, totals: &mut [Vec<f64>], first: usize) -> () =
        add;
}

#[inline(always)]
fn add<L: Lanes>(l: L, columns: &Columns<'_>, at: usize, n: usize, totals: &mut [Vec<f64>], first: usize) {
    if columns.models.len() <= FEW {
        add_held::<L, FEW>(l, columns, at, n, totals, first);
    } else {
        add_held::<L, MODELS>(l, columns, at, n, totals, first);
    }
}

#[inline(always)]
fn add_held<L: Lanes, const HELD: usize>(
    l: L,
    columns: &Columns<'_>,
    at: usize,
    n: usize,
    totals: &mut [Vec<f64>],
    first: usize,
) {
    let Columns { base, models, row_elems } = columns;
    let count = models.len() as f64;
    let mut changes = [l.wide_zero(); HELD];
    for i in (at..at + n).step_by(L::N) {
        let [b] = base.load::<L, 1, false>(l, i);
        base.prefetch::<L, 1, false>(l, i + row_elems);
        let mut sum = l.wide_zero();
        for (model, change) in models.iter().zip(&mut changes) {
            let [x] = model.load::<L, 1, false>(l, i);
            model.prefetch::<L, 1, false>(l, i + row_elems);
            *change = l.wide(l.sub(x, b));
            sum = l.wide_add(sum, *change);
        }
        let mean = l.wide_div(sum, count);
        let to = first + i - at;
        for (totals, change) in totals.iter_mut().zip(&changes) {
            let score = l.wide_rounded(l.wide_abs(l.wide_sub(*change, mean)));
            l.wide_store(l.wide_add(l.wide_load(totals, to), score), totals, to);
        }
    }
}
