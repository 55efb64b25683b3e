//! Merges of adapters alone whose output is an adapter: the method merges core matrices, by a plan like any other, into a
//! folder beside OUT; U M Vᵀ is then written as the factors of each module.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use faer::Mat;
use serde_json::{Value, json};

use super::merge::{Done, Request, merge_with};
use super::{Progress, Stop};
use crate::backend::cpu::stored::{Stored, Widen};
use crate::checkpoint::Checkpoint;
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Kind, Result};
use crate::factors::{Side, lora};
use crate::linalg::triples::Triples;
use crate::output::manifest::{OutputTensor, Totals};
use crate::output::{
    Content, JournalEntry, Layout, Nonfinite, OpenOptions, Opened, SmallFile, TensorSpec, WorkDir, nonfinite,
};
use crate::plan::Plan;
use crate::report::card::MergedAdapterCard;
use crate::report::time::rfc3339;
use crate::source::core::{Core, CoreModule, Reduced};

/// A finished core merge's name beside OUT.
const BESIDE: &str = ".merganser-core";

/// Merges adapters into one, as `plan` (of core matrices) says; returns once OUT is complete.
///
/// # Errors
/// Whatever stops the merge; OUT is as it was, and what is finished is kept for `--resume`.
pub(crate) fn merge(request: &Request<'_>, core: &Core, progress: &Progress, stop: &Stop) -> Result<Done> {
    let plan = request.plan;
    let started = Instant::now();
    let rank = plan.recipe.output.rank;
    let dtype = plan.recipe.output.factor_dtype.unwrap_or(core.dtype);
    let whole: Vec<TensorSpec> =
        core.whole.iter().map(|(name, stored)| whole(plan, name, stored)).collect::<Result<_>>()?;
    let pairs: Vec<[TensorSpec; 2]> = core.modules.iter().map(|module| factors(module, rank, dtype)).collect();
    let specs: Vec<TensorSpec> = pairs.iter().flatten().chain(&whole).cloned().collect();
    let layout = Layout::new(&specs, u64::MAX)?;
    let mut reads: Vec<PathBuf> = plan.sources.iter().map(|s| s.checkpoint.path().to_owned()).collect();
    reads.push(plan.recipe.path.clone());
    let options = OpenOptions {
        out: request.out.to_owned(),
        resume: request.resume,
        overwrite: request.overwrite,
        fingerprint: plan.fingerprint(),
        sources: reads,
        part: None,
    };
    // Opened before anything is merged: that OUT may be made is known first.
    let work = match WorkDir::open(options, &layout)? {
        Opened::Work(work) => work,
        Opened::AlreadyDone(manifest) => {
            let path = std::path::absolute(request.out).unwrap_or_else(|_| request.out.to_owned());
            let resumed = manifest.tensors.len();
            return Ok(Done { path, manifest: *manifest, resumed, was_done: true, notes: Vec::new() });
        }
        Opened::PartDone(_) => return Err(Error::internal("a merge of adapters has no parts")),
    };
    let beside = beside(request.out);
    let expanded = expand(plan, core, &beside, &pairs, &whole, &work, progress, stop);
    let (merged, facts) = match expanded.and_then(|found| work.sync().map(|()| found)) {
        Ok(found) => found,
        Err(error) => {
            let hint = format!("go on with {}", work.resume_hint());
            work.abandon();
            return Err(if error.kind() == Kind::Input { error } else { error.hint(hint) });
        }
    };
    let mut manifest = merged.manifest;
    let (tensors, totals) = stated(&layout, &work, &facts);
    (manifest.tensors, manifest.totals) = (tensors, totals);
    manifest.created = rfc3339(SystemTime::now());
    manifest.timings.seconds = started.elapsed().as_secs_f64();
    manifest.timings.bytes_written = layout.data_bytes();
    let base = plan.recipe.base.as_ref().map(|base| base.written.as_str()).unwrap_or(&plan.sources[0].written);
    let base = base.split('+').next().unwrap_or_default();
    let modules = lora::Modules {
        factors: pairs.iter().zip(&core.modules).map(|([left, _], m)| (m.name.clone(), left.shape[1])).collect(),
        saved: saved(core),
        has_biases: core.has_biases,
    };
    let name = plan.recipe.output.base_name.as_deref().unwrap_or(base);
    let config = config(&modules, name, core.is_transposed)?;
    let title = request.out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let models: Vec<&str> = plan.recipe.models.iter().map(|model| model.model.written.as_str()).collect();
    let card = MergedAdapterCard {
        title: &title,
        base,
        models: &models,
        method: plan.recipe.method.name,
        recipe: &plan.recipe.text,
        version: env!("CARGO_PKG_VERSION"),
    }
    .render();
    let config = SmallFile { name: lora::CONFIG_NAME.into(), content: Content::Bytes(config.into_bytes()) };
    let finished = work.finish(manifest, &card, &[config])?;
    if let Err(error) = std::fs::remove_dir_all(&beside) {
        tracing::warn!("`{}` is not needed any more and cannot be removed: {error}", beside.display());
    }
    let notes = merged.notes.into_iter().chain(finished.warnings).collect();
    Ok(Done { path: finished.path, manifest: finished.manifest, resumed: 0, was_done: false, notes })
}

