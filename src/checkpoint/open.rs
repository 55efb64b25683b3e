//! A whole checkpoint: its shards opened, their tensors in one list.

use super::discover;
use super::header::Tensor;
use super::index::Index;
use super::made::{Made, Origin};
use super::pickle::Strided;
use super::shard::Shard;
use super::text::{quoted, quoted_path};
use crate::dtype::{Dtype, DtypeExt};
use crate::{Cause, Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The first number of shards that are made, apart from those of files.
const MADE: usize = 1 << 31;

/// An open checkpoint. Only headers have been read; every shard's file is open for [`Shard::bytes`].
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    folder: Option<PathBuf>,
    label: String,
    shards: Vec<Arc<Shard>>,
    /// What is made and lies in no file; tensors of these have a shard from [`MADE`] on.
    made: Vec<Arc<Shard>>,
    /// What tensors that were replaced are stored as.
    replaced: BTreeMap<usize, Dtype>,
    tensors: Vec<Tensor>,
    /// Positions in `tensors`, sorted by name.
    by_name: Vec<usize>,
    /// Names that are no tensor's own, and the tensors that they mean all the same.
    tied: BTreeMap<String, usize>,
    warnings: Vec<String>,
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
        let mut scattered = Vec::new();
        for file in found.shards {
            let shown = file.display().to_string();
            let named = |e: Error| e.in_file(&shown);
            let (shard, mut held) = if discover::is_archive(&file) {
                let (shard, held, apart) = Shard::open_archive(file, shards.len(), mapped).map_err(named)?;
                scattered.extend(apart.into_iter().map(|(at, found)| (tensors.len() + at, shards.len(), found)));
                (shard, held)
            } else {
                Shard::open(file, shards.len(), mapped).map_err(named)?
            };
            shards.push(Arc::new(shard));
            tensors.append(&mut held);
        }
        let by_name = sorted_by_name(&tensors);
        if let Some([a, b]) = by_name.array_windows().find(|[a, b]| tensors[*a].name == tensors[*b].name) {
            let file = |at: usize| quoted_path(shards[tensors[at].shard].path());
            return Err(Error::input(format!(
                "tensor {} stands twice: in {} and in {}",
                quoted(&tensors[*a].name),
                file(*a),
                file(*b)
            ))
            .of_tensor(&tensors[*a].name)
            .hint("the shards do not belong together; download the checkpoint again into an empty folder"));
        }
        let label = label(path);
        let mut checkpoint = Self {
            path: path.to_owned(),
            folder: found.folder,
            label,
            shards,
            made: Vec::new(),
            replaced: BTreeMap::new(),
            tensors,
            by_name,
            tied: BTreeMap::new(),
            warnings: Vec::new(),
        };
        if let Some(index) = &found.index {
            checkpoint.check_index(index)?;
        }
        for (at, shard, found) in scattered {
            let (dtype, shape, file) = (found.dtype, found.shape.clone(), Arc::clone(&checkpoint.shards[shard]));
            checkpoint.replace(at, dtype, shape, Arc::new(Strided { file, found }))?;
        }
        Ok(checkpoint)
    }

    /// Every tensor that the index maps must be in the shard to which it maps it.
    fn check_index(&mut self, index: &Index) -> Result<()> {
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
            .in_file(index.path.display())
            .of_tensor(name)
            .hint("index and shards do not belong together; download the checkpoint again"));
        }
        let extra = self.tensors.len() - index.weight_map.len();
        if extra > 0 {
            // `weight_map` is sorted by name, as its reader leaves it.
            let unmapped =
                |t: &&Tensor| index.weight_map.binary_search_by(|(name, _)| name.as_str().cmp(&t.name)).is_err();
            let first = self.tensors.iter().find(unmapped).map(|tensor| quoted(&tensor.name)).unwrap_or_default();
            self.warnings.push(format!(
                "{extra} tensors in the shards are not in {} and are taken all the same; the first is {first}",
                quoted_path(&index.path)
            ));
        }
        Ok(())
    }

    /// What is odd about its files and does no harm to its tensors.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
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

    /// The tensor of that name, or the one that is tied to it.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.position(name).map(|at| &self.tensors[at])
    }

    /// Where the tensor of that name stands among [`tensors`](Self::tensors).
    pub fn position(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by(|at| self.tensors[*at].name.as_str().cmp(name));
        found.ok().map(|found| self.by_name[found]).or_else(|| self.tied.get(name).copied())
    }

    /// Lets names that are not stored mean the first of these that is.
    pub(crate) fn tie(&mut self, names: &[String]) {
        let Some(stored) = names.iter().find_map(|name| self.position(name)) else { return };
        for name in names {
            if self.position(name).is_none() {
                self.tied.insert(name.clone(), stored);
            }
        }
    }

    /// The shard that holds one of this checkpoint's tensors.
    pub fn shard_of(&self, tensor: &Tensor) -> &Shard {
        self.shared_shard(tensor.shard)
    }

    /// The same, to be kept by what is made of the tensor.
    pub(crate) fn shared_shard(&self, shard: usize) -> &Arc<Shard> {
        match shard.checked_sub(MADE) {
            None => &self.shards[shard],
            Some(made) => &self.made[made],
        }
    }

    /// What a tensor is stored as, also where one that is made and wider stands in its place.
    pub fn stored_dtype(&self, at: usize) -> Dtype {
        self.replaced.get(&at).copied().unwrap_or(self.tensors[at].dtype)
    }

    /// A checkpoint that is still to be written: its tensors are known, and nothing of them can be read. `folder` is one whose
    /// small files it will have.
    pub(crate) fn planned(name: &str, folder: Option<&Path>, tensors: Vec<(String, Dtype, Vec<u64>)>) -> Result<Self> {
        let stand_in = |(name, dtype, _): &(String, Dtype, Vec<u64>)| Tensor {
            name: name.clone(),
            dtype: *dtype,
            shape: Vec::new(),
            elems: 0,
            shard: MADE,
            begin: 0,
            bytes: 0,
        };
        let mut by_name: Vec<usize> = (0..tensors.len()).collect();
        by_name.sort_by(|a, b| tensors[*a].0.cmp(&tensors[*b].0));
        let mut planned = Self {
            path: PathBuf::from(name),
            folder: folder.map(Path::to_owned),
            label: label(Path::new(name)),
            shards: Vec::new(),
            made: Vec::new(),
            replaced: BTreeMap::new(),
            tensors: tensors.iter().map(stand_in).collect(),
            warnings: Vec::new(),
            by_name,
            tied: BTreeMap::new(),
        };
        for (at, (_, dtype, shape)) in tensors.into_iter().enumerate() {
            planned.replace(at, dtype, shape, Arc::new(NotYet))?;
        }
        Ok(planned)
    }

    /// Counts another checkpoint's files as files of this one, whose tensors are made of them.
    pub(crate) fn adopt(&mut self, other: &Self) {
        self.shards.extend(other.shards.iter().map(Arc::clone));
    }

    /// Leaves tensors out, as if their files did not hold them. Positions change.
    pub(crate) fn leave_out(&mut self, is_left: impl Fn(&Tensor) -> bool) {
        let kept: Vec<usize> = (0..self.tensors.len()).filter(|at| !is_left(&self.tensors[*at])).collect();
        let replaced = std::mem::take(&mut self.replaced).into_iter();
        self.replaced = replaced.filter_map(|(at, dtype)| Some((kept.binary_search(&at).ok()?, dtype))).collect();
        self.tensors.retain(|tensor| !is_left(tensor));
        self.by_name = sorted_by_name(&self.tensors);
    }

    /// As [`replace`](Self::replace), of a tensor that counts as stored in another type than its file's.
    pub(crate) fn replace_as(&mut self, at: usize, stored: Dtype, dtype: Dtype, made: Arc<dyn Made>) -> Result<()> {
        self.replaced.insert(at, stored);
        self.replace(at, dtype, self.tensors[at].shape.clone(), made)
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
            ))
            .of_tensor(&tensor.name));
        };
        let label = self.path.join(&tensor.name);
        *tensor = Tensor {
            name: std::mem::take(&mut tensor.name),
            dtype,
            shape,
            elems,
            shard: MADE + self.made.len(),
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

fn sorted_by_name(tensors: &[Tensor]) -> Vec<usize> {
    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_by(|a, b| tensors[*a].name.cmp(&tensors[*b].name));
    by_name
}

/// A tensor that is still to be merged.
#[derive(Debug)]
struct NotYet;

impl Made for NotYet {
    fn make(&self, _: std::ops::Range<u64>, _: &mut Vec<u8>) -> Result<()> {
        Err(Error::internal("a tensor of a document was read before it was merged"))
    }

    fn of(&self, _: std::ops::Range<u64>) -> Option<(&Shard, std::ops::Range<u64>)> {
        None
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        Origin { how: "the merge of another document of the recipe".into(), parts: Vec::new() }
    }
}

/// The last component; for `.` and `..`, that of the folder they mean.
fn label(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| super::text::plain(&name.to_string_lossy(), 200));
    name(path)
        .or_else(|| name(&path.canonicalize().ok()?))
        .unwrap_or_else(|| super::text::plain(&path.to_string_lossy(), 200))
}
