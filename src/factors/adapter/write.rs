//! The second reading: every matrix decomposed, its factors and what is held whole written where the layout has them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use faer::MatRef;
use faer::traits::RealField;
use serde_json::{Value, json};

use super::pair::{At, Held, Runs};
use super::survey::{Change, Survey};
use super::{Adaptation, in_parallel};
use crate::backend::cpu::low_rank;
use crate::backend::cpu::prune::Scratch;
use crate::backend::cpu::stored::{Stored, Widen};
use crate::checkpoint::{Checkpoint, json_in, quoted};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Cause, Error, Kind, Result};
use crate::factors::triples::Triples;
use crate::factors::{Side, lora};
use crate::ops::{Centre, LowRank, LowRankFacts, MatrixRule, Rank};
use crate::output::manifest::{
    Device, DigestKinds, Manifest, OutputTensor, Phase, SCHEMA, Source, SourceFile, Timings, Totals,
};
use crate::output::source_digest::{block, block_bytes, from_hex, to_hex};
use crate::output::{
    BlockDigests, Content, Fingerprint, JournalEntry, Layout, Nonfinite, PieceDigests, SmallFile, SourceDigests,
    SourceTensorDigest, TensorSpec, WorkDir, nonfinite,
};
use crate::report::card::AdapterCard;
use crate::report::time::rfc3339;
use crate::run::Stop;
use crate::units::format_bytes;

/// Elements written at once of what is held whole.
const PIECE_ELEMS: u64 = 1 << 18;
/// The program itself, and one thread's buffers beside those of a decomposition.
const PROGRAM_BYTES: u64 = 8 << 20;
const THREAD_BYTES: u64 = 8 << 20;

/// Buffers of a thread.
#[derive(Default)]
pub(super) struct Scratches {
    pub raw: [Vec<u8>; 2],
}

/// The most triples that are kept of a matrix.
pub(super) fn most(of: &Adaptation<'_>, at: At) -> u64 {
    match of.pair.tuned_at(at).shape[..] {
        [m, n] => of.keep.rank.min(m).min(n),
        _ => 0,
    }
}

/// The decomposition of a matrix's change into so many triples.
fn work(rank: u64) -> LowRank {
    LowRank {
        stages: Vec::new(),
        weights: vec![1.0],
        centre: Centre::Base,
        rule: MatrixRule::Truncate(Rank::Count(rank)),
        lambda: 0.0,
    }
}

/// What decomposing a matrix allocates, with both of its factors.
fn matrix_bytes(of: &Adaptation<'_>, at: At) -> u64 {
    let [m, n] = of.pair.tuned_at(at).shape[..] else { return 0 };
    let rank = most(of, at);
    low_rank::bytes(&work(rank), (m, n), of.pair.is_wide(at))
        + low_rank::packing_bytes(m, n)
        + rank.saturating_mul(m + n).saturating_mul(8)
}

/// Threads that fit into the memory budget, each with the largest matrix.
///
/// # Errors
/// Input, if not even one does.
pub(super) fn threads(of: &Adaptation<'_>) -> Result<usize> {
    let matrices = of.pair.all().filter(|at| of.pair.is_matrix(*at));
    let largest = matrices.map(|at| (matrix_bytes(of, at), at)).max_by_key(|(bytes, _)| *bytes);
    let each = THREAD_BYTES + largest.map_or(0, |(bytes, _)| bytes);
    let fitting = of.memory_budget.saturating_sub(PROGRAM_BYTES) / each;
    if fitting > 0 {
        return Ok(of.threads.min(usize::try_from(fitting).unwrap_or(usize::MAX)).max(1));
    }
    let least = PROGRAM_BYTES + each;
    let of_what = largest.map(|(_, at)| format!(", for {}", quoted(&of.pair.tuned_at(at).name))).unwrap_or_default();
    let message = format!(
        "the adapter does not fit into a memory budget of {}: it takes at least {}{of_what}",
        format_bytes(of.memory_budget),
        format_bytes(least)
    );
    Err(Error::input(message)
        .because(Cause::Memory)
        .hint(format!("give --memory-budget {}MiB or more", least.div_ceil(1 << 20))))
}

