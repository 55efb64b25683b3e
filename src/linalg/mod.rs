//! Dense linear algebra on the CPU: a thin layer over faer, single-threaded so that a result does not depend on threads.

mod memory;
pub mod polar;
mod reduction;
mod sweep;
pub mod symmetric;
pub mod tridiagonal;
pub mod triples;
