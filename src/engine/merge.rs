//! A merge from start to end: the work folder, the run, the manifest, the rename.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::{Gpus, Progress, Stop, damage, integers, run};
use crate::backend::device::CudaDevice;
use crate::error::{Cause, Error, Result};
use crate::ops::Program;
use crate::output::source_digest::{from_hex, to_hex};
use crate::output::{
    Copies, JournalEntry, OpenOptions, Opened, PartDone, PartEnd, PartTotals, Share, SourceDigests, WorkDir,
};
use crate::plan::{Factors, Plan, SourceTensor, TensorPlan};
use crate::report::card::{Card, CardModel};
use crate::report::manifest::{
    Audit, Device, DigestKinds, Manifest, OutputTensor, Phase, SCHEMA, Source, SourceFile, Timings, Totals,
};
use crate::report::time::rfc3339;

/// What to merge into which folder.
#[derive(Debug)]
pub struct Request<'a> {
    /// The merge.
    pub plan: &'a Plan,
    /// OUT.
    pub out: &'a Path,
    /// Go on with an interrupted merge.
    pub resume: bool,
    /// Replace OUT.
    pub overwrite: bool,
}

/// A finished merge.
#[derive(Debug)]
#[non_exhaustive]
pub struct Done {
    /// OUT.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Tensors that an earlier run had finished.
    pub resumed: usize,
    /// Whether OUT was finished before this call.
    pub was_done: bool,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What became of a merge, or of a part of one.
#[derive(Debug)]
pub enum Outcome {
    /// OUT is complete.
    Done(Box<Done>),
    /// The part is done, and OUT is not complete.
    Part(PartDone),
}

impl Outcome {
    /// Of a merge that is not in parts.
    pub(super) fn whole(self) -> Result<Done> {
        match self {
            Self::Done(done) => Ok(*done),
            Self::Part(_) => Err(Error::internal("a whole merge was done in part")),
        }
    }
}

/// Merges, or goes on merging, as the request says; returns once OUT is complete and on the disk.
///
/// # Errors
/// Whatever stops the merge; OUT is as it was, and the work folder beside it is kept for `--resume`. A plan of a part is no whole
/// merge ([`merge_part`]).
pub fn merge(request: &Request<'_>, progress: &Progress, stop: &Stop) -> Result<Done> {
    merge_part(request, progress, stop)?.whole()
}

/// Does the part that the plan has, or all of it; completes OUT if that was the last part.
///
/// # Errors
/// As [`merge`].
pub fn merge_part(request: &Request<'_>, progress: &Progress, stop: &Stop) -> Result<Outcome> {
    match &request.plan.core {
        Some(_) if request.plan.part.is_some() => {
            Err(Error::input("a merge of adapters into an adapter is not done in parts")
                .because(Cause::Usage)
                .hint("leave `--part` out"))
        }
        Some(core) => super::adapters::merge(request, core, progress, stop).map(|done| Outcome::Done(Box::new(done))),
        None => merge_with(request, None, progress, stop),
    }
}

/// As [`merge_part`], on the open devices that the plan was made for.
pub(super) fn merge_with(
    request: &Request<'_>,
    gpus: Option<&Gpus>,
    progress: &Progress,
    stop: &Stop,
) -> Result<Outcome> {
    let plan = request.plan;
    let started = Instant::now();
    let (work, resumed) = match open(request)? {
        Begun::Work(work, resumed) => (work, resumed),
        Begun::Ended(outcome) => return Ok(outcome),
    };
    let prepared = started.elapsed();
    if plan.strict
        && let Some(tensor) = elsewhere(plan, &work.finished())
    {
        let error = Error::input(format!(
            "an earlier run merged the matrix `{tensor}` on another device than this one would, and --strict has all bytes be \
             those of one plan"
        ));
        work.abandon();
        return Err(error.because(Cause::Device).hint("go on without --strict, or start anew with --overwrite"));
    }
    let result = run(plan, gpus, &work, progress, stop).and_then(|audit| {
        plan.sources.iter().try_for_each(|source| source.checkpoint.check_unchanged())?;
        Ok(audit)
    });
    let merged = started.elapsed();
    let result = result.and_then(|audit| work.sync().map(|()| audit));
    let audit = match result {
        Ok(audit) => audit,
        Err(error) if error.is_of_wrong_result() => {
            // What the device made before is no better, and what the CPU made is soon made again.
            work.discard()?;
            return Err(error);
        }
        Err(error) => {
            let error = with_resume_hint(error, &work);
            work.abandon();
            return Err(error);
        }
    };
    let synced = started.elapsed();

    let phases = phases(prepared, merged, synced);
    let seconds = synced.as_secs_f64();
    let own = PartTotals { seconds, bytes_read: progress.read_bytes(), bytes_written: progress.written_bytes() };
    let work = match work.end_part(own)? {
        PartEnd::Done(done) => return Ok(Outcome::Part(done)),
        PartEnd::Finish(work) => work,
    };
    if plan.part.is_some() {
        // A part's own was done before it became the one that finishes; headers and what parts share are written now.
        work.sync()?;
    }
    let parts = work.part_totals();
    let all = |of: fn(&PartTotals) -> u64| if parts.is_empty() { of(&own) } else { parts.iter().map(of).sum() };
    let seconds = parts.iter().map(|part| part.seconds).fold(seconds, f64::max);
    let timings = Timings::new(seconds, all(|part| part.bytes_read), all(|part| part.bytes_written), phases);
    let done = complete(request, *work, timings, audit, resumed)?;
    Ok(Outcome::Done(Box::new(done)))
}

/// How a merge begins.
pub(super) enum Begun {
    /// There is something to do; so many tensors were finished before.
    Work(Box<WorkDir>, usize),
    /// There is not.
    Ended(Outcome),
}

/// Parts of a merge's time, from when each ended.
pub(super) fn phases(prepared: Duration, merged: Duration, synced: Duration) -> Vec<Phase> {
    let phase = |name: &str, seconds: Duration| Phase { name: name.into(), seconds: seconds.as_secs_f64() };
    vec![phase("prepare", prepared), phase("merge", merged - prepared), phase("sync", synced - merged)]
}

/// Opens the work folder, and confirms what earlier runs left there.
pub(super) fn open(request: &Request<'_>) -> Result<Begun> {
    let plan = request.plan;
    let mut reads: Vec<PathBuf> = plan.sources.iter().map(|s| s.checkpoint.path().to_owned()).collect();
    reads.push(plan.recipe.path.clone());
    let options = OpenOptions {
        out: request.out.to_owned(),
        resume: request.resume,
        overwrite: request.overwrite,
        fingerprint: plan.fingerprint(),
        sources: reads,
        part: plan.part.clone(),
    };
    let work = match WorkDir::open(options, &plan.layout)? {
        Opened::Work(work) => work,
        Opened::AlreadyDone(manifest) => {
            let path = std::path::absolute(request.out).unwrap_or_else(|_| request.out.to_owned());
            let resumed = manifest.tensors.len();
            let done = Done { path, manifest: *manifest, resumed, was_done: true, notes: Vec::new() };
            return Ok(Begun::Ended(Outcome::Done(Box::new(done))));
        }
        Opened::PartDone(done) => return Ok(Begun::Ended(Outcome::Part(done))),
    };
    for tensor in work.unverified() {
        if !work.confirm(&tensor)? {
            tracing::warn!("`{tensor}` did not survive the restart of the machine and is merged again");
        }
    }
    let resumed = work.finished().len();
    if resumed > 0 {
        let all = work.part().map_or(plan.tensors.len(), Share::tensors);
        tracing::info!("going on: {resumed} of {all} tensors were finished before");
    }
    Ok(Begun::Work(work, resumed))
}

/// Adds manifest, card and small files to tensors that are all there, and renames the work folder to OUT.
pub(super) fn complete(
    request: &Request<'_>,
    work: WorkDir,
    timings: Timings,
    audit: Audit,
    resumed: usize,
) -> Result<Done> {
    let plan = request.plan;
    let mut copies = match plan.reference().folder() {
        Some(folder) => Copies::choose(folder, plan.recipe.out_dtype)?,
        None => Copies::default(),
    };
    plan.files.apply(&mut copies)?;
    let manifest = manifest(plan, &work.finished(), timings, audit)?;
    let mut differing = integers::notes(plan)?;
    differing.extend(damage::vanished(plan, &manifest)?);
    let title = request.out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let card = card(plan, &manifest, &title, copies.has("config.json"));
    let mut files = copies.files;
    if let Some(factors) = &plan.factors {
        files.extend(factors.small_files(&plan.recipe, &title, config(plan).as_ref()));
    }
    let finished = work.finish(manifest, &card, &files)?;
    let notes = copies.notes.into_iter().chain(finished.warnings).chain(differing);
    let notes = notes.chain(damage::notes(&finished.manifest)).chain(remarks(&finished.manifest)).collect();
    Ok(Done { path: finished.path, manifest: finished.manifest, resumed, was_done: false, notes })
}

/// What `config.json` of the model that lends its files says, if it has one that can be read.
fn config(plan: &Plan) -> Option<Value> {
    let path = plan.reference().folder()?.join("config.json");
    let is_small = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= crate::output::copy::MAX_BYTES);
    serde_json::from_slice(&std::fs::read(path).ok().filter(|_| is_small)?).ok()
}

