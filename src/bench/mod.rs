//! How fast this machine moves bytes and multiplies matrices, and how near each path of a merge comes to that.
//!
//! A *limit* is what the machine does without merganser's arithmetic: copying memory, reading a cached file, writing one,
//! matrix products. A *path* is what a merge does to bytes in memory. Every measurement is repeated; its rate is that of the
//! median round. Data of one size is allocated once, and files are unlinked before they are written, so nothing is left
//! behind however a run ends.

mod data;
mod files;
mod limits;
mod matrices;
mod paths;
mod rounds;

use std::path::PathBuf;

use serde::Serialize;

use crate::backend::cpu::ram;
use crate::backend::device::Device;
use crate::engine::Stop;
use crate::error::{Error, Result};
use crate::units::format_bytes;

pub use data::{ELEM_BYTES, Family, MODELS};

/// The least data that is worked on, in bytes.
pub const MIN_BYTES: u64 = 1 << 20;

/// What to measure with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of memory, and of the file, that are worked on. Caches should be small beside it.
    pub size_bytes: u64,
    /// CPU threads.
    pub threads: usize,
    /// Measured rounds of everything; the median counts.
    pub runs: usize,
    /// The folder whose disk is written to.
    pub dir: PathBuf,
    /// What computes.
    pub device: Device,
}

/// What work is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Bytes read and bytes written.
    #[serde(rename = "bytes")]
    Bytes,
    /// Floating-point operations.
    #[serde(rename = "flop")]
    Operations,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was done.
    pub name: &'static str,
    /// Threads that did it.
    pub threads: usize,
    /// What `work` counts.
    pub unit: Unit,
    /// Bytes or operations of a round: of a merge, every source once and the output once, however often they are read.
    pub work: f64,
    /// Seconds of each measured round.
    pub seconds: Vec<f64>,
    /// `work` over the median of `seconds`.
    pub rate: f64,
    /// The limit that this is held against; `None` of a limit itself.
    pub limit: Option<&'static str>,
    /// `rate` over that limit's, on as many threads.
    pub of_limit: Option<f64>,
}

/// All measurements of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Limits, then paths.
    pub rows: Vec<Row>,
    /// What could not be measured here, and why.
    pub left_out: Vec<String>,
}

/// A set of measurements. A device has its own list of them.
type Suite = fn(&mut Bench<'_>) -> Result<()>;

/// What is measured where this backend computes. The host's limits hold for every device, as all bytes pass through it.
fn suites(backend: &str) -> Result<&'static [Suite]> {
    match backend {
        "cpu" => Ok(&[matrices::products, limits::memory, files::all, paths::element_wise, matrices::truncation]),
        other => Err(Error::input(format!("`bench` does not know what to measure on the backend `{other}`"))
            .hint("use `--device cpu`: the limits of the host hold for every device")),
    }
}

/// Measures everything; `tell` gets each row as soon as it is known.
///
/// # Errors
/// `Input` for a size that does not fit this machine and a device that has no measurements; `Environment` where memory, threads or the disk cannot be had; stopped by
/// a signal.
pub fn run(settings: &Settings, stop: &Stop, tell: &mut dyn FnMut(&Row)) -> Result<Report> {
    let usable = ram::usable_bytes();
    if settings.size_bytes < MIN_BYTES || settings.size_bytes > usable / 2 {
        let (least, most) = (format_bytes(MIN_BYTES), format_bytes(usable / 2));
        let size = format_bytes(settings.size_bytes);
        return Err(Error::input(format!("cannot measure with {size} of data: expected {least} to {most}"))
            .hint("give another --size; a few times the processor's last cache is enough"));
    }
    let report = Report { rows: Vec::new(), left_out: Vec::new() };
    let mut bench = Bench { settings, stop, tell, block: Vec::new(), report };
    for suite in suites(settings.device.backend)? {
        suite(&mut bench)?;
    }
    Ok(bench.report)
}

/// A run of measurements.
struct Bench<'a> {
    settings: &'a Settings,
    stop: &'a Stop,
    tell: &'a mut dyn FnMut(&Row),
    /// The data, once a suite needed it: `size_bytes` of memory, used by one suite after the other.
    block: Vec<u8>,
    report: Report,
}

