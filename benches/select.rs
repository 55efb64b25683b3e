//! The exact k-th largest |τ| of three bfloat16 fine-tunes on one thread: both levels of the radix select.
//!
//! Bytes: every source once a level.

mod common;

use std::hint::black_box;

use common::{ELEM_BYTES, Family, MODELS};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use merganser::backend::cpu::prune::{Geometry, Scratch};
use merganser::backend::cpu::select::{Cut, LEVEL_BITS, Ranked, Search, count};

const SIZES: [(&str, usize); 2] = [("in cache", 1 << 14), ("out of cache", 1 << 24)];

/// The cuts that keep a fifth.
fn cuts(family: &Family, elems: usize, scratch: &mut Scratch<f32>) -> Vec<Cut> {
    let mut searches = [Some(Search::new::<f32>(elems as u64 / 5, false)); MODELS];
    let mut cuts = Vec::with_capacity(MODELS);
    for _ in 0..Search::levels::<f32>() {
        let mut counts = vec![vec![0u32; 1 << LEVEL_BITS]; MODELS];
        let geometry = Geometry::of(&[elems as u64]);
        family.with(|sources| {
            count(Ranked::Magnitude, &searches, geometry, &[], black_box(sources), &mut counts, scratch);
        });
        for (search, counts) in searches.iter_mut().flatten().zip(counts) {
            let counts: Vec<u64> = counts.into_iter().map(u64::from).collect();
            cuts.extend(search.advance(&counts));
        }
    }
    assert_eq!(cuts.len(), MODELS);
    cuts
}

fn select(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("select");
    for (place, elems) in SIZES {
        let family = Family::new(elems);
        let mut scratch = Scratch::new(MODELS);
        let levels = Search::levels::<f32>() as usize;
        if elems > 1 << 20 {
            group.sample_size(10);
        }
        group.throughput(Throughput::Bytes((levels * (MODELS + 1) * elems * ELEM_BYTES) as u64));
        group.bench_function(BenchmarkId::new("magnitude", place), |bench| {
            bench.iter(|| cuts(&family, elems, &mut scratch));
        });
    }
    group.finish();
}

criterion_group!(benches, select);
criterion_main!(benches);
