//! A base and its fine-tune: what changed between them, and how an adapter can hold it.

use crate::backend::cpu::low_rank::ReadRuns;
use crate::backend::cpu::prune::Sources;
use crate::backend::cpu::stored::Stored;
use crate::checkpoint::{Checkpoint, Tensor, quoted};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Result};
use crate::factors::lora;
use crate::methods::matrices::is_table;

/// Elements that are compared at once.
pub(super) const RUN: u64 = 65_536;

/// A base and its fine-tune, whose tensors have the same names and shapes.
#[derive(Debug)]
pub struct Pair {
    /// The base as the user wrote it, which the adapter names.
    pub base_name: String,
    /// The fine-tune as the user wrote it.
    pub tuned_name: String,
    /// The base.
    pub base: Checkpoint,
    /// The fine-tune.
    pub tuned: Checkpoint,
    /// What the user should know of them.
    pub warnings: Vec<String>,
}

/// How an adapter holds a tensor that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// As factors of its change.
    Factors,
    /// As a bias of a module that has factors.
    Bias,
    /// Whole, of a module that is saved.
    Whole,
    /// Whole, though PEFT has no module for it.
    Alone,
}

/// A tensor, by its positions in the two checkpoints.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub base: usize,
    pub tuned: usize,
}

impl Pair {
    /// Opens both.
    ///
    /// # Errors
    /// Input, where they are no two models of the same tensors, naming the first that differs.
    pub fn open(base_name: &str, tuned_name: &str) -> Result<Self> {
        let mut warnings = Vec::new();
        let mut open = |name: &str| -> Result<Checkpoint> {
            let mut checkpoint = Checkpoint::open(&crate::hub::locate(name)?)?;
            warnings.extend(crate::source::dequantise(&mut checkpoint, name)?.map(|done| done.note(name)));
            Ok(checkpoint)
        };
        let (base, tuned) = (open(base_name)?, open(tuned_name)?);
        let pair = Self { base_name: base_name.into(), tuned_name: tuned_name.into(), base, tuned, warnings };
        pair.check()?;
        Ok(pair)
    }

    fn check(&self) -> Result<()> {
        let (base, tuned) = (quoted(&self.base_name), quoted(&self.tuned_name));
        for tensor in self.tuned.tensors() {
            let name = quoted(&tensor.name);
            let Some(own) = self.base.get(&tensor.name) else {
                return Err(Error::input(format!("{tuned} has the tensor {name}, which {base} lacks"))
                    .hint("an adapter changes tensors of its base and adds none: give the model that was fine-tuned"));
            };
            if own.shape != tensor.shape {
                return Err(Error::input(format!(
                    "shape mismatch in {name}: {tuned} has {:?}, {base} has {:?}",
                    tensor.shape, own.shape
                ))
                .hint("an adapter cannot change a shape; where a vocabulary grew, resize the base's first"));
            }
        }
        if let Some(missing) = self.base.tensors().iter().find(|t| self.tuned.get(&t.name).is_none()) {
            return Err(Error::input(format!("{tuned} lacks the tensor {} of {base}", quoted(&missing.name)))
                .hint("give both whole, of the same architecture"));
        }
        Ok(())
    }

