//! The contract's operations on every two of this processor's instruction sets. `tests/cuda/ops` has the devices.

use merganser::backend::contract::{Device, Job, Support};
use merganser::backend::cpu::device::Cpu;
use merganser::instructions::Instructions;
use merganser::ops::{Combine, Program};

use crate::support::operations::ALL;

#[test]
fn every_operation_gives_the_same_bits_on_every_instruction_set() {
    let sets: Vec<Instructions> = Instructions::here().collect();
    assert_eq!(sets[0], Instructions::Portable);
    for (at, a) in sets.iter().enumerate() {
        for b in &sets[at + 1..] {
            for (name, body) in ALL {
                eprintln!("{name}: {a} and {b}");
                body(&mut Cpu(*a).lane(), &mut Cpu(*b).lane());
            }
        }
    }
}

#[test]
#[should_panic(expected = "element")]
fn a_lane_that_differs_in_one_bit_is_found() {
    use merganser::backend::contract::{Lane, Pass, Run};
    use merganser::backend::cpu::device::CpuLane;
    use merganser::backend::cpu::prune::Sources;
    use merganser::dtype::Dtype;
    use merganser::ops::search::{Cut, Ranked, Search};
    use merganser::ops::{Measured, RunFacts};

    struct Wrong(CpuLane);

    impl Lane for Wrong {
        fn label(&self) -> String {
            "one that differs".into()
        }

        fn cuts(
            &mut self,
            run: &Run<'_>,
            ranked: Ranked,
            of: &[Option<Search>],
        ) -> merganser::Result<Vec<Option<Cut>>> {
            self.0.cuts(run, ranked, of)
        }

        fn pass(&mut self, run: &Run<'_>, pass: Pass<'_>) -> merganser::Result<Vec<f64>> {
            let mut values = self.0.pass(run, pass)?;
            let last = values.last_mut().unwrap();
            *last = f64::from_bits(last.to_bits() ^ 1);
            Ok(values)
        }

        fn merge(
            &mut self,
            m: &Measured,
            sources: &Sources<'_>,
            wide: bool,
            dtype: Dtype,
            out: &mut [u8],
        ) -> merganser::Result<RunFacts> {
            self.0.merge(m, sources, wide, dtype, out)
        }
    }

    let portable = Cpu(Instructions::Portable);
    crate::support::operations::norms_and_products(&mut portable.lane(), &mut Wrong(portable.lane()));
}

#[test]
fn the_cpu_takes_every_job_and_a_device_says_why_not() {
    let program = Program::Copy;
    let job = |program, elems, models| Job { program, elems, matrix: (elems, 1), models, wide: false };
    assert_eq!(Cpu(Instructions::Portable).supports(&job(&program, 5, 0)), Support::Yes { bytes: 0 });
    let blend = Program::Blend(merganser::ops::Blend {
        stages: Vec::new(),
        sparsify: merganser::ops::Sparsify::None,
        combine: Combine::sum(vec![1.0], 1.0, 1.0),
    });
    let device = merganser::backend::device::AnyCuda;
    assert_eq!(device.supports(&job(&blend, 5, 64)), Support::Yes { bytes: 0 });
    assert_eq!(device.supports(&job(&blend, 5, 65)), Support::No("a kernel takes 64 models at most"));
    assert_eq!(device.supports(&job(&blend, 0, 1)), Support::No("it has no elements"));
    assert_eq!(device.supports(&job(&program, 5, 0)), Support::No("it is copied as it is"));
}
