//! cuSOLVER as far as it is needed, in f64: all eigenvectors of symmetric matrices, of one or of several of one size; singular
//! value decompositions.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::cusolver::{result, sys};
use cudarc::driver::{CudaEvent, CudaStream, DriverError};

use super::error;
use super::pinned::waiting;
use crate::error::{Error, Result};

/// Most elements of a batch that `XsyevBatched` can count.
const MOST_BATCHED: u64 = (1 << 31) - 1;

/// A handle, bound to a stream.
#[derive(Debug)]
pub struct Eigen {
    handle: sys::cusolverDnHandle_t,
    params: sys::cusolverDnParams_t,
    label: String,
    /// Whether the library has `XsyevBatched`, which came with CUDA 12.6.
    has_batched: bool,
    // Handles are destroyed before the stream goes that they are bound to.
    stream: Arc<CudaStream>,
    /// The end of the last decomposition.
    done: CudaEvent,
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
        // SAFETY: it only tries to load libraries of these names.
        if !unsafe { sys::is_culib_present() } {
            return Err(super::cublas::missing("libcusolver"));
        }
        let done = stream.context().new_event(Some(waiting())).map_err(|e| error::driver(label, "make an event", e))?;
        let said = |doing: &'static str| move |e: result::CusolverError| failed(label, doing, e.0);
        let handle = result::dn_create().map_err(said("start"))?;
        let params = result::dn_create_params().map_err(said("make parameters"));
        let Ok(params) = params else {
            // SAFETY: the handle has just been made and goes nowhere else.
            let _ = unsafe { result::dn_destroy(handle) };
            return Err(params.map(|_| ()).err().unwrap_or_else(|| Error::internal("no parameters")));
        };
        // SAFETY: the library is loaded; symbols are looked up and not used.
        let has = |name: &[u8]| unsafe { sys::culib().get::<*const ()>(name) }.is_ok();
        let has_batched = has(b"cusolverDnXsyevBatched\0") && has(b"cusolverDnXsyevBatched_bufferSize\0");
        let (label_of, stream_of) = (label.to_owned(), Arc::clone(stream));
        let eigen = Self { handle, params, label: label_of, has_batched, stream: stream_of, done, host: Vec::new() };
        // SAFETY: the handle is live, and the stream is kept for longer.
        unsafe { result::dn_set_stream(handle, stream.cu_stream().cast()) }.map_err(said("take a stream"))?;
        Ok(eigen)
    }

    /// How many matrices of side `n` can be decomposed at once, of `wanted`.
    pub fn batch(&self, n: usize, wanted: usize) -> usize {
        let most = MOST_BATCHED / (n as u64).pow(2).max(1);
        if self.has_batched { wanted.min(most as usize).max(1) } else { 1 }
    }

    /// Bytes of the device's workspace for `batch` matrices of side `n`.
    ///
    /// # Errors
    /// What cuSOLVER says.
    pub fn workspace_bytes(&self, n: usize, batch: usize) -> Result<u64> {
        self.sizes(n, batch).map(|(device, _)| device as u64)
    }

    fn sizes(&self, n: usize, batch: usize) -> Result<(usize, usize)> {
        let (mut device, mut host) = (0usize, 0usize);
        let (jobz, uplo, real) = (VECTORS, LOWER, REAL);
        let (n, none) = (n as i64, std::ptr::null());
        // SAFETY: the handle and parameters are live; the sizes are asked for by shape, the matrices are not looked at.
        let status = unsafe {
            if batch > 1 {
                sys::cusolverDnXsyevBatched_bufferSize(
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
                sys::cusolverDnXsyevd_bufferSize(
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
        status.result().map_err(|e| failed(&self.label, "size a workspace", e.0))?;
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
            if batch > 1 {
                sys::cusolverDnXsyevBatched(
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
                sys::cusolverDnXsyevd(
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
    fn enqueued(&self, status: sys::cusolverStatus_t) -> Result<()> {
        let noted = self.done.record(&self.stream);
        status.result().map_err(|e| failed(&self.label, "decompose a matrix", e.0))?;
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
        let (mut device, mut host) = (0usize, 0usize);
        let (m, n, none) = (rows as i64, columns as i64, std::ptr::null());
        // SAFETY: the handle and parameters are live; the sizes are asked for by shape, the matrices are not looked at.
        let status = unsafe {
            sys::cusolverDnXgesvd_bufferSize(
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
        status.result().map_err(|e| failed(&self.label, "size a workspace", e.0))?;
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
        let pointer = |at: u64| at as *mut std::ffi::c_void;
        // SAFETY: of the places the caller promises; the host's part of the workspace is this handle's and large enough.
        let status = unsafe {
            sys::cusolverDnXgesvd(
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
const THIN: std::ffi::c_schar = b'S' as std::ffi::c_schar;
const VECTORS: sys::cusolverEigMode_t = sys::cusolverEigMode_t::CUSOLVER_EIG_MODE_VECTOR;
const LOWER: sys::cublasFillMode_t = sys::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER;
const REAL: sys::cudaDataType = sys::cudaDataType::CUDA_R_64F;

impl Drop for Eigen {
    fn drop(&mut self) {
        // SAFETY: both were made in `new` and are destroyed here alone. What it says changes nothing.
        let _ = unsafe { result::dn_destroy_params(self.params) };
        // SAFETY: see above.
        let _ = unsafe { result::dn_destroy(self.handle) };
    }
}

fn failed(label: &str, doing: &str, status: sys::cusolverStatus_t) -> Error {
    match status {
        sys::cusolverStatus_t::CUSOLVER_STATUS_ALLOC_FAILED => {
            error::out_of_memory(label, doing, "cuSOLVER found no memory")
        }
        _ => Error::environment(format!("cuSOLVER on {label} could not {doing}: {status:?}")),
    }
}
