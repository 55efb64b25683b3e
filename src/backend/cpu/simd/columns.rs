//! Sums of scores over columns.

use super::for_level;
use super::lanes::{Lanes, Source};

/// Models whose task vectors are held at once.
const MODELS: usize = 64;

/// Sources whose task vectors are scored.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Columns<'a> {
    base: Source<'a>,
    models: &'a [Source<'a>],
}

impl<'a> Columns<'a> {
    /// `None` for more models than the loop here takes.
    pub fn new(base: Source<'a>, models: &'a [Source<'a>]) -> Option<Self> {
        (models.len() <= MODELS).then_some(Self { base, models })
    }
}

for_level! {
    /// Adds |τ − mean over all tasks|, rounded to f32, of elements `at..at + n` (a multiple of [`super::STEP`]) to each
    /// model's totals from `first` on.
    fn add_column_deviations(columns: &Columns<'_>, at: usize, n: usize, totals: &mut [Vec<f64>], first: usize) -> () =
        add;
}

#[inline(always)]
fn add<L: Lanes>(l: L, columns: &Columns<'_>, at: usize, n: usize, totals: &mut [Vec<f64>], first: usize) {
    let Columns { base, models } = columns;
    let count = models.len() as f64;
    let mut changes = [l.splat(0.0); MODELS];
    for i in (0..n).step_by(L::N) {
        let b = base.load(l, at + i);
        let mut sum = l.wide_zero();
        for (model, change) in models.iter().zip(&mut changes) {
            *change = l.sub(model.load(l, at + i), b);
            sum = l.wide_add(sum, l.wide(*change));
        }
        let mean = l.wide_div(sum, count);
        for (totals, change) in totals.iter_mut().zip(&changes) {
            let score = l.narrow(l.wide_abs(l.wide_sub(l.wide(*change), mean)));
            let total = l.wide_add(l.wide_load(totals, first + i), l.wide(score));
            l.wide_store(total, totals, first + i);
        }
    }
}
