//! A matrix in panels, so that no task vector is held whole.

use faer::MatRef;

/// Elements of a panel, about: a function of nothing but this constant and the shape, so that results depend on neither
/// threads nor budget.
const PANEL_ELEMS: usize = 1 << 20;
/// Least and greatest depth of a product with a panel.
const DEPTH: std::ops::RangeInclusive<usize> = 64..=512;

/// An m×n matrix. Its task vectors are seen as r×long matrices, r = min(m, n): transposed where m > n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
}

/// Rows and columns of a panel.
#[derive(Debug, Clone, Copy)]
pub struct Panel {
    pub row: usize,
    pub rows: usize,
    pub column: usize,
    pub columns: usize,
}

impl Panel {
    pub fn elems(self) -> usize {
        self.rows * self.columns
    }

    /// Its values, row-major, as a matrix.
    pub fn matrix<T>(self, values: &[T]) -> MatRef<'_, T> {
        MatRef::from_row_major_slice(&values[..self.elems()], self.rows, self.columns)
    }
}

impl Shape {
    /// m ≤ n.
    pub fn is_wide(self) -> bool {
        self.m <= self.n
    }

    /// r = min(m, n): the side of a Gram matrix.
    pub fn short(self) -> usize {
        self.m.min(self.n)
    }

    /// max(m, n)
    pub fn long(self) -> usize {
        self.m.max(self.n)
    }

    /// Columns (of a wide matrix) or rows (of a tall one) of a panel over the short side.
    pub fn depth(self) -> usize {
        (PANEL_ELEMS / self.short().max(1)).clamp(*DEPTH.start(), *DEPTH.end()).min(self.long())
    }

    /// Panels that span the short side, along the long one: each with its place there.
    pub fn across(self) -> impl Iterator<Item = (usize, Panel)> {
        (0..self.long()).step_by(self.depth().max(1)).map(move |at| {
            let len = self.depth().min(self.long() - at);
            let panel = if self.is_wide() {
                Panel { row: 0, rows: self.m, column: at, columns: len }
            } else {
                Panel { row: at, rows: len, column: 0, columns: self.n }
            };
            (at, panel)
        })
    }

    /// A panel's values, row-major, as r×depth.
    pub fn view<T>(self, panel: Panel, values: &[T]) -> MatRef<'_, T> {
        let matrix = panel.matrix(values);
        if self.is_wide() { matrix } else { matrix.transpose() }
    }

    /// Rows of a panel of whole rows.
    pub fn height(self) -> usize {
        (PANEL_ELEMS / 4 / self.n.max(1)).clamp(16, 512).min(self.m)
    }

    /// Panels of whole rows, in order.
    pub fn down(self) -> impl Iterator<Item = Panel> {
        (0..self.m).step_by(self.height().max(1)).map(move |row| Panel {
            row,
            rows: self.height().min(self.m - row),
            column: 0,
            columns: self.n,
        })
    }
}
