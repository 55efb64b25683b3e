//! Device memory by the plan: one allocation a device, made at the start, from which lanes lease what a step takes. What of
//! it holds the sources of a tensor stays filled between the tensor's steps, for as long as nobody needs the room.
//!
//! This module knows offsets and sizes alone, no driver; whoever leases a span has it to itself until the lease ends.
//! **Invariant:** a lane leases everything that a step takes at once and holds nothing while it waits, so that lanes cannot
//! wait for each other in a circle; they are served in the order in which they asked.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Spans begin at multiples of this: what wide loads and the libraries' matrices ask for.
pub const ALIGN_BYTES: u64 = 512;

/// A part of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins, in bytes from the pool's beginning: a multiple of [`ALIGN_BYTES`].
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// What a step has of the pool until it gives it back.
#[derive(Debug)]
pub struct Lease {
    /// The tensor whose sources lie in [`Self::sources`] and may stay there; `None` if nothing stays.
    pub tensor: Option<usize>,
    /// Spans for the sources, in the order in which they were asked for.
    pub sources: Vec<Span>,
    /// Whether an earlier step has filled [`Self::sources`].
    pub is_filled: bool,
    /// Spans for everything else.
    pub work: Vec<Span>,
}

/// The memory of one device.
#[derive(Debug)]
pub struct Pool {
    bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Free spans, by where they begin; neighbours are joined.
    free: BTreeMap<u64, u64>,
    /// Tensors whose sources are there.
    residents: HashMap<usize, Resident>,
    clock: u64,
    /// Leases that have not ended.
    leases: usize,
    /// Who waits, in order.
    queue: VecDeque<u64>,
    next: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct Resident {
    sources: Vec<Span>,
    is_leased: bool,
    /// When it was last leased.
    used: u64,
}

impl Pool {
    /// Of this many bytes.
    pub fn new(bytes: u64) -> Self {
        let free = BTreeMap::from([(0, bytes)]);
        let (residents, queue) = (HashMap::new(), VecDeque::new());
        let state = State { free, residents, clock: 0, leases: 0, queue, next: 0, is_closed: false };
        Self { bytes, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What spans of these sizes take.
    pub fn taken_by(sizes: impl IntoIterator<Item = u64>) -> u64 {
        sizes.into_iter().map(|bytes| bytes.max(1).next_multiple_of(ALIGN_BYTES)).sum()
    }

    /// Leases spans for the sources of a tensor and for other things, waiting until they are free; `None` if the pool is
    /// being closed, or could not hold them even if it were empty.
    ///
    /// With a tensor, sources that an earlier lease filled are found again.
    pub fn lease(&self, tensor: Option<usize>, sources: &[u64], work: &[u64]) -> Option<Lease> {
        if Self::taken_by(sources.iter().chain(work).copied()) > self.bytes {
            return None;
        }
        let mut state = self.lock();
        let ticket = state.next;
        state.next += 1;
        state.queue.push_back(ticket);
        loop {
            if state.is_closed {
                return None;
            }
            if state.queue.front() == Some(&ticket)
                && let Some(lease) = state.try_lease(tensor, sources, work)
            {
                state.queue.pop_front();
                state.leases += 1;
                drop(state);
                self.changed.notify_all();
                return Some(lease);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends a lease. `keep`: the sources are filled and may be wanted again.
    pub fn give_back(&self, lease: Lease, keep: bool) {
        let mut state = self.lock();
        state.leases -= 1;
        lease.work.into_iter().for_each(|span| state.release(span));
        match lease.tensor {
            Some(tensor) if keep => {
                if let Some(resident) = state.residents.get_mut(&tensor) {
                    resident.is_leased = false;
                }
            }
            Some(tensor) => {
                state.residents.remove(&tensor);
                lease.sources.into_iter().for_each(|span| state.release(span));
            }
            None => lease.sources.into_iter().for_each(|span| state.release(span)),
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Wakes whoever waits, with nothing.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn try_lease(&mut self, tensor: Option<usize>, sources: &[u64], work: &[u64]) -> Option<Lease> {
        self.clock += 1;
        let clock = self.clock;
        let known = tensor.and_then(|t| self.residents.get_mut(&t));
        if let Some(resident) = known {
            (resident.is_leased, resident.used) = (true, clock);
            let sources = resident.sources.clone();
            if let Some(work) = self.take_evicting(work) {
                return Some(Lease { tensor, sources, is_filled: true, work });
            }
            if let Some(resident) = tensor.and_then(|t| self.residents.get_mut(&t)) {
                resident.is_leased = false;
            }
            if self.leases > 0 {
                return None;
            }
            // Nobody else has anything: only where the sources lie is in the way, so they move.
        }
        let all: Vec<u64> = sources.iter().chain(work).copied().collect();
        let mut spans = self.take_evicting(&all)?;
        let work = spans.split_off(sources.len());
        if let Some(tensor) = tensor {
            let resident = Resident { sources: spans.clone(), is_leased: true, used: clock };
            self.residents.insert(tensor, resident);
        }
        Some(Lease { tensor, sources: spans, is_filled: false, work })
    }

    /// Spans of these sizes, all or none; tensors that nobody works on give way, the least recently used first.
    fn take_evicting(&mut self, sizes: &[u64]) -> Option<Vec<Span>> {
        loop {
            if let Some(spans) = self.take(sizes) {
                return Some(spans);
            }
            let idle = self.residents.iter().filter(|(_, r)| !r.is_leased);
            let oldest = idle.min_by_key(|(_, r)| r.used).map(|(tensor, _)| *tensor)?;
            let resident = self.residents.remove(&oldest)?;
            resident.sources.into_iter().for_each(|span| self.release(span));
        }
    }

    fn take(&mut self, sizes: &[u64]) -> Option<Vec<Span>> {
        let mut spans = Vec::with_capacity(sizes.len());
        for size in sizes {
            let bytes = (*size).max(1).next_multiple_of(ALIGN_BYTES);
            let Some((&offset, &room)) = self.free.iter().find(|(_, room)| **room >= bytes) else {
                spans.into_iter().for_each(|span| self.release(span));
                return None;
            };
            self.free.remove(&offset);
            if room > bytes {
                self.free.insert(offset + bytes, room - bytes);
            }
            spans.push(Span { offset, bytes: *size });
        }
        Some(spans)
    }

    fn release(&mut self, span: Span) {
        let (mut from, mut to) = (span.offset, span.offset + span.bytes.max(1).next_multiple_of(ALIGN_BYTES));
        if let Some(room) = self.free.remove(&to) {
            to += room;
        }
        let neighbour = self.free.range(..from).next_back().filter(|(at, room)| **at + **room == from);
        if let Some(before) = neighbour.map(|(at, _)| *at) {
            self.free.remove(&before);
            from = before;
        }
        self.free.insert(from, to - from);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const K: u64 = ALIGN_BYTES;

    fn free(pool: &Pool) -> Vec<(u64, u64)> {
        pool.lock().free.iter().map(|(a, b)| (*a, *b)).collect()
    }

    #[test]
    fn what_is_given_back_is_whole_again() {
        let pool = Pool::new(10 * K);
        for order in [[0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 0, 2]] {
            let mut leases: Vec<_> = (0..3).map(|_| pool.lease(None, &[K], &[1, 0])).collect();
            assert_eq!(free(&pool), [(9 * K, K)]);
            order.into_iter().for_each(|i: usize| pool.give_back(leases[i].take().unwrap(), false));
            assert_eq!(free(&pool), [(0, 10 * K)]);
        }
    }

    #[test]
    fn sources_stay_until_the_room_is_wanted_and_the_oldest_go_first() {
        let pool = Pool::new(4 * K);
        for tensor in 0..3 {
            let lease = pool.lease(Some(tensor), &[K], &[]).unwrap();
            assert!(!lease.is_filled);
            pool.give_back(lease, true);
        }
        let again = pool.lease(Some(0), &[K], &[K]).unwrap();
        assert!(again.is_filled);
        pool.give_back(again, true);
        // One is free; the room of one more will do.
        let other = pool.lease(Some(9), &[K, K], &[]).unwrap();
        pool.give_back(other, false);
        let kept: Vec<bool> = (0..3).map(|t| pool.lock().residents.contains_key(&t)).collect();
        assert_eq!(kept, [true, false, true]);
    }

    #[test]
    fn sources_that_are_in_the_way_of_their_own_step_move() {
        let pool = Pool::new(4 * K);
        let first = pool.lease(None, &[], &[K]).unwrap();
        let second = pool.lease(Some(1), &[K], &[]).unwrap();
        pool.give_back(first, false);
        pool.give_back(second, true);
        // Free: one, two; three together are had only once the sources have moved.
        let lease = pool.lease(Some(1), &[K], &[3 * K]).unwrap();
        assert!(!lease.is_filled);
        pool.give_back(lease, false);
        assert_eq!(free(&pool), [(0, 4 * K)]);
    }

    #[test]
    fn what_can_never_fit_is_refused_and_closing_ends_a_wait() {
        let pool = Pool::new(2 * K);
        assert!(pool.lease(None, &[K, K, 1], &[]).is_none());
        let held = pool.lease(None, &[2 * K], &[]).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.lease(None, &[1], &[]).is_none());
            pool.close();
            assert!(waiting.join().unwrap());
        });
        pool.give_back(held, false);
    }
}