fn beside(out: &Path) -> PathBuf {
    let mut name: OsString = out.file_name().map(Into::into).unwrap_or_default();
    name.push(BESIDE);
    out.with_file_name(name)
}

/// What is stated of an output tensor that was written.
type Facts = Vec<(String, JournalEntry)>;

/// Merges the core matrices and writes what they make.
#[allow(clippy::too_many_arguments)]
fn expand(
    plan: &Plan,
    core: &Core,
    beside: &Path,
    pairs: &[[TensorSpec; 2]],
    whole: &[TensorSpec],
    work: &WorkDir,
    progress: &Progress,
    stop: &Stop,
) -> Result<(Done, Facts)> {
    let request = Request { plan, out: beside, resume: true, overwrite: true };
    let done = merge_with(&request, None, progress, stop)?.whole()?;
    let merged = Checkpoint::open(beside)?;
    let mut facts = Vec::new();
    for (at, (module, specs)) in core.modules.iter().zip(pairs).enumerate() {
        if let Some(error) = stop.error() {
            return Err(error);
        }
        let name = format!("{}.weight", module.name);
        let matrix = matrix(&merged, &name)?;
        let reduced = core.reduced(at)?;
        let made = made(module, &matrix, &reduced, specs[0].shape[1] as usize)?;
        let kept = json!({ "of": name, "rank": specs[0].shape[1], "core": module.core_shape() });
        for (spec, values) in specs.iter().zip(made) {
            facts.push((spec.name.clone(), write(spec, &values, kept.clone(), work)?));
        }
    }
    for (spec, (name, _)) in whole.iter().zip(&core.whole) {
        let tensor = merged.get(name).ok_or_else(|| Error::internal(format!("`{name}` was not merged")))?;
        let mut scratch = Vec::new();
        let bytes = merged.shard_of(tensor).bytes(tensor.range(), &mut scratch)?;
        facts.push((spec.name.clone(), store(spec, bytes, json!({ "whole": true }), work)?));
    }
    Ok((done, facts))
}

/// B, as rows of [m, k], and A, as rows of [k, n].
fn made(module: &CoreModule, matrix: &Mat<f64>, reduced: &Reduced, rank: usize) -> Result<[Vec<f64>; 2]> {
    let [rows, columns] = module.core_shape().map(|d| d as usize);
    // With all of the smaller side's rank the product is exact without a decomposition.
    let (left, right): (Mat<f64>, Mat<f64>) = if rank == rows {
        (reduced.u.clone(), &reduced.v * matrix.transpose())
    } else if rank == columns {
        (&reduced.u * matrix, reduced.v.clone())
    } else {
        let triples = Triples::leading(matrix.as_ref(), rank, 0.0)?;
        let scaled = Mat::from_fn(rows, rank, |i, k| triples.left[(i, k)] * triples.singular[k]);
        (&reduced.u * scaled, &reduced.v * triples.right)
    };
    let by_rows = |(m, n): (usize, usize), of: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..m).flat_map(|i| (0..n).map(move |j| of(i, j))).collect()
    };
    let b = by_rows((left.nrows(), rank), &|i, k| left[(i, k)]);
    let a = by_rows((rank, right.nrows()), &|k, j| right[(j, k)]);
    Ok([b, a])
}

fn matrix(merged: &Checkpoint, name: &str) -> Result<Mat<f64>> {
    let tensor = merged.get(name).ok_or_else(|| Error::internal(format!("`{name}` was not merged")))?;
    let [m, n] = tensor.shape[..] else { return Err(Error::internal(format!("`{name}` is no matrix"))) };
    let mut values = vec![0.0_f64; tensor.elems as usize];
    let mut scratch = Vec::new();
    let bytes = merged.shard_of(tensor).bytes(tensor.range(), &mut scratch)?;
    Stored { dtype: tensor.dtype, bytes }.widen(0, &mut values);
    if values.iter().any(|v| !v.is_finite()) {
        return Err(Error::input(format!("the merged `{name}` holds a NaN or an infinity, so it has no factors")));
    }
    Ok(Mat::from_fn(m as usize, n as usize, |i, j| values[i * n as usize + j]))
}

