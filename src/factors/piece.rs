//! One piece of a tensor of an extracted model: a run of elements, read or rebuilt, rounded once, hashed.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::extract::Extraction;
use super::rebuild::{add, product, tile_columns, towards};
use crate::backend::cpu::stored::{Stored, Widen};
use crate::checkpoint::Tensor;
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Cause, Error, Result};
use crate::output::digest;
use crate::output::source_digest::{block, block_bytes, to_hex};
use crate::output::{BlockDigests, JournalEntry, Nonfinite, PieceDigests, SourceTensorDigest, nonfinite};
use crate::units::format_bytes;

/// Elements of a piece, at most and at least: powers of two, and multiples of a digest block.
const CHUNK_BITS: std::ops::RangeInclusive<u32> = 16..=20;
/// The program itself, one thread's small change, and what is noted of one tensor.
const PROGRAM_BYTES: u64 = 6 << 20;
const THREAD_BYTES: u64 = 256 << 10;
const ENTRY_BYTES: u64 = 2400;

/// How the work is cut up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pieces {
    /// Threads, as many as fit.
    pub threads: usize,
    chunk_elems: u64,
}

impl Pieces {
    /// Fits pieces and threads into the budget: smaller pieces first, then fewer threads.
    pub fn fit(extraction: &Extraction<'_>) -> Result<Self> {
        let budget = extraction.memory_budget;
        for threads in (1..=extraction.threads.max(1)).rev() {
            for bits in CHUNK_BITS.rev() {
                if total_bytes(extraction, threads, 1 << bits) <= budget {
                    return Ok(Self { threads, chunk_elems: 1 << bits });
                }
            }
        }
        let least = total_bytes(extraction, 1, 1 << CHUNK_BITS.start());
        let message = format!(
            "the extraction does not fit into a memory budget of {}: it takes at least {}",
            format_bytes(budget),
            format_bytes(least)
        );
        Err(Error::input(message)
            .because(Cause::Memory)
            .hint(format!("give --memory-budget {}MiB or more", least.div_ceil(1 << 20))))
    }

    /// The work on one tensor, by its position in the checkpoint.
    pub fn job(self, extraction: &Extraction<'_>, tensor: usize) -> Result<Job> {
        let stored = &extraction.store.checkpoint.tensors()[tensor];
        let elem_bytes = stored.dtype.size_bytes().unwrap_or(1);
        let elems = stored.bytes / elem_bytes;
        let pieces = elems.div_ceil(self.chunk_elems).max(1);
        let job = Job { tensor, elems, elem_bytes, chunk_elems: self.chunk_elems, state: Mutex::default() };
        let sources: Result<Vec<_>> =
            job.sources(extraction).map(|t| BlockDigests::new(t.bytes, hashed_as(t.dtype))).collect();
        let digests = PieceDigests::new(stored.bytes, self.chunk_elems * elem_bytes)?;
        let state = State { digests: Some(digests), sources: sources?, left: pieces, found: Nonfinite::default() };
        Ok(Job { state: Mutex::new(state), ..job })
    }
}

