//! A task's model, rebuilt from a centre and the task's factors: read, computed and written piece by piece, within the memory
//! budget, into a folder that appears when it is whole.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use serde_json::json;

use super::Store;
use super::piece::{Piece, Pieces, Worker};
use crate::error::{Error, Kind, Result};
use crate::output::source_digest::{from_hex, to_hex};
use crate::output::{
    Copies, Fingerprint, JournalEntry, Layout, OpenOptions, Opened, SourceDigests, TensorSpec, WorkDir,
};
use crate::report::card::RebuiltCard;
use crate::report::manifest::{
    Device, DigestKinds, Manifest, OutputTensor, Phase, SCHEMA, Source, SourceFile, Timings, Totals,
};
use crate::report::time::rfc3339;
use crate::run::{Stop, together};

/// What to rebuild, and what that may use.
#[derive(Debug)]
pub struct Extraction<'a> {
    /// Where from.
    pub store: &'a Store,
    /// Position of the task in [`super::Header::tasks`].
    pub task: usize,
    /// What the task's low-rank parts are multiplied by.
    pub lambda: f64,
    /// The folder to be made.
    pub to: &'a Path,
    /// Threads that compute.
    pub threads: usize,
    /// Bound on what is allocated, in bytes.
    pub memory_budget: u64,
    /// Files hold at most this many bytes of tensors.
    pub shard_bytes: u64,
    /// Go on with an interrupted extraction.
    pub resume: bool,
    /// Replace the folder.
    pub overwrite: bool,
}

/// A finished extraction.
#[derive(Debug)]
#[non_exhaustive]
pub struct Done {
    /// The folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Tensors rebuilt from factors; the others are the centre's.
    pub rebuilt: usize,
    /// Tensors that an earlier run had finished.
    pub resumed: usize,
    /// Whether the folder was finished before this call.
    pub was_done: bool,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Extraction<'_> {
    /// Bytes of the model's tensors.
    pub fn bytes(&self) -> u64 {
        self.store.own.iter().map(|index| self.store.checkpoint.tensors()[*index].bytes).sum()
    }

    fn layout(&self) -> Result<Layout> {
        let spec = |index: &usize| {
            let tensor = &self.store.checkpoint.tensors()[*index];
            TensorSpec {
                name: tensor.name.clone(),
                folder: None,
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                bytes: tensor.bytes,
            }
        };
        Layout::new(&self.store.own.iter().map(spec).collect::<Vec<_>>(), self.shard_bytes)
    }

