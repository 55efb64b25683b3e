//! `merganser bench`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::document::{Document, absolute, print_document};
use super::log::Log;
use super::print::{Align, Table, count, print};
use super::{JsonFlag, Threads, setup, size};
use crate::backend::device::{self, Cuda, Device};
use crate::bench::{self, Report, Row, Settings, Shapes, Unit};
use crate::error::Result;
use crate::units::format_bytes;

/// Measure the throughput of this machine's paths against their limits
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser bench
  merganser bench --dir /scratch --size 2GiB     the disk that outputs go to
  merganser bench --device cuda --only copies kernels
  merganser bench --json | jq '.rows[] | {name, threads, rate, of_limit}'

Limits are what the machine does without a merge: copying memory, reading a cached file, writing one, matrix products. Paths \
are what a merge does to a base and three bfloat16 fine-tunes in memory. Rates count every source once and the output once, \
however often a method reads them; rates of copies count what is read and what is written. Each is that of the median run.

Of a CUDA device the limits are copies over the bus, from and to page-locked and ordinary memory, copies of its own memory, \
products of matrices, and cuSOLVER's eigenvectors, counted as 9 n³ operations. `kernels` are paths over data that lies on the \
device, beside its own copy, timed by its own clock, with what the host does between launches. `streamed` are the same from the host's memory \
through page-locked slots and eight lanes to the host's memory, as a merge has it but for files; they count the bytes that go to the device, beside \
the page-locked copy there. Results are compared with the CPU's. Of cards that `merganser plan --card` knows, what their published rates let expect stands \
beside what was measured.

`--cart` merges whole checkpoints, written into DIR and removed again, from files to files; operations are those that \
`merganser plan` counts. small: what fits into SIZE, three fine-tunes. vit-l-14: matrices of eight ViT-L/14 (6 GB of files). \
llama-8b: three layers of an 8 B parameter model, three fine-tunes (7 GB).

By name there are, for the CPU, products, memory, files, paths and cart; for a device copies, products, eigenvectors, kernels, \
streamed and cart. Without its limit a path's share of it is not told.

Takes SIZE of memory, half as much again and SIZE of the device's memory where that is measured, a few MB a thread, and SIZE of disk \
in a file without a name, or twice SIZE of checkpoints, so that nothing is left behind.")]
pub(super) struct Bench {
    /// What to measure: auto, cpu, cuda or cuda:N. `cuda` never falls back to the CPU
    #[arg(long, default_value = "cpu", value_name = "DEVICE", value_parser = clap::value_parser!(device::Request))]
    device: device::Request,
    #[command(flatten)]
    threads: Threads,
    /// Data to work on, large beside the processor's caches
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = size, allow_negative_numbers = true)]
    size: u64,
    /// Measure these alone: names as listed below
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Merge checkpoints of these shapes by CART: small, vit-l-14 or llama-8b [default: small on a CUDA device, none on
    /// the CPU]
    #[arg(long, value_name = "SHAPES", value_parser = clap::value_parser!(Shapes))]
    cart: Option<Shapes>,
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
        let mut device = device::choose(self.device)?;
        if let [first, _, ..] = &device.cuda[..] {
            let (label, count) = (first.label(), device.cuda.len());
            tracing::info!("measuring {label}, the first of {count} devices; `--device cuda:N` names another");
            device.cuda.truncate(1);
            device.name = label;
        }
        if let Some(why) = &device.why {
            tracing::info!("measuring {}; {why}", device.name);
        }
        let settings = Settings {
            size_bytes: self.size,
            threads: self.threads.get(),
            runs: usize::from(self.runs),
            dir: self.dir.unwrap_or_else(std::env::temp_dir),
            device,
            only: self.only,
            cart: self.cart,
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
            print_document(Vec::new(), document(&settings, &report))?
        } else {
            print(&in_words(&settings, &report))?
        }
        Ok(0)
    }
}

