//! Vectors of a tensor along one of its dimensions, each of which may have numbers of its own.

/// Which vectors a [`Fit`](super::Fit) finds numbers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Along {
    /// The tensor flattened.
    Whole,
    /// Each vector along the last dimension: the rows of a matrix.
    Last,
    /// Each vector along the first dimension: the columns of a matrix.
    First,
}

/// How a tensor falls into such vectors, its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lines {
    /// How many there are.
    pub count: u64,
    /// Elements of each.
    pub len: u64,
    /// Elements from one of a line to its next: 1, or [`Self::count`].
    pub stride: u64,
}

impl Lines {
    /// Of a tensor of this shape; one of fewer than two dimensions is one line.
    pub fn of(shape: &[u64], along: Along) -> Self {
        let n: u64 = shape.iter().product();
        match (along, shape) {
            (Along::Whole, _) | (_, [] | [_]) => Self { count: n.min(1), len: n, stride: 1 },
            (Along::Last, [.., len]) => Self { count: n.checked_div(*len).unwrap_or_default(), len: *len, stride: 1 },
            (Along::First, [len, ..]) => {
                let count = n.checked_div(*len).unwrap_or_default();
                Self { count, len: *len, stride: count.max(1) }
            }
        }
    }

    /// Whether the elements of a line follow each other.
    pub fn is_contiguous(&self) -> bool {
        self.stride == 1
    }

    /// The line that an element of the tensor is in.
    pub fn line_of(&self, element: u64) -> u64 {
        if self.is_contiguous() { element / self.len.max(1) } else { element % self.stride }
    }
}

/// What each line of a model's vector is multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub struct LineWeights {
    /// The lines.
    pub lines: Lines,
    /// By model and line.
    pub weights: Vec<Vec<f64>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_one_line() {
        for shape in [&[][..], &[7], &[1, 5], &[5, 1], &[4, 3], &[4, 3, 2], &[2, 3, 1, 5]] {
            for along in [Along::Whole, Along::Last, Along::First] {
                let (lines, n) = (Lines::of(shape, along), shape.iter().product::<u64>());
                assert_eq!(lines.count * lines.len, n);
                let mut counts = vec![0; lines.count as usize];
                (0..n).for_each(|e| counts[lines.line_of(e) as usize] += 1);
                assert!(counts.iter().all(|count| *count == lines.len), "{shape:?} {along:?}");
            }
        }
        let last = Lines::of(&[4, 3, 2], Along::Last);
        assert_eq!((last.count, last.line_of(5), last.line_of(6)), (12, 2, 3));
        let first = Lines::of(&[4, 3, 2], Along::First);
        assert_eq!((first.count, first.line_of(5), first.line_of(6)), (6, 5, 0));
        assert_eq!(Lines::of(&[0, 3], Along::Last), Lines { count: 0, len: 3, stride: 1 });
        assert_eq!(Lines::of(&[3, 0], Along::Last).count, 0);
    }
}
