//! One lane of a device: a host thread's three streams and page-locked slots, and the events between them.
//!
//! Copies to the device go on the upload stream, kernels on the compute stream, copies back on the download stream. The host
//! waits for an event only before it touches a slot that a copy may still use, or a result. Offsets are of the pool; every
//! access is checked against the span that it names.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::cublas::{Operand, Sides};
use super::event::Event;
use super::gpu::Gpu;
use super::module::Kernels;
use super::pinned::Ring;
use super::pool::{Pool, Span};
use super::solver::Solver;
use super::{cusolver, error};
use crate::backend::device::LANE_SLOTS;
use crate::error::{Error, Result};

/// Page-locked memory of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneSizes {
    /// Bytes of a slot on the way to the device.
    pub up_bytes: u64,
    /// Bytes of a slot on the way back: a piece of the output.
    pub down_bytes: u64,
    /// Whether the lane decomposes matrices.
    pub solves: bool,
}

/// Buffers of a kind that are filled and emptied in turn: what [`Lane::computed`] counts to.
pub const TURNS: usize = 3;

/// NaN in every floating-point type, and no sensible index: what [`Lane::poison`] writes.
pub const POISON: u8 = 0xFF;

/// A lane.
#[derive(Debug)]
pub struct Lane {
    label: String,
    context: Arc<CudaContext>,
    upload: Arc<CudaStream>,
    compute: Arc<CudaStream>,
    download: Arc<CudaStream>,
    up: Ring,
    down: Ring,
    uploaded: Event,
    computed: Vec<Event>,
    fetched: Vec<Event>,
    idle: Event,
    solver: Option<Solver>,
}

/// A copy back that is under way.
#[derive(Debug)]
pub struct Fetch {
    slot: usize,
    bytes: usize,
}

impl Lane {
    pub(super) fn new(context: &Arc<CudaContext>, label: &str, sizes: LaneSizes) -> Result<Self> {
        let failed = |e| error::driver(label, "make streams, events and page-locked memory", e);
        let stream = || context.new_stream().map_err(failed);
        let event = || Event::new(context).map_err(failed);
        let ring = |slots, bytes: u64| Ring::new(context, slots, bytes.max(1) as usize).map_err(failed);
        let compute = stream()?;
        let solver = if sizes.solves { Some(Solver::new(&compute, label)?) } else { None };
        Ok(Self {
            label: label.to_owned(),
            context: Arc::clone(context),
            upload: stream()?,
            download: stream()?,
            compute,
            up: ring(LANE_SLOTS[0], sizes.up_bytes)?,
            down: ring(LANE_SLOTS[1], sizes.down_bytes)?,
            uploaded: event()?,
            computed: (0..TURNS).map(|_| event()).collect::<Result<_>>()?,
            fetched: (0..TURNS).map(|_| event()).collect::<Result<_>>()?,
            idle: event()?,
            solver,
        })
    }

