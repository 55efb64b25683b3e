//! Matrix products, column-major, in plain loops.

/// An element of a matrix: `f32` or `f64`, computed as such.
pub trait Real:
    Copy + Send + 'static + std::ops::Add<Output = Self> + std::ops::Mul<Output = Self> + PartialEq
{
    /// 0.
    const ZERO: Self;
    /// Rounds to the type.
    fn from_f64(value: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
}

/// Where a matrix lies: an address and the distance of columns, in elements.
#[derive(Clone, Copy)]
pub struct Matrix {
    /// Address of the first element.
    pub at: usize,
    /// Elements from a column to the next.
    pub leading: usize,
}

impl Matrix {
    /// Bytes from the first element to the end of the last of `rows` × `columns`.
    pub fn extent(&self, rows: usize, columns: usize, element_bytes: usize) -> usize {
        if rows == 0 || columns == 0 { 0 } else { ((columns - 1) * self.leading + rows) * element_bytes }
    }

    /// The columns' memory: address, bytes.
    pub fn ranges(&self, rows: usize, columns: usize, element_bytes: usize) -> Vec<(usize, usize)> {
        if self.leading == rows {
            return vec![(self.at, rows * columns * element_bytes)];
        }
        (0..columns).map(|j| (self.at + j * self.leading * element_bytes, rows * element_bytes)).collect()
    }

    /// Reads a column.
    pub fn column<T: Real>(&self, column: usize, rows: usize) -> Vec<T> {
        let mut values = vec![T::ZERO; rows];
        let bytes = rows * size_of::<T>();
        crate::memory::copy(values.as_mut_ptr() as usize, self.at + column * self.leading * size_of::<T>(), bytes);
        values
    }

    /// Writes a column.
    pub fn set_column<T: Real>(&self, column: usize, values: &[T]) {
        let to = self.at + column * self.leading * size_of::<T>();
        crate::memory::copy(to, values.as_ptr() as usize, size_of_val(values));
    }

    /// The matrix as stored, or transposed, as columns one after another.
    fn packed<T: Real>(&self, transposed: bool, rows: usize, columns: usize) -> Vec<T> {
        if !transposed {
            return (0..columns).flat_map(|column| self.column(column, rows)).collect();
        }
        let mut values = vec![T::ZERO; rows * columns];
        for row in 0..rows {
            for (column, value) in self.column(row, columns).into_iter().enumerate() {
                values[column * rows + row] = value;
            }
        }
        values
    }
}

/// The shape and factors of C ← α op(A) op(B) + β C, with C of m × n and op(A) of m × k.
#[derive(Clone, Copy)]
pub struct Product<T> {
    /// Whether A and B are taken transposed.
    pub transposed: [bool; 2],
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// α.
    pub alpha: T,
    /// β. Where it is 0 C is not read.
    pub beta: T,
}

/// Sums of so many products are added up apart, as a blocked product does.
const BLOCK: usize = 128;

impl<T: Real> Product<T> {
    /// Computes the product.
    pub fn compute(&self, a: Matrix, b: Matrix, c: Matrix) {
        let (m, k) = (self.m, self.k);
        let left: Vec<T> = a.packed(self.transposed[0], m, k);
        let right: Vec<T> = b.packed(self.transposed[1], k, self.n);
        for column in 0..self.n {
            let mut whole = vec![T::ZERO; m];
            for from in (0..k).step_by(BLOCK) {
                let mut sums = vec![T::ZERO; m];
                for p in from..(from + BLOCK).min(k) {
                    let factor = right[column * k + p];
                    for (sum, value) in sums.iter_mut().zip(&left[p * m..(p + 1) * m]) {
                        *sum = *sum + *value * factor;
                    }
                }
                for (total, sum) in whole.iter_mut().zip(sums) {
                    *total = *total + sum;
                }
            }
            for value in &mut whole {
                *value = *value * self.alpha;
            }
            if self.beta != T::ZERO {
                for (value, old) in whole.iter_mut().zip(c.column::<T>(column, m)) {
                    *value = *value + self.beta * old;
                }
            }
            c.set_column(column, &whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_follows_its_transpositions_and_does_not_read_c_where_beta_is_zero() {
        // A = [[1, 2], [3, 4], [5, 6]], stored both ways; B = [[1, 0, 2], [0, 1, 3]].
        let (a, a_transposed) = ([1.0f64, 3.0, 5.0, 2.0, 4.0, 6.0], [1.0f64, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = [1.0f64, 0.0, 0.0, 1.0, 2.0, 3.0];
        for (transposed, data, leading) in [(false, &a, 3), (true, &a_transposed, 2)] {
            let mut c = [f64::NAN; 12];
            let product = Product { transposed: [transposed, false], m: 3, n: 3, k: 2, alpha: 2.0, beta: 0.0 };
            let at = |data: &[f64], leading| Matrix { at: data.as_ptr() as usize, leading };
            product.compute(at(data, leading), at(&b, 2), Matrix { at: c.as_mut_ptr() as usize, leading: 4 });
            assert_eq!([c[0], c[1], c[2]], [2.0, 6.0, 10.0]);
            assert_eq!([c[8], c[9], c[10]], [16.0, 36.0, 56.0]);
            assert!(c[3].is_nan());
        }
    }
}