/// The rank of a matrix where it follows from its singular values.
pub(super) fn rank(
    of: &Adaptation<'_>,
    at: At,
    scratches: &mut Scratches,
    stop: &Stop,
    read: &AtomicU64,
) -> Result<u64> {
    let mut values = Vec::new();
    let facts = decompose(of, at, most(of, at), scratches, stop, read, &mut |triples, _, _| {
        values = triples.order.iter().map(|i| triples.values[*i]).collect();
        Ok(())
    })?;
    let squares: f64 = values.iter().map(|value| value * value).sum();
    let captured = facts.energy.first().copied().filter(|share| *share > 0.0).unwrap_or(1.0);
    Ok(of.keep.count(&values, squares / captured) as u64)
}

/// Takes the singular triples, and both factors as rows of numbers: of the left one m of them, of the right one k.
type Take<'a> = dyn FnMut(&Triples, &dyn Fn(usize, &mut Vec<f64>), &dyn Fn(usize, &mut Vec<f64>)) -> Result<()> + 'a;

fn decompose(
    of: &Adaptation<'_>,
    at: At,
    rank: u64,
    scratches: &mut Scratches,
    stop: &Stop,
    read: &AtomicU64,
    take: &mut Take<'_>,
) -> Result<LowRankFacts> {
    let tensor = of.pair.tuned_at(at);
    let [m, n] = tensor.shape[..] else { return Err(Error::internal(format!("`{}` is no matrix", tensor.name))) };
    let runs = Runs { pair: of.pair, at, raw: &mut scratches.raw, stop, read };
    let facts = if of.pair.is_wide(at) {
        decompose_in::<f64>(rank, (m, n), runs, take)
    } else {
        decompose_in::<f32>(rank, (m, n), runs, take)
    };
    crate::backend::cpu::allocator::trim();
    facts.map_err(|error| match error.kind() {
        Kind::Input => Error::input(format!("{} has no low-rank change: {error}", quoted(&tensor.name)))
            .because(Cause::Checkpoint)
            .hint("`merganser compare` counts what is not finite in both models"),
        _ => error,
    })
}

fn decompose_in<C: Widen + RealField>(
    rank: u64,
    shape: (u64, u64),
    mut runs: Runs<'_>,
    take: &mut Take<'_>,
) -> Result<LowRankFacts> {
    let (mut scratch, mut wide) = (Scratch::<C>::new(1), Scratch::<f64>::new(1));
    let mut factors = |_: usize, left: MatRef<'_, C>, right: MatRef<'_, C>| {
        let triples = Triples::new(left, right);
        let left_row = |row: usize, out: &mut Vec<f64>| {
            out.extend(triples.order.iter().map(|&i| left[(row, i)].f64() * triples.left_scale[i]));
        };
        let right_row = |row: usize, out: &mut Vec<f64>| {
            let i = triples.order[row];
            out.extend((0..right.nrows()).map(|j| right[(j, i)].f64() * triples.right_scale[i]));
        };
        take(&triples, &left_row, &right_row)
    };
    let (work, mut emit) = (work(rank), |_: usize, _: &[f64]| Ok(()));
    low_rank::merge_many(&work, &[1.0], shape, &[], &mut runs, &mut scratch, &mut wide, &mut factors, &mut emit)
}

/// Writes what the survey found.
pub(super) struct Writer<'a> {
    of: &'a Adaptation<'a>,
    survey: &'a Survey,
    pub layout: Layout,
    threads: usize,
    read: &'a AtomicU64,
    stop: &'a Stop,
}

impl<'a> Writer<'a> {
    pub fn new(of: &'a Adaptation<'a>, survey: &'a Survey, read: &'a AtomicU64, stop: &'a Stop) -> Result<Self> {
        let specs: Vec<TensorSpec> = survey.changes.iter().flat_map(|change| specs(of, change)).collect();
        if specs.is_empty() {
            return Err(Error::input("no matrix changed by more than `--epsilon`, and nothing else changed")
                .hint("give a smaller `--epsilon`"));
        }
        let layout = Layout::new(&specs, u64::MAX)?;
        Ok(Self { of, survey, layout, threads: threads(of)?, read, stop })
    }

