//! Statistics passes over a base and three bfloat16 fine-tunes on one thread, in cache and out of it: norms of layers, scores
//! of rows and columns, the angle of slerp, and what `saliency` measures between tasks.
//!
//! Bytes: every source once.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use merganser::backend::cpu::pairs::{self, SignBits};
use merganser::backend::cpu::prune::{Scratch, Sources};
use merganser::backend::cpu::stats;
use merganser::bench::{ELEM_BYTES, Family, MODELS};
use merganser::ops::{Combine, Geometry, Measured, SEGMENT, Score, Sparsify, Vectors};

const SIZES: [(&str, usize); 2] = [("in cache", SEGMENT), ("out of cache", 1 << 24)];
/// Elements of a row.
const ROW: usize = 4096;

/// Benches `pass`, which gets run after run of `run` elements.
fn passes(
    criterion: &mut Criterion,
    name: &str,
    sources: usize,
    run: usize,
    mut pass: impl FnMut(&Sources<'_>, Geometry),
) {
    let mut group = criterion.benchmark_group("stats");
    for (place, elems) in SIZES {
        let family = Family::new(elems);
        let geometry = Geometry::of(&[(elems / ROW) as u64, ROW as u64]);
        if elems > 1 << 20 {
            group.sample_size(10);
        }
        group.throughput(Throughput::Bytes((sources * elems * ELEM_BYTES) as u64));
        group.bench_function(BenchmarkId::new(name, place), |bench| {
            bench.iter(|| {
                for start in (0..elems).step_by(run) {
                    family.with_run(start, run, |sources| pass(black_box(sources), geometry));
                }
            });
        });
    }
    group.finish();
}

/// A merge that drops nothing.
fn measured(geometry: Geometry) -> Measured {
    Measured {
        geometry,
        stages: Vec::new(),
        sparsify: Sparsify::None,
        cuts: Vec::new(),
        tops: Vec::new(),
        chosen: Default::default(),
        rows: Default::default(),
        factors: Vec::new(),
        combine: Combine::average(vec![1.0], 1.0),
    }
}

fn all(criterion: &mut Criterion) {
    let mut scratch = Scratch::<f32>::new(MODELS);
    passes(criterion, "norms", MODELS + 1, SEGMENT, |sources, geometry| {
        black_box(stats::sums(geometry, &[], sources, &mut scratch));
    });
    for (name, score) in [("magnitude", Score::Magnitude), ("deviation", Score::Deviation), ("tall", Score::Tall)] {
        passes(criterion, &format!("row scores, {name}"), MODELS + 1, SEGMENT, |sources, geometry| {
            black_box(stats::row_scores(score, geometry, &[], sources, &mut scratch));
        });
    }
    let mut totals = vec![vec![0.0; ROW]; MODELS];
    // The engine gives it row by row.
    passes(criterion, "column scores, deviation", MODELS + 1, ROW, |sources, geometry| {
        stats::add_column_scores(Score::Deviation, geometry, &[], sources, 0, &mut totals, &mut scratch);
    });
    passes(criterion, "products of two vectors", 2, SEGMENT, |sources, geometry| {
        let one = Sources { models: &sources.models[..1], ..*sources };
        black_box(stats::gram(Vectors::Parameters, &measured(geometry), &one, &mut scratch));
    });
    let mut bits = SignBits::new(MODELS);
    passes(criterion, "pairs", MODELS + 1, SEGMENT, |sources, _| {
        black_box(pairs::measure(sources, &mut scratch, &mut bits));
    });
}

criterion_group!(benches, all);
criterion_main!(benches);
