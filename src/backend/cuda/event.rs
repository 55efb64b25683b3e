//! Events without a clock: they order streams, and threads sleep on them. One with a clock makes the device note the time at
//! every record, and the bindings know no event that both sleeps and has none.
#![allow(unsafe_code)]

use std::ffi::c_uint;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, sys};

/// `CU_EVENT_BLOCKING_SYNC`: a thread that waits sleeps, instead of spinning.
const SLEEPS: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const NO_CLOCK: c_uint = 2;

/// An event of a context.
#[derive(Debug)]
pub struct Event {
    event: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: an event may be used by any thread to which its context is bound; every call below binds it.
unsafe impl Send for Event {}

impl Event {
    /// One for whose end threads may wait.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the context is current, and the pointer is to a live event's place.
        unsafe { sys::cuEventCreate(&raw mut event, SLEEPS | NO_CLOCK) }.result()?;
        Ok(Self { event, context: Arc::clone(context) })
    }

    /// Marks where a stream of the event's context has come.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self, stream: &CudaStream) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: event and stream are alive.
        unsafe { sys::cuEventRecord(self.event, stream.cu_stream()) }.result()
    }

    /// Has a stream wait, before what is enqueued from now on, for the last record.
    ///
    /// # Errors
    /// What the driver says.
    pub fn hold(&self, stream: &CudaStream) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: event and stream are alive; the driver knows no flag but 0.
        unsafe { sys::cuStreamWaitEvent(stream.cu_stream(), self.event, 0) }.result()
    }

    /// Waits for the last record; at once where there was none.
    ///
    /// # Errors
    /// What the driver says of the work before it.
    pub fn synchronize(&self) -> Result<(), DriverError> {
        self.context.bind_to_thread()?;
        // SAFETY: the event is alive.
        unsafe { sys::cuEventSynchronize(self.event) }.result()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // What a lost device says to this changes nothing.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made in `new`, destroyed here alone; the driver frees it once nothing waits for it any more.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}
