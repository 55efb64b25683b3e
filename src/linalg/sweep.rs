//! The inner loop of a symmetric matrix-vector product: four columns read once, used from both sides.
//!
//! Written with the processor's instructions because the compiler spills the plain loop: ten vectors live at once.
#![allow(unsafe_code)]

/// Columns that one sweep takes.
pub const WIDTH: usize = 4;

type Function<T> = unsafe fn([&[T]; WIDTH], &[T], &mut [T], [T; WIDTH]) -> [T; WIDTH];

/// A sweep that this processor can run.
#[derive(Debug, Clone, Copy)]
pub struct Sweep<T>(Function<T>);

impl<T> Sweep<T> {
    /// y ← y + Σ_k f_k c_k; returns c_kᵀ x. All slices have y's length.
    ///
    /// # Panics
    /// If they do not.
    pub fn run(self, columns: [&[T]; WIDTH], x: &[T], y: &mut [T], factors: [T; WIDTH]) -> [T; WIDTH] {
        assert!(x.len() == y.len() && columns.iter().all(|c| c.len() == y.len()));
        // SAFETY: the slices have one length, and `Sweep`s are made by `Swept::detect` alone, where the processor has
        // the instructions.
        unsafe { (self.0)(columns, x, y, factors) }
    }
}

/// Element types with a sweep.
pub trait Swept: Sized {
    /// The sweep of the instruction set that is taken in this process, if it has one.
    fn detect() -> Option<Sweep<Self>>;
}

#[cfg(not(target_arch = "x86_64"))]
mod functions {
    use super::{Sweep, Swept};

    impl Swept for f32 {
        fn detect() -> Option<Sweep<f32>> {
            None
        }
    }

