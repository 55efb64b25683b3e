//! Which device computes. This is the one place that crosses the `cuda` feature: what is found of CUDA is plain data.

use std::fmt;
use std::str::FromStr;

use super::contract::{Device as Computes, Job, Support};
use super::cpu;
use crate::error::{Error, Result};
use crate::ops::Program;

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// CUDA where a usable device is found, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA and nothing else: all devices, or the one of this number.
    Cuda(Option<u32>),
}

impl FromStr for Request {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(|n| Self::Cuda(Some(n)))
                .ok_or_else(|| "expected `auto`, `cpu`, `cuda` or `cuda:N`".to_owned()),
        }
    }
}

/// Most models that a kernel takes at once.
pub const MOST_MODELS: usize = 64;

/// Any CUDA device, as far as what it takes does not depend on which it is.
#[derive(Debug, Clone, Copy)]
pub struct AnyCuda;

impl Computes for AnyCuda {
    fn label(&self) -> String {
        "CUDA".into()
    }

    /// Whether the matrices of a job fit into a device's memory is known once its solver is.
    fn supports(&self, job: &Job<'_>) -> Support {
        match job.program {
            _ if job.elems == 0 => Support::No("it has no elements"),
            Program::Copy => Support::No("it is copied as it is"),
            Program::Factor { .. } => Support::No("it is made along with its matrix"),
            _ if job.models > MOST_MODELS => Support::No("a kernel takes 64 models at most"),
            Program::Blend(_) => Support::Yes { bytes: 0 },
            // The task vectors and their sum, in f64.
            Program::LowRank(_) => Support::Yes { bytes: 8 * job.elems * (job.models as u64 + 1) },
        }
    }
}

/// Page-locked slots of a lane of a CUDA device: on the way there, and on the way back.
pub const LANE_SLOTS: [usize; 2] = [3, 3];

/// A version: major, minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// One CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// Its number, as in `cuda:N`.
    pub ordinal: u32,
    /// Its own name.
    pub name: String,
    /// Compute capability.
    pub capability: Version,
    /// Its memory, in bytes.
    pub total_bytes: u64,
    /// What of it is free, in bytes, where the device was opened to tell: see [`Cuda::measured`].
    pub free_bytes: Option<u64>,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Why it cannot be used; `None` if it can.
    pub problem: Option<String>,
}

impl CudaDevice {
    /// `cuda:0 (NAME)`.
    pub fn label(&self) -> String {
        format!("cuda:{} ({})", self.ordinal, self.name)
    }
}

/// A library of CUDA that is loaded at run time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its name without prefix and version, such as `cusolver`.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Why it could not be loaded: what was looked for, and what was found instead. `None` if it is there.
    pub problem: Option<String>,
    /// Its file, or the name by which the loader found it.
    pub path: Option<std::path::PathBuf>,
    /// What it says of itself: `13.0.1`.
    pub version: Option<String>,
}

/// What was found of CUDA.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cuda {
    /// The newest CUDA that the driver's library supports; `None` if there is none.
    pub driver: Option<Version>,
    /// Every device, usable or not.
    pub devices: Vec<CudaDevice>,
    /// The libraries.
    pub libraries: Vec<Library>,
    /// Why no device can be used: what is missing or too old, what was found and what is needed.
    pub problem: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Cuda {
    /// Looks for CUDA: its driver, libraries and devices. Never fails: what is missing is said in the result.
    pub fn find() -> Self {
        #[cfg(feature = "cuda")]
        return super::cuda::probe::find();
        #[cfg(not(feature = "cuda"))]
        Self {
            problem: Some("this build of merganser has no CUDA backend".into()),
            remedy: Some("build with the feature `cuda`, which is on by default".into()),
            ..Self::default()
        }
    }

    /// The same with what is free of each device's memory, for which each is opened for a moment.
    #[must_use]
    pub fn measured(self) -> Self {
        #[cfg(feature = "cuda")]
        let measured = |mut device| {
            super::cuda::probe::measure(&mut device);
            device
        };
        #[cfg(not(feature = "cuda"))]
        let measured = |device| device;
        let devices = match self.problem {
            None => self.devices.into_iter().map(measured).collect(),
            Some(_) => self.devices,
        };
        Self { devices, ..self }
    }

    /// The devices that can be used.
    pub fn usable(&self) -> impl Iterator<Item = &CudaDevice> {
        self.devices.iter().filter(|d| d.problem.is_none() && self.problem.is_none())
    }

    /// Libraries that are missing and that this build has a use for, each with the reason.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        let is_needed = |l: &&Library| l.name != COMPILER || !embeds_kernels();
        self.libraries.iter().filter(is_needed).filter_map(|l| Some((l.name, l.problem.clone()?))).collect()
    }

    /// Why none can be used, with every device's reason.
    pub fn why_none(&self) -> String {
        if let Some(problem) = &self.problem {
            return problem.clone();
        }
        let each = self.devices.iter().filter_map(|d| Some(format!("{}: {}", d.label(), d.problem.as_ref()?)));
        match each.collect::<Vec<_>>().join("; ") {
            none if none.is_empty() => "the driver finds no device".into(),
            all => all,
        }
    }
}

