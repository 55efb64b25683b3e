//! W = C + λ · left · right, element by element: sums over the rank run in order, in f64, neither fused nor reordered, so
//! that every processor and every cut into pieces gives the same bits.

use multiversion::multiversion;

/// Numbers of the right factor held at once: what stays in a core's cache.
const TILE_ELEMS: usize = 1 << 17;
/// Fewest and most columns of a tile.
const TILE_COLUMNS: std::ops::RangeInclusive<usize> = 64..=2048;

/// Columns worked on at once for a rank.
pub(super) fn tile_columns(rank: usize) -> usize {
    (TILE_ELEMS / rank.max(1)).clamp(*TILE_COLUMNS.start(), *TILE_COLUMNS.end())
}

/// sum[c] ← Σ_j left[j] · right[j·columns + c], for the columns of one row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn product(left: &[f64], right: &[f64], sum: &mut [f64]) {
    let columns = sum.len();
    sum.fill(0.0);
    let (fours, rest) = left.as_chunks::<4>();
    // Four terms at a time, added in order: the bits are those of one at a time, and the sums are stored a quarter as often.
    for (l, rows) in fours.iter().zip(right.chunks_exact(4 * columns)) {
        let (a, rows) = rows.split_at(columns);
        let (b, rows) = rows.split_at(columns);
        let (c, d) = rows.split_at(columns);
        for ((((s, a), b), c), d) in sum.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *s = (((*s + l[0] * a) + l[1] * b) + l[2] * c) + l[3] * d;
        }
    }
    for (l, row) in rest.iter().zip(right[4 * fours.len() * columns..].chunks_exact(columns)) {
        for (s, r) in sum.iter_mut().zip(row) {
            *s += l * r;
        }
    }
}

/// values ← values + λ·sum; what has nothing added stays what it is (also a negative zero).
pub(super) fn add(values: &mut [f64], sum: &[f64], lambda: f64) {
    for (value, sum) in values.iter_mut().zip(sum) {
        let change = lambda * sum;
        if change != 0.0 {
            *value += change;
        }
    }
}

/// values ← values + λ·(own − values), which for λ = 1 is `own` to the last bit, and for λ = 0 what it was.
pub(super) fn towards(values: &mut [f64], own: &[f64], lambda: f64) {
    if lambda == 1.0 {
        values.copy_from_slice(own);
        return;
    }
    for (value, own) in values.iter_mut().zip(own) {
        let change = lambda * (own - *value);
        if change != 0.0 {
            *value += change;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_the_sum_in_order_to_the_last_bit() {
        let number = |i: usize| ((i * 7919 + 13) % 1009) as f64 / 997.0 - 0.5;
        for (k, columns) in [(1, 1), (3, 5), (4, 7), (9, 64), (0, 3), (17, 100)] {
            let left: Vec<f64> = (0..k).map(number).collect();
            let right: Vec<f64> = (0..k * columns).map(|i| number(i + 31)).collect();
            let mut sum = vec![f64::NAN; columns];
            product(&left, &right, &mut sum);
            for (c, found) in sum.iter().enumerate() {
                let mut expected = 0.0;
                for j in 0..k {
                    expected += left[j] * right[j * columns + c];
                }
                assert_eq!(found.to_bits(), f64::to_bits(expected), "rank {k}, column {c} of {columns}");
            }
        }
    }

    #[test]
    fn nothing_added_changes_nothing() {
        let mut values = [-0.0, 1.0, -0.0];
        add(&mut values, &[0.0, 0.0, 5.0], 0.0);
        assert!(values[0].is_sign_negative() && values[2].is_sign_negative());
        add(&mut values, &[0.0, 2.0, 5.0], 0.5);
        assert_eq!((values[0].to_bits(), values[1], values[2]), ((-0.0_f64).to_bits(), 2.0, 2.5));
    }

    #[test]
    fn a_whole_tensor_is_itself_at_one_and_the_centre_at_zero() {
        let (centre, own) = ([1.0, -0.0, 1e-30, 5.0], [1.0 + f64::EPSILON, -0.0, 1e30, 6.0]);
        for (lambda, expected) in [(1.0, own), (0.0, centre)] {
            let mut values = centre;
            towards(&mut values, &own, lambda);
            assert_eq!(values.map(f64::to_bits), expected.map(f64::to_bits));
        }
        let mut values = centre;
        towards(&mut values, &own, 0.5);
        assert_eq!(values[3], 5.5);
    }

    #[test]
    fn tiles_fit_every_rank() {
        assert_eq!((tile_columns(0), tile_columns(1), tile_columns(256), tile_columns(1 << 20)), (2048, 2048, 512, 64));
    }
}
