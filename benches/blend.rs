//! Element-wise merges of a base and three bfloat16 fine-tunes into bfloat16 on one thread, in cache and out of it.
//!
//! Bytes: every source once and the output once; what only a statistics pass reads is in `select`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use merganser::backend::cpu::blend::blend;
use merganser::backend::cpu::prune::Scratch;
use merganser::bench::{ELEM_BYTES, Family, MODELS};
use merganser::dtype::Dtype;
use merganser::ops::philox::element_key;
use merganser::ops::rules::{Numbers, RuleId};
use merganser::ops::{Combine, Geometry, Measured, Real, Sparsify};

/// Elements of a model: five arrays of 32 KiB stay in a core's own cache, five of 32 MiB in none.
const SIZES: [(&str, usize); 2] = [("in cache", 1 << 14), ("out of cache", 1 << 24)];

/// |τ| that about a fifth of the family's elements reach.
const CUT: f32 = 4.9e-4;

fn methods() -> Vec<(&'static str, Sparsify, Combine)> {
    let weights = vec![1.0; MODELS];
    let density = vec![0.2; MODELS];
    let keys = (0..MODELS).map(|model| element_key(0, "bench", model)).collect();
    let random = Sparsify::Random { density: density.clone(), rescale: true, keys };
    let trim = Sparsify::TopK { density, rescale: false };
    let sum = || Combine::sum(weights.clone(), 1.0, 0.5);
    let elect = || {
        Combine::weighted(
            RuleId::Elect,
            weights.clone(),
            Numbers { normalize: true, lambda: 1.0, ..Numbers::default() },
        )
    };
    vec![
        ("linear", Sparsify::None, Combine::average(weights.clone(), 3.0)),
        ("task_arithmetic", Sparsify::None, sum()),
        ("ties", trim, elect()),
        ("dare_linear", random.clone(), sum()),
        ("dare_ties", random, elect()),
        ("magmax", Sparsify::None, Combine::new(RuleId::MaxMagnitude, Numbers { lambda: 1.0, ..Numbers::default() })),
    ]
}

fn blends(criterion: &mut Criterion) {
    for (place, elems) in SIZES {
        let family = Family::new(elems);
        let mut out = vec![0; elems * ELEM_BYTES];
        let mut scratch = Scratch::<f32>::new(MODELS);
        let mut group = criterion.benchmark_group("blend");
        if elems > 1 << 20 {
            group.sample_size(10);
        }
        for (name, sparsify, combine) in methods() {
            let sources = MODELS + usize::from(combine.reads_base());
            group.throughput(Throughput::Bytes(((sources + 1) * elems * ELEM_BYTES) as u64));
            let measured = Measured {
                geometry: Geometry::of(&[elems as u64]),
                stages: Vec::new(),
                sparsify,
                cuts: vec![CUT.key(); MODELS],
                tops: Vec::new(),
                factors: vec![1.0; MODELS],
                lines: None,
                combine,
            };
            group.bench_function(BenchmarkId::new(name, place), |bench| {
                bench.iter(|| {
                    family.with(|sources| {
                        blend(&measured, black_box(sources), Dtype::BF16, black_box(&mut out), &mut scratch)
                    })
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, blends);
criterion_main!(benches);