/// The device, or the devices, that were chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its own name; of several CUDA devices, all of them.
    pub name: String,
    /// `cpu` or `cuda`.
    pub backend: &'static str,
    /// Why it was chosen, where that was not asked for.
    pub why: Option<String>,
    /// The CUDA devices; none for the CPU.
    pub cuda: Vec<CudaDevice>,
    /// Libraries of CUDA that are missing, each with the reason.
    pub missing: Vec<(&'static str, String)>,
}

impl Device {
    /// The CPU.
    pub fn cpu(why: Option<String>) -> Self {
        Self { name: cpu::features::name(), backend: "cpu", why, cuda: Vec::new(), missing: Vec::new() }
    }

    /// The same, if it has what a merge needs, which `decomposes` matrices or does not. Where `--device auto` found devices
    /// that lack it, the CPU, with the reason.
    ///
    /// # Errors
    /// `Environment` where CUDA was asked for and a library is missing.
    pub fn suited_to(self, decomposes: bool) -> Result<Self> {
        let lacks = |wanted: &[&str]| {
            let missing = self.missing.iter().filter(|(name, _)| wanted.contains(name)).map(|(_, why)| why.as_str());
            Some(missing.collect::<Vec<_>>().join("; ")).filter(|why| !why.is_empty() && !self.cuda.is_empty())
        };
        let (problem, hint) = if let Some(why) = lacks(&[COMPILER]) {
            (
                format!("this build compiles its CUDA kernels at first use with NVRTC, and {why}"),
                "install NVRTC of CUDA 12 or 13 (`pip install nvidia-cuda-nvrtc-cu12`, or the toolkit)",
            )
        } else if let Some(why) = lacks(&SOLVERS).filter(|_| decomposes) {
            (
                format!("merges of matrices need cuBLAS and cuSOLVER, and {why}"),
                "install cuBLAS and cuSOLVER of CUDA 12 or 13 (`pip install nvidia-cusolver-cu12`, or the toolkit)",
            )
        } else {
            return Ok(self);
        };
        if self.may_be_left() {
            return Ok(Self::cpu(Some(problem)));
        }
        Err(Error::device(format!("CUDA was asked for, but {problem}"))
            .hint(hint)
            .hint("use `--device cpu`, or `--device auto` to take CUDA wherever it can be had"))
    }

    /// Whether the CPU may do what the devices cannot: they were found, not asked for.
    pub fn may_be_left(&self) -> bool {
        self.why.is_some()
    }

