//! `merganser compare`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;

use super::document::{Document, print_document};
use super::log::Log;
use super::print::{Align, Table, count, print, shape};
use super::progress::{ProgressArgs, State};
use super::{JsonFlag, Threads};
use crate::checkpoint::{Checkpoint, escaped, quoted};
use crate::error::Result;
use crate::report::compare::{Comparison, Measures, bytes_to_read, compare};

/// Compare two checkpoints: how far apart, per tensor and in all
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser compare models/base merged
  merganser compare a.safetensors b.safetensors --json | jq .totals.relative_error

Columns: max |a-b| over the elements; relative error = |A-B| / |A| and cosine = <A,B> / (|A| |B|) with Frobenius norms, \
summed in double precision; elements that differ, NaN always among them; NaN and infinities in A and B. Where there are \
NaN or infinities the first three are not defined: `-`, in JSON null. Dtypes may differ; integers are compared exactly.

Exit codes: 0 the tensors have the same names and shapes, whatever their values; 1 they do not, and what differs is listed. \
With --exit-code 0 is for identical tensors alone.")]
pub(super) struct Compare {
    /// A checkpoint: a folder, or one .safetensors file
    a: PathBuf,
    /// Another
    b: PathBuf,
    #[command(flatten)]
    threads: Threads,
    /// End with status 1 also where values or dtypes differ
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    json: JsonFlag,
}

impl Compare {
    pub fn run(self, log: &Log) -> Result<u8> {
        super::setup::bus_errors()?;
        let (a, b) = (Checkpoint::open(&self.a)?, Checkpoint::open(&self.b)?);
        let read = AtomicU64::new(0);
        let of = bytes_to_read(&a, &b);
        let state = || State { bytes: read.load(Ordering::Relaxed), of, note: String::new() };
        let found = self.progress.during(log, state, || {
            compare(&a, &b, self.threads.get(), &|bytes| {
                read.fetch_add(bytes, Ordering::Relaxed);
            })
        })?;
        if self.json.json {
            print_document(Vec::new(), &found)?
        } else {
            print(&in_words(&found))?
        }
        Ok(u8::from(!found.same_layout || (self.exit_code && !found.identical)))
    }
}

impl Document for &Comparison {
    const COMMAND: &'static str = "compare";
}

fn in_words(found: &Comparison) -> String {
    let mut out = format!("A  {}\nB  {}\n", escaped(&found.a), escaped(&found.b));
    out += &format!("\n{}", tensors(found));
    out += &misfits(found);
    let verdict = match (found.same_layout, found.identical, found.total.differing) {
        (false, ..) => "names or shapes differ".into(),
        (true, true, _) => "A and B are identical".into(),
        (true, false, 0) => "the values are the same, some dtypes differ".into(),
        (true, false, n) => format!("{} of {} differ", n, count(found.total.elements, "element")),
    };
    out + &format!("\n{verdict}\n")
}

fn tensors(found: &Comparison) -> String {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("tensor", Left),
        ("dtype", Left),
        ("shape", Left),
        ("max |a-b|", Right),
        ("relative", Right),
        ("cosine", Right),
        ("differing", Right),
        ("NaN A", Right),
        ("NaN B", Right),
        ("Inf A", Right),
        ("Inf B", Right),
    ]);
    for t in &found.tensors {
        let dtype = if t.dtype_a == t.dtype_b { t.dtype_a.to_string() } else { format!("{} {}", t.dtype_a, t.dtype_b) };
        table.row([vec![escaped(&t.name), dtype, shape(&t.shape)], cells(&t.measures)].concat());
    }
    table.row([vec!["all".into(), String::new(), String::new()], cells(&found.total)].concat());
    table.render("")
}

fn cells(m: &Measures) -> Vec<String> {
    let size = |value: Option<f64>| match value {
        None => "-".into(),
        Some(0.0) => "0".into(),
        Some(value) => format!("{value:.3e}"),
    };
    let cosine = m.cosine.map_or("-".into(), |value| format!("{value:.9}"));
    let counts = [m.differing, m.nan_a, m.nan_b, m.inf_a, m.inf_b].map(|n| n.to_string());
    [&[size(m.max_difference), size(m.relative_error), cosine], &counts[..]].concat()
}

/// Everything that keeps the two from being compared as a whole.
fn misfits(found: &Comparison) -> String {
    let mut out = String::new();
    let mut list = |what: &str, names: &[String]| {
        if !names.is_empty() {
            out += &format!("\n{what}: {}\n", count(names.len() as u64, "tensor"));
            out.extend(names.iter().map(|name| format!("  {}\n", quoted(name))));
        }
    };
    list("only in A", &found.only_in_a);
    list("only in B", &found.only_in_b);
    let differ = found.mismatched.iter().map(|m| {
        format!(
            "  {}: {} {} in A, {} {} in B\n",
            quoted(&m.name),
            m.dtype_a,
            shape(&m.shape_a),
            m.dtype_b,
            shape(&m.shape_b)
        )
    });
    if !found.mismatched.is_empty() {
        out += &format!("\nnot comparable: {}\n", count(found.mismatched.len() as u64, "tensor"));
        out.extend(differ);
    }
    out
}
