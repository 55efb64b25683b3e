//! The element-wise merge: `kernels/blend_plain.cu`, `blend_pruned.cu`, `blend_tile.cu`. CPU twin: [`crate::backend::cpu::blend::blend`].

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, arg};
use super::params::{DeviceSources, Kind, Load, MAX_MODELS, Place, code, spread};
use super::shape::{VECTOR, by_vectors, slots};
use super::stages::Stages;
use crate::error::{Error, Result};
use crate::ops::rules::RuleId;
use crate::ops::{Measured, Sparsify, philox};

/// `Blend` of blend.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    weights: [f64; MAX_MODELS],
    limits: [u64; MAX_MODELS],
    tops: [u64; MAX_MODELS],
    factors: [f64; MAX_MODELS],
    keys: [[u32; 2]; MAX_MODELS],
    divisor: f64,
    lambda: f64,
    base: f64,
    threshold: f64,
    normalize: u32,
    pad: u32,
    out: u64,
    facts: u64,
    lines: u64,
    line_count: u64,
    line_elems: u64,
    line_stride: u64,
    out_dtype: u32,
    sparsify: u32,
}

const _: () = assert!(size_of::<Params>() == 3312);

/// Bytes of the facts of a merge: NaN or infinite results, those of them with finite sources, and by model the elements
/// that [`Sparsify::Random`] kept, each a u64.
pub fn facts_bytes(models: usize) -> u64 {
    8 * (2 + models as u64)
}

/// Merges a run into `out`; `lines`: where the weights of lines lie, `f64[models][lines]`, or 0, and adds what was found to the facts at `facts` ([`facts_bytes`], zeroed before the first run).
///
/// # Errors
/// `Internal` if what is passed cannot be, `Environment` if it cannot be launched.
#[allow(clippy::too_many_arguments)]
pub fn blend(
    kernels: &Kernels,
    stream: &Arc<CudaStream>,
    m: &Measured,
    wide: bool,
    stages: Stages,
    lines: u64,
    sources: &DeviceSources<'_>,
    out: Place,
    facts: u64,
) -> Result<()> {
    if sources.len == 0 {
        return Ok(());
    }
    let mut params = Params {
        load: Load::new(sources, m.geometry, stages)?,
        factors: [1.0; MAX_MODELS],
        divisor: 1.0,
        out: out.ptr,
        facts,
        out_dtype: code(out)?.into(),
        ..Params::zeroed()
    };
    if m.combine.reads_base() && sources.base.is_none() {
        return Err(Error::internal("a merge of task vectors needs the base"));
    }
    match &m.sparsify {
        Sparsify::None => {}
        Sparsify::TopK { .. } | Sparsify::Band { .. } => {
            params.sparsify = 1;
            params.limits = spread(m.cuts.iter().copied(), 0);
            params.tops = spread(m.tops.iter().copied(), u64::MAX);
            params.factors = spread(m.factors.iter().copied(), 1.0);
        }
        Sparsify::Random { density, rescale, keys } => {
            params.sparsify = 2;
            params.limits = spread(density.iter().map(|d| philox::threshold(*d)), 0);
            let is_restored = |d: f64| *rescale && d > 0.0 && d < 1.0;
            params.factors = spread(density.iter().map(|d| if is_restored(*d) { 1.0 / d } else { 1.0 }), 1.0);
            params.keys = spread(keys.iter().copied(), [0; 2]);
        }
    }
    if let Some(by) = &m.lines {
        if lines == 0 || m.sparsify != Sparsify::None {
            return Err(Error::internal("weights of lines lie nowhere, or what they weigh is sparse"));
        }
        (params.sparsify, params.lines, params.line_count) = (3, lines, by.lines.count.max(1));
        (params.line_elems, params.line_stride) = (by.lines.len.max(1), by.lines.stride);
    }
    let numbers = m.combine.numbers;
    params.weights = spread(m.combine.weights.iter().copied(), 1.0);
    (params.divisor, params.lambda, params.base) = (numbers.divisor, numbers.lambda, numbers.base);
    params.threshold = numbers.threshold;
    params.normalize = u32::from(numbers.normalize);
    let is_plain = stages.count == 0 && m.sparsify == Sparsify::None;
    let kind = sources.kind(wide);
    let (module, kernel) = kernel(m.combine.rule, kind, is_plain, m.lines.is_some(), stages)?;
    let mut shape = by_vectors(sources.len);
    if module == TILE {
        let (threads, shared_bytes) = slots(kernels, params.load.sources.count, kind.value_bytes(), 0, 0)?;
        (shape.threads, shape.shared_bytes) = (threads, shared_bytes);
        shape.grid.0 = sources.len.div_ceil(VECTOR * u64::from(threads));
    }
    kernels.launch(stream, module, kernel, shape, &[arg(&params)])
}

include!(concat!(env!("OUT_DIR"), "/entries.rs"));

/// Where models must all be at hand at once.
const TILE: &str = "blend_tile";

/// Module and kernel of a rule.
fn kernel(
    rule: RuleId,
    kind: Kind,
    is_plain: bool,
    by_line: bool,
    stages: Stages,
) -> Result<(&'static str, &'static str)> {
    // The first form that the rule has, of those that do what is asked for.
    let forms: &[&str] = match stages {
        // Elsewhere there are no registers left for it.
        _ if by_line => &["tile"],
        _ if is_plain => &["plain", "tile"],
        Stages { is_relational: true, .. } => &["tile"],
        Stages { count: 0, .. } => &["sparse", "staged", "tile"],
        _ => &["staged", "tile"],
    };
    let kinds = [kind.suffix(), "any"];
    let entries = forms.iter().flat_map(|form| kinds.map(|kind| blend_entry(rule.name(), form, kind)));
    // What computes in f64 must not be done by a kernel that does not.
    let fits = |entry: &(&str, &str)| kind != Kind::F64 || entry.1.ends_with("_f64");
    entries.flatten().find(fits).ok_or_else(|| {
        Error::internal(format!("the rule `{}` takes neither stages nor sparsification on a device", rule.name()))
    })
}