    /// Makes the device's context this thread's.
    ///
    /// # Errors
    /// What the driver says.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| self.failed("be used by a thread", e))
    }

    /// The stream of kernels.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.compute
    }

    /// What multiplies and decomposes matrices on [`Self::stream`].
    ///
    /// # Errors
    /// `Internal` for a lane without one.
    pub fn solver(&mut self) -> Result<&mut Solver> {
        self.solver.as_mut().ok_or_else(|| Error::internal("this lane decomposes no matrices"))
    }

    /// Bytes that a copy to the device takes at a time.
    pub fn up_bytes(&self) -> usize {
        self.up.slot_bytes()
    }

    /// Bytes that a copy back takes at most.
    pub fn down_bytes(&self) -> usize {
        self.down.slot_bytes()
    }

    /// How many copies back may be under way.
    pub fn fetches(&self) -> usize {
        self.down.count()
    }

    fn failed(&self, doing: &str, error: DriverError) -> Error {
        error::driver(&self.label, doing, error)
    }

    /// Has `fill` write up to [`Self::up_bytes`] bytes into a slot, and enqueues their copy to `at` in `to`.
    ///
    /// # Errors
    /// Of `fill`, or what the driver says.
    pub fn put_with(
        &mut self,
        gpu: &Gpu,
        to: Span,
        at: u64,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let address = place(gpu, to, at, bytes as u64)?;
        if bytes > self.up.slot_bytes() {
            return Err(Error::internal("a copy is larger than its slot"));
        }
        let turn = self.up.turn();
        let slot = self.up.slot(turn);
        fill(slot.fill(bytes).map_err(|e| error::driver(&self.label, "copy to the device", e))?)?;
        // SAFETY: `place` checked that the span holds these bytes; the lease that the span is of ends only after
        // `Lane::finish`; of work that used it before, `wait_computed` or the end of an earlier lease has disposed.
        unsafe { slot.send(bytes, address, &self.upload) }
            .map_err(|e| error::driver(&self.label, "copy to the device", e))
    }

    /// Enqueues a copy of these bytes to `at` in `to`, slot by slot, and lets kernels that are launched from now on see them.
    ///
    /// # Errors
    /// What the driver says.
    pub fn put(&mut self, gpu: &Gpu, to: Span, at: u64, bytes: &[u8]) -> Result<()> {
        let size = self.up.slot_bytes().max(1);
        for (i, part) in bytes.chunks(size).enumerate() {
            self.put_with(gpu, to, at + (i * size) as u64, part.len(), &mut |slot| {
                slot.copy_from_slice(part);
                Ok(())
            })?;
        }
        self.uploaded()
    }

    /// Lets kernels that are launched from now on see what has been enqueued to be uploaded.
    ///
    /// # Errors
    /// What the driver says.
    pub fn uploaded(&mut self) -> Result<()> {
        let done = self.uploaded.record(&self.upload).and_then(|()| self.uploaded.hold(&self.compute));
        done.map_err(|e| self.failed("order a copy and a kernel", e))
    }

    /// Notes that the kernels launched so far are the users of buffer `turn` (below [`TURNS`]).
    ///
    /// # Errors
    /// What the driver says.
    pub fn computed(&mut self, turn: usize) -> Result<()> {
        self.computed[turn % TURNS].record(&self.compute).map_err(|e| self.failed("mark the end of a kernel", e))
    }

    /// Lets uploads from now on wait for the kernels that [`Self::computed`] noted last for this buffer.
    ///
    /// # Errors
    /// What the driver says.
    pub fn upload_after(&mut self, turn: usize) -> Result<()> {
        self.computed[turn % TURNS].hold(&self.upload).map_err(|e| self.failed("order a kernel and a copy", e))
    }

    /// Lets kernels from now on wait for the copies back that were made of buffer `turn`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn compute_after_fetch(&mut self, turn: usize) -> Result<()> {
        self.fetched[turn % TURNS].hold(&self.compute).map_err(|e| self.failed("order a copy and a kernel", e))
    }

    /// Fills spans that a lease has brought with [`POISON`], before whatever is enqueued from now on: so that a read of what was
    /// never written gives NaN and not what an earlier step left, which may look right. For debug builds.
    ///
    /// # Errors
    /// What the driver says.
    pub fn poison(&mut self, gpu: &Gpu, spans: &[Span]) -> Result<()> {
        for span in spans {
            place(gpu, *span, 0, span.bytes)?;
            // To the end of the room that the span takes, so that a read past it shows too.
            let bytes = Pool::taken_by([span.bytes]);
            // SAFETY: `place` checked that the span lies in the pool, which gives out whole multiples of its alignment; it is of
            // a lease of this lane, which began idle.
            unsafe {
                result::memset_d8_async(gpu.address(span.offset), POISON, bytes as usize, self.upload.cu_stream())
            }
            .map_err(|e| self.failed("clear memory", e))?;
        }
        self.uploaded()
    }

    /// Sets a span to zeros, after the kernels launched so far.
    ///
    /// # Errors
    /// What the driver says.
    pub fn clear(&mut self, gpu: &Gpu, span: Span) -> Result<()> {
        if span.bytes == 0 {
            return Ok(());
        }
        let address = place(gpu, span, 0, span.bytes)?;
        // SAFETY: the span is of a lease of this lane, so that nothing but this stream's work uses it.
        unsafe { result::memset_d8_async(address, 0, span.bytes as usize, self.compute.cu_stream()) }
            .map_err(|e| self.failed("clear memory", e))
    }

    /// Enqueues a copy back of what the kernels launched so far leave at `at` in `from`, as buffer `turn`'s; at most
    /// [`Self::fetches`] may be under way, and a slot is reused in turn.
    ///
    /// # Errors
    /// What the driver says.
    pub fn fetch(&mut self, gpu: &Gpu, from: Span, at: u64, bytes: usize, turn: usize) -> Result<Fetch> {
        let address = place(gpu, from, at, bytes as u64)?;
        if bytes > self.down.slot_bytes() {
            return Err(Error::internal("a copy back is larger than its slot"));
        }
        self.computed(turn)?;
        let slot = self.down.turn();
        let enqueued = self.computed[turn % TURNS].hold(&self.download).and_then(|()| {
            // SAFETY: `place` checked the span; the download stream waits for the kernels that write it, and kernels that
            // write it again wait for `fetched`.
            unsafe { self.down.slot(slot).fetch(bytes, address, &self.download) }?;
            self.fetched[turn % TURNS].record(&self.download)
        });
        enqueued.map_err(|e| self.failed("copy from the device", e))?;
        Ok(Fetch { slot, bytes })
    }

    /// What a copy back brought, once it has ended.
    ///
    /// # Errors
    /// What the driver says.
    pub fn fetched(&mut self, fetch: &Fetch) -> Result<&[u8]> {
        let label = &self.label;
        self.down.slot(fetch.slot).read(fetch.bytes).map_err(|e| error::driver(label, "copy from the device", e))
    }

    /// Copies back into `to` what the kernels launched so far leave at `at` in `from`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn get(&mut self, gpu: &Gpu, from: Span, at: u64, to: &mut [u8]) -> Result<()> {
        let size = self.down.slot_bytes().max(1);
        for (i, part) in to.chunks_mut(size).enumerate() {
            let fetch = self.fetch(gpu, from, at + (i * size) as u64, part.len(), i)?;
            part.copy_from_slice(self.fetched(&fetch)?);
        }
        Ok(())
    }

    /// C ← A B, or C ← C + A B where `adds`, for every product of a batch, after the kernels launched so far.
    ///
    /// # Errors
    /// Operands outside the pool, or what cuBLAS says.
    pub fn multiply(&mut self, gpu: &Gpu, sides: Sides, a: Operand, b: Operand, c: Operand, adds: bool) -> Result<()> {
        self.product(gpu, sides, a, b, c, [1.0, if adds { 1.0 } else { 0.0 }])
    }

    /// C ← α A B + β C, for every product of a batch, after the kernels launched so far.
    ///
    /// # Errors
    /// Operands outside the pool, or what cuBLAS says.
    pub fn product(&mut self, gpu: &Gpu, sides: Sides, a: Operand, b: Operand, c: Operand, by: [f64; 2]) -> Result<()> {
        let Sides { m, n, k, batch } = sides;
        for (x, rows, columns) in [(a, m, k), (b, k, n), (c, m, n)] {
            let (rows, columns) = if x.is_transposed { (columns, rows) } else { (rows, columns) };
            let matrix = (columns.max(1) - 1) as u64 * x.ld as u64 + rows as u64;
            holds(gpu, x.ptr, 8 * (x.stride * (batch.max(1) as u64 - 1) + matrix))?;
            if x.ld < rows {
                return Err(Error::internal("columns of a matrix overlap"));
            }
        }
        // SAFETY: the operands lie in the pool, as was just checked, in spans that this lane has leased; what was uploaded to
        // them is ordered before this stream's work (`uploaded`).
        unsafe { self.solver()?.blas.product(sides, a, b, c, by) }
    }

    /// C ← Aᵀ, of a matrix A of `rows` and `columns`, after the kernels launched so far.
    ///
    /// # Errors
    /// Operands outside the pool, or what cuBLAS says.
    pub fn transpose(&mut self, gpu: &Gpu, (rows, columns): (usize, usize), a: Operand, c: Operand) -> Result<()> {
        for (x, rows, columns) in [(a, rows, columns), (c, columns, rows)] {
            holds(gpu, x.ptr, 8 * ((columns.max(1) - 1) as u64 * x.ld as u64 + rows as u64))?;
            if x.ld < rows {
                return Err(Error::internal("columns of a matrix overlap"));
            }
        }
        // SAFETY: as in `product`.
        unsafe { self.solver()?.blas.transpose((rows, columns), a, c) }
    }

    /// Decomposes `batch` symmetric matrices of side `n`, after the kernels launched so far. Waits for the decomposition before,
    /// where that is not done.
    ///
    /// # Errors
    /// Places outside the pool, or what cuSOLVER says.
    pub fn decompose(&mut self, gpu: &Gpu, n: usize, batch: usize, at: cusolver::Place) -> Result<()> {
        let (side, count) = (n as u64, batch as u64);
        holds(gpu, at.matrices, 8 * side * side * count)?;
        holds(gpu, at.values, 8 * side * count)?;
        holds(gpu, at.info, 4 * count)?;
        holds(gpu, at.workspace, at.workspace_bytes)?;
        // SAFETY: the places lie in the pool, as was just checked, in spans that this lane has leased; `finish` waits for the
        // stream before the lane's handles go.
        unsafe { self.solver()?.eigen.decompose(n, batch, at) }
    }

    /// Singular values and vectors of a matrix of `rows` ≥ `columns`, as [`Self::decompose`] finds eigenvectors.
    ///
    /// # Errors
    /// Places outside the pool, or what cuSOLVER says.
    pub fn svd(&mut self, gpu: &Gpu, (rows, columns): (usize, usize), at: cusolver::SvdPlace) -> Result<()> {
        let (m, n) = (rows as u64, columns as u64);
        for (address, bytes) in
            [(at.matrix, 8 * m * n), (at.left, 8 * m * n), (at.right, 8 * n * n), (at.values, 8 * n)]
        {
            holds(gpu, address, bytes)?;
        }
        holds(gpu, at.info, 4)?;
        holds(gpu, at.workspace, at.workspace_bytes)?;
        // SAFETY: as in `decompose`.
        unsafe { self.solver()?.eigen.svd(rows, columns, at) }
    }

    /// Waits until the device has done everything that this lane has enqueued: only then may a lease end.
    ///
    /// # Errors
    /// What the driver says, also of what a kernel did.
    pub fn finish(&mut self) -> Result<()> {
        for stream in [&self.upload, &self.compute, &self.download] {
            let quiet = self.idle.record(stream).and_then(|()| self.idle.synchronize());
            quiet.map_err(|e| error::driver(&self.label, "finish its work", e))?;
        }
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The pool and the slots go next: nothing may be under way then. A lost device has nothing under way.
        let _ = self.finish();
    }
}

/// The address of `bytes` bytes at `at` in a span.
///
/// # Errors
/// `Internal` if the span does not hold them.
pub fn place(gpu: &Gpu, span: Span, at: u64, bytes: u64) -> Result<u64> {
    let end = at.checked_add(bytes).filter(|end| *end <= span.bytes);
    if end.is_none() || span.offset + span.bytes > gpu.pool().bytes() {
        return Err(Error::internal(format!(
            "bytes {at} to {at} + {bytes} of a span of {} on {}",
            span.bytes, gpu.label
        )));
    }
    Ok(gpu.address(span.offset + at))
}

/// Checks that the pool holds `bytes` bytes at an address.
fn holds(gpu: &Gpu, address: u64, bytes: u64) -> Result<()> {
    let (begin, size) = (gpu.address(0), gpu.pool().bytes());
    let is_inside = address >= begin && bytes <= size && address - begin <= size - bytes;
    if is_inside { Ok(()) } else { Err(Error::internal(format!("{bytes} bytes outside the pool of {}", gpu.label))) }
}

impl Gpu {
    /// Its kernels.
    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }
}
