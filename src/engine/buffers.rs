//! The fixed pool of output buffers: what bounds how far computing runs ahead of writing.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Buffers of one capacity, allocated once.
#[derive(Debug)]
pub(super) struct Buffers {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    free: Vec<Vec<u8>>,
    closed: bool,
}

impl Buffers {
    pub fn new(count: usize, bytes: usize) -> Self {
        let free = (0..count).map(|_| Vec::with_capacity(bytes)).collect();
        Self { state: Mutex::new(State { free, closed: false }), freed: Condvar::new() }
    }

    /// An empty buffer, once one is free; `None` if the run is being stopped.
    pub fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(buffer) = state.free.pop() {
                return Some(buffer);
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.lock().free.push(buffer);
        self.freed.notify_one();
    }

    /// Wakes everyone who waits, with nothing.
    pub fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
