//! cuSOLVER as far as it is needed, in f64: all eigenvectors of symmetric matrices, of one or of several of one size; singular
//! value decompositions.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_schar, c_void};
use std::sync::Arc;

use cudarc::driver::{CudaStream, DriverError};

use super::error;
use super::event::Event;
use super::libraries::{self, Library, Name, functions};
use crate::error::{Error, Result};

type Handle = *mut c_void;
type Params = *mut c_void;
type Any = *mut c_void;
type Read = *const c_void;

functions! {
    /// What is called of cuSOLVER, by its manual.
    Functions {
        create: c"cusolverDnCreate" = fn(*mut Handle);
        destroy: c"cusolverDnDestroy" = fn(Handle);
        set_stream: c"cusolverDnSetStream" = fn(Handle, Any);
        create_params: c"cusolverDnCreateParams" = fn(*mut Params);
        destroy_params: c"cusolverDnDestroyParams" = fn(Params);
        eigen_size: c"cusolverDnXsyevd_bufferSize" = fn(
            Handle, Params, c_int, c_int, i64, c_int, Read, i64, c_int, Read, c_int, *mut usize, *mut usize,
        );
        eigen: c"cusolverDnXsyevd" = fn(
            Handle, Params, c_int, c_int, i64, c_int, Any, i64, c_int, Any, c_int, Any, usize, Any, usize, *mut c_int,
        );
        svd_size: c"cusolverDnXgesvd_bufferSize" = fn(
            Handle, Params, c_schar, c_schar, i64, i64, c_int, Read, i64, c_int, Read, c_int, Read, i64, c_int, Read, i64,
            c_int, *mut usize, *mut usize,
        );
        svd: c"cusolverDnXgesvd" = fn(
            Handle, Params, c_schar, c_schar, i64, i64, c_int, Any, i64, c_int, Any, c_int, Any, i64, c_int, Any, i64,
            c_int, Any, usize, Any, usize, *mut c_int,
        );
    }
}

functions! {
    /// What came with CUDA 12.6.
    Batched {
        size: c"cusolverDnXsyevBatched_bufferSize" = fn(
            Handle, Params, c_int, c_int, i64, c_int, Read, i64, c_int, Read, c_int, *mut usize, *mut usize, i64,
        );
        eigen: c"cusolverDnXsyevBatched" = fn(
            Handle, Params, c_int, c_int, i64, c_int, Any, i64, c_int, Any, c_int, Any, usize, Any, usize, *mut c_int, i64,
        );
    }
}

/// Most elements of a batch that `XsyevBatched` can count.
const MOST_BATCHED: u64 = (1 << 31) - 1;

/// A handle, bound to a stream.
#[derive(Debug)]
pub struct Eigen {
    handle: Handle,
    params: Params,
    functions: Functions,
    /// Where the library has them.
    batched: Option<Batched>,
    label: String,
    // Handles are destroyed before the stream goes that they are bound to.
    stream: Arc<CudaStream>,
    /// The end of the last decomposition.
    done: Event,
    /// The host's part of the workspace, which the library may use until the last decomposition is done.
    host: Vec<u8>,
}

// SAFETY: a handle may be used by any thread, one at a time: all uses take `&mut self`.
unsafe impl Send for Eigen {}

/// Where matrices are decomposed.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// n×n matrices, one after the other, of which the lower triangle is read; their eigenvectors, as columns, take their place.
    pub matrices: u64,
    /// n eigenvalues of each, ascending.
    pub values: u64,
    /// One `i32` a matrix: 0 where its decomposition converged.
    pub info: u64,
    /// Workspace of [`Eigen::workspace_bytes`].
    pub workspace: u64,
    /// Its bytes.
    pub workspace_bytes: u64,
}

/// Where a matrix is decomposed into singular values and vectors.
#[derive(Debug, Clone, Copy)]
pub struct SvdPlace {
    /// rows×columns, rows ≥ columns, columns one after the other; destroyed.
    pub matrix: u64,
    /// `columns` singular values, descending.
    pub values: u64,
    /// Left vectors, rows×columns.
    pub left: u64,
    /// Right vectors, transposed: columns×columns.
    pub right: u64,
    /// One `i32`: 0 where the decomposition converged.
    pub info: u64,
    /// Workspace of [`Eigen::svd_bytes`].
    pub workspace: u64,
    /// Its bytes.
    pub workspace_bytes: u64,
}