/// The document of a run.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct BenchDocument {
    device: Measured,
    threads: usize,
    size_bytes: u64,
    /// Where files were written, absolute.
    dir: String,
    rows: Vec<Row>,
    /// What could not be measured here, and why.
    left_out: Vec<String>,
}

impl Document for BenchDocument {
    const COMMAND: &'static str = "bench";
}

/// What was measured.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Measured {
    /// `cpu` or `cuda`.
    backend: &'static str,
    name: String,
    /// The kernel's driver; null for the CPU, as are the next two.
    driver: Option<String>,
    driver_supports: Option<String>,
    /// Versions of CUDA's libraries, by name.
    libraries: Option<BTreeMap<String, Option<String>>>,
}

fn document(settings: &Settings, report: &Report) -> BenchDocument {
    let Device { name, backend, cuda, .. } = &settings.device;
    let found = (!cuda.is_empty()).then(Cuda::find);
    let libraries = |found: &Cuda| found.libraries.iter().map(|l| (l.name.to_owned(), l.version.clone())).collect();
    BenchDocument {
        device: Measured {
            backend,
            name: name.clone(),
            driver: found.as_ref().and_then(|_| device::nvidia_driver()),
            driver_supports: found.as_ref().and_then(|f| f.driver).map(|v| v.to_string()),
            libraries: found.as_ref().map(libraries),
        },
        threads: settings.threads,
        size_bytes: settings.size_bytes,
        dir: absolute(&settings.dir),
        rows: report.rows.clone(),
        left_out: report.left_out.clone(),
    }
}

fn in_words(settings: &Settings, report: &Report) -> String {
    let (left, right) = (Align::Left, Align::Right);
    // A column of nothing but dashes tells nothing: of the CPU nothing is predicted.
    let is_predicted = report.rows.iter().any(|row| row.predicted.is_some());
    let expected = if is_predicted { vec![("predicted", right)] } else { Vec::new() };
    let columns = |first: &[(&'static str, Align)], last: &[(&'static str, Align)]| {
        [first, &[("seconds", right), ("rate", right)], &expected[..], last].concat()
    };
    let mut limits = Table::new(&columns(&[("limit", left), ("threads", right)], &[]));
    let mut paths = Table::new(&columns(&[("path", left)], &[("of its limit", right), ("limit", left)]));
    for row in &report.rows {
        let mut cells = vec![row.name.clone()];
        if row.limit.is_none() {
            cells.push(row.threads.to_string());
        }
        cells.extend([format!("{:.6}", row.median()), rate(row)]);
        if is_predicted {
            cells.push(predicted(row));
        }
        match row.limit {
            None => limits.row(cells),
            Some(limit) => {
                cells.push(row.of_limit.map_or("–".into(), |share| format!("{:.0} %", 100.0 * share)));
                cells.push(limit.to_owned());
                paths.row(cells);
            }
        }
    }
    let has = |limit: bool| report.rows.iter().any(|row| row.limit.is_none() == limit);
    let tables: Vec<String> = [(limits, true), (paths, false)]
        .iter()
        .filter(|(_, limit)| has(*limit))
        .map(|(table, _)| table.render(""))
        .collect();
    format!(
        "{}, {}, {} of data, files in {}\n\n{}",
        settings.device.name,
        count(settings.threads as u64, "thread"),
        format_bytes(settings.size_bytes),
        settings.dir.display(),
        tables.join("\n"),
    )
}

fn rate(row: &Row) -> String {
    in_units(row.unit, row.rate)
}

/// What the card's published rates let expect, where they do.
fn predicted(row: &Row) -> String {
    row.predicted.map_or("–".into(), |rate| in_units(row.unit, rate))
}

fn in_units(unit: Unit, rate: f64) -> String {
    match unit {
        Unit::Bytes => format!("{:.2} GB/s", rate / 1e9),
        Unit::Operations => format!("{:.1} GFLOP/s", rate / 1e9),
    }
}
