//! One round of a measurement: every thread does its part, and the last to end stops the clock.

use std::time::Instant;

use crate::engine::Stop;
use crate::error::{Error, Result};

/// An error once there is a wish to stop. Bodies ask at least every few megabytes.
pub(super) fn check(stop: &Stop) -> Result<()> {
    stop.error().map_or(Ok(()), Err)
}

/// Does `body` with each part on a thread of its own; seconds from the start of the first to the end of the last.
pub(super) fn in_parallel<T: Send>(parts: Vec<T>, body: impl Fn(T) -> Result<()> + Sync) -> Result<f64> {
    let body = &body;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            parts.into_iter().map(|part| std::thread::Builder::new().spawn_scoped(scope, move || body(part))).collect();
        threads.into_iter().try_for_each(|thread| {
            let thread = thread
                .map_err(|e| Error::environment(format!("cannot start a thread: {e}")).hint("give fewer --threads"))?;
            thread.join().map_err(|_| Error::internal("a measuring thread panicked"))?
        })
    })?;
    Ok(started.elapsed().as_secs_f64())
}

/// The middle of some numbers, or the mean of the two in the middle; NaN of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    (at(sorted.len().saturating_sub(1) / 2) + at(sorted.len() / 2)) / 2.0
}

/// `0..len` in at most `parts` ranges of whole `grain`s, the last of which may be cut.
pub(super) fn split(len: usize, parts: usize, grain: usize) -> Vec<std::ops::Range<usize>> {
    let grains = len.div_ceil(grain).div_ceil(parts.max(1)).max(1);
    (0..len).step_by(grains * grain).map(|start| start..(start + grains * grain).min(len)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once_and_begin_at_grains() {
        for (len, parts, grain) in [(0, 3, 8), (1, 3, 8), (100, 3, 8), (96, 4, 8), (7, 1000, 1)] {
            let ranges = split(len, parts, grain);
            assert!(ranges.len() <= parts && ranges.iter().all(|r| r.start.is_multiple_of(grain)));
            assert_eq!(ranges.into_iter().flatten().collect::<Vec<_>>(), (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!([median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 9.0]), median(&[5.0])], [2.0, 3.0, 5.0]);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_error_of_one_thread_is_the_rounds_error() {
        let result = in_parallel(vec![1, 2, 3], |n| if n == 2 { Err(Error::input("two")) } else { Ok(()) });
        assert_eq!(result.unwrap_err().to_string(), "two");
    }
}
