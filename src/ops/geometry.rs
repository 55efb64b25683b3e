//! Rows and columns of a tensor.

/// How the flat elements of a tensor fall into rows and columns.
///
/// A row is an index along dimension 0, a column one along dimension 1; of a tensor with fewer dimensions, both are its
/// elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Rows.
    pub rows: u64,
    /// Elements of a row.
    pub row_elems: u64,
    /// Columns.
    pub columns: u64,
    /// Consecutive elements that share row and column.
    pub inner: u64,
    /// Elements along the last dimension; 1 of a number.
    pub last: u64,
}

impl Geometry {
    /// Of a tensor of this shape.
    pub fn of(shape: &[u64]) -> Self {
        let n: u64 = shape.iter().product();
        let last = shape.last().copied().unwrap_or(1);
        match shape {
            [] | [_] => Self { rows: n, row_elems: 1, columns: n, inner: 1, last },
            [rows, columns, rest @ ..] => {
                let inner = rest.iter().product();
                Self { rows: *rows, row_elems: columns * inner, columns: *columns, inner, last }
            }
        }
    }

    /// Elements of a column.
    pub fn column_elems(&self) -> u64 {
        (self.rows * self.row_elems).checked_div(self.columns).unwrap_or_default()
    }
}