/// What an extraction allocates, at most.
fn total_bytes(extraction: &Extraction<'_>, threads: usize, chunk_elems: u64) -> u64 {
    let store = extraction.store;
    let mut per_thread = 0;
    for index in &store.own {
        let tensor = &store.checkpoint.tensors()[*index];
        let elem_bytes = tensor.dtype.size_bytes().unwrap_or(1);
        let chunk = chunk_elems.min(tensor.bytes / elem_bytes);
        let mut bytes = 2 * chunk * elem_bytes;
        if let (Some([left, right]), [_, n]) = (store.factors(extraction.task, *index), &tensor.shape[..]) {
            let k = right.shape[0];
            let rows = chunk / (*n).max(1) + 2;
            let columns = (tile_columns(k as usize) as u64).min(*n);
            // The values, the rows of the left factor as stored and widened, the tile of the right one, a row's sums.
            let stored = left.dtype.size_bytes().unwrap_or(1);
            bytes += 8 * chunk + rows.min(left.shape[0]) * k * (8 + stored) + 8 * (k + 3) * columns;
        }
        if let Some(own) = store.other(extraction.task, *index) {
            bytes += chunk * (16 + own.dtype.size_bytes().unwrap_or(1));
        }
        per_thread = bytes.max(per_thread);
    }
    let blocks: u64 = store.own.iter().map(|t| store.checkpoint.tensors()[*t].elems.div_ceil(1 << 16) * 100).sum();
    let tables = PROGRAM_BYTES + store.checkpoint.tensors().len() as u64 * ENTRY_BYTES + blocks;
    tables + threads as u64 * (per_thread + THREAD_BYTES)
}

/// One thread's buffers.
#[derive(Debug, Default)]
pub(super) struct Worker {
    centre: Vec<u8>,
    raw: Vec<u8>,
    bytes: Vec<u8>,
    values: Vec<f64>,
    left: Vec<f64>,
    right: Vec<f64>,
    sum: Vec<f64>,
}

/// A finished piece.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    /// Where it belongs: bytes from the tensor's start.
    pub offset: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Bytes of sources that were read for it.
    pub read_bytes: u64,
    digest: Option<digest::Piece>,
    found: Nonfinite,
    /// Source, block and digest of what was read.
    blocks: Vec<(usize, usize, u128)>,
}

/// One tensor of the model.
#[derive(Debug)]
pub(super) struct Job {
    /// Its position in the checkpoint.
    pub tensor: usize,
    elems: u64,
    elem_bytes: u64,
    chunk_elems: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    digests: Option<PieceDigests>,
    sources: Vec<BlockDigests>,
    /// Pieces to be written.
    left: u64,
    found: Nonfinite,
}

impl Job {
    /// How many pieces there are; 1 for a tensor without elements.
    pub fn pieces(&self) -> usize {
        self.elems.div_ceil(self.chunk_elems).max(1) as usize
    }

