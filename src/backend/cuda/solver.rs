//! What a lane has for matrices: products and eigenvectors, on its compute stream.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::cublas::Blas;
use super::cusolver::Eigen;
use crate::error::Result;

/// cuBLAS and cuSOLVER, bound to one stream.
#[derive(Debug)]
pub struct Solver {
    // Handles go before the stream that they are bound to.
    /// Products.
    pub blas: Blas,
    /// Eigenvectors.
    pub eigen: Eigen,
    _stream: Arc<CudaStream>,
}

impl Solver {
    /// On this stream, whose context must be current.
    ///
    /// # Errors
    /// A library that is missing, or what it says.
    pub fn new(stream: &Arc<CudaStream>, label: &str) -> Result<Self> {
        Ok(Self { blas: Blas::new(stream, label)?, eigen: Eigen::new(stream, label)?, _stream: Arc::clone(stream) })
    }
}
