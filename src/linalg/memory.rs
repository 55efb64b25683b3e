//! What is said when memory for a decomposition cannot be had.

use crate::error::Error;

/// For `what` of an n×n matrix.
pub(super) fn missing(what: &str, n: usize, bytes: usize) -> Error {
    Error::environment(format!("out of memory for the {what} of a {n}×{n} matrix ({bytes} bytes)"))
        .because(crate::Cause::Memory)
}