/// What fits had to say, each with the number of tensors.
fn remarks(manifest: &Manifest) -> Vec<String> {
    let mut counted = BTreeMap::<&str, u64>::new();
    for remark in manifest.tensors.iter().filter_map(|t| t.facts["remark"].as_str()) {
        *counted.entry(remark).or_default() += 1;
    }
    counted.into_iter().map(|(remark, n)| format!("{n} tensor{}: {remark}", if n == 1 { "" } else { "s" })).collect()
}

/// Every failure after the work began can be gone on from.
pub(super) fn with_resume_hint(error: crate::Error, work: &WorkDir) -> crate::Error {
    let hint = format!("what is finished is kept in `{}`; go on with {}", work.folder().display(), work.resume_hint());
    let says_so = error.hints().iter().any(|h| h.contains("--resume"));
    if says_so || error.kind() == crate::error::Kind::Input { error } else { error.hint(hint) }
}

fn manifest(plan: &Plan, finished: &HashMap<String, JournalEntry>, timings: Timings, audit: Audit) -> Result<Manifest> {
    let mut tensors = Vec::with_capacity(plan.tensors.len());
    let mut totals = Totals { tensors: plan.tensors.len(), ..Totals::default() };
    for (i, tensor) in plan.tensors.iter().enumerate() {
        let place = plan.layout.placement(i);
        let Some(entry) = finished.get(&tensor.name) else { continue };
        totals.copied += usize::from(tensor.program == Program::Copy);
        if plan.factors.as_ref().is_none_or(|factors| i < factors.first) {
            totals.parameters += tensor.shape.iter().product::<u64>();
        }
        totals.bytes += place.bytes;
        totals.nonfinite.output += entry.nonfinite.output;
        totals.nonfinite.introduced += entry.nonfinite.introduced;
        tensors.push(OutputTensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            file: plan.layout.files()[place.file].name.clone(),
            digest: entry.digest.clone(),
            nonfinite: entry.nonfinite,
            facts: entry.facts.clone(),
        });
    }
    Ok(Manifest {
        schema: SCHEMA,
        merganser: env!("CARGO_PKG_VERSION").into(),
        created: rfc3339(SystemTime::now()),
        fingerprint: String::new(),
        digests: DigestKinds::default(),
        recipe: plan.recipe.to_json(),
        recipe_text: plan.recipe.text.clone(),
        sources: sources(plan, finished)?,
        device: device(plan, audit),
        threads: plan.memory.threads,
        memory_budget: plan.options.memory_budget,
        seed: plan.options.seed,
        timings,
        files: Vec::new(),
        tensors,
        totals,
        matrices: plan.coverage(),
        reproducible: elsewhere(plan, finished).is_none(),
    })
}