    /// The tensors that are read: the centre, and the left and right factor or the task's own tensor where it has them.
    pub fn sources<'a>(&self, extraction: &Extraction<'a>) -> impl Iterator<Item = &'a Tensor> + use<'a> {
        let store = extraction.store;
        let factors = store.factors(extraction.task, self.tensor);
        let own = store.other(extraction.task, self.tensor);
        std::iter::once(&store.checkpoint.tensors()[self.tensor]).chain(factors.into_iter().flatten()).chain(own)
    }

    /// Reads or rebuilds a piece.
    pub fn compute<'w>(
        &self,
        extraction: &'w Extraction<'_>,
        index: usize,
        worker: &'w mut Worker,
    ) -> Result<Piece<'w>> {
        let store = extraction.store;
        let tensor = &store.checkpoint.tensors()[self.tensor];
        let start = index as u64 * self.chunk_elems;
        let range = start..(start + self.chunk_elems).min(self.elems);
        let offset = start * self.elem_bytes;
        let Worker { centre, raw, bytes, values, left, right, sum } = worker;
        let stored_bytes = offset..range.end * self.elem_bytes;
        let shard = store.checkpoint.shard_of(tensor);
        let centre = shard.bytes(tensor.begin + stored_bytes.start..tensor.begin + stored_bytes.end, centre)?;
        let mut blocks = Vec::new();
        let size = block_bytes(hashed_as(tensor.dtype));
        let first = (offset / size) as usize;
        blocks.extend(centre.chunks(size as usize).enumerate().map(|(i, part)| (0, first + i, block(part))));
        let mut read_bytes = centre.len() as u64;

        if let Some(own) = store.other(extraction.task, self.tensor).filter(|_| self.elems > 0) {
            values.resize((range.end - range.start) as usize, 0.0);
            Stored { dtype: tensor.dtype, bytes: centre }.widen(0, values);
            left.resize(values.len(), 0.0);
            self.widen(extraction, own, range.clone(), raw, left)?;
            let is_finite = |(v, w): &(&f64, &f64)| v.is_finite() && w.is_finite();
            let were_finite = values.iter().zip(&*left).filter(is_finite).count() as u64;
            towards(values, left, extraction.lambda);
            bytes.resize(values.len() * self.elem_bytes as usize, 0);
            let mut found = Nonfinite::default();
            if f64::narrow(values, tensor.dtype, bytes) {
                found.output = nonfinite::count(tensor.dtype, bytes);
                found.introduced = found.output.saturating_sub(values.len() as u64 - were_finite);
            }
            if index == 0 {
                read_bytes += own.bytes;
                blocks.extend(hash(extraction, own, 1, raw)?);
            }
            return self.piece(index, offset, bytes, found, blocks, read_bytes);
        }
        let Some(factors) = store.factors(extraction.task, self.tensor).filter(|_| self.elems > 0) else {
            let output = nonfinite::count(tensor.dtype, centre);
            let found = Nonfinite { output, introduced: 0 };
            return self.piece(index, offset, centre, found, blocks, read_bytes);
        };
        values.resize((range.end - range.start) as usize, 0.0);
        Stored { dtype: tensor.dtype, bytes: centre }.widen(0, values);
        let was_nonfinite = values.iter().filter(|v| !v.is_finite()).count() as u64;
        let (n, k) = (tensor.shape[1], factors[1].shape[0]);
        let rows = range.start / n..(range.end - 1) / n + 1;
        left.resize(((rows.end - rows.start) * k) as usize, 0.0);
        self.widen(extraction, factors[0], rows.start * k..rows.end * k, raw, left)?;
        let mut is_finite = left.iter().all(|v| v.is_finite());

        for columns in tiles(n, tile_columns(k as usize) as u64) {
            let width = (columns.end - columns.start) as usize;
            right.resize(k as usize * width, 0.0);
            sum.resize(width, 0.0);
            for (j, row) in right.chunks_exact_mut(width).enumerate() {
                let at = j as u64 * n;
                self.widen(extraction, factors[1], at + columns.start..at + columns.end, raw, row)?;
            }
            is_finite &= right.iter().all(|v| v.is_finite());
            for row in rows.clone() {
                // The part of this row that lies in the piece and in the tile.
                let from = (row * n + columns.start).max(range.start);
                let to = (row * n + columns.end).min(range.end);
                if from >= to {
                    continue;
                }
                let of_row = ((row - rows.start) * k) as usize;
                product(&left[of_row..of_row + k as usize], right, sum);
                let skip = (from - (row * n + columns.start)) as usize;
                let (a, b) = ((from - range.start) as usize, (to - range.start) as usize);
                add(&mut values[a..b], &sum[skip..skip + (b - a)], extraction.lambda);
            }
        }
        bytes.resize(values.len() * self.elem_bytes as usize, 0);
        let mut found = Nonfinite::default();
        if f64::narrow(values, tensor.dtype, bytes) {
            found.output = nonfinite::count(tensor.dtype, bytes);
            // Factors that are not finite themselves may reach any element; what they make is not counted as made here.
            found.introduced = if is_finite { found.output.saturating_sub(was_nonfinite) } else { 0 };
        }
        if index == 0 {
            for (source, factor) in factors.into_iter().enumerate() {
                read_bytes += factor.bytes;
                blocks.extend(hash(extraction, factor, source + 1, raw)?);
            }
        }
        self.piece(index, offset, bytes, found, blocks, read_bytes)
    }

    fn piece<'w>(
        &self,
        index: usize,
        offset: u64,
        bytes: &'w [u8],
        found: Nonfinite,
        blocks: Vec<(usize, usize, u128)>,
        read_bytes: u64,
    ) -> Result<Piece<'w>> {
        let (total, piece) = (self.elems * self.elem_bytes, self.chunk_elems * self.elem_bytes);
        let digest = match bytes {
            [] => None,
            bytes => Some(PieceDigests::hash_piece(total, piece, index, bytes)?),
        };
        Ok(Piece { offset, bytes, read_bytes, digest, found, blocks })
    }

    /// Elements `range` of a factor, in f64.
    fn widen(
        &self,
        extraction: &Extraction<'_>,
        factor: &Tensor,
        range: Range<u64>,
        raw: &mut Vec<u8>,
        out: &mut [f64],
    ) -> Result<()> {
        let size = factor.dtype.size_bytes().unwrap_or(1);
        let shard = extraction.store.checkpoint.shard_of(factor);
        let bytes = shard.bytes(factor.begin + range.start * size..factor.begin + range.end * size, raw)?;
        Stored { dtype: factor.dtype, bytes }.widen(0, out);
        Ok(())
    }

    /// Notes a piece; the journal's entry if it was the last.
    pub fn piece_written(
        &self,
        extraction: &Extraction<'_>,
        index: usize,
        piece: &Piece<'_>,
    ) -> Result<Option<JournalEntry>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { digests, sources, left, found } = &mut *state;
        let digests = digests.as_mut().ok_or_else(|| Error::internal("a piece of a tensor without digests"))?;
        if let Some(digest) = piece.digest {
            digests.set(index, digest)?;
        }
        for (source, block, digest) in &piece.blocks {
            sources[*source].set(*block, *digest)?;
        }
        found.output += piece.found.output;
        found.introduced += piece.found.introduced;
        *left -= 1;
        if *left > 0 {
            return Ok(None);
        }
        let digest_of = |(tensor, digests): (&Tensor, &BlockDigests)| {
            Ok(SourceTensorDigest { source: 0, tensor: tensor.name.clone(), digest: to_hex(digests.finish()?) })
        };
        let sources = self.sources(extraction).zip(&*sources).map(digest_of).collect::<Result<Vec<_>>>()?;
        let store = extraction.store;
        let facts = match (store.factors(extraction.task, self.tensor), store.other(extraction.task, self.tensor)) {
            (Some([left, _]), _) => json!({ "rank": left.shape[1], "lambda": extraction.lambda }),
            (None, Some(_)) => json!({ "lambda": extraction.lambda }),
            (None, None) => json!({ "copied": true }),
        };
        Ok(Some(JournalEntry {
            tensor: store.checkpoint.tensors()[self.tensor].name.clone(),
            digest: digests.finish()?.to_hex().to_string(),
            nonfinite: *found,
            facts,
            sources,
            boot: String::new(),
        }))
    }
}

/// Columns `0..n` in tiles.
fn tiles(n: u64, width: u64) -> impl Iterator<Item = Range<u64>> {
    (0..n).step_by(width as usize).map(move |at| at..(at + width).min(n))
}

/// Digests of all blocks of a factor.
fn hash(
    extraction: &Extraction<'_>,
    factor: &Tensor,
    source: usize,
    raw: &mut Vec<u8>,
) -> Result<Vec<(usize, usize, u128)>> {
    let size = block_bytes(hashed_as(factor.dtype));
    let shard = extraction.store.checkpoint.shard_of(factor);
    let one = |(i, at): (usize, u64)| {
        let end = (at + size).min(factor.bytes);
        Ok((source, i, block(shard.bytes(factor.begin + at..factor.begin + end, raw)?)))
    };
    (0..factor.bytes).step_by(size as usize).enumerate().map(one).collect()
}

/// Elements smaller than a byte are hashed as the bytes that they are copied as.
fn hashed_as(dtype: Dtype) -> Dtype {
    if dtype.size_bytes().is_some() { dtype } else { Dtype::U8 }
}
