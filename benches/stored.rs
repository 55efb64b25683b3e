//! Widening stored elements to float32, and rounding float32 to what is stored: one block, which stays in the core's cache.
//!
//! Bytes: the stored elements and the float32 elements.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use merganser::backend::cpu::BLOCK;
use merganser::backend::cpu::stored::{Stored, Widen};
use merganser::dtype::RECIPE_DTYPES;

fn stored(criterion: &mut Criterion) {
    let values: Vec<f32> = (0..BLOCK).map(|i| (i as f32 - 1000.0) / 512.0).collect();
    for direction in ["widen", "narrow"] {
        let mut group = criterion.benchmark_group(direction);
        for (name, dtype) in RECIPE_DTYPES {
            let mut bytes = vec![0; BLOCK * dtype.bitsize() / 8];
            let mut wide = vec![0f32; BLOCK];
            f32::narrow(&values, dtype, &mut bytes);
            group.throughput(Throughput::Bytes((bytes.len() + BLOCK * size_of::<f32>()) as u64));
            group.bench_function(name, |bench| match direction {
                "widen" => bench.iter(|| Stored { dtype, bytes: black_box(&bytes) }.widen(0, black_box(&mut wide))),
                _ => bench.iter(|| f32::narrow(black_box(&values), dtype, black_box(&mut bytes))),
            });
        }
        group.finish();
    }
}

criterion_group!(benches, stored);
criterion_main!(benches);