    fn fingerprint(&self, layout: &Layout) -> Fingerprint {
        let files = self.store.checkpoint.shards().iter().map(|shard| {
            let (seconds, nanoseconds) = shard.modified();
            json!({
                "path": shard.path().display().to_string(),
                "size": shard.size(),
                "modified": format!("{seconds}.{nanoseconds:09}"),
                "header": to_hex(shard.header_digest()),
            })
        });
        let parts = json!({
            "factors": files.collect::<Vec<_>>(),
            "task": self.store.header.tasks[self.task].name,
            "lambda": self.lambda,
            "layout": layout.digest(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        Fingerprint::new(parts.as_object().cloned().unwrap_or_default())
    }
}

/// Rebuilds a task's model; returns once it is complete and on the disk. `written` counts bytes.
///
/// # Errors
/// Whatever stops it; the folder is as it was, and the work folder beside it is kept.
pub fn extract(extraction: &Extraction<'_>, written: &AtomicU64, stop: &Stop) -> Result<Done> {
    let started = Instant::now();
    let layout = extraction.layout()?;
    let pieces = Pieces::fit(extraction)?;
    let checkpoint = &extraction.store.checkpoint;
    let options = OpenOptions {
        out: extraction.to.to_owned(),
        resume: extraction.resume,
        overwrite: extraction.overwrite,
        fingerprint: extraction.fingerprint(&layout),
        sources: vec![checkpoint.path().to_owned()],
        part: None,
    };
    let own = &extraction.store.own;
    let rebuilt = own.iter().filter(|t| extraction.store.factors(extraction.task, **t).is_some()).count();
    let work = match WorkDir::open(options, &layout)? {
        Opened::Work(work) => work,
        Opened::AlreadyDone(manifest) => {
            let path = std::path::absolute(extraction.to).unwrap_or_else(|_| extraction.to.to_owned());
            let resumed = manifest.tensors.len();
            return Ok(Done { path, manifest: *manifest, rebuilt, resumed, was_done: true, notes: Vec::new() });
        }
        Opened::PartDone(_) => return Err(Error::internal("an extraction has no parts")),
    };
    for tensor in work.unverified() {
        work.confirm(&tensor)?;
    }
    let resumed = work.finished().len();
    let read = AtomicU64::new(0);
    let result = run(extraction, &pieces, &work, &Counters { read: &read, written }, stop)
        .and_then(|()| checkpoint.check_unchanged())
        .and_then(|()| work.sync());
    if let Err(error) = result {
        let hint =
            format!("what is finished is kept in `{}`; go on with {}", work.folder().display(), work.resume_hint());
        let says_so = error.hints().iter().any(|h| h.contains("--resume"));
        work.abandon();
        return Err(if says_so || error.kind() == Kind::Input { error } else { error.hint(hint) });
    }
    let seconds = started.elapsed().as_secs_f64();
    let phases = vec![Phase { name: "extract".into(), seconds }];
    let timings = Timings::new(seconds, read.into_inner(), written.load(Ordering::Relaxed), phases);
    let copies = match checkpoint.folder() {
        Some(folder) => Copies::choose(folder, None)?,
        None => Copies::default(),
    };
    let manifest = manifest(extraction, &pieces, &layout, &work.finished(), timings)?;
    let card = card(extraction, &manifest, rebuilt, copies.has("config.json"));
    let finished = work.finish(manifest, &card, &copies.files)?;
    let notes = copies.notes.into_iter().chain(finished.warnings).collect();
    Ok(Done { path: finished.path, manifest: finished.manifest, rebuilt, resumed, was_done: false, notes })
}

/// Bytes moved so far.
struct Counters<'a> {
    read: &'a AtomicU64,
    written: &'a AtomicU64,
}

/// Does every piece of every tensor that is not finished; threads take pieces in order.
fn run(
    extraction: &Extraction<'_>,
    pieces: &Pieces,
    work: &WorkDir,
    counters: &Counters<'_>,
    stop: &Stop,
) -> Result<()> {
    let finished = work.finished();
    let tensors = extraction.store.checkpoint.tensors();
    let jobs: Vec<_> = (extraction.store.own.iter())
        .filter(|index| !finished.contains_key(&tensors[**index].name))
        .map(|index| pieces.job(extraction, *index))
        .collect::<Result<_>>()?;
    let units: Vec<(usize, usize)> =
        jobs.iter().enumerate().flat_map(|(j, job)| (0..job.pieces()).map(move |piece| (j, piece))).collect();
    let next = AtomicUsize::new(0);
    let (is_over, error) = (AtomicBool::new(false), Mutex::new(None::<Error>));
    let fail = |e: Error| {
        error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        is_over.store(true, Ordering::Relaxed);
    };
    let thread = || -> Result<()> {
        let mut worker = Worker::default();
        while !is_over.load(Ordering::Relaxed) {
            if let Some(signal) = stop.signal() {
                return Err(Error::interrupted(signal, format!("stopped by signal {signal}")));
            }
            let Some((j, index)) = units.get(next.fetch_add(1, Ordering::Relaxed)) else { return Ok(()) };
            let job = &jobs[*j];
            let name = &tensors[job.tensor].name;
            let piece: Piece<'_> = job.compute(extraction, *index, &mut worker).map_err(|e| e.at_tensor(name))?;
            let place = work.placement(name)?;
            work.write_at(place.file, place.offset + piece.offset, piece.bytes)?;
            counters.read.fetch_add(piece.read_bytes, Ordering::Relaxed);
            counters.written.fetch_add(piece.bytes.len() as u64, Ordering::Relaxed);
            if let Some(entry) = job.piece_written(extraction, *index, &piece)? {
                for source in job.sources(extraction) {
                    let shard = extraction.store.checkpoint.shard_of(source);
                    shard.check_unchanged()?;
                    shard.release(source.range());
                }
                work.record(entry)?;
            }
        }
        Ok(())
    };
    together(pieces.threads, || {
        let end = StopOnPanic(&fail);
        if let Err(error) = thread() {
            fail(error);
        }
        std::mem::forget(end);
    });
    error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Ends the run if it is dropped, which only a panic makes happen.
struct StopOnPanic<'a, F: Fn(Error)>(&'a F);

impl<F: Fn(Error)> Drop for StopOnPanic<'_, F> {
    fn drop(&mut self) {
        (self.0)(Error::internal("a thread panicked"));
    }
}

fn manifest(
    extraction: &Extraction<'_>,
    pieces: &Pieces,
    layout: &Layout,
    finished: &HashMap<String, JournalEntry>,
    timings: Timings,
) -> Result<Manifest> {
    let store = extraction.store;
    // What the factors were made by, if the output's manifest still says so.
    let merged = store.checkpoint.folder().and_then(|folder| Manifest::read(folder).ok());
    let mut totals = Totals { tensors: store.own.len(), ..Totals::default() };
    let mut tensors = Vec::with_capacity(store.own.len());
    for (i, index) in store.own.iter().enumerate() {
        let (tensor, place) = (&store.checkpoint.tensors()[*index], layout.placement(i));
        let Some(entry) = finished.get(&tensor.name) else { continue };
        let is_centre =
            store.factors(extraction.task, *index).is_none() && store.other(extraction.task, *index).is_none();
        totals.copied += usize::from(is_centre);
        totals.parameters += tensor.elems;
        totals.bytes += tensor.bytes;
        totals.nonfinite.output += entry.nonfinite.output;
        totals.nonfinite.introduced += entry.nonfinite.introduced;
        tensors.push(OutputTensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            file: layout.files()[place.file].name.clone(),
            digest: entry.digest.clone(),
            nonfinite: entry.nonfinite,
            facts: entry.facts.clone(),
        });
    }
    let task = &store.header.tasks[extraction.task];
    let path = store.checkpoint.path().display().to_string();
    Ok(Manifest {
        schema: SCHEMA,
        merganser: env!("CARGO_PKG_VERSION").into(),
        created: rfc3339(SystemTime::now()),
        fingerprint: String::new(),
        digests: DigestKinds::default(),
        recipe: json!({
            "extract": { "from": path, "task": task.name, "model": task.model, "lambda": extraction.lambda },
            "merge": merged.as_ref().map(|m| &m.recipe),
        }),
        recipe_text: merged.map(|m| m.recipe_text).unwrap_or_default(),
        sources: vec![Source { role: "factors".into(), path, files: source_files(extraction, finished)? }],
        device: Device::cpu(),
        threads: pieces.threads,
        memory_budget: extraction.memory_budget,
        seed: 0,
        timings,
        files: Vec::new(),
        tensors,
        totals,
        matrices: None,
        reproducible: true,
    })
}