/// The factors of a module, B and then A.
fn factors(module: &CoreModule, rank: Option<u64>, dtype: Dtype) -> [TensorSpec; 2] {
    let [rows, columns] = module.core_shape();
    let k = rank.unwrap_or(u64::MAX).min(rows).min(columns);
    let shapes = [vec![module.shape[0], k], vec![k, module.shape[1]]];
    let mut sides = Side::BOTH.into_iter().zip(shapes).map(|(side, shape)| {
        let name = match (module.is_embedding, side) {
            (false, side) => lora::factor_name(&module.name, side),
            (true, Side::Left) => lora::whole_name(&format!("{}.lora_embedding_B", module.name), false),
            (true, Side::Right) => lora::whole_name(&format!("{}.lora_embedding_A", module.name), false),
        };
        let bytes = shape.iter().product::<u64>() * dtype.size_bytes().unwrap_or(1);
        TensorSpec { name, folder: Some(String::new()), dtype, shape, bytes }
    });
    std::array::from_fn(|_| sides.next()).map(|spec| {
        spec.unwrap_or(TensorSpec { name: String::new(), folder: None, dtype, shape: Vec::new(), bytes: 0 })
    })
}

/// A tensor that adapters hold whole, as it was merged.
fn whole(plan: &Plan, name: &str, stored: &str) -> Result<TensorSpec> {
    let tensor = plan.tensors.iter().find(|tensor| tensor.name == name);
    let tensor = tensor.ok_or_else(|| Error::internal(format!("`{name}` is not planned")))?;
    let bytes = tensor.elems * tensor.elem_bytes;
    Ok(TensorSpec {
        name: stored.to_owned(),
        folder: Some(String::new()),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        bytes,
    })
}

/// Modules whose tensors are held whole.
fn saved(core: &Core) -> Vec<String> {
    let names = core.whole.iter().filter(|(_, stored)| !stored.contains(".base_layer."));
    let mut modules: Vec<String> = names.filter_map(|(name, _)| Some(name.rsplit_once('.')?.0.to_owned())).collect();
    modules.sort();
    modules.dedup();
    modules
}

fn config(modules: &lora::Modules, base: &str, is_transposed: bool) -> Result<String> {
    let mut config: Value = serde_json::from_str(&lora::config(modules, base, None))
        .map_err(|e| Error::internal(format!("{}: {e}", lora::CONFIG_NAME)))?;
    config["fan_in_fan_out"] = is_transposed.into();
    Ok(format!("{config:#}\n"))
}

fn write(spec: &TensorSpec, values: &[f64], facts: Value, work: &WorkDir) -> Result<JournalEntry> {
    let mut bytes = vec![0; usize::try_from(spec.bytes).unwrap_or_default()];
    f64::narrow(values, spec.dtype, &mut bytes);
    store(spec, &bytes, facts, work)
}

fn store(spec: &TensorSpec, bytes: &[u8], facts: Value, work: &WorkDir) -> Result<JournalEntry> {
    let place = work.placement(&spec.name)?;
    work.write_at(place.file, place.offset, bytes)?;
    let found = nonfinite::count(spec.dtype, bytes);
    let entry = JournalEntry {
        tensor: spec.name.clone(),
        digest: blake3::hash(bytes).to_hex().to_string(),
        // What was merged was finite, or was told as what it is there.
        nonfinite: Nonfinite { output: found, introduced: 0 },
        facts,
        sources: Vec::new(),
        boot: String::new(),
    };
    work.record(entry.clone())?;
    Ok(entry)
}

fn stated(layout: &Layout, work: &WorkDir, facts: &Facts) -> (Vec<OutputTensor>, Totals) {
    let finished = work.finished();
    let mut totals = Totals::default();
    let mut tensors = Vec::new();
    for (i, spec) in layout.tensors().iter().enumerate() {
        let own = facts.iter().find(|(name, _)| *name == spec.name).map(|(_, entry)| entry);
        let Some(entry) = own.or_else(|| finished.get(&spec.name)) else { continue };
        totals.tensors += 1;
        totals.parameters += spec.shape.iter().product::<u64>();
        totals.bytes += spec.bytes;
        totals.nonfinite.output += entry.nonfinite.output;
        tensors.push(OutputTensor {
            name: spec.name.clone(),
            dtype: spec.dtype,
            shape: spec.shape.clone(),
            file: layout.files()[layout.placement(i).file].name.clone(),
            digest: entry.digest.clone(),
            nonfinite: entry.nonfinite,
            facts: entry.facts.clone(),
        });
    }
    (tensors, totals)
}