    /// All tensors, in the fine-tune's order.
    pub(super) fn all(&self) -> impl Iterator<Item = At> + '_ {
        let at = |(tuned, tensor): (usize, &Tensor)| Some(At { base: self.base.position(&tensor.name)?, tuned });
        self.tuned.tensors().iter().enumerate().filter_map(at)
    }

    pub(super) fn tuned_at(&self, at: At) -> &Tensor {
        &self.tuned.tensors()[at.tuned]
    }

    pub(super) fn base_at(&self, at: At) -> &Tensor {
        &self.base.tensors()[at.base]
    }

    /// Whether a change of this tensor can be held as factors.
    pub(super) fn is_matrix(&self, at: At) -> bool {
        let tensor = self.tuned_at(at);
        let exists = |name: &str| self.base.get(name).is_some();
        tensor.shape.len() == 2
            && tensor.elems > 0
            && tensor.dtype.is_mergeable_float()
            && self.base_at(at).dtype.is_mergeable_float()
            && !is_table(&tensor.name)
            && lora::module_of(&tensor.name, exists).is_ok()
    }

    /// Whether arithmetic is in f64.
    pub(super) fn is_wide(&self, at: At) -> bool {
        self.tuned_at(at).dtype == Dtype::F64 || self.base_at(at).dtype == Dtype::F64
    }

    /// Whether any element differs. Two NaN are the same.
    ///
    /// # Errors
    /// Input, for a tensor of no floats that differs: no adapter holds it.
    pub(super) fn is_changed(&self, at: At, raw: &mut [Vec<u8>; 2]) -> Result<bool> {
        let (base, tuned) = (self.base_at(at), self.tuned_at(at));
        let are_floats = base.dtype.is_mergeable_float() && tuned.dtype.is_mergeable_float();
        if base.dtype == tuned.dtype || !are_floats {
            let same = base.dtype == tuned.dtype && self.same_bytes(at, raw)?;
            if same || are_floats && !self.differs(at, raw)? {
                return Ok(false);
            }
            if !are_floats {
                return Err(Error::input(format!(
                    "{} differs ({} in {}, {} in {}), and no adapter can hold that",
                    quoted(&tuned.name),
                    base.dtype,
                    quoted(&self.base_name),
                    tuned.dtype,
                    quoted(&self.tuned_name)
                ))
                .hint("an adapter changes tensors of floats alone"));
            }
            return Ok(true);
        }
        self.differs(at, raw)
    }

    fn same_bytes(&self, at: At, raw: &mut [Vec<u8>; 2]) -> Result<bool> {
        let (base, tuned) = (self.base_at(at), self.tuned_at(at));
        let [of_base, of_tuned] = raw;
        for from in (0..tuned.bytes).step_by(8 * RUN as usize) {
            let to = (from + 8 * RUN).min(tuned.bytes);
            let one = self.base.shard_of(base).bytes(base.begin + from..base.begin + to, of_base)?;
            let other = self.tuned.shard_of(tuned).bytes(tuned.begin + from..tuned.begin + to, of_tuned)?;
            if one != other {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn differs(&self, at: At, raw: &mut [Vec<u8>; 2]) -> Result<bool> {
        let elems = self.tuned_at(at).elems;
        let (mut a, mut b) = (vec![0.0_f64; RUN as usize], vec![0.0_f64; RUN as usize]);
        let mut found = false;
        for from in (0..elems).step_by(RUN as usize) {
            let len = RUN.min(elems - from) as usize;
            self.with_run(at, from, len, raw, &mut |base, tuned| {
                base.widen(0, &mut a[..len]);
                tuned.widen(0, &mut b[..len]);
                found = a[..len].iter().zip(&b[..len]).any(|(a, b)| a != b && !(a.is_nan() && b.is_nan()));
            })?;
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Calls `take` with the stored elements of the base and of the fine-tune.
    fn with_run(
        &self,
        at: At,
        from: u64,
        len: usize,
        raw: &mut [Vec<u8>; 2],
        take: &mut dyn FnMut(Stored<'_>, Stored<'_>),
    ) -> Result<()> {
        let run = |tensor: &Tensor| {
            let size = tensor.dtype.size_bytes().unwrap_or(1);
            tensor.begin + from * size..tensor.begin + (from + len as u64) * size
        };
        let (base, tuned) = (self.base_at(at), self.tuned_at(at));
        let [of_base, of_tuned] = raw;
        let one = Stored { dtype: base.dtype, bytes: self.base.shard_of(base).bytes(run(base), of_base)? };
        let other = Stored { dtype: tuned.dtype, bytes: self.tuned.shard_of(tuned).bytes(run(tuned), of_tuned)? };
        take(one, other);
        Ok(())
    }
}

/// A matrix's elements, for a decomposition.
pub(super) struct Runs<'a> {
    pub pair: &'a Pair,
    pub at: At,
    pub raw: &'a mut [Vec<u8>; 2],
    pub stop: &'a crate::run::Stop,
    /// Bytes read so far.
    pub read: &'a std::sync::atomic::AtomicU64,
}

impl ReadRuns for Runs<'_> {
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()> {
        if let Some(error) = self.stop.error() {
            return Err(error);
        }
        self.pair.with_run(self.at, start, len, self.raw, &mut |base, tuned| {
            let bytes = (base.bytes.len() + tuned.bytes.len()) as u64;
            self.read.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            take(&Sources { base: Some(base), models: &[tuned], start, len });
        })
    }
}