impl Eigen {
    /// Of this stream, whose context must be current.
    ///
    /// # Errors
    /// What cuSOLVER says.
    pub fn new(stream: &Arc<CudaStream>, label: &str) -> Result<Self> {
        let library: &Library = libraries::open(Name::Cusolver).map_err(super::cublas::missing)?;
        let (functions, batched) = (Functions::of(library)?, Batched::of(library).ok());
        let done = Event::new(stream.context()).map_err(|e| error::driver(label, "make an event", e))?;
        let (mut handle, none) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the pointer is to a live handle's place.
        said(label, "start", unsafe { (functions.create)(&mut handle) })?;
        let (label_of, stream_of) = (label.to_owned(), Arc::clone(stream));
        let mut eigen = Self {
            handle,
            params: none,
            functions,
            batched,
            label: label_of,
            stream: stream_of,
            done,
            host: Vec::new(),
        };
        // SAFETY: the pointer is to a live handle's place.
        let status = unsafe { (functions.create_params)(&mut eigen.params) };
        eigen.said("make parameters", status)?;
        // SAFETY: the handle is live, and the stream is kept for longer.
        eigen.said("take a stream", unsafe { (functions.set_stream)(handle, stream.cu_stream().cast()) })?;
        Ok(eigen)
    }

    fn said(&self, doing: &str, status: c_int) -> Result<()> {
        said(&self.label, doing, status)
    }

    /// How many matrices of side `n` can be decomposed at once, of `wanted`.
    pub fn batch(&self, n: usize, wanted: usize) -> usize {
        let most = MOST_BATCHED / (n as u64).pow(2).max(1);
        if self.batched.is_some() { wanted.min(most as usize).max(1) } else { 1 }
    }

    /// Bytes of the device's workspace for `batch` matrices of side `n`.
    ///
    /// # Errors
    /// What cuSOLVER says.
    pub fn workspace_bytes(&self, n: usize, batch: usize) -> Result<u64> {
        self.sizes(n, batch).map(|(device, _)| device as u64)
    }

    fn sizes(&self, n: usize, batch: usize) -> Result<(usize, usize)> {
        // A handle belongs to the device that was current when it was made.
        self.stream.context().bind_to_thread().map_err(|e| self.lost(e))?;
        let (mut device, mut host) = (0usize, 0usize);
        let (jobz, uplo, real) = (VECTORS, LOWER, REAL);
        let (n, none) = (n as i64, std::ptr::null());
        // SAFETY: the handle and parameters are live; the sizes are asked for by shape, the matrices are not looked at.
        let status = unsafe {
            if let Some(batched) = self.batched.filter(|_| batch > 1) {
                (batched.size)(
                    self.handle,
                    self.params,
                    jobz,
                    uplo,
                    n,
                    real,
                    none,
                    n,
                    real,
                    none,
                    real,
                    &mut device,
                    &mut host,
                    batch as i64,
                )
            } else {
                (self.functions.eigen_size)(
                    self.handle,
                    self.params,
                    jobz,
                    uplo,
                    n,
                    real,
                    none,
                    n,
                    real,
                    none,
                    real,
                    &mut device,
                    &mut host,
                )
            }
        };
        self.said("size a workspace", status)?;
        Ok((device, host))
    }

    /// Enqueues the decomposition of `batch` matrices of side `n`, as many as [`Self::batch`] allows, once the one before is
    /// done. The caller looks at the infos.
    ///
    /// # Errors
    /// What the driver or cuSOLVER says.
    ///
    /// # Safety
    /// The places must be device memory of the stream's context of the sizes that [`Place`] says, used by this stream's work
    /// alone, and the stream must be waited for before this is dropped.
    pub unsafe fn decompose(&mut self, n: usize, batch: usize, at: Place) -> Result<()> {
        let (device_bytes, host_bytes) = self.sizes(n, batch)?;
        if device_bytes as u64 > at.workspace_bytes || batch > self.batch(n, batch) {
            return Err(Error::internal(format!("a workspace of {} bytes, {device_bytes} needed", at.workspace_bytes)));
        }
        self.free_host(host_bytes)?;
        let (matrices, values, workspace) = (at.matrices as *mut _, at.values as *mut _, at.workspace as *mut _);
        let (host, info) = (self.host.as_mut_ptr().cast(), at.info as *mut i32);
        let (side, real) = (n as i64, REAL);
        // SAFETY: of the places the caller promises; the host's part of the workspace is this handle's and large enough.
        let status = unsafe {
            if let Some(batched) = self.batched.filter(|_| batch > 1) {
                (batched.eigen)(
                    self.handle,
                    self.params,
                    VECTORS,
                    LOWER,
                    side,
                    real,
                    matrices,
                    side,
                    real,
                    values,
                    real,
                    workspace,
                    device_bytes,
                    host,
                    host_bytes,
                    info,
                    batch as i64,
                )
            } else {
                (self.functions.eigen)(
                    self.handle,
                    self.params,
                    VECTORS,
                    LOWER,
                    side,
                    real,
                    matrices,
                    side,
                    real,
                    values,
                    real,
                    workspace,
                    device_bytes,
                    host,
                    host_bytes,
                    info,
                )
            }
        };
        self.enqueued(status)
    }
}

impl Eigen {
    /// Waits until the last decomposition has no more use of the host's part of the workspace, and makes that as large.
    fn free_host(&mut self, bytes: usize) -> Result<()> {
        self.done.synchronize().map_err(|e| self.lost(e))?;
        if self.host.len() < bytes {
            self.host.try_reserve_exact(bytes - self.host.len()).map_err(|_| {
                error::out_of_memory(&self.label, "decompose a matrix", &format!("no {bytes} bytes on the host"))
            })?;
            self.host.resize(bytes, 0);
        }
        Ok(())
    }

