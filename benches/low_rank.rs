//! CART on one 768×768 matrix of three bfloat16 fine-tunes, rank ratio 0.08, on one thread.
//!
//! Elements: floating-point operations, as `low_rank::operations` counts them.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use merganser::Result;
use merganser::backend::cpu::low_rank::{ReadRuns, merge, operations};
use merganser::backend::cpu::prune::{Scratch, Sources};
use merganser::bench::{Family, MODELS};
use merganser::ops::{Centre, LowRank, MatrixRule, Rank};

const SIDE: u64 = 768;

struct InMemory<'a>(&'a Family);

impl ReadRuns for InMemory<'_> {
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()> {
        // Without stages the base is not read.
        self.0.with_run(start as usize, len, |sources| take(&Sources { base: None, ..*sources }));
        Ok(())
    }
}

fn low_rank(criterion: &mut Criterion) {
    let family = Family::new((SIDE * SIDE) as usize);
    let rule = MatrixRule::Truncate(Rank::Ratio(0.08));
    let work = LowRank { stages: Vec::new(), weights: vec![1.0; MODELS], centre: Centre::Average, rule, lambda: 2.0 };
    let (mut scratch, mut wide) = (Scratch::<f32>::new(MODELS), Scratch::<f64>::new(MODELS));
    let mut group = criterion.benchmark_group("low_rank");
    group.sample_size(10);
    group.throughput(Throughput::Elements(operations(&work, (SIDE, SIDE), false) as u64));
    group.bench_function("cart 768×768", |bench| {
        bench.iter(|| {
            let mut emit = |values: &[f64]| {
                black_box(values);
                Ok(())
            };
            let mut source = InMemory(&family);
            let facts = merge(&work, (SIDE, SIDE), &[], &mut source, &mut scratch, &mut wide, &mut emit);
            assert!(facts.is_ok());
        });
    });
    group.finish();
}

criterion_group!(benches, low_rank);
criterion_main!(benches);
