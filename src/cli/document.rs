//! What `--json` prints: one document a command, each a struct of its own, in one frame.
//!
//! `docs/reference/documents.schema.json` is made from these types by a test, which compares it with what is committed.

use std::path::Path;

use serde::Serialize;

use super::print::print_json;
use crate::error::Result;
use crate::output::Nonfinite;
use crate::report::manifest::{self, Manifest};

/// The schema of every document.
pub(super) const SCHEMA: u32 = 2;

/// The frame of every document.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Frame<T> {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The command; null where the arguments name none.
    pub command: Option<&'static str>,
    /// The version of merganser.
    pub merganser: &'static str,
    /// What the user should know, as on stderr.
    pub warnings: Vec<String>,
    /// The command's own.
    #[serde(flatten)]
    pub body: T,
}

/// A command's own part of its document.
pub(super) trait Document: Serialize {
    /// The command.
    const COMMAND: &'static str;
}

impl<T: Serialize> Frame<T> {
    pub fn new(command: Option<&'static str>, warnings: Vec<String>, body: T) -> Self {
        Self { schema: SCHEMA, command, merganser: env!("CARGO_PKG_VERSION"), warnings, body }
    }
}

/// Prints a command's document.
pub(super) fn print_document<T: Document>(warnings: Vec<String>, body: T) -> Result<()> {
    print_json(&Frame::new(Some(T::COMMAND), warnings, body))
}

/// A folder or file as documents name it: absolute, links unresolved.
pub(super) fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// What computed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Device {
    /// The device's own name.
    name: String,
    /// `cpu` or `cuda`.
    backend: String,
    /// Device memory taken, in bytes; null for the CPU.
    memory_bytes: Option<u64>,
    /// The instruction set of the loops that computed on the CPU: `portable`, `avx2` or `avx512`; null of outputs that do not
    /// state it.
    instructions: Option<String>,
    /// When `merganser devices --check` last found these devices right; null where it has not.
    check: Option<String>,
    /// What of the devices' work the CPU has done again, with the same result; null for the CPU.
    audit: Option<manifest::Audit>,
    /// Why devices that were to do some of it did not; null where none failed.
    left: Option<String>,
}

impl From<&manifest::Device> for Device {
    fn from(of: &manifest::Device) -> Self {
        let manifest::Device { name, backend, memory_bytes, instructions, check, audit, left } = of.clone();
        Self { name, backend, memory_bytes, instructions, check, audit, left }
    }
}

/// One file of an output.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct File {
    /// Its name.
    name: String,
    /// Its size.
    bytes: u64,
    /// Its digest; null for files of tensors, whose tensors have their own in the manifest.
    digest: Option<String>,
}

/// Sums over an output.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Totals {
    tensors: usize,
    /// Of those, copied as they are.
    copied: usize,
    elements: u64,
    /// Bytes of tensors.
    bytes: u64,
    /// Bytes read of the sources, by this run.
    bytes_read: u64,
    /// Bytes written of tensors, by this run.
    bytes_written: u64,
    nonfinite: Nonfinite,
}

/// What `merge` and `extract` say alike of an output.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Output {
    /// The output's folder, absolute.
    out: String,
    /// Its manifest, absolute.
    manifest: String,
    /// Whether it was finished before.
    already_done: bool,
    /// Tensors that an earlier run had finished.
    resumed_tensors: usize,
    device: Device,
    /// Whether the same command gives the same bytes: not where matrices were merged elsewhere than planned.
    reproducible: bool,
    threads: usize,
    memory_budget: u64,
    created: String,
    fingerprint: String,
    timings: manifest::Timings,
    totals: Totals,
    files: Vec<File>,
}

impl Output {
    pub fn new(path: &Path, manifest: &Manifest, already_done: bool, resumed_tensors: usize) -> Self {
        let (totals, timings) = (&manifest.totals, &manifest.timings);
        let file = |f: &manifest::OutputFile| File { name: f.name.clone(), bytes: f.bytes, digest: f.digest.clone() };
        Self {
            out: absolute(path),
            manifest: absolute(&path.join(manifest::MANIFEST_NAME)),
            already_done,
            resumed_tensors,
            device: (&manifest.device).into(),
            reproducible: manifest.reproducible,
            threads: manifest.threads,
            memory_budget: manifest.memory_budget,
            created: manifest.created.clone(),
            fingerprint: manifest.fingerprint.clone(),
            timings: timings.clone(),
            totals: Totals {
                tensors: totals.tensors,
                copied: totals.copied,
                elements: totals.parameters,
                bytes: totals.bytes,
                bytes_read: if already_done { 0 } else { timings.bytes_read },
                bytes_written: if already_done { 0 } else { timings.bytes_written },
                nonfinite: totals.nonfinite,
            },
            files: manifest.files.iter().map(file).collect(),
        }
    }
}

/// What went wrong.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Failed {
    pub error: Failure,
}

/// A failure, as programs tell it from others.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Failure {
    /// `recipe`, `checkpoint`, `usage`, `internal`, `no_space`, `permission`, `memory`, `device`, `io`, `busy` or
    /// `interrupted`.
    pub kind: &'static str,
    pub message: String,
    /// What to do about it, a sentence each.
    pub hints: Vec<String>,
    pub exit_code: u8,
    /// The file at fault, as the message names it; null where none is.
    pub file: Option<String>,
    /// The line of the file, from 1; null where no single line is at fault.
    pub line: Option<usize>,
    /// The tensor that it came up at; null where it did at none.
    pub tensor: Option<String>,
}