    impl Swept for f64 {
        fn detect() -> Option<Sweep<f64>> {
            None
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod functions {
    use std::arch::x86_64::*;

    #[cfg(test)]
    use super::Function;
    use super::{Sweep, Swept, WIDTH};
    use crate::instructions::Instructions;

    macro_rules! sweeps {
        ($type:ty, $avx512:ident, $lanes:literal, $mask:ty, $set:ident, $zero:ident, $load:ident, $load_some:ident,
         $store:ident, $store_some:ident, $fma:ident, $sum:ident; $avx2:ident, $half:literal, $set2:ident, $zero2:ident,
         $load2:ident, $store2:ident, $fma2:ident) => {
            /// # Safety
            /// The processor has AVX-512F; all slices have y's length.
            #[target_feature(enable = "avx512f")]
            unsafe fn $avx512(c: [&[$type]; WIDTH], x: &[$type], y: &mut [$type], f: [$type; WIDTH]) -> [$type; WIDTH] {
                let len = y.len();
                let (c, x, y) = (c.map(<[$type]>::as_ptr), x.as_ptr(), y.as_mut_ptr());
                let f = [$set(f[0]), $set(f[1]), $set(f[2]), $set(f[3])];
                let mut sums = [$zero(); WIDTH];
                // The first vector ends where the columns are aligned, so that no other crosses a line of the cache.
                let lead = (c[0] as usize / size_of::<$type>()) % $lanes;
                let mut at = 0;
                while at < len {
                    let count = if at == 0 { $lanes - lead } else { $lanes }.min(len - at);
                    // SAFETY: `count` elements from `at` lie inside all slices; masked lanes are not touched.
                    unsafe {
                        if count == $lanes {
                            let xs = $load(x.add(at));
                            let mut ys = $load(y.add(at));
                            for k in 0..WIDTH {
                                let a = $load(c[k].add(at));
                                ys = $fma(a, f[k], ys);
                                sums[k] = $fma(a, xs, sums[k]);
                            }
                            $store(y.add(at), ys);
                        } else {
                            let mask = ((1u32 << count) - 1) as $mask;
                            let xs = $load_some(mask, x.add(at));
                            let mut ys = $load_some(mask, y.add(at));
                            for k in 0..WIDTH {
                                let a = $load_some(mask, c[k].add(at));
                                ys = $fma(a, f[k], ys);
                                sums[k] = $fma(a, xs, sums[k]);
                            }
                            $store_some(y.add(at), mask, ys);
                        }
                    }
                    at += count;
                }
                [$sum(sums[0]), $sum(sums[1]), $sum(sums[2]), $sum(sums[3])]
            }

            /// # Safety
            /// The processor has AVX2 and FMA; all slices have y's length.
            #[target_feature(enable = "avx2,fma")]
            unsafe fn $avx2(c: [&[$type]; WIDTH], x: &[$type], y: &mut [$type], f: [$type; WIDTH]) -> [$type; WIDTH] {
                let whole = y.len() / $half * $half;
                let fs = [$set2(f[0]), $set2(f[1]), $set2(f[2]), $set2(f[3])];
                let mut sums = [$zero2(); WIDTH];
                for at in (0..whole).step_by($half) {
                    // SAFETY: a whole vector from `at` lies inside all slices.
                    unsafe {
                        let xs = $load2(x.as_ptr().add(at));
                        let mut ys = $load2(y.as_ptr().add(at));
                        for k in 0..WIDTH {
                            let a = $load2(c[k].as_ptr().add(at));
                            ys = $fma2(a, fs[k], ys);
                            sums[k] = $fma2(a, xs, sums[k]);
                        }
                        $store2(y.as_mut_ptr().add(at), ys);
                    }
                }
                let mut lanes = [[0.0; $half]; WIDTH];
                for (lanes, sum) in lanes.iter_mut().zip(sums) {
                    // SAFETY: the array has a vector's size.
                    unsafe { $store2(lanes.as_mut_ptr(), sum) };
                }
                let mut totals = lanes.map(|lanes| lanes.iter().sum::<$type>());
                for at in whole..y.len() {
                    for k in 0..WIDTH {
                        y[at] += f[k] * c[k][at];
                        totals[k] += c[k][at] * x[at];
                    }
                }
                totals
            }

            impl Swept for $type {
                fn detect() -> Option<Sweep<$type>> {
                    match Instructions::chosen() {
                        Instructions::Avx512 => Some(Sweep($avx512)),
                        Instructions::Avx2 => Some(Sweep($avx2)),
                        Instructions::Portable => None,
                    }
                }
            }

            #[cfg(test)]
            impl super::tests::All for $type {
                fn all() -> Vec<Sweep<$type>> {
                    let of = |set: Instructions, sweep: Function<$type>| set.is_here().then_some(Sweep(sweep));
                    let wide = of(Instructions::Avx512, $avx512);
                    wide.into_iter().chain(of(Instructions::Avx2, $avx2)).collect()
                }
            }
        };
    }

    sweeps!(f32, avx512_f32, 16, __mmask16, _mm512_set1_ps, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_maskz_loadu_ps,
        _mm512_storeu_ps, _mm512_mask_storeu_ps, _mm512_fmadd_ps, _mm512_reduce_add_ps; avx2_f32, 8, _mm256_set1_ps,
        _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);
    sweeps!(f64, avx512_f64, 8, __mmask8, _mm512_set1_pd, _mm512_setzero_pd, _mm512_loadu_pd, _mm512_maskz_loadu_pd,
        _mm512_storeu_pd, _mm512_mask_storeu_pd, _mm512_fmadd_pd, _mm512_reduce_add_pd; avx2_f64, 4, _mm256_set1_pd,
        _mm256_setzero_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_fmadd_pd);
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Every sweep that this processor can run.
    pub(super) trait All: Swept {
        fn all() -> Vec<Sweep<Self>>;
    }

    macro_rules! check {
        ($type:ty, $tolerance:literal) => {
            for sweep in <$type as All>::all() {
                for (len, start) in (0..70).flat_map(|len| [(len, 0), (len, 3)]) {
                    let value = |i: usize, k: usize| ((i * 37 + k * 11) % 19) as $type - 9.0;
                    let buffers: Vec<Vec<$type>> =
                        (0..6).map(|k| (0..len + 5).map(|i| value(i, k)).collect()).collect();
                    let of = |k: usize| &buffers[k][start..start + len];
                    let mut whole = buffers[5].clone();
                    let factors: [$type; 4] = [0.5, -2.0, 3.0, 0.25];
                    let y = &mut whole[start..start + len];
                    let sums = sweep.run([of(0), of(1), of(2), of(3)], of(4), y, factors);
                    for i in 0..len {
                        let exact = of(5)[i] + (0..4).map(|k| factors[k] * of(k)[i]).sum::<$type>();
                        assert!((whole[start + i] - exact).abs() <= $tolerance, "{len} {i}");
                    }
                    assert_eq!(whole[..start], buffers[5][..start]);
                    assert_eq!(whole[start + len..], buffers[5][start + len..]);
                    for k in 0..4 {
                        let exact: $type = of(k).iter().zip(of(4)).map(|(a, x)| a * x).sum();
                        assert!((sums[k] - exact).abs() <= $tolerance, "{len}: dot {k}");
                    }
                }
            }
        };
    }

    #[test]
    fn every_sweep_is_the_plain_sum_at_every_length_and_alignment_and_touches_nothing_else() {
        check!(f32, 1e-3);
        check!(f64, 1e-12);
    }
}
