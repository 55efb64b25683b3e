//! Which device computes.

use std::str::FromStr;

use super::cpu;
use crate::error::{Error, Result};

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

/// The device that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its own name.
    pub name: String,
    /// `cpu`.
    pub backend: &'static str,
    /// Why it was chosen, where that was not asked for.
    pub why: Option<&'static str>,
}

/// Why no CUDA device can be used.
pub const NO_CUDA: &str = "this build of merganser has no CUDA backend";

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
    let cpu = |why| Device { name: cpu::features::name(), backend: "cpu", why };
    match request {
        Request::Cpu => Ok(cpu(None)),
        Request::Auto => Ok(cpu(Some(NO_CUDA))),
        Request::Cuda(_) => Err(Error::environment(format!("CUDA was asked for, but {NO_CUDA}"))
            .hint("use `--device cpu`, or `--device auto` to take CUDA wherever it can be had")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_strictly() {
        assert_eq!("auto".parse(), Ok(Request::Auto));
        assert_eq!("cuda:3".parse(), Ok(Request::Cuda(Some(3))));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(wrong.parse::<Request>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cuda_never_becomes_the_cpu() {
        assert!(choose(Request::Cuda(None)).is_err());
        assert_eq!(choose(Request::Auto).map(|d| d.backend).ok(), Some("cpu"));
    }
}
