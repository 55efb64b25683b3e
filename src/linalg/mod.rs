//! Dense linear algebra on the CPU: a thin layer over faer, single-threaded so that a result does not depend on threads.

pub mod eigen;
