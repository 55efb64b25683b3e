//! Page-locked host memory in slots that are filled, copied and filled again: what the bus reads and writes at full speed.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::event::Event;

/// Slots of one size, used in turn.
#[derive(Debug)]
pub struct Ring {
    slots: Vec<Slot>,
    next: usize,
}

/// One slot, and the event after which nothing touches it any more.
#[derive(Debug)]
pub struct Slot {
    ptr: *mut u8,
    bytes: usize,
    done: Event,
    is_busy: bool,
    context: Arc<CudaContext>,
}

// SAFETY: the pointer is to memory that this slot alone owns and frees; page-locked memory is any thread's.
unsafe impl Send for Slot {}

impl Slot {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DriverError> {
        let done = Event::new(context)?;
        // SAFETY: the context is current on this thread (`Event::new` made it so); the memory is freed in `drop` alone.
        let ptr = unsafe { result::malloc_host(bytes, 0) }?.cast::<u8>();
        // SAFETY: the driver gave `bytes` bytes at `ptr`; they are made defined before any slice of them exists.
        unsafe { ptr.write_bytes(0, bytes) };
        Ok(Self { ptr, bytes, done, is_busy: false, context: Arc::clone(context) })
    }

    /// Waits until no copy touches the slot.
    fn settle(&mut self) -> Result<(), DriverError> {
        if self.is_busy {
            self.done.synchronize()?;
            self.is_busy = false;
        }
        Ok(())
    }

    /// Its first bytes, to be written; waits until no copy touches them.
    ///
    /// # Errors
    /// What the driver says of the copy.
    pub fn fill(&mut self, bytes: usize) -> Result<&mut [u8], DriverError> {
        self.settle()?;
        let bytes = bytes.min(self.bytes);
        // SAFETY: the slot owns at least `bytes` initialised bytes at `ptr`, no copy is pending on them (`settle`), and the
        // borrow of `self` keeps everyone else away.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.ptr, bytes) })
    }

    /// Its first bytes, once the copy into them has ended.
    ///
    /// # Errors
    /// What the driver says of the copy.
    pub fn read(&mut self, bytes: usize) -> Result<&[u8], DriverError> {
        self.fill(bytes).map(|slice| &*slice)
    }

    /// Enqueues a copy of the slot's first bytes to the device.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// `to` must be `bytes` bytes of device memory of the stream's context that live until the stream has come past this copy,
    /// and that nothing not ordered before `stream`'s next work touches.
    pub unsafe fn send(&mut self, bytes: usize, to: sys::CUdeviceptr, stream: &CudaStream) -> Result<(), DriverError> {
        let bytes = bytes.min(self.bytes);
        // SAFETY: as in `fill`; shared, as the copy only reads.
        let slice = unsafe { std::slice::from_raw_parts(self.ptr, bytes) };
        // SAFETY: the slot lives and is not written until `done` (`settle`); of `to` the caller promises.
        unsafe { result::memcpy_htod_async(to, slice, stream.cu_stream()) }?;
        self.is_busy = true;
        self.done.record(stream)
    }

    /// Enqueues a copy of `bytes` bytes of the device into the slot.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// `from` must be `bytes` bytes of device memory of the stream's context, written by work that is ordered before
    /// `stream`'s next work, and alive until the stream has come past this copy.
    pub unsafe fn fetch(
        &mut self,
        bytes: usize,
        from: sys::CUdeviceptr,
        stream: &CudaStream,
    ) -> Result<(), DriverError> {
        self.settle()?;
        let bytes = bytes.min(self.bytes);
        // SAFETY: as in `fill`; nobody looks at the slot before `done` (`read`).
        let slice = unsafe { std::slice::from_raw_parts_mut(self.ptr, bytes) };
        // SAFETY: the slot lives until `done`; of `from` the caller promises.
        unsafe { result::memcpy_dtoh_async(slice, from, stream.cu_stream()) }?;
        self.is_busy = true;
        self.done.record(stream)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A copy that is still pending must not write into memory that is somebody else's by then.
        let quiet = self.context.bind_to_thread().and_then(|()| self.settle());
        if quiet.is_ok() {
            // SAFETY: allocated in `new`, freed here alone; no copy is pending.
            let _ = unsafe { result::free_host(self.ptr.cast()) };
        }
        // Of a lost device nothing is known: the memory is the process's until it ends, which is soon.
    }
}

impl Ring {
    /// So many slots of so many bytes.
    ///
    /// # Errors
    /// What the driver says, out of memory above all.
    pub fn new(context: &Arc<CudaContext>, slots: usize, bytes: usize) -> Result<Self, DriverError> {
        let slots = (0..slots).map(|_| Slot::new(context, bytes)).collect::<Result<_, _>>()?;
        Ok(Self { slots, next: 0 })
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.slots.first().map_or(0, |slot| slot.bytes)
    }

    /// How many slots.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// The next slot in turn.
    pub fn turn(&mut self) -> usize {
        let now = self.next;
        self.next = (now + 1) % self.slots.len().max(1);
        now
    }

    /// A slot by its place.
    pub fn slot(&mut self, at: usize) -> &mut Slot {
        &mut self.slots[at]
    }
}
