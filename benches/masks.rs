//! `lwptv` stages in front of task arithmetic on one thread, in cache: scores of elements and their masks, masks of rows and of
//! columns; beside them the random words of DARE.
//!
//! Bytes: every source once and the output once; of the random words, themselves.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use merganser::backend::cpu::BLOCK;
use merganser::backend::cpu::blend::blend;
use merganser::backend::cpu::prune::Scratch;
use merganser::bench::{ELEM_BYTES, Family, MODELS};
use merganser::dtype::Dtype;
use merganser::ops::{
    Combine, Geometry, Granularity, Mask, Measured, Prune, Real, Rescale, SEGMENT, Score, Sparsify, StageState, philox,
};

const ROWS: u64 = 64;
const COLUMNS: u64 = SEGMENT as u64 / ROWS;

/// Every second one is kept.
fn half(units: u64) -> Vec<u8> {
    (0..units).map(|i| (i % 2) as u8).collect()
}

fn stages() -> Vec<(&'static str, Score, Mask)> {
    let elements = |cut: f32| Mask::Elements { cut: cut.key(), lowest: false };
    vec![
        ("elements by magnitude", Score::Magnitude, elements(4e-4)),
        ("elements by relative size", Score::Relative, elements(1e-2)),
        ("elements by deviation", Score::Deviation, elements(4e-4)),
        ("elements by agreement", Score::Agreement, elements(0.5)),
        ("elements by tall", Score::Tall, elements(0.5)),
        ("rows", Score::Deviation, Mask::Rows(half(ROWS))),
        ("columns", Score::Deviation, Mask::Columns(half(COLUMNS))),
    ]
}

fn masks(criterion: &mut Criterion) {
    let family = Family::new(SEGMENT);
    let mut out = vec![0; SEGMENT * ELEM_BYTES];
    let mut scratch = Scratch::<f32>::new(MODELS);
    let mut group = criterion.benchmark_group("masks");
    group.throughput(Throughput::Bytes(((MODELS + 2) * SEGMENT * ELEM_BYTES) as u64));
    for (name, score, mask) in stages() {
        let granularity = match mask {
            Mask::Rows(_) => Granularity::Row,
            Mask::Columns(_) => Granularity::Column,
            _ => Granularity::Element,
        };
        let prune = Prune { stage: 0, score, granularity, keep: 0.5, keep_redundant: false, rescale: Rescale::None };
        let state = StageState { masks: vec![mask; MODELS], factors: vec![1.0; MODELS] };
        let measured = Measured {
            geometry: Geometry::of(&[ROWS, COLUMNS]),
            stages: vec![(prune, state)],
            sparsify: Sparsify::None,
            cuts: Vec::new(),
            tops: Vec::new(),
            factors: vec![1.0; MODELS],
            lines: None,
            combine: Combine::sum(vec![1.0; MODELS], 1.0, 0.5),
        };
        group.bench_function(BenchmarkId::new(name, "in cache"), |bench| {
            bench.iter(|| {
                family.with(|sources| {
                    blend(&measured, black_box(sources), Dtype::BF16, black_box(&mut out), &mut scratch)
                })
            });
        });
    }
    group.finish();
}

fn words(criterion: &mut Criterion) {
    let mut words = vec![0; BLOCK];
    let mut group = criterion.benchmark_group("philox");
    group.throughput(Throughput::Bytes((BLOCK * size_of::<u32>()) as u64));
    for (name, start) in [("aligned", 0), ("within a counter", 3)] {
        group.bench_function(name, |bench| bench.iter(|| philox::fill(black_box(&mut words), start, [1, 2])));
    }
    group.finish();
}

criterion_group!(benches, masks, words);
criterion_main!(benches);