    /// These devices, whatever they lack.
    pub fn of_cuda(devices: Vec<CudaDevice>, missing: Vec<(&'static str, String)>, why: Option<String>) -> Self {
        let names: Vec<String> = devices.iter().map(CudaDevice::label).collect();
        Self { name: names.join(", "), backend: "cuda", why, cuda: devices, missing }
    }
}

/// Libraries that low-rank work needs.
const SOLVERS: [&str; 2] = ["cublas", "cusolver"];
/// The library that compiles kernels at first use.
const COMPILER: &str = "nvrtc";

/// Whether this build has its kernels with it, compiled.
fn embeds_kernels() -> bool {
    #[cfg(feature = "cuda")]
    return super::cuda::module::Kernels::are_embedded();
    #[cfg(not(feature = "cuda"))]
    false
}

/// The version that the kernel's NVIDIA driver gives of itself; `None` where it is not loaded.
pub fn nvidia_driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  555.42.06  …`
    let line = text.lines().next()?.trim_start_matches("NVRM version:");
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Chooses the device.
///
/// # Errors
/// `Environment` where CUDA is asked for and cannot be had: never the CPU in its stead.
pub fn choose(request: Request) -> Result<Device> {
    match request {
        Request::Cpu => Ok(Device::cpu(None)),
        Request::Auto | Request::Cuda(_) => choose_of(request, &Cuda::find()),
    }
}

fn choose_of(request: Request, found: &Cuda) -> Result<Device> {
    let usable: Vec<CudaDevice> = found.usable().cloned().collect();
    let refusal = |problem: String| {
        let error = Error::device(format!("CUDA was asked for, but {problem}"));
        let error = match &found.remedy {
            Some(remedy) => error.hint(remedy),
            None => error,
        };
        error.hint("use `--device cpu`, or `--device auto` to take CUDA wherever it can be had")
    };
    match request {
        Request::Cpu => Ok(Device::cpu(None)),
        Request::Auto if usable.is_empty() => Ok(Device::cpu(Some(found.why_none()))),
        Request::Auto => Ok(Device::of_cuda(usable, found.missing(), Some("found, as `--device auto` asks".into()))),
        Request::Cuda(None) if usable.is_empty() => Err(refusal(found.why_none())),
        Request::Cuda(None) => Ok(Device::of_cuda(usable, found.missing(), None)),
        Request::Cuda(Some(n)) => match found.devices.iter().find(|d| d.ordinal == n) {
            _ if found.problem.is_some() => Err(refusal(found.why_none())),
            Some(device) => match &device.problem {
                None => Ok(Device::of_cuda(vec![device.clone()], found.missing(), None)),
                Some(problem) => Err(refusal(format!("{}: {problem}", device.label()))),
            },
            None => {
                let there: Vec<String> = found.devices.iter().map(CudaDevice::label).collect();
                let there = if there.is_empty() { "no device".into() } else { there.join(", ") };
                Err(refusal(format!("there is no device {n}; the driver finds {there}")))
            }
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn device(ordinal: u32, problem: Option<&str>) -> CudaDevice {
        CudaDevice {
            ordinal,
            name: "a GPU".into(),
            capability: Version(9, 0),
            total_bytes: 1 << 30,
            free_bytes: None,
            multiprocessors: 4,
            problem: problem.map(Into::into),
        }
    }

    #[test]
    fn requests_are_read_strictly() {
        assert_eq!("auto".parse(), Ok(Request::Auto));
        assert_eq!("cuda:3".parse(), Ok(Request::Cuda(Some(3))));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(wrong.parse::<Request>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cuda_never_becomes_the_cpu_and_the_refusal_says_what_is_missing() {
        let missing = Cuda {
            problem: Some("libcuda is not there".into()),
            remedy: Some("install a driver".into()),
            ..Cuda::default()
        };
        for request in [Request::Cuda(None), Request::Cuda(Some(0))] {
            let error = choose_of(request, &missing).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains("libcuda is not there") && error.hints()[0] == "install a driver");
        }
        let auto = choose_of(Request::Auto, &missing).unwrap();
        assert_eq!((auto.backend, auto.why.as_deref()), ("cpu", Some("libcuda is not there")));
    }

    #[test]
    fn devices_that_lack_a_library_are_left_where_they_were_found_and_refused_where_they_were_asked_for() {
        for (missing, decomposes, said) in [
            (vec!["nvrtc"], false, Some("compiles its CUDA kernels at first use with NVRTC, and no nvrtc")),
            (vec!["nvrtc", "cusolver"], true, Some("no nvrtc")),
            (vec!["cublas", "cusolver"], true, Some("need cuBLAS and cuSOLVER, and no cublas; no cusolver")),
            (vec!["cublas", "cusolver"], false, None),
            (vec![], true, None),
        ] {
            let missing: Vec<_> = missing.into_iter().map(|name| (name, format!("no {name}"))).collect();
            let of = |why: Option<String>| Device::of_cuda(vec![device(0, None)], missing.clone(), why);
            let (found, asked) = (of(Some("found".into())).suited_to(decomposes), of(None).suited_to(decomposes));
            let found = found.unwrap();
            match said {
                Some(said) => {
                    assert!(found.cuda.is_empty() && found.why.unwrap().contains(said), "{missing:?}");
                    let error = asked.unwrap_err();
                    assert_eq!(error.exit_code(), 3);
                    assert!(error.to_string().contains(said), "{missing:?}: {error}");
                }
                None => assert!(!found.cuda.is_empty() && !asked.unwrap().cuda.is_empty(), "{missing:?}"),
            }
        }
        // The CPU lacks nothing.
        let cpu = Device { missing: vec![("nvrtc", "no nvrtc".into())], ..Device::cpu(None) };
        assert!(cpu.suited_to(true).is_ok());
    }

    #[test]
    fn all_usable_devices_are_taken_and_one_that_is_named_must_be_usable() {
        let found = Cuda {
            devices: vec![device(0, None), device(1, Some("it is too old")), device(2, None)],
            ..Cuda::default()
        };
        let ordinals =
            |request| choose_of(request, &found).map(|d| d.cuda.iter().map(|c| c.ordinal).collect::<Vec<_>>());
        assert_eq!(ordinals(Request::Cuda(None)).unwrap(), [0, 2]);
        assert_eq!(ordinals(Request::Auto).unwrap(), [0, 2]);
        assert_eq!(ordinals(Request::Cuda(Some(2))).unwrap(), [2]);
        assert!(ordinals(Request::Cuda(Some(1))).unwrap_err().to_string().contains("too old"));
        assert!(ordinals(Request::Cuda(Some(7))).unwrap_err().to_string().contains("no device 7"));
        let old = Cuda { devices: vec![device(0, Some("it is too old"))], ..Cuda::default() };
        assert!(choose_of(Request::Auto, &old).unwrap().why.unwrap().contains("it is too old"));
    }
}
