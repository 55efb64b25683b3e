//! The exact k-th largest |τ| of three bfloat16 fine-tunes on one thread: a sample that brackets the cut, then counting passes
//! until it is found, as the engine does it.
//!
//! Bytes: every source once, the one pass that a search takes as a rule.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use merganser::backend::cpu::prune::{Scratch, Sources};
use merganser::backend::cpu::select::count;
use merganser::bench::{ELEM_BYTES, Family, MODELS};
use merganser::ops::search::{COUNTERS, Cut, Ranked, Search, Totals};
use merganser::ops::{Geometry, SEGMENT};

const SIZES: [(&str, usize); 2] = [("in cache", 1 << 17), ("out of cache", 1 << 24)];

/// The cuts that keep a fifth.
fn cuts(family: &Family, elems: usize, counts: &mut [Vec<u32>], scratch: &mut Scratch<f32>) -> [Option<Cut>; MODELS] {
    let mut searches = [Some(Search::new::<f32>(elems as u64, elems as u64 / 5, false)); MODELS];
    let mut cuts = [None; MODELS];
    while searches.iter().any(Option::is_some) {
        let geometry = Geometry::of(&[elems as u64]);
        let mut count = |sources: &Sources<'_>| {
            count(Ranked::Magnitude, &searches, geometry, &[], black_box(sources), counts, scratch);
        };
        if searches.iter().flatten().all(Search::samples) {
            family.with_sample(count);
        } else {
            (0..elems).step_by(SEGMENT).for_each(|start| family.with_run(start, SEGMENT, &mut count));
        }
        for ((search, cut), counts) in searches.iter_mut().zip(&mut cuts).zip(counts.iter_mut()) {
            let mut totals = Totals::default();
            totals.add(counts);
            *cut = cut.or_else(|| search.as_mut().and_then(|search| search.advance(&totals)));
            if cut.is_some() {
                *search = None;
            }
        }
    }
    cuts
}

fn select(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("select");
    for (place, elems) in SIZES {
        let family = Family::new(elems);
        let mut scratch = Scratch::new(MODELS);
        let mut counts = vec![vec![0; COUNTERS]; MODELS];
        if elems > 1 << 20 {
            group.sample_size(10);
        }
        group.throughput(Throughput::Bytes(((MODELS + 1) * elems * ELEM_BYTES) as u64));
        group.bench_function(BenchmarkId::new("magnitude", place), |bench| {
            bench.iter(|| cuts(&family, elems, &mut counts, &mut scratch));
        });
    }
    group.finish();
}

criterion_group!(benches, select);
criterion_main!(benches);
