//! How fast this machine moves bytes and multiplies matrices, and how near each path of a merge comes to that.
//!
//! A *limit* is what the machine does without merganser's arithmetic: copying memory, reading a cached file, writing one,
//! matrix products; on a CUDA device copies over the bus and on the device, products, eigenvectors. A *path* is what a merge does to bytes in memory. Every measurement is repeated; its rate is that of the
//! median round. Data of one size is allocated once, and files are unlinked before they are written, so nothing is left
//! behind however a run ends.

#[cfg(feature = "cuda")]
mod cuda;
mod data;
mod files;
mod limits;
mod matrices;
mod merges;
mod paths;
mod rounds;

use std::path::PathBuf;

use serde::Serialize;

use crate::backend::cpu::ram;
use crate::backend::device::Device;
#[cfg(feature = "cuda")]
use crate::cost::cards::{self, Card};
use crate::engine::Stop;
use crate::error::{Error, Result};
use crate::units::format_bytes;

pub use data::{ELEM_BYTES, Family, MODELS};
pub use merges::Shapes;

#[cfg(feature = "cuda")]
use cuda::F64 as PRODUCT_ON_DEVICE;
#[cfg(not(feature = "cuda"))]
use matrices::F32 as PRODUCT_ON_DEVICE;

/// The least data that is worked on, in bytes.
pub const MIN_BYTES: u64 = 1 << 20;

/// A first round that takes longer is one of those that count, where rounds may take long.
const LONG_SECONDS: f64 = 5.0;

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
    /// What computes. Of several CUDA devices the first is measured.
    pub device: Device,
    /// Sets of measurements by name; all where there are none.
    pub only: Vec<String>,
    /// Whose matrices CART merges; `None`: matrices in memory on the CPU, [`Shapes::Small`] on a device.
    pub cart: Option<Shapes>,
}

/// What work is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Row {
    /// What was done.
    pub name: String,
    /// Threads, or lanes of a device, that did it.
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
    /// `rate` over that limit's: on as many threads where it was measured so.
    pub of_limit: Option<f64>,
    /// The rate that is predicted from the card's published rates ([`crate::cost`]); `None` where nothing is.
    pub predicted: Option<f64>,
}

/// All measurements of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Limits, then paths.
    pub rows: Vec<Row>,
    /// What could not be measured here, and why.
    pub left_out: Vec<String>,
}

/// A set of measurements.
type Suite = fn(&mut Bench<'_>) -> Result<()>;

/// What is measured on the CPU, limits first, by the names that `--only` takes.
const ON_CPU: &[(&str, Suite)] = &[
    ("products", matrices::products),
    ("memory", limits::memory),
    ("files", files::all),
    ("paths", paths::element_wise),
    ("cart", |bench| if bench.settings.cart.is_some() { merges::cart(bench) } else { matrices::truncation(bench) }),
];

/// What is measured where this backend computes.
fn suites(backend: &str) -> Result<&'static [(&'static str, Suite)]> {
    match backend {
        "cpu" => Ok(ON_CPU),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(cuda::SUITES),
        other => Err(Error::internal(format!("nothing is measured on the backend `{other}`"))),
    }
}

/// Those of the suites that are asked for.
fn chosen(settings: &Settings) -> Result<Vec<Suite>> {
    let all = suites(settings.device.backend)?;
    if let Some(unknown) = settings.only.iter().find(|only| all.iter().all(|(name, _)| only != name)) {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        return Err(Error::input(format!(
            "nothing that is measured on {} is called `{unknown}`",
            settings.device.name
        ))
        .hint(format!("there are {}", names.join(", "))));
    }
    let is_wanted = |name: &str| settings.only.is_empty() || settings.only.iter().any(|only| only == name);
    if settings.cart.is_some() && !is_wanted("cart") {
        return Err(Error::input("matrices for `cart` are named, which is not among what is to be measured")
            .hint("name `cart` in --only as well, or leave --cart out"));
    }
    Ok(all.iter().filter(|(name, _)| is_wanted(name)).map(|(_, suite)| *suite).collect())
}

