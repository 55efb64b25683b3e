//! Threads that do the same work: each takes units until there is none.

/// Stack of one thread: everything of size is in buffers that are counted.
const STACK_BYTES: usize = 2 << 20;

/// Calls `work` on this thread and on up to `threads − 1` others, and returns when all have ended. Where a thread cannot be
/// started, which is logged, the others do its work: so `work` takes units from what all share.
pub(crate) fn together(threads: usize, work: impl Fn() + Sync) {
    let work = &work;
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let started = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
            if let Err(error) = started {
                tracing::warn!("cannot start as many threads as wanted: {error}");
                break;
            }
        }
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_unit_is_done_once_on_any_number_of_threads() {
        for threads in [0, 1, 2, 7] {
            let (next, sum) = (AtomicUsize::new(0), AtomicUsize::new(0));
            together(threads, || {
                loop {
                    let unit = next.fetch_add(1, Ordering::Relaxed);
                    if unit >= 1000 {
                        return;
                    }
                    sum.fetch_add(unit, Ordering::Relaxed);
                }
            });
            assert_eq!(sum.load(Ordering::Relaxed), 999 * 500);
        }
    }
}
