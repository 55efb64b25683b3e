//! What the tests of merges on CUDA devices share: the devices, or the reason why there are none, and merges beside the CPU's.

use std::path::{Path, PathBuf};

use merganser::backend::device::{self, Device, Request};
use merganser::engine::{self, Done, Progress, Stop, Target};
use merganser::report::manifest::{Manifest, OutputTensor};

use crate::support::family::{Family, relative};
use crate::support::recipes::Text;
use crate::support::{Run, read, skip};

/// Every usable device; without one, nothing: the test is skipped, or fails where
/// `MERGANSER_REQUIRE_CUDA` is set.
pub fn devices(test: &str) -> Option<Device> {
    match device::choose(Request::Cuda(None)) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("MERGANSER_REQUIRE_CUDA").is_none(), "`{test}` needs a device: {error}");
            skip(&error.to_string());
            None
        }
    }
}

/// The devices, if they are those of the stand-in driver, which fails where it is asked to.
pub fn stand_in(test: &str) -> Option<Device> {
    let device = devices(test)?;
    let is_stand_in = device.cuda[0].name.contains("stand-in");
    if !is_stand_in {
        skip("a real device does not fail when it is asked to");
    }
    is_stand_in.then_some(device)
}

/// How a merge on devices is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Way {
    pub run: Run,
    pub device_memory: Option<u64>,
}

impl Way {
    /// With this much of each device's memory.
    pub fn in_memory(bytes: u64) -> Self {
        Self { device_memory: Some(bytes), ..Self::default() }
    }

    pub fn merge(self, device: &Device, recipe: &Path, out: &Path) -> merganser::Result<Done> {
        let mut plan = self.run.plan(recipe)?;
        let Run { resume, overwrite, .. } = self.run;
        let target = Target { out, resume, overwrite, device_memory: self.device_memory };
        engine::merge_on_devices(&mut plan, device, target, &Progress::default(), &Stop::default())
    }
}

/// The same merge on the CPU and on devices.
pub struct Both {
    pub cpu: PathBuf,
    pub cuda: PathBuf,
    pub name: String,
}

impl Both {
    pub fn of(family: &Family, device: &Device, way: Way, name: &str, text: &Text) -> Self {
        let recipe = family.recipe(name, &text.yaml());
        let (cpu, cuda) = (family.path(&format!("cpu-{name}")), family.path(&format!("cuda-{name}")));
        let said = |e: merganser::Error| panic!("{name}: {e} {:?}\n{}", e.hints(), text.yaml());
        way.run.merge(&recipe, &cpu).unwrap_or_else(said);
        way.merge(device, &recipe, &cuda).unwrap_or_else(said);
        Self { cpu, cuda, name: name.into() }
    }

    /// Fails unless bytes and facts are the CPU's, but of what was merged by singular vectors, which must be within
    /// `bound` of the CPU's relative to what it changes of the base.
    #[track_caller]
    pub fn agree(&self, family: &Family, bound: f64) {
        let [cpu, cuda] = [&self.cpu, &self.cuda].map(|out| Manifest::read(out).unwrap());
        assert_eq!(cuda.device.backend, "cuda", "{}", self.name);
        assert_eq!(cpu.sources, cuda.sources, "{}: digests of sources", self.name);
        let [cpu_tensors, cuda_tensors] = [&self.cpu, &self.cuda].map(|out| read(out));
        for (a, b) in cpu.tensors.iter().zip(&cuda.tensors) {
            let at = format!("{}: {}", self.name, a.name);
            assert_eq!(a.nonfinite, b.nonfinite, "{at}");
            if is_low_rank(a) {
                assert_eq!(a.facts["rank"], b.facts["rank"], "{at}");
                let [x, y] = [&cpu_tensors, &cuda_tensors].map(|tensors| tensors[&a.name].values());
                let apart = relative(&y, &x, &family.tensor(0, &a.name).values());
                assert!(apart <= bound, "{at}: {apart} apart");
                continue;
            }
            assert!(
                cpu_tensors[&a.name].bytes == cuda_tensors[&a.name].bytes,
                "{at}: {}",
                first_difference(&cpu_tensors[&a.name].values(), &cuda_tensors[&a.name].values(),)
            );
            assert_eq!(a.digest, b.digest, "{at}");
            let mut facts = b.facts.clone();
            if let Some(facts) = facts.as_object_mut() {
                facts.remove("computed_on");
                facts.remove("why_there");
            }
            assert_eq!(a.facts, facts, "{at}");
        }
    }

    /// What the merge on devices states of a tensor.
    pub fn stated(&self, tensor: &str) -> OutputTensor {
        Manifest::read(&self.cuda).unwrap().tensors.into_iter().find(|t| t.name == tensor).unwrap()
    }
}

fn is_low_rank(tensor: &OutputTensor) -> bool {
    tensor.facts.get("rank").is_some() || tensor.facts.get("singular_value").is_some()
}

fn first_difference(a: &[f64], b: &[f64]) -> String {
    let different = |(x, y): (&f64, &f64)| x.to_bits() != y.to_bits();
    let count = a.iter().zip(b).filter(|(x, y)| different((x, y))).count();
    match a.iter().zip(b).position(different) {
        Some(at) => format!(
            "{count} of {} differ, first element {at}: {:e} on the CPU, {:e} on the device",
            a.len(),
            a[at],
            b[at]
        ),
        None => "bytes differ, values do not".into(),
    }
}
