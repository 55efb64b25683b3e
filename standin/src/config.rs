//! What the environment asks of the stand-in, read once, at the first call.

use crate::cards::Card;
use crate::failures::Failures;
use crate::sabotage::Sabotage;

/// Settings, all from variables that begin with `MERGANSER_STANDIN_`.
pub struct Config {
    /// `SEED`: schedule of the streams and order of threads and blocks; 0 runs everything at once and in order.
    pub seed: u64,
    /// `DEVICES`: how many there are, less those that CUDA_VISIBLE_DEVICES hides.
    pub devices: usize,
    /// `MEMORY`: bytes of each device; of the last one named where there are more devices.
    pub memory_bytes: Vec<usize>,
    /// `DRIVER`: what `cuDriverGetVersion` says, as 1000 · major + 10 · minor.
    pub driver_version: i32,
    /// `COMPUTE_MODE`: that of every device, as `cuda.h` numbers it.
    pub compute_mode: i32,
    /// `CAPABILITY`: the compute capability of every device, as 90 for 9.0, and with it their limits.
    pub card: Card,
    /// `FAIL`: which calls fail.
    pub failures: Failures,
    /// `SABOTAGE`: what the program under test asks for and does not get; with `WHERE`, it is told from where that was asked.
    pub sabotage: Sabotage,
    /// `NAME`: what every device is called, before its number.
    pub name: String,
    /// `REPORT`: file for the counts of what was done.
    pub report: Option<std::path::PathBuf>,
    /// `KERNELS`: shared object with the kernels; by default `libkernels.so` beside the stand-in.
    pub kernels: Option<std::path::PathBuf>,
}

impl Config {
    /// Reads the environment. A setting that makes no sense ends the process: a test must not run with less than it asked for.
    pub fn from_environment() -> Config {
        let value = |name: &str| std::env::var(format!("MERGANSER_STANDIN_{name}")).ok();
        let number = |name: &str, default: u64| match value(name) {
            None => default,
            Some(text) => bytes(&text).unwrap_or_else(|| refuse(name, &text)),
        };
        let memory_bytes = match value("MEMORY") {
            None => vec![1 << 30],
            Some(text) => {
                text.split(',').map(|part| bytes(part).unwrap_or_else(|| refuse("MEMORY", &text)) as usize).collect()
            }
        };
        let failures = match value("FAIL") {
            None => Failures::default(),
            Some(text) => Failures::parse(&text).unwrap_or_else(|| refuse("FAIL", &text)),
        };
        let mut sabotage = match value("SABOTAGE") {
            None => Sabotage::default(),
            Some(text) => Sabotage::parse(&text).unwrap_or_else(|| refuse("SABOTAGE", &text)),
        };
        let capability = number("CAPABILITY", 90);
        let card = u32::try_from(capability).ok().and_then(Card::of);
        sabotage.says_where = value("WHERE").is_some();
        Config {
            seed: number("SEED", 0),
            devices: visible(number("DEVICES", 1) as usize, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref()),
            memory_bytes,
            driver_version: number("DRIVER", 13_000) as i32,
            compute_mode: number("COMPUTE_MODE", 0) as i32,
            card: card.unwrap_or_else(|| refuse("CAPABILITY", &capability.to_string())),
            failures,
            sabotage,
            name: value("NAME").unwrap_or_else(|| "merganser stand-in".into()),
            report: value("REPORT").map(Into::into),
            kernels: value("KERNELS").map(Into::into),
        }
    }
}

fn refuse(name: &str, text: &str) -> ! {
    eprintln!("standin: MERGANSER_STANDIN_{name}={text} is not understood");
    std::process::exit(87)
}

/// Devices that a list of ordinals leaves: those before the first that does not exist, as the driver has it.
fn visible(devices: usize, list: Option<&str>) -> usize {
    let exists = |text: &&str| text.trim().parse::<usize>().is_ok_and(|ordinal| ordinal < devices);
    list.map_or(devices, |list| list.split(',').take_while(exists).count())
}

/// A number, with KiB, MiB or GiB behind it if it likes.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = [("KiB", 10), ("MiB", 20), ("GiB", 30)]
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, *shift)))
        .unwrap_or((text, 0));
    digits.trim().parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::{bytes, visible};

    #[test]
    fn hidden_devices_are_not_counted() {
        for (list, left) in [(None, 2), (Some(""), 0), (Some("1"), 1), (Some("0,1"), 2), (Some("0,7,1"), 1)] {
            assert_eq!(visible(2, list), left, "{list:?}");
        }
    }

    #[test]
    fn sizes_take_binary_units_and_nothing_else() {
        assert_eq!(bytes("48MiB"), Some(48 << 20));
        assert_eq!(bytes(" 7 "), Some(7));
        assert_eq!(bytes("7MB"), None);
        assert_eq!(bytes(""), None);
    }
}
