//! The fixed pool of output buffers: what bounds how far computing runs ahead of writing.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

use crate::error::{Error, Result};
use crate::output::direct_alignment;

/// Memory of a fixed capacity for one piece of an output.
///
/// Its content starts at an address with the same remainder, modulo [`direct_alignment`], as the piece's place in its
/// file, so that the kernel can take the whole pages of it to the disk without a copy.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: MmapMut,
    start: usize,
    len: usize,
}

impl Buffer {
    /// An empty buffer for up to this many bytes. The system zeroes its pages as they are first touched.
    fn new(bytes: usize) -> Result<Self> {
        let memory = MmapMut::map_anon(bytes + slack()).map_err(|e| {
            Error::environment(format!("cannot get {bytes} bytes of memory for what is to be written: {e}"))
                .because(crate::Cause::Memory)
                .hint("give a smaller --memory-budget, or free some memory")
        })?;
        // In huge pages, what is written directly is one run of memory for the disk, not hundreds of pages to be looked up.
        #[cfg(target_os = "linux")]
        if let Err(error) = memory.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no huge pages");
        }
        Ok(Self { memory, start: 0, len: 0 })
    }

    /// Empties it, for content that goes to this offset of a file.
    fn align(&mut self, offset: u64) {
        let alignment = direct_alignment();
        let wanted = (offset % alignment) as usize;
        let address = self.memory.as_ptr() as usize % alignment as usize;
        self.start = (wanted + alignment as usize - address) % alignment as usize;
        self.len = 0;
    }

    /// Sets the length, up to the capacity. New bytes hold whatever they held before: they are there to be written to.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.memory.len() - self.start, "longer than any piece");
        self.len = len;
    }

    /// Appends bytes, within the capacity.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let from = self.len;
        self.set_len(from + bytes.len());
        self[from..].copy_from_slice(bytes);
    }
}

/// What a buffer takes beside its content.
pub(super) fn slack() -> usize {
    direct_alignment() as usize
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Buffers of one capacity, allocated once.
#[derive(Debug)]
pub(super) struct Buffers {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    free: Vec<Buffer>,
    closed: bool,
}

impl Buffers {
    /// # Errors
    /// The system has no memory.
    pub fn new(count: usize, bytes: usize) -> Result<Self> {
        let free = (0..count).map(|_| Buffer::new(bytes)).collect::<Result<_>>()?;
        Ok(Self { state: Mutex::new(State { free, closed: false }), freed: Condvar::new() })
    }

    /// An empty buffer for content that goes to this offset of a file, once one is free; `None` if the run is being
    /// stopped.
    pub fn take(&self, offset: u64) -> Option<Buffer> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            // The one given back last is still in a cache.
            if let Some(mut buffer) = state.free.pop() {
                buffer.align(offset);
                return Some(buffer);
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn give_back(&self, buffer: Buffer) {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn content_starts_where_its_place_in_the_file_does_within_a_page() {
        let buffers = Buffers::new(1, 100).unwrap();
        for offset in [0, 1, 4096, 4097, 12_345, 65_535, u64::MAX] {
            let mut buffer = buffers.take(offset).unwrap();
            buffer.extend_from_slice(&[1; 60]);
            buffer.extend_from_slice(&[2; 40]);
            assert_eq!(buffer[..], [[1; 60].as_slice(), &[2; 40]].concat());
            assert_eq!(buffer.as_ptr() as u64 % direct_alignment(), offset % direct_alignment());
            buffers.give_back(buffer);
        }
    }

    #[test]
    fn whoever_waits_for_a_buffer_is_woken_when_the_run_stops() {
        let buffers = Buffers::new(0, 100).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| buffers.take(0).is_none());
            buffers.close();
            assert!(waiting.join().unwrap());
        });
    }
}