/// The first matrix that was merged elsewhere than planned: by an earlier run on another device, or on the CPU since a device
/// failed. Element-wise results are the same everywhere.
fn elsewhere<'a>(plan: &'a Plan, finished: &HashMap<String, JournalEntry>) -> Option<&'a str> {
    let was_there = |i: usize| match (&plan.left, &plan.devices) {
        (Some(left), _) => left.was_there[i],
        (None, Some(on)) => on.has(i),
        (None, None) => false,
    };
    let is_elsewhere = |(i, tensor): &(usize, &TensorPlan)| {
        let on_device =
            |entry: &JournalEntry| entry.facts["computed_on"].as_str().is_some_and(|on| on.starts_with("cuda"));
        matches!(tensor.program, Program::LowRank(_))
            && finished.get(&tensor.name).is_some_and(|entry| on_device(entry) != was_there(*i))
    };
    plan.tensors.iter().enumerate().find(is_elsewhere).map(|(_, tensor)| tensor.name.as_str())
}

/// What computed.
fn device(plan: &Plan, audit: Audit) -> Device {
    let cpu = Device::cpu();
    let Some(on) = &plan.devices else {
        return Device { left: plan.left.as_ref().map(|left| left.why.clone()), ..cpu };
    };
    let labels: Vec<String> = on.devices.iter().map(CudaDevice::label).collect();
    Device {
        name: labels.join(", "),
        backend: "cuda".into(),
        memory_bytes: Some(on.pool_bytes.iter().sum()),
        check: crate::backend::checked::passed(&on.devices),
        audit: Some(audit),
        ..cpu
    }
}

