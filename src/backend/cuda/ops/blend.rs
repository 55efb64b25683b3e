//! The element-wise merge: `kernels/blend_plain.cu`, `blend_pruned.cu`, `blend_tile.cu`. CPU twin: [`crate::backend::cpu::blend::blend`].

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::CudaStream;

use super::super::module::{Kernels, arg};
use super::params::{DeviceSources, Kind, Load, MAX_MODELS, Place, code, spread};
use super::shape::{VECTOR, by_vectors, slots};
use super::sparse::{ChosenAt, Sparse};
use super::stages::Stages;
use crate::error::{Error, Result};
use crate::ops::rules::RuleId;
use crate::ops::{Measured, Sparsify};

/// `Blend` of blend.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    load: Load,
    weights: [f64; MAX_MODELS],
    factors: [f64; MAX_MODELS],
    sparse: Sparse,
    divisor: f64,
    lambda: f64,
    base: f64,
    threshold: f64,
    normalize: u32,
    pad: u32,
    out: u64,
    facts: u64,
    out_dtype: u32,
    pad1: u32,
}

const _: () = assert!(size_of::<Params>() == 3320);

/// Bytes of the facts of a merge: NaN or infinite results, those of them with finite sources, and by model the elements
/// that [`Sparsify::Random`] kept, each a u64.
pub fn facts_bytes(models: usize) -> u64 {
    8 * (2 + models as u64)
}

/// Merges a run into `out`, and adds what was found to the facts at `facts` ([`facts_bytes`], zeroed before the first run).
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
    chosen: ChosenAt,
    sources: &DeviceSources<'_>,
    out: Place,
    facts: u64,
) -> Result<()> {
    if sources.len == 0 {
        return Ok(());
    }
    let mut params = Params {
        load: Load::new(sources, m.geometry, stages)?,
        sparse: Sparse::of(m, chosen),
        divisor: 1.0,
        out: out.ptr,
        facts,
        out_dtype: code(out)?.into(),
        ..Params::zeroed()
    };
    if m.combine.reads_base() && sources.base.is_none() {
        return Err(Error::internal("a merge of task vectors needs the base"));
    }
    params.factors = spread((0..sources.models.len()).map(|t| m.factor(t)), 1.0);
    let numbers = m.combine.numbers;
    params.weights = spread(m.combine.weights.iter().copied(), 1.0);
    (params.divisor, params.lambda, params.base) = (numbers.divisor, numbers.lambda, numbers.base);
    params.threshold = numbers.threshold;
    params.normalize = u32::from(numbers.normalize);
    let is_plain = stages.count == 0 && m.sparsify == Sparsify::None;
    let kind = sources.kind(wide);
    // The kernels of the sparse form know cuts and random words.
    let is_simple = !matches!(m.sparsify, Sparsify::Ranked { .. } | Sparsify::Spread { .. } | Sparsify::Importance);
    let (module, kernel) = kernel(m.combine.rule, kind, (is_plain, is_simple), stages)?;
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
    (is_plain, is_simple): (bool, bool),
    stages: Stages,
) -> Result<(&'static str, &'static str)> {
    // The first form that the rule has, of those that do what is asked for.
    let forms: &[&str] = match stages {
        _ if is_plain => &["plain", "tile"],
        Stages { is_relational: true, .. } => &["tile"],
        Stages { count: 0, .. } if is_simple => &["sparse", "staged", "tile"],
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
