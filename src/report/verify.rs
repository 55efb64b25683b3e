//! Checks a finished output against its manifest: files, headers, digests, and elements that are not finite.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::Value;

use super::manifest::{Manifest, Nonfinite, OutputTensor};
use super::stored::{StoredTensor, read_header};
use crate::error::Result;
use crate::output::digest::{Piece, PieceDigests};
use crate::output::layout::INDEX_NAME;
use crate::output::{nonfinite, unlisted};
use crate::run::together;

/// Bytes that one thread reads and hashes at once; a multiple of every element's size.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces beyond which a tensor is not believed to be one (4 TiB): what is noted of each takes memory.
const MAX_PIECES: u64 = 1 << 22;

/// What a verification found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The folder.
    pub out: String,
    /// Whether everything is as the manifest says, and nothing is wrong with what it says.
    pub ok: bool,
    /// Files checked, without the manifest itself.
    pub files: usize,
    /// Tensors whose bytes were read.
    pub tensors: usize,
    /// Bytes of tensors read.
    pub bytes: u64,
    /// Elements that are not finite: found in the output, and introduced as the manifest says.
    pub nonfinite: Nonfinite,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Problem {
    /// The file, if it is about one.
    pub file: Option<String>,
    /// The tensor, if it is about one.
    pub tensor: Option<String>,
    /// What is wrong, in a sentence that names both.
    pub message: String,
}

/// A tensor to be read.
struct Job<'a> {
    wanted: &'a OutputTensor,
    stored: StoredTensor,
    file: usize,
    digests: PieceDigests,
    /// Index of its first piece among all.
    first: u64,
}

/// Checks the output in `out` with up to `threads` threads; `progress` is told the number of bytes just read.
///
/// # Errors
///
/// There is no readable manifest. What is wrong with the output itself is in the report.
pub fn verify(out: &Path, threads: usize, progress: &(dyn Fn(u64) + Sync)) -> Result<VerifyReport> {
    let manifest = Manifest::read(out)?;
    let mut problems = Problems::default();
    let small_files = check_small_files(out, &manifest, &mut problems);
    let by_file = tensors_by_file(&manifest, &mut problems);
    check_index(out, &manifest, by_file.keys().filter(|name| !name.contains('/')).count(), &mut problems);
    check_extra_files(out, &manifest, &mut problems)?;

    let mut open = Vec::new();
    let mut jobs = Vec::new();
    for (name, wanted) in &by_file {
        let stored = match open_inside(out, name).and_then(|file| Ok((read_header(&file)?, file))) {
            Ok((stored, file)) => {
                open.push(file);
                stored
            }
            Err(what) => {
                problems.add(Some(name), None, format!("`{name}` {what}"));
                continue;
            }
        };
        add_jobs(name, open.len() - 1, wanted, stored, &mut jobs, &mut problems)?;
    }
    let (bytes, nonfinite) = check_tensors(&open, &mut jobs, threads, progress, &mut problems)?;
    if let Some(introduced) = Some(manifest.totals.nonfinite.introduced).filter(|&n| n != nonfinite.introduced) {
        let message = format!(
            "the manifest's sum of introduced NaN and infinities is {introduced}, its tensors' is {}",
            nonfinite.introduced
        );
        problems.add(None, None, message);
    }
    Ok(VerifyReport {
        out: out.display().to_string(),
        ok: problems.0.is_empty(),
        files: small_files + open.len(),
        tensors: jobs.len(),
        bytes,
        nonfinite,
        problems: problems.0,
    })
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, file: Option<&str>, tensor: Option<&str>, message: String) {
        self.0.push(Problem { file: file.map(Into::into), tensor: tensor.map(Into::into), message });
    }
}

/// Opens a file of the folder itself or of an adapter's folder in it: a manifest must not lead elsewhere.
fn open_inside(out: &Path, name: &str) -> Result<File, String> {
    let leads_out = || Err("is not a plain name: it leads out of the folder".into());
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 || !parts.iter().all(|part| is_plain(part)) {
        return leads_out();
    }
    if let [folder, _] = parts[..]
        && fs::symlink_metadata(out.join(folder)).is_ok_and(|m| !m.is_dir())
    {
        return leads_out();
    }
    let path = out.join(name);
    match fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err("is missing".into()),
        Ok(m) if !m.is_file() => Err("is not a regular file".into()),
        _ => File::open(&path).map_err(|e| format!("cannot be read: {e}")),
    }
}

/// Whether this is the name of something in a folder, and not a way out of it.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_one =
        matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name);
    is_one && !name.contains('\0')
}