/// The sources with a digest of what was read of each file.
fn sources(plan: &Plan, finished: &HashMap<String, JournalEntry>) -> Result<Vec<Source>> {
    let read: BTreeSet<(usize, usize)> =
        plan.tensors.iter().flat_map(|t| t.reads()).map(|SourceTensor { source, tensor }| (source, tensor)).collect();
    let mut sources = Vec::with_capacity(plan.sources.len());
    for (index, source) in plan.sources.iter().enumerate() {
        let all = source.checkpoint.tensors();
        let mut files = Vec::new();
        for (shard_index, shard) in source.checkpoint.shards().iter().enumerate() {
            let here = |t: &&(usize, usize)| t.0 == index && all[t.1].shard == shard_index;
            let names: Vec<&str> = read.iter().filter(here).map(|t| all[t.1].name.as_str()).collect();
            let mut digests = SourceDigests::new(shard.header_digest(), names.iter().copied());
            let known: BTreeSet<&str> = names.iter().copied().collect();
            for digest in finished.values().flat_map(|e| &e.sources) {
                if digest.source == index
                    && known.contains(digest.tensor.as_str())
                    && let Some(value) = from_hex(&digest.digest)
                {
                    digests.set(&digest.tensor, value)?;
                }
            }
            let (seconds, nanoseconds) = shard.modified();
            let modified = SystemTime::UNIX_EPOCH
                + Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
            files.push(SourceFile {
                name: shard.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
                size: shard.size(),
                modified: rfc3339(modified),
                digest: to_hex(digests.finish()?),
                tensors_read: names.len(),
                tensors: all.iter().filter(|t| t.shard == shard_index).count(),
            });
        }
        let role = if source.is_base { "base" } else { "model" };
        sources.push(Source { role: role.into(), path: source.written.clone(), files });
    }
    Ok(sources)
}

fn card(plan: &Plan, manifest: &Manifest, title: &str, has_config: bool) -> String {
    let recipe = &plan.recipe;
    let parameters: Vec<String> = recipe.models.iter().map(|m| short(&m.parameters.to_json())).collect();
    let base = recipe.base.iter().map(|b| CardModel { name: &b.written, role: "base", parameters: "" });
    let models = recipe.models.iter().zip(&parameters);
    let models = models.map(|(m, p)| CardModel { name: &m.model.written, role: "model", parameters: p });
    let dtypes: BTreeSet<String> = manifest.tensors.iter().map(|t| t.dtype.to_string()).collect();
    Card {
        title,
        method: recipe.method.name,
        method_summary: recipe.method.summary,
        method_source: recipe.method.source,
        models: base.chain(models).collect(),
        recipe: &recipe.text,
        seed: plan.options.seed,
        version: env!("CARGO_PKG_VERSION"),
        dtypes: dtypes.into_iter().collect(),
        parameters: manifest.totals.parameters,
        has_config,
        note: plan.factors.as_ref().map(Factors::in_words),
    }
    .render()
}

/// `weight: 0.5, density: 0.2`.
fn short(parameters: &Value) -> String {
    let Value::Object(map) = parameters else { return String::new() };
    map.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join(", ")
}
