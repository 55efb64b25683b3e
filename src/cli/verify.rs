//! `merganser verify`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use serde::Serialize;

use super::document::{Document, absolute, print_document};
use super::log::Log;
use super::print::{count, print};
use super::progress::{ProgressArgs, State};
use super::{JsonFlag, Threads};
use crate::error::{Cause, Error, Result};
use crate::output::Nonfinite;
use crate::report::manifest::Manifest;
use crate::report::verify::{Problem, VerifyReport, verify};
use crate::units::format_bytes;

/// Check a finished output against its manifest
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser verify merged
  merganser verify merged --json | jq .ok

Checked are the digest, shape and dtype of every tensor, the digest of every other file, the index, that nothing lies in the \
folder which the manifest does not list, and that no element is NaN or infinite which it does not state.

Exit codes: 0 all is as the manifest says; 1 something is not, and each problem is listed.")]
pub(super) struct Verify {
    /// The output of a merge
    out: PathBuf,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    json: JsonFlag,
}

impl Verify {
    pub fn run(self, log: &Log) -> Result<u8> {
        let read = AtomicU64::new(0);
        // For the progress alone: the verification reads the manifest itself.
        let of =
            if self.progress.is_shown(log) { Manifest::read(&self.out).map_err(is_damaged)?.totals.bytes } else { 0 };
        let state = || State { bytes: read.load(Ordering::Relaxed), of, note: String::new() };
        let report = self
            .progress
            .during(log, state, || {
                verify(&self.out, self.threads.get(), &|bytes| {
                    read.fetch_add(bytes, Ordering::Relaxed);
                })
            })
            .map_err(is_damaged)?;
        if self.json.json {
            print_document(Vec::new(), document(&report))?
        } else {
            print(&in_words(&report))?
        }
        Ok(u8::from(!report.ok))
    }
}

/// What is wrong with what the user gave is wrong with the output.
fn is_damaged(error: Error) -> Error {
    error.input_is(Cause::Checkpoint)
}

/// The document of a verification.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct VerifyDocument {
    /// The output, absolute.
    out: String,
    /// Whether everything is as the manifest says.
    ok: bool,
    problems: Vec<Problem>,
    totals: Totals,
}

impl Document for VerifyDocument {
    const COMMAND: &'static str = "verify";
}

/// What was checked.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Totals {
    /// Without the manifest itself.
    files: usize,
    /// Whose bytes were read.
    tensors: usize,
    /// Bytes of tensors.
    bytes_read: u64,
    nonfinite: Nonfinite,
}

fn document(report: &VerifyReport) -> VerifyDocument {
    VerifyDocument {
        out: absolute(std::path::Path::new(&report.out)),
        ok: report.ok,
        problems: report.problems.clone(),
        totals: Totals {
            files: report.files,
            tensors: report.tensors,
            bytes_read: report.bytes,
            nonfinite: report.nonfinite,
        },
    }
}

fn in_words(report: &VerifyReport) -> String {
    let mut text: String = report.problems.iter().map(|problem| format!("problem: {}\n", problem.message)).collect();
    let seen = format!(
        "{} ({}) in {}",
        count(report.tensors as u64, "tensor"),
        format_bytes(report.bytes),
        count(report.files as u64, "file")
    );
    text += &match report.problems.len() as u64 {
        0 => format!("{} is as its manifest says: {seen}\n", report.out),
        n => format!("{} has {} in what was checked: {seen}\n", report.out, count(n, "problem")),
    };
    if report.nonfinite.output > 0 {
        text += &format!(
            "NaN or infinite: {}, {} of them where every source is finite\n",
            count(report.nonfinite.output, "element"),
            report.nonfinite.introduced
        );
    }
    text
}