/// Sizes of all listed files and digests of those that have one; how many have one.
fn check_small_files(out: &Path, manifest: &Manifest, problems: &mut Problems) -> usize {
    let mut checked = 0;
    for listed in &manifest.files {
        let name = &listed.name;
        let check = || {
            let mut file = open_inside(out, name)?;
            let bytes = file.metadata().map_err(|e| format!("cannot be read: {e}"))?.len();
            if bytes != listed.bytes {
                return Err(format!("has {bytes} bytes, the manifest says {}", listed.bytes));
            }
            let Some(digest) = &listed.digest else { return Ok(()) };
            let mut hasher = blake3::Hasher::new();
            let mut buffer = vec![0; 64 << 10];
            loop {
                match file.read(&mut buffer).map_err(|e| format!("cannot be read: {e}"))? {
                    0 => break,
                    n => hasher.update(&buffer[..n]),
                };
            }
            if hasher.finalize().to_hex().as_str() != digest {
                Err("was changed: its digest differs".into())
            } else {
                Ok(())
            }
        };
        checked += usize::from(listed.digest.is_some());
        // Files of tensors that are missing are told with their tensors.
        let is_told = listed.digest.is_none() && !out.join(name).exists();
        if let Err(what) = check()
            && !is_told
        {
            problems.add(Some(name), None, format!("`{name}` {what}"));
        }
    }
    checked
}

fn tensors_by_file<'a>(manifest: &'a Manifest, problems: &mut Problems) -> BTreeMap<&'a str, Vec<&'a OutputTensor>> {
    let mut by_file: BTreeMap<&str, Vec<&OutputTensor>> = BTreeMap::new();
    for listed in manifest.files.iter().filter(|f| f.digest.is_none()) {
        by_file.insert(&listed.name, Vec::new());
    }
    let mut seen = BTreeSet::new();
    for tensor in &manifest.tensors {
        if seen.insert(&tensor.name) {
            by_file.entry(&tensor.file).or_default().push(tensor);
        } else {
            let message = format!("the manifest lists tensor `{}` twice", tensor.name);
            problems.add(None, Some(&tensor.name), message);
        }
    }
    by_file
}

fn check_index(out: &Path, manifest: &Manifest, files: usize, problems: &mut Problems) {
    let name = Some(INDEX_NAME);
    let text = match fs::read(out.join(INDEX_NAME)) {
        Ok(_) if files < 2 => {
            let message = format!("`{INDEX_NAME}` stands beside a single file and would mislead readers");
            return problems.add(name, None, message);
        }
        Ok(text) => text,
        Err(_) if files < 2 => return,
        Err(e) => return problems.add(name, None, format!("`{INDEX_NAME}` cannot be read: {e}")),
    };
    let index: Value = match serde_json::from_slice(&text) {
        Ok(index) => index,
        Err(e) => return problems.add(name, None, format!("`{INDEX_NAME}` is damaged: {e}")),
    };
    // Adapters are no part of the model, and not in its index.
    let own = manifest.tensors.iter().filter(|t| !t.file.contains('/'));
    let wanted: BTreeMap<&str, &str> = own.map(|t| (t.name.as_str(), t.file.as_str())).collect();
    let empty = serde_json::Map::new();
    let found = index.get("weight_map").and_then(Value::as_object).unwrap_or(&empty);
    let found: BTreeMap<&str, &str> = found.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or(""))).collect();
    if let Some((tensor, _)) = wanted.iter().find(|(k, v)| found.get(*k) != Some(v)) {
        let message = format!("`{INDEX_NAME}` does not lead to tensor `{tensor}`");
        problems.add(name, Some(tensor), message);
    } else if let Some(tensor) = found.keys().find(|k| !wanted.contains_key(*k)) {
        let message = format!("`{INDEX_NAME}` names tensor `{tensor}`, which the manifest does not");
        problems.add(name, Some(tensor), message);
    }
}

fn check_extra_files(out: &Path, manifest: &Manifest, problems: &mut Problems) -> Result<()> {
    for name in unlisted(out, manifest)? {
        // What is listed and is a link or a folder now is told as that.
        if manifest.files.iter().any(|f| f.name == name) {
            continue;
        }
        let what = if name.ends_with(".safetensors") { ", and readers would load it" } else { "" };
        let message = format!("`{name}` is not in the manifest{what}");
        problems.add(Some(&name), None, message);
    }
    Ok(())
}