impl Bench<'_> {
    /// Takes the block of memory, filled with noise by the first to take it; to be put back in [`Bench::block`].
    fn take_block(&mut self) -> Result<Vec<u8>> {
        let mut block = std::mem::take(&mut self.block);
        if block.is_empty() {
            let bytes = self.settings.size_bytes as usize;
            let missing = |e| {
                let size = format_bytes(self.settings.size_bytes);
                Error::environment(format!("cannot allocate {size}: {e}")).hint("give a smaller --size")
            };
            block.try_reserve_exact(bytes).map_err(missing)?;
            block.resize(bytes, 0);
            data::fill_with_noise(&mut block, self.settings.threads)?;
        }
        Ok(block)
    }

    /// Measures a limit: `round` does `work` and gives the seconds that it took.
    fn limit(
        &mut self,
        name: &'static str,
        (threads, unit, work): (usize, Unit, f64),
        round: impl FnMut(&Stop) -> Result<f64>,
    ) -> Result<()> {
        self.measure(Row::new(name, threads, unit, work, None), round)
    }

    /// Measures a path on all threads beside one of the limits.
    fn path(
        &mut self,
        name: &'static str,
        limit: &'static str,
        (unit, work): (Unit, f64),
        round: impl FnMut(&Stop) -> Result<f64>,
    ) -> Result<()> {
        self.measure(Row::new(name, self.settings.threads, unit, work, Some(limit)), round)
    }

    fn measure(&mut self, mut row: Row, mut round: impl FnMut(&Stop) -> Result<f64>) -> Result<()> {
        round(self.stop)?; // caches, page tables and the processor's clock
        for _ in 0..self.settings.runs {
            rounds::check(self.stop)?;
            row.seconds.push(round(self.stop)?);
        }
        row.rate = row.work / rounds::median(&row.seconds);
        let mut limits = self.report.rows.iter().filter(|r| r.limit.is_none() && r.threads == row.threads);
        let limit = limits.find(|r| Some(r.name) == row.limit);
        row.of_limit = limit.map(|limit| row.rate / limit.rate);
        (self.tell)(&row);
        self.report.rows.push(row);
        Ok(())
    }
}

impl Row {
    fn new(name: &'static str, threads: usize, unit: Unit, work: f64, limit: Option<&'static str>) -> Self {
        Self { name, threads, unit, work, seconds: Vec::new(), rate: 0.0, limit, of_limit: None }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::device::{Request, choose};

    fn settings(size_bytes: u64) -> Settings {
        let device = choose(Request::Cpu).unwrap();
        Settings { size_bytes, threads: 2, runs: 2, dir: std::env::temp_dir(), device }
    }

    #[test]
    fn every_path_stands_beside_a_limit_that_was_measured_on_as_many_threads() {
        let mut told = Vec::new();
        let report = run(&settings(MIN_BYTES), &Stop::default(), &mut |row| told.push(row.clone())).unwrap();
        assert_eq!(told, report.rows);
        assert!(report.rows.iter().all(|row| row.seconds.len() == 2 && row.rate.is_finite() && row.rate > 0.0));
        let paths: Vec<_> = report.rows.iter().filter(|row| row.limit.is_some()).collect();
        assert!(paths.len() >= 8 && paths.iter().all(|row| row.of_limit.is_some_and(|share| share > 0.0)));
    }

    #[test]
    fn a_wish_to_stop_ends_the_run_and_a_size_out_of_range_does_not_begin_it() {
        let stop = Stop::default();
        stop.set(libc::SIGINT);
        assert_eq!(run(&settings(MIN_BYTES), &stop, &mut |_| {}).unwrap_err().exit_code(), 130);
        for size in [0, MIN_BYTES - 1, ram::usable_bytes(), u64::MAX] {
            let error = run(&settings(size), &Stop::default(), &mut |_| {}).unwrap_err();
            assert_eq!((error.exit_code(), error.hints().len()), (1, 1), "{size}");
        }
    }
}
