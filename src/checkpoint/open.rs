//! A whole checkpoint: its shards opened, their tensors in one list.

use super::discover;
use super::header::Tensor;
use super::index::Index;
use super::shard::{Made, Shard};
use super::text::{quoted, quoted_path};
use crate::dtype::{Dtype, DtypeExt};
use crate::{Cause, Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open checkpoint. Only headers have been read; every shard's file is open for [`Shard::bytes`].
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    folder: Option<PathBuf>,
    label: String,
    shards: Vec<Arc<Shard>>,
    /// What is made and lies in no file; tensors of these have a shard behind those of `shards`.
    made: Vec<Arc<Shard>>,
    /// What tensors that were replaced are stored as.
    replaced: BTreeMap<usize, Dtype>,
    tensors: Vec<Tensor>,
    /// Positions in `tensors`, sorted by name.
    by_name: Vec<usize>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file; a folder with `model.safetensors`, or with shards and `model.safetensors.index.json`;
    /// or a folder with exactly one `.safetensors` file. Costs milliseconds whatever the checkpoint's size.
    ///
    /// # Errors
    /// `Input` if there is no checkpoint or any header or the index is invalid, naming file, tensor, what was found and
    /// what was expected; `Environment` if a file cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, true).map_err(|e| e.input_is(Cause::Checkpoint))
    }

    /// As [`open`](Self::open), but [`Shard::bytes`] always reads and never maps, as it does where the kernel refuses maps.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_unmapped(path: &Path) -> Result<Self> {
        Self::open_as(path, false).map_err(|e| e.input_is(Cause::Checkpoint))
    }

    fn open_as(path: &Path, mapped: bool) -> Result<Self> {
        let found = discover::find(path)?;
        let (mut shards, mut tensors) = (Vec::new(), Vec::new());
        for file in found.shards {
            let (shard, mut held) = Shard::open(file, shards.len(), mapped)?;
            shards.push(Arc::new(shard));
            tensors.append(&mut held);
        }
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_by(|a, b| tensors[*a].name.cmp(&tensors[*b].name));
        if let Some([a, b]) = by_name.array_windows().find(|[a, b]| tensors[*a].name == tensors[*b].name) {
            let file = |at: usize| quoted_path(shards[tensors[at].shard].path());
            return Err(Error::input(format!(
                "tensor {} stands twice: in {} and in {}",
                quoted(&tensors[*a].name),
                file(*a),
                file(*b)
            ))
            .hint("the shards do not belong together; download the checkpoint again into an empty folder"));
        }
        let label = label(path);
        let checkpoint = Self {
            path: path.to_owned(),
            folder: found.folder,
            label,
            shards,
            made: Vec::new(),
            replaced: BTreeMap::new(),
            tensors,
            by_name,
        };
        if let Some(index) = &found.index {
            checkpoint.check_index(index)?;
        }
        Ok(checkpoint)
    }

    /// Every tensor that the index maps must be in the shard to which it maps it.
    fn check_index(&self, index: &Index) -> Result<()> {
        for (name, shard) in &index.weight_map {
            let expected = quoted_path(self.shards[*shard].path());
            let found = match self.get(name) {
                Some(tensor) if tensor.shard == *shard => continue,
                Some(tensor) => format!("it is in {}", quoted_path(self.shards[tensor.shard].path())),
                None => "no shard holds it".into(),
            };
            return Err(Error::input(format!(
                "{}: tensor {} should be in {expected}, but {found}",
                quoted_path(&index.path),
                quoted(name)
            ))
            .hint("index and shards do not belong together; download the checkpoint again"));
        }
        let extra = self.tensors.len() - index.weight_map.len();
        if extra > 0 {
            // `weight_map` is sorted by name, as its reader leaves it.
            let unmapped =
                |t: &&Tensor| index.weight_map.binary_search_by(|(name, _)| name.as_str().cmp(&t.name)).is_err();
            let first = self.tensors.iter().find(unmapped).map(|tensor| quoted(&tensor.name)).unwrap_or_default();
            tracing::warn!(
                index = %index.path.display(),
                "{extra} tensors in the shards are not in the index and are taken all the same; the first is {first}"
            );
        }
        Ok(())
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder, if one was given: where `config.json` and the tokenizer are.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The path's last component, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The files, sorted by name.
    pub fn shards(&self) -> &[Arc<Shard>] {
        &self.shards
    }

    /// All tensors, shard by shard, in the order of their data.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.position(name).map(|at| &self.tensors[at])
    }

    /// Where the tensor of that name stands among [`tensors`](Self::tensors).
    pub fn position(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|at| self.tensors[*at].name.as_str().cmp(name)).ok()?;
        Some(self.by_name[found])
    }

    /// The shard that holds one of this checkpoint's tensors.
    pub fn shard_of(&self, tensor: &Tensor) -> &Shard {
        self.shared_shard(tensor.shard)
    }

    /// The same, to be kept by what is made of the tensor.
    pub(crate) fn shared_shard(&self, shard: usize) -> &Arc<Shard> {
        match shard.checked_sub(self.shards.len()) {
            None => &self.shards[shard],
            Some(made) => &self.made[made],
        }
    }

    /// What a tensor is stored as, also where one that is made and wider stands in its place.
    pub fn stored_dtype(&self, at: usize) -> Dtype {
        self.replaced.get(&at).copied().unwrap_or(self.tensors[at].dtype)
    }

    /// Puts a tensor that is made in the place of a stored one, under the same name. Its bytes must be what shape and dtype
    /// make.
    pub(crate) fn replace(&mut self, at: usize, dtype: Dtype, shape: Vec<u64>, made: Arc<dyn Made>) -> Result<()> {
        let tensor = &mut self.tensors[at];
        self.replaced.entry(at).or_insert(tensor.dtype);
        let size = dtype.size_bytes().unwrap_or(1);
        let elems = shape.iter().try_fold(1_u64, |elems, dim| elems.checked_mul(*dim));
        let (Some(elems), Some(bytes)) = (elems, elems.and_then(|elems| elems.checked_mul(size))) else {
            return Err(Error::input(format!(
                "{} would have the shape {shape:?}, which is too large",
                quoted(&tensor.name)
            )));
        };
        let label = self.path.join(&tensor.name);
        *tensor = Tensor {
            name: std::mem::take(&mut tensor.name),
            dtype,
            shape,
            elems,
            shard: self.shards.len() + self.made.len(),
            begin: 0,
            bytes,
        };
        self.made.push(Arc::new(Shard::made(label, bytes, made)));
        Ok(())
    }

    /// Bytes of all tensors together.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// [`Shard::check_unchanged`] for every shard.
    ///
    /// # Errors
    /// `Input`, naming the first file that changed.
    pub fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(|shard| shard.check_unchanged())
    }
}

/// The last component; for `.` and `..`, that of the folder they mean.
fn label(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| super::text::plain(&name.to_string_lossy(), 200));
    name(path)
        .or_else(|| name(&path.canonicalize().ok()?))
        .unwrap_or_else(|| super::text::plain(&path.to_string_lossy(), 200))
}
