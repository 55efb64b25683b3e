//! Units of work on many threads, their results taken in order.
//!
//! **Invariant:** whoever takes the results sees them in the order of the units, so that sums do not depend on threads; and
//! no more than a fixed number of results waits, so that memory does not depend on the models.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::backend::cpu::pairs::SignBits;
use crate::backend::cpu::prune::Scratch;
use crate::error::{Error, Result};
use crate::run::{Stop, together};

/// One thread's buffers.
#[derive(Debug)]
pub(super) struct Worker {
    pub narrow: Scratch<f32>,
    pub wide: Scratch<f64>,
    pub bits: SignBits,
    /// Sources that cannot be mapped are read into these.
    pub raw: Vec<Vec<u8>>,
    /// Counters of searches, made when the first search needs them.
    pub counts: Vec<Vec<u32>>,
}

/// Threads' buffers, kept from one pass to the next.
#[derive(Debug)]
pub(super) struct Pool {
    workers: Mutex<Vec<Worker>>,
    threads: usize,
}

/// Results that may wait for those before them, a thread.
pub(super) const RESULTS_AHEAD: usize = 2;

impl Pool {
    /// For this many threads and models.
    pub fn new(threads: usize, models: usize) -> Self {
        let worker = || Worker {
            narrow: Scratch::new(models),
            wide: Scratch::new(models),
            bits: SignBits::new(models),
            raw: vec![Vec::new(); models + 1],
            counts: Vec::new(),
        };
        Self { workers: Mutex::new((0..threads).map(|_| worker()).collect()), threads }
    }

    /// Does `work` for units `0..units`, and gives each result to `fold`, in order.
    ///
    /// # Errors
    /// The first error of either, and the signal that stops the run.
    pub fn in_order<R: Send>(
        &self,
        units: usize,
        stop: &Stop,
        work: impl Fn(usize, &mut Worker) -> Result<R> + Sync,
        fold: impl FnMut(usize, R) -> Result<()> + Send,
    ) -> Result<()> {
        let threads = self.threads.min(units);
        let state = State { next: 0, folded: 0, waiting: BTreeMap::new(), error: None, fold };
        let run =
            Run { units, ahead: RESULTS_AHEAD * threads, stop, state: Mutex::new(state), changed: Condvar::new() };
        let one = || {
            let Some(mut worker) = self.workers.lock().unwrap_or_else(PoisonError::into_inner).pop() else { return };
            let guard = StopOnPanic(&run);
            while let Some(unit) = run.take() {
                run.give(unit, work(unit, &mut worker));
            }
            std::mem::forget(guard);
            self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
        };
        together(threads, one);
        let state = run.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match state.error {
            Some(error) => Err(error),
            None if state.folded < units => Err(Error::internal("units of work were left undone")),
            None => Ok(()),
        }
    }
}

struct State<R, F> {
    /// The unit that is taken next.
    next: usize,
    /// Units whose results have been folded.
    folded: usize,
    waiting: BTreeMap<usize, R>,
    error: Option<Error>,
    fold: F,
}

struct Run<'a, R, F> {
    units: usize,
    ahead: usize,
    stop: &'a Stop,
    state: Mutex<State<R, F>>,
    changed: Condvar,
}

impl<R, F: FnMut(usize, R) -> Result<()>> Run<'_, R, F> {
    /// The next unit; `None` when there is none, or the run is over.
    fn take(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if state.error.is_none() {
                state.error = self.stop.error();
            }
            if state.error.is_some() || state.next == self.units {
                self.changed.notify_all();
                return None;
            }
            if state.next < state.folded + self.ahead {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give(&self, unit: usize, result: Result<R>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        match result {
            Ok(result) => drop(state.waiting.insert(unit, result)),
            Err(error) => drop(state.error.get_or_insert(error)),
        }
        while state.error.is_none()
            && let Some(result) = state.waiting.remove(&state.folded)
        {
            if let Err(error) = (state.fold)(state.folded, result) {
                state.error = Some(error);
            }
            state.folded += 1;
        }
        drop(guard);
        self.changed.notify_all();
    }
}

impl<R, F> Run<'_, R, F> {
    fn lock(&self) -> MutexGuard<'_, State<R, F>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the run if it is dropped, which only a panic makes happen: the others would wait for this thread for ever.
struct StopOnPanic<'a, 'b, R, F>(&'a Run<'b, R, F>);

impl<R, F> Drop for StopOnPanic<'_, '_, R, F> {
    fn drop(&mut self) {
        self.0.lock().error.get_or_insert_with(|| Error::internal("a thread panicked"));
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_finishes_first() {
        for threads in [1, 2, 7] {
            let pool = Pool::new(threads, 1);
            let mut seen = Vec::new();
            let work = |unit: usize, _: &mut Worker| {
                std::thread::sleep(std::time::Duration::from_micros((unit as u64 * 37) % 200));
                Ok(unit * unit)
            };
            pool.in_order(100, &Stop::default(), work, |unit, result| {
                seen.push((unit, result));
                Ok(())
            })
            .unwrap();
            assert_eq!(seen, (0..100).map(|i| (i, i * i)).collect::<Vec<_>>());
            assert_eq!(pool.workers.lock().unwrap().len(), threads);
        }
    }

    #[test]
    fn the_first_error_and_a_signal_end_a_run() {
        let pool = Pool::new(3, 1);
        let work = |unit: usize, _: &mut Worker| if unit == 5 { Err(Error::input("five")) } else { Ok(()) };
        let error = pool.in_order(1000, &Stop::default(), work, |_, ()| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "five");
        let error = pool.in_order(1000, &Stop::default(), |_, _| Ok(()), |_, ()| Err(Error::input("fold")));
        assert_eq!(error.unwrap_err().to_string(), "fold");
        let stop = Stop::default();
        let work = |unit: usize, _: &mut Worker| {
            if unit == 2 {
                stop.set(libc::SIGTERM);
            }
            Ok(())
        };
        let error = pool.in_order(1000, &stop, work, |_, ()| Ok(())).unwrap_err();
        assert_eq!((error.exit_code(), error.to_string()), (143, "stopped by SIGTERM".into()));
        pool.in_order(0, &Stop::default(), |_, _| Ok(()), |_, ()| Ok(())).unwrap();
    }

    #[test]
    fn a_panic_in_one_thread_leaves_no_other_waiting() {
        let pool = Pool::new(4, 1);
        let work = |unit: usize, _: &mut Worker| {
            assert_ne!(unit, 3, "planned");
            Ok(())
        };
        let run = || pool.in_order(1000, &Stop::default(), work, |_, ()| Ok(()));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
    }
}