/// Compares a file's header with the manifest and adds the tensors that are to be read.
fn add_jobs<'a>(
    name: &str,
    file: usize,
    wanted: &[&'a OutputTensor],
    stored: Vec<StoredTensor>,
    jobs: &mut Vec<Job<'a>>,
    problems: &mut Problems,
) -> Result<()> {
    let mut wanted: HashMap<&str, &'a OutputTensor> = wanted.iter().map(|&t| (t.name.as_str(), t)).collect();
    for stored in stored {
        // The manifest's names of an adapter's tensors begin with its folder.
        let tensor = match name.split_once('/') {
            Some((folder, _)) => format!("{folder}/{}", stored.name),
            None => stored.name.clone(),
        };
        let Some(wanted) = wanted.remove(tensor.as_str()) else {
            let message = format!("tensor `{tensor}` in `{name}` is not in the manifest");
            problems.add(Some(name), Some(&tensor), message);
            continue;
        };
        if (stored.dtype, &stored.shape) != (wanted.dtype, &wanted.shape) {
            let message = format!(
                "tensor `{tensor}` in `{name}` is {} {:?}, the manifest says {} {:?}",
                stored.dtype, stored.shape, wanted.dtype, wanted.shape
            );
            problems.add(Some(name), Some(&tensor), message);
            continue;
        }
        if stored.bytes.div_ceil(PIECE_BYTES) > MAX_PIECES {
            let message = format!("tensor `{tensor}` in `{name}` has {} bytes, too many to check", stored.bytes);
            problems.add(Some(name), Some(&tensor), message);
            continue;
        }
        let digests = PieceDigests::new(stored.bytes, PIECE_BYTES)?;
        jobs.push(Job { wanted, stored, file, digests, first: 0 });
    }
    let mut missing: Vec<&str> = wanted.into_keys().collect();
    missing.sort_unstable();
    for tensor in missing {
        problems.add(Some(name), Some(tensor), format!("tensor `{tensor}` is missing in `{name}`"));
    }
    Ok(())
}

/// What a thread found in one piece: the job, the piece, and its digest and elements that are not finite.
type Found = (usize, usize, std::io::Result<(Piece, u64)>);

/// Reads every tensor once; the bytes read and the elements that are not finite.
fn check_tensors(
    files: &[File],
    jobs: &mut [Job<'_>],
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
    problems: &mut Problems,
) -> Result<(u64, Nonfinite)> {
    let mut pieces = 0;
    for job in &mut *jobs {
        job.first = pieces;
        pieces += job.digests.count() as u64;
    }
    let next = AtomicU64::new(0);
    let results: Mutex<Vec<Result<Vec<Found>>>> = Mutex::default();
    let work = || -> Result<Vec<Found>> {
        let mut found: Vec<Found> = Vec::new();
        let mut buffer = Vec::new();
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= pieces {
                return Ok(found);
            }
            // The last job that begins at or before this piece: empty ones before it begin there too.
            let j = jobs.partition_point(|job| job.first <= unit) - 1;
            let job = &jobs[j];
            let piece = (unit - job.first) as usize;
            buffer.resize(job.digests.len_of(piece) as usize, 0);
            let offset = job.stored.offset + piece as u64 * PIECE_BYTES;
            let read = match files[job.file].read_exact_at(&mut buffer, offset) {
                Ok(()) => Ok((job.digests.piece(piece, &buffer)?, nonfinite::count(job.stored.dtype, &buffer))),
                Err(e) => Err(e),
            };
            progress(buffer.len() as u64);
            found.push((j, piece, read));
        }
    };
    together(threads.clamp(1, 256), || {
        let found = work();
        results.lock().unwrap_or_else(PoisonError::into_inner).push(found);
    });
    let mut counts = vec![0_u64; jobs.len()];
    let mut unreadable: BTreeMap<usize, String> = BTreeMap::new();
    for result in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        for (j, piece, read) in result? {
            match read {
                Ok((digest, count)) => {
                    jobs[j].digests.set(piece, digest)?;
                    counts[j] += count;
                }
                Err(e) => drop(unreadable.insert(j, e.to_string())),
            }
        }
    }
    let mut sum = Nonfinite::default();
    let mut bytes = 0;
    for (j, job) in jobs.iter().enumerate() {
        let before = problems.0.len();
        bytes += job.stored.bytes;
        sum.output += counts[j];
        sum.introduced = sum.introduced.saturating_add(job.wanted.nonfinite.introduced);
        let mut tell = |what: String| {
            let (file, name) = (&job.wanted.file, &job.wanted.name);
            problems.add(Some(file), Some(name), format!("tensor `{name}` in `{file}` {what}"));
        };
        match unreadable.get(&j) {
            Some(e) => tell(format!("cannot be read: {e}")),
            None if job.digests.finish()?.to_hex().as_str() != job.wanted.digest => {
                tell("was changed: its digest differs from the manifest's".into());
            }
            None => {}
        }
        let Nonfinite { output, introduced } = job.wanted.nonfinite;
        if problems.0.len() == before && output != counts[j] {
            problems.add(
                Some(&job.wanted.file),
                Some(&job.wanted.name),
                format!(
                    "tensor `{}` has {} NaN or infinite elements, the manifest says {output}",
                    job.wanted.name, counts[j]
                ),
            );
        }
        if introduced > 0 {
            let name = &job.wanted.name;
            let message = format!(
                "the merge made {introduced} elements of tensor `{name}` NaN or infinite where every source was finite"
            );
            problems.add(Some(&job.wanted.file), Some(name), message);
        }
    }
    Ok((bytes, sum))
}
