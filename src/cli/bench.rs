//! `merganser bench`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::log::Log;
use super::print::{Align, Table, count, print, print_json};
use super::{JsonFlag, Threads, setup, size};
use crate::backend::device::{self, Device};
use crate::bench::{self, Report, Row, Settings, Unit};
use crate::error::Result;
use crate::units::format_bytes;

/// Measure the throughput of this machine's paths against their limits
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser bench
  merganser bench --dir /scratch --size 2GiB     the disk that outputs go to
  merganser bench --json | jq '.rows[] | {name, threads, rate, of_limit}'

Limits are what the machine does without a merge: copying memory, reading a cached file, writing one, matrix products. Paths \
are what a merge does to a base and three bfloat16 fine-tunes in memory. Rates count every source once and the output once, \
however often a method reads them; rates of copies count what is read and what is written. Each is that of the median run.

Takes SIZE of memory, a few MB a thread, and SIZE of disk in a file without a name, so that nothing is left behind.")]
pub(super) struct Bench {
    /// What to measure: auto, cpu, cuda or cuda:N. `cuda` never falls back to the CPU
    #[arg(long, default_value = "cpu", value_name = "DEVICE", value_parser = clap::value_parser!(device::Request))]
    device: device::Request,
    #[command(flatten)]
    threads: Threads,
    /// Data to work on, large beside the processor's caches
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size, allow_negative_numbers = true)]
    size: u64,
    /// Folder on the disk whose writing is measured [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Measured runs of everything, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    #[command(flatten)]
    json: JsonFlag,
}

impl Bench {
    pub fn run(self, log: &Log) -> Result<u8> {
        let stop = setup::signals()?;
        let device = match self.device {
            // CUDA devices have no measurements yet: `auto` takes what has.
            device::Request::Auto => device::Device::cpu(Some("it measures no other device yet".into())),
            request => device::choose(request)?,
        };
        if let Some(why) = &device.why {
            tracing::info!("measuring the CPU; {why}");
        }
        let settings = Settings {
            size_bytes: self.size,
            threads: self.threads.get(),
            runs: usize::from(self.runs),
            dir: self.dir.unwrap_or_else(std::env::temp_dir),
            device,
        };
        let mut tell = |row: &Row| {
            if !log.quiet {
                tracing::info!("{}, {}: {}", row.name, count(row.threads as u64, "thread"), rate(row));
            }
        };
        let report = bench::run(&settings, &stop, &mut tell)?;
        for what in &report.left_out {
            tracing::warn!("{what}");
        }
        if self.json.json {
            print_json(&document(&settings, &report))?
        } else {
            print(&in_words(&settings, &report))?
        }
        Ok(0)
    }
}

fn document(settings: &Settings, report: &Report) -> serde_json::Value {
    let Device { name, backend, .. } = &settings.device;
    json!({
        "schema": 1,
        "merganser": env!("CARGO_PKG_VERSION"),
        "device": {"backend": backend, "name": name},
        "threads": settings.threads,
        "size_bytes": settings.size_bytes,
        "dir": settings.dir.display().to_string(),
        "rows": report.rows,
        "left_out": report.left_out,
    })
}

fn in_words(settings: &Settings, report: &Report) -> String {
    let mut limits = Table::new(&[("limit", Align::Left), ("threads", Align::Right), ("rate", Align::Right)]);
    let mut paths = Table::new(&[
        ("path", Align::Left),
        ("rate", Align::Right),
        ("of its limit", Align::Right),
        ("limit", Align::Left),
    ]);
    for row in &report.rows {
        let (name, threads) = (row.name.to_owned(), row.threads.to_string());
        match row.limit {
            None => limits.row(vec![name, threads, rate(row)]),
            Some(limit) => {
                let share = row.of_limit.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share));
                paths.row(vec![name, rate(row), share, limit.to_owned()]);
            }
        }
    }
    format!(
        "{}, {}, {} of data, files in {}\n\n{}\n{}",
        settings.device.name,
        count(settings.threads as u64, "thread"),
        format_bytes(settings.size_bytes),
        settings.dir.display(),
        limits.render(""),
        paths.render(""),
    )
}

fn rate(row: &Row) -> String {
    match row.unit {
        Unit::Bytes => format!("{:.2} GB/s", row.rate / 1e9),
        Unit::Operations => format!("{:.1} GFLOP/s", row.rate / 1e9),
    }
}