    /// Notes the end of a decomposition, of which something may be under way even where cuSOLVER says that it failed.
    fn enqueued(&self, status: c_int) -> Result<()> {
        let noted = self.done.record(&self.stream);
        self.said("decompose a matrix", status)?;
        noted.map_err(|e| self.lost(e))
    }

    fn lost(&self, error: DriverError) -> Error {
        error::driver(&self.label, "decompose a matrix", error)
    }

    /// Bytes of the device's workspace for the singular value decomposition of a matrix.
    ///
    /// # Errors
    /// What cuSOLVER says.
    pub fn svd_bytes(&self, rows: usize, columns: usize) -> Result<u64> {
        self.svd_sizes(rows, columns).map(|(device, _)| device as u64)
    }

    fn svd_sizes(&self, rows: usize, columns: usize) -> Result<(usize, usize)> {
        self.stream.context().bind_to_thread().map_err(|e| self.lost(e))?;
        let (mut device, mut host) = (0usize, 0usize);
        let (m, n, none) = (rows as i64, columns as i64, std::ptr::null());
        // SAFETY: the handle and parameters are live; the sizes are asked for by shape, the matrices are not looked at.
        let status = unsafe {
            (self.functions.svd_size)(
                self.handle,
                self.params,
                THIN,
                THIN,
                m,
                n,
                REAL,
                none,
                m,
                REAL,
                none,
                REAL,
                none,
                m,
                REAL,
                none,
                n,
                REAL,
                &mut device,
                &mut host,
            )
        };
        self.said("size a workspace", status)?;
        Ok((device, host))
    }

    /// Enqueues the decomposition of a matrix of at least as many rows as columns, once the one before is done. The caller
    /// looks at the info.
    ///
    /// # Errors
    /// What the driver or cuSOLVER says.
    ///
    /// # Safety
    /// As of [`Self::decompose`], of [`SvdPlace`].
    pub unsafe fn svd(&mut self, rows: usize, columns: usize, at: SvdPlace) -> Result<()> {
        let (device_bytes, host_bytes) = self.svd_sizes(rows, columns)?;
        if device_bytes as u64 > at.workspace_bytes || rows < columns {
            return Err(Error::internal(format!("a workspace of {} bytes, {device_bytes} needed", at.workspace_bytes)));
        }
        self.free_host(host_bytes)?;
        let (m, n) = (rows as i64, columns as i64);
        let pointer = |at: u64| at as Any;
        // SAFETY: of the places the caller promises; the host's part of the workspace is this handle's and large enough.
        let status = unsafe {
            (self.functions.svd)(
                self.handle,
                self.params,
                THIN,
                THIN,
                m,
                n,
                REAL,
                pointer(at.matrix),
                m,
                REAL,
                pointer(at.values),
                REAL,
                pointer(at.left),
                m,
                REAL,
                pointer(at.right),
                n,
                REAL,
                pointer(at.workspace),
                device_bytes,
                self.host.as_mut_ptr().cast(),
                host_bytes,
                at.info as *mut i32,
            )
        };
        self.enqueued(status)
    }
}

/// As many singular vectors as there are singular values.
const THIN: c_schar = b'S' as c_schar;
/// `CUSOLVER_EIG_MODE_VECTOR`.
const VECTORS: c_int = 1;
/// `CUBLAS_FILL_MODE_LOWER`.
const LOWER: c_int = 0;
/// `CUDA_R_64F`.
const REAL: c_int = 1;
/// `cusolverStatus_t`, by its number.
const STATUSES: [(c_int, &str); 9] = [
    (1, "NOT_INITIALIZED"),
    (2, "ALLOC_FAILED"),
    (3, "INVALID_VALUE"),
    (4, "ARCH_MISMATCH"),
    (5, "MAPPING_ERROR"),
    (6, "EXECUTION_FAILED"),
    (7, "INTERNAL_ERROR"),
    (8, "MATRIX_TYPE_NOT_SUPPORTED"),
    (9, "NOT_SUPPORTED"),
];
const ALLOC_FAILED: c_int = 2;

impl Drop for Eigen {
    fn drop(&mut self) {
        // SAFETY: both were made in `new` and are destroyed here alone. What it says changes nothing.
        unsafe {
            if !self.params.is_null() {
                let _ = (self.functions.destroy_params)(self.params);
            }
            let _ = (self.functions.destroy)(self.handle);
        }
    }
}

fn said(label: &str, doing: &str, status: c_int) -> Result<()> {
    match status {
        0 => Ok(()),
        ALLOC_FAILED => Err(error::out_of_memory(label, doing, "cuSOLVER found no memory")),
        _ => {
            let status = error::status("CUSOLVER_STATUS_", &STATUSES, status);
            Err(Error::device(format!("cuSOLVER on {label} could not {doing}: {status}")))
        }
    }
}