/// The files of factors, with a digest of what was read of each.
fn source_files(extraction: &Extraction<'_>, finished: &HashMap<String, JournalEntry>) -> Result<Vec<SourceFile>> {
    let store = extraction.store;
    let all = store.checkpoint.tensors();
    let known: HashMap<&str, &str> =
        finished.values().flat_map(|e| &e.sources).map(|s| (s.tensor.as_str(), s.digest.as_str())).collect();
    let file = |(index, shard): (usize, &std::sync::Arc<crate::checkpoint::Shard>)| {
        let here = || all.iter().filter(move |t| t.shard == index);
        let names: Vec<&str> = here().map(|t| t.name.as_str()).filter(|name| known.contains_key(name)).collect();
        let mut digests = SourceDigests::new(shard.header_digest(), names.iter().copied());
        for name in &names {
            if let Some(digest) = from_hex(known[name]) {
                digests.set(name, digest)?;
            }
        }
        let (seconds, nanoseconds) = shard.modified();
        let since = std::time::Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
        Ok(SourceFile {
            name: shard.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            size: shard.size(),
            modified: rfc3339(SystemTime::UNIX_EPOCH + since),
            digest: to_hex(digests.finish()?),
            tensors_read: names.len(),
            tensors: here().count(),
        })
    };
    store.checkpoint.shards().iter().enumerate().map(file).collect()
}

fn card(extraction: &Extraction<'_>, manifest: &Manifest, rebuilt: usize, has_config: bool) -> String {
    let title = extraction.to.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let task = &extraction.store.header.tasks[extraction.task];
    let dtypes: BTreeSet<String> = manifest.tensors.iter().map(|t| t.dtype.to_string()).collect();
    RebuiltCard {
        title: &title,
        task: &task.name,
        model: &task.model,
        lambda: extraction.lambda,
        version: env!("CARGO_PKG_VERSION"),
        dtypes: dtypes.into_iter().collect(),
        parameters: manifest.totals.parameters,
        rebuilt,
        has_config,
    }
    .render()
}
