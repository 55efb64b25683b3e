//! cuBLAS: sums of two matrices, as far as a matrix's transpose needs them.

use std::ffi::c_int;

use crate::blas::{EXECUTION_FAILED, INVALID_VALUE, NOT_INITIALIZED, call, factor, invalid};
use crate::failures::Kind;
use crate::gemm::Matrix;
use crate::libraries::{self, operand};
use crate::rules;

/// C ← α Aᵀ, of m×n; what would be added must have a factor of 0.
#[unsafe(no_mangle)]
extern "C" fn cublasDgeam(
    handle: usize,
    op_a: c_int,
    op_b: c_int,
    m: c_int,
    n: c_int,
    alpha: *const f64,
    a: usize,
    lda: c_int,
    beta: *const f64,
    _b: usize,
    ldb: c_int,
    c: usize,
    ldc: c_int,
) -> c_int {
    call(|world| {
        let handle = libraries::find(world, handle).map_err(|_| NOT_INITIALIZED)?;
        let size = |x: c_int| usize::try_from(x).map_err(|_| INVALID_VALUE);
        let (m, n, lda, ldc, ldb) = (size(m)?, size(n)?, size(lda)?, size(ldc)?, size(ldb)?);
        let (alpha, beta) = (factor(alpha)?, factor(beta)?);
        if op_a == 0 || op_b == 0 || beta != 0.0 || lda < n.max(1) || ldb < n.max(1) || ldc < m.max(1) {
            return Err(INVALID_VALUE);
        }
        let (from, to) = (Matrix { at: a, leading: lda }, Matrix { at: c, leading: ldc });
        let (begin, end) = (from.extent(n, m, 8), to.extent(m, n, 8));
        operand(world, "A of a transpose", handle.device, a, begin).map_err(invalid)?;
        operand(world, "C of a transpose", handle.device, c, end).map_err(invalid)?;
        if a < c + end && c < a + begin {
            return Err(world.breaks(rules::TRANSPOSE_OVERLAP, "a transpose over its matrix").0);
        }
        if world.config.failures.strike(Kind::Blas) {
            return Err(EXECUTION_FAILED);
        }
        let stream = world.stream(handle.stream).map_err(|_| EXECUTION_FAILED)?;
        let run = move || {
            let rows: Vec<Vec<f64>> = (0..m).map(|row| from.column(row, n)).collect();
            for column in 0..n {
                let values: Vec<f64> = rows.iter().map(|row| alpha * row[column]).collect();
                to.set_column(column, &values);
            }
            Ok(())
        };
        libraries::enqueue(world, stream, run, to.ranges(m, n, 8));
        Ok(())
    })
}