/// Measures everything; `tell` gets each row as soon as it is known.
///
/// # Errors
/// `Input` for a size that does not fit this machine and unknown names; `Environment` where memory, of the host or of a device,
/// threads or the disk cannot be had; stopped by a signal.
pub fn run(settings: &Settings, stop: &Stop, tell: &mut dyn FnMut(&Row)) -> Result<Report> {
    let usable = ram::usable_bytes();
    if settings.size_bytes < MIN_BYTES || settings.size_bytes > usable / 2 {
        let (least, most) = (format_bytes(MIN_BYTES), format_bytes(usable / 2));
        let size = format_bytes(settings.size_bytes);
        return Err(Error::input(format!("cannot measure with {size} of data: expected {least} to {most}"))
            .hint("give another --size; a few times the processor's last cache is enough"));
    }
    let suites = chosen(settings)?;
    let report = Report { rows: Vec::new(), left_out: Vec::new() };
    let mut bench = Bench { settings, stop, tell, block: Vec::new(), report };
    for suite in suites {
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
    /// The card that is measured, if its rates are known.
    #[cfg(feature = "cuda")]
    fn card(&self) -> Option<&'static Card> {
        cards::of_device(&self.settings.device.cuda.first()?.name)
    }

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
        name: &str,
        (threads, unit, work): (usize, Unit, f64),
        round: impl FnMut(&Stop) -> Result<f64>,
    ) -> Result<()> {
        self.measure(Row::new(name, threads, unit, work, None), round)
    }

    /// Measures a path on all threads beside one of the limits.
    fn path(
        &mut self,
        name: &str,
        limit: &'static str,
        (unit, work): (Unit, f64),
        round: impl FnMut(&Stop) -> Result<f64>,
    ) -> Result<()> {
        self.measure(Row::new(name, self.settings.threads, unit, work, Some(limit)), round)
    }

    /// Measures a row: one round that does not count, then as many as there are to be.
    fn measure(&mut self, row: Row, mut round: impl FnMut(&Stop) -> Result<f64>) -> Result<()> {
        round(self.stop)?; // caches, page tables and the processor's clock
        self.rounds(row, Vec::new(), round)
    }

    /// The same where a round may take long: then the first counts as well, as what it warms up weighs little.
    fn measure_long(&mut self, row: Row, mut round: impl FnMut(&Stop) -> Result<f64>) -> Result<()> {
        let first = round(self.stop)?;
        self.rounds(row, if first > LONG_SECONDS { vec![first] } else { Vec::new() }, round)
    }

    fn rounds(&mut self, mut row: Row, seconds: Vec<f64>, mut round: impl FnMut(&Stop) -> Result<f64>) -> Result<()> {
        row.seconds = seconds;
        while row.seconds.len() < self.settings.runs {
            rounds::check(self.stop)?;
            row.seconds.push(round(self.stop)?);
        }
        row.rate = row.work / row.median();
        let limits = self.report.rows.iter().filter(|r| r.limit.is_none() && Some(r.name.as_str()) == row.limit);
        let limit = limits.min_by_key(|r| r.threads != row.threads);
        row.of_limit = limit.map(|limit| row.rate / limit.rate);
        (self.tell)(&row);
        self.report.rows.push(row);
        Ok(())
    }
}

impl Row {
    /// Seconds of the median round.
    pub fn median(&self) -> f64 {
        rounds::median(&self.seconds)
    }

    fn new(name: impl Into<String>, threads: usize, unit: Unit, work: f64, limit: Option<&'static str>) -> Self {
        let (name, seconds) = (name.into(), Vec::new());
        Self { name, threads, unit, work, seconds, rate: 0.0, limit, of_limit: None, predicted: None }
    }

    /// The same with what a card is predicted to reach, where it is known.
    #[cfg(feature = "cuda")]
    fn predicted(self, rate: Option<f64>) -> Self {
        Self { predicted: rate, ..self }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::device::{Request, choose};

    fn settings(size_bytes: u64) -> Settings {
        let device = choose(Request::Cpu).unwrap();
        Settings { size_bytes, threads: 2, runs: 2, dir: std::env::temp_dir(), device, only: Vec::new(), cart: None }
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
    fn what_is_asked_for_is_measured_and_nothing_else_and_an_unknown_name_is_the_users() {
        let asked = |only: &str, cart| {
            let only = vec![only.to_owned()];
            run(&Settings { only, cart, ..settings(MIN_BYTES) }, &Stop::default(), &mut |_| {})
        };
        let report = asked("cart", Some(Shapes::Small)).unwrap();
        let [row] = &report.rows[..] else { panic!("{:?}", report.rows) };
        assert!(row.name.starts_with("cart, small") && row.rate > 0.0 && row.of_limit.is_none(), "{row:?}");
        assert_eq!(asked("memory", Some(Shapes::Small)).unwrap_err().exit_code(), 1);
        let error = asked("copies", None).unwrap_err();
        assert!(error.exit_code() == 1 && error.hints()[0].contains("products, memory"), "{error}");
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