    /// What must be the same for an interrupted extraction to be gone on with.
    pub fn fingerprint(&self) -> Fingerprint {
        let pair = self.of.pair;
        let files = |checkpoint: &Checkpoint| -> Vec<Value> {
            let file = |shard: &std::sync::Arc<crate::checkpoint::Shard>| {
                let (seconds, nanoseconds) = shard.modified();
                json!({
                    "path": shard.path().display().to_string(),
                    "size": shard.size(),
                    "modified": format!("{seconds}.{nanoseconds:09}"),
                    "header": to_hex(shard.header_digest()),
                })
            };
            checkpoint.shards().iter().map(file).collect()
        };
        let parts = json!({
            "base": files(&pair.base),
            "model": files(&pair.tuned),
            "recipe": self.recipe(),
            "layout": self.layout.digest(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        Fingerprint::new(parts.as_object().cloned().unwrap_or_default())
    }

    fn recipe(&self) -> Value {
        let (pair, keep) = (self.of.pair, self.of.keep);
        json!({ "extract": {
            "lora": true,
            "base": pair.base_name,
            "model": pair.tuned_name,
            "rank": keep.rank,
            "energy": keep.energy,
            "epsilon": keep.epsilon,
        } })
    }

    /// Does everything that is not finished.
    pub fn run(&self, work: &WorkDir) -> Result<()> {
        let finished = work.finished();
        let is_left = |change: &&Change| {
            let specs = specs(self.of, change);
            !specs.iter().all(|spec| finished.contains_key(&spec.name))
        };
        let left: Vec<&Change> = self.survey.changes.iter().filter(is_left).collect();
        in_parallel(self.threads, left.len(), self.stop, |item, scratches: &mut Scratches| match left[item].held {
            Held::Factors => self.matrix(left[item], work, scratches),
            _ => self.whole(left[item], work, scratches),
        })
    }

    fn matrix(&self, change: &Change, work: &WorkDir, scratches: &mut Scratches) -> Result<()> {
        let [left_spec, right_spec] = &specs(self.of, change)[..] else {
            return Err(Error::internal("a matrix with other than two factors"));
        };
        let tensor = self.of.pair.tuned_at(change.at);
        let mut entries = Vec::new();
        let facts =
            decompose(self.of, change.at, change.rank, scratches, self.stop, self.read, &mut |_, left, right| {
                for (spec, row) in [(left_spec, left), (right_spec, right)] {
                    entries.push(self.factor(spec, row, work)?);
                }
                Ok(())
            })?;
        let facts = json!({
            "of": tensor.name,
            "rank": facts.rank.first(),
            "energy": facts.energy.first(),
            "residual": facts.residual.first(),
            "precision": facts.precision.first(),
        });
        let sources = self.sources(change.at, scratches)?;
        for (entry, sources) in entries.into_iter().zip([sources, Vec::new()]) {
            work.record(JournalEntry { facts: facts.clone(), sources, ..entry })?;
        }
        Ok(())
    }

    /// Writes a factor row by row, as it stands in the file.
    fn factor(&self, spec: &TensorSpec, row: &dyn Fn(usize, &mut Vec<f64>), work: &WorkDir) -> Result<JournalEntry> {
        let size = spec.dtype.size_bytes().unwrap_or(1) as usize;
        let mut bytes = Vec::with_capacity(usize::try_from(spec.bytes).unwrap_or_default());
        let (mut values, mut found) = (Vec::new(), 0);
        for i in 0..spec.shape[0] {
            values.clear();
            row(i as usize, &mut values);
            let from = bytes.len();
            bytes.resize(from + values.len() * size, 0);
            if f64::narrow(&values, spec.dtype, &mut bytes[from..]) {
                found += nonfinite::count(spec.dtype, &bytes[from..]);
            }
        }
        let place = work.placement(&spec.name)?;
        work.write_at(place.file, place.offset, &bytes)?;
        // The sources were finite, or there would be no factors.
        let nonfinite = Nonfinite { output: found, introduced: found };
        Ok(entry(&spec.name, digest_of(&bytes)?, nonfinite))
    }

    fn whole(&self, change: &Change, work: &WorkDir, scratches: &mut Scratches) -> Result<()> {
        let spec = specs(self.of, change).remove(0);
        let tensor = self.of.pair.tuned_at(change.at);
        let shard = self.of.pair.tuned.shard_of(tensor);
        let place = work.placement(&spec.name)?;
        // What was dequantised is stored in another type than it is read in.
        let [from, to] = [tensor.dtype, spec.dtype].map(|dtype| dtype.size_bytes().unwrap_or(1));
        let mut digests = PieceDigests::new(spec.bytes, PIECE_ELEMS * to)?;
        let (mut found, mut values, mut narrowed) = (0, Vec::new(), Vec::new());
        let elems = tensor.bytes / from;
        for (piece, start) in (0..elems).step_by(PIECE_ELEMS as usize).enumerate() {
            let end = (start + PIECE_ELEMS).min(elems);
            let range = tensor.begin + start * from..tensor.begin + end * from;
            let mut bytes = shard.bytes(range, &mut scratches.raw[0])?;
            if spec.dtype != tensor.dtype {
                values.resize((end - start) as usize, 0.0_f64);
                Stored { dtype: tensor.dtype, bytes }.widen(0, &mut values);
                narrowed.resize(((end - start) * to) as usize, 0);
                f64::narrow(&values, spec.dtype, &mut narrowed);
                bytes = &narrowed;
            }
            found += nonfinite::count(spec.dtype, bytes);
            digests.set(piece, digests.piece(piece, bytes)?)?;
            work.write_at(place.file, place.offset + start * to, bytes)?;
            self.read.fetch_add((end - start) * from, Ordering::Relaxed);
        }
        let digest = digests.finish()?.to_hex().to_string();
        let nonfinite = Nonfinite { output: found, introduced: 0 };
        let sources = self.sources(change.at, scratches)?;
        work.record(JournalEntry { facts: json!({ "copied": true }), sources, ..entry(&spec.name, digest, nonfinite) })
    }

    /// Digests of what was read of a tensor.
    fn sources(&self, at: At, scratches: &mut Scratches) -> Result<Vec<SourceTensorDigest>> {
        let pair = self.of.pair;
        let each = [(&pair.base, pair.base_at(at)), (&pair.tuned, pair.tuned_at(at))];
        let digest = |(source, (checkpoint, tensor)): (usize, (&Checkpoint, &crate::checkpoint::Tensor))| {
            let size = block_bytes(tensor.dtype);
            let mut digests = BlockDigests::new(tensor.bytes, tensor.dtype)?;
            let shard = checkpoint.shard_of(tensor);
            for (i, from) in (0..tensor.bytes).step_by(size as usize).enumerate() {
                let to = (from + size).min(tensor.bytes);
                let bytes = shard.bytes(tensor.begin + from..tensor.begin + to, &mut scratches.raw[source])?;
                digests.set(i, block(bytes))?;
            }
            shard.release(tensor.range());
            Ok(SourceTensorDigest { source, tensor: tensor.name.clone(), digest: to_hex(digests.finish()?) })
        };
        each.into_iter().enumerate().map(digest).collect()
    }

    /// `adapter_config.json`.
    pub fn config(&self) -> SmallFile {
        let pair = self.of.pair;
        let task = pair.base.folder().and_then(|folder| json_in(folder, "config.json")).map(Value::Object);
        let task = task.as_ref().and_then(lora::task_type);
        let text = lora::config(&self.survey.modules, &pair.base_name, task);
        SmallFile { name: lora::CONFIG_NAME.into(), content: Content::Bytes(text.into_bytes()) }
    }

    /// The model card.
    pub fn card(&self) -> String {
        let modules = &self.survey.modules;
        AdapterCard {
            base: &self.of.pair.base_name,
            tuned: &self.of.pair.tuned_name,
            title: &self.of.to.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION"),
            matrices: modules.factors.len(),
            rank: modules.factors.iter().map(|(_, rank)| *rank).max().unwrap_or_default(),
            whole: self.survey.whole(),
        }
        .render()
    }

    /// The manifest but for its files.
    pub fn manifest(&self, finished: &HashMap<String, JournalEntry>, seconds: f64) -> Result<Manifest> {
        let pair = self.of.pair;
        let mut totals = Totals::default();
        let mut tensors = Vec::new();
        for (i, spec) in self.layout.tensors().iter().enumerate() {
            let Some(entry) = finished.get(&spec.name) else { continue };
            totals.tensors += 1;
            totals.copied += usize::from(entry.facts.get("copied").is_some());
            totals.parameters += spec.shape.iter().product::<u64>();
            totals.bytes += spec.bytes;
            totals.nonfinite.output += entry.nonfinite.output;
            totals.nonfinite.introduced += entry.nonfinite.introduced;
            tensors.push(OutputTensor {
                name: spec.name.clone(),
                dtype: spec.dtype,
                shape: spec.shape.clone(),
                file: self.layout.files()[self.layout.placement(i).file].name.clone(),
                digest: entry.digest.clone(),
                nonfinite: entry.nonfinite,
                facts: entry.facts.clone(),
            });
        }
        let phases = vec![Phase { name: "extract".into(), seconds }];
        let timings = Timings::new(seconds, self.read.load(Ordering::Relaxed), totals.bytes, phases);
        let source = |at: usize, role: &str, path: &str, checkpoint: &Checkpoint| -> Result<Source> {
            Ok(Source { role: role.into(), path: path.into(), files: files(at, checkpoint, finished)? })
        };
        Ok(Manifest {
            schema: SCHEMA,
            merganser: env!("CARGO_PKG_VERSION").into(),
            created: rfc3339(SystemTime::now()),
            fingerprint: String::new(),
            digests: DigestKinds::default(),
            recipe: self.recipe(),
            recipe_text: String::new(),
            sources: vec![
                source(0, "base", &pair.base_name, &pair.base)?,
                source(1, "model", &pair.tuned_name, &pair.tuned)?,
            ],
            device: Device::cpu(),
            reproducible: true,
            threads: self.threads,
            memory_budget: self.of.memory_budget,
            seed: 0,
            timings,
            files: Vec::new(),
            tensors,
            totals,
            matrices: None,
        })
    }
}

/// The output tensors of a change.
fn specs(of: &Adaptation<'_>, change: &Change) -> Vec<TensorSpec> {
    let tensor = of.pair.tuned_at(change.at);
    let spec = |name: String, dtype: Dtype, shape: Vec<u64>| {
        let bytes = shape.iter().product::<u64>() * dtype.size_bytes().unwrap_or(1);
        TensorSpec { name, folder: Some(String::new()), dtype, shape, bytes }
    };
    match (change.held, &tensor.shape[..]) {
        (Held::Factors, [m, n]) => {
            let is_single = |dtype: Dtype| matches!(dtype, Dtype::F32 | Dtype::F64);
            let dtype = if is_single(of.pair.tuned.stored_dtype(change.at.tuned)) { Dtype::F32 } else { Dtype::BF16 };
            let module = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
            let shapes = [vec![*m, change.rank], vec![change.rank, *n]];
            Side::BOTH
                .into_iter()
                .zip(shapes)
                .map(|(side, shape)| spec(lora::factor_name(module, side), dtype, shape))
                .collect()
        }
        (held, _) => {
            let dtype = of.pair.tuned.stored_dtype(change.at.tuned);
            let mut whole = spec(lora::whole_name(&tensor.name, held == Held::Bias), dtype, tensor.shape.clone());
            if dtype == tensor.dtype {
                whole.bytes = tensor.bytes;
            }
            vec![whole]
        }
    }
}

/// The files of a source, with a digest of what was read of each.
fn files(at: usize, checkpoint: &Checkpoint, finished: &HashMap<String, JournalEntry>) -> Result<Vec<SourceFile>> {
    let sources = || finished.values().flat_map(|entry| &entry.sources).filter(|source| source.source == at);
    let known: HashMap<&str, &str> = sources().map(|s| (s.tensor.as_str(), s.digest.as_str())).collect();
    let file = |(index, shard): (usize, &std::sync::Arc<crate::checkpoint::Shard>)| {
        let here = || checkpoint.tensors().iter().filter(move |t| t.shard == index);
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
    checkpoint.shards().iter().enumerate().map(file).collect()
}

fn entry(name: &str, digest: String, nonfinite: Nonfinite) -> JournalEntry {
    let (facts, sources) = (Value::Null, Vec::new());
    JournalEntry { tensor: name.to_owned(), digest, nonfinite, facts, sources, boot: String::new() }
}

/// The digest of a whole tensor.
fn digest_of(bytes: &[u8]) -> Result<String> {
    Ok(blake3::hash(bytes).to_hex().to_string())
}
