//! A checkpoint of factors, opened: its header and the names, shapes and types of its tensors, checked against each other.

use std::collections::HashMap;
use std::path::Path;

use super::{Header, METADATA_KEY, Side, VERSION, factor_name, parse_name, parse_other};
use crate::checkpoint::{Checkpoint, Tensor, quoted, quoted_path};
use crate::dtype::DtypeExt;
use crate::error::{Cause, Error, Result};
use crate::suggest::nearest;

/// What a damaged or forged file of factors is answered with.
const DAMAGED: &str =
    "the output is damaged or incomplete: `merganser verify` says more; merge again with `output: factors`";

/// A checkpoint of a centre and of tasks' factors.
#[derive(Debug)]
pub struct Store {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What its files say of the factors.
    pub header: Header,
    /// Positions of the model's own tensors, in the order of the files.
    pub own: Vec<usize>,
    /// Positions of the left and right factors, by task, then by the position of their matrix.
    factors: Vec<HashMap<usize, [usize; 2]>>,
    /// Positions of the tasks' own tensors, by task, then by the position of the centre's.
    others: Vec<HashMap<usize, usize>>,
}

impl Store {
    /// Opens the output of a merge with `output: factors`.
    ///
    /// # Errors
    /// `Input` if it is something else, or if header, names, shapes and types do not go together.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let header = header(&checkpoint, path).map_err(|e| e.input_is(Cause::Checkpoint))?;
        let places: HashMap<&str, usize> =
            header.tasks.iter().enumerate().map(|(i, task)| (task.name.as_str(), i)).collect();
        let mut own = Vec::new();
        let mut halves: Vec<HashMap<usize, [Option<usize>; 2]>> = vec![HashMap::new(); header.tasks.len()];
        let mut others: Vec<HashMap<usize, usize>> = vec![HashMap::new(); header.tasks.len()];
        for (index, tensor) in checkpoint.tensors().iter().enumerate() {
            let factor = parse_name(&tensor.name).map(|(task, of, side)| (task, of, Some(side)));
            let Some((task, of, side)) =
                factor.or_else(|| parse_other(&tensor.name).map(|(task, of)| (task, of, None)))
            else {
                own.push(index);
                continue;
            };
            let place = places.get(task).ok_or_else(|| {
                damaged(format!("{} is of a task that the header does not name", quoted(&tensor.name)))
            })?;
            let of = checkpoint
                .position(of)
                .ok_or_else(|| damaged(format!("{} is of a tensor that is not there", quoted(&tensor.name))))?;
            match side {
                Some(side) => halves[*place].entry(of).or_default()[usize::from(side == Side::Right)] = Some(index),
                None => {
                    check_other(&checkpoint.tensors()[of], tensor)?;
                    others[*place].insert(of, index);
                }
            }
        }
        let store = Self { factors: Vec::new(), others, checkpoint, header, own };
        let factors =
            halves.iter().enumerate().map(|(task, halves)| store.pairs(task, halves)).collect::<Result<_>>()?;
        let store = Self { factors, ..store };
        store.check_complete()?;
        Ok(store)
    }

    /// The position of the task of this name.
    ///
    /// # Errors
    /// `Input`, with the nearest name and all of them.
    pub fn task(&self, name: &str) -> Result<usize> {
        let names = || self.header.tasks.iter().map(|t| t.name.as_str());
        names().position(|known| known == name).ok_or_else(|| {
            let mut error = Error::input(format!("there is no task {}", quoted(name)));
            if let Some(near) = nearest(name, names()) {
                error = error.hint(format!("did you mean `{near}`?"));
            }
            error.hint(format!("tasks: {}", names().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")))
        })
    }

    /// The left and right factor of a matrix (by position) for a task; `None` for a tensor that is the same for all tasks.
    pub fn factors(&self, task: usize, matrix: usize) -> Option<[&Tensor; 2]> {
        let pair = self.factors.get(task)?.get(&matrix)?;
        Some(pair.map(|index| &self.checkpoint.tensors()[index]))
    }

    /// The task's own tensor where it is stored whole; `None` elsewhere.
    pub fn other(&self, task: usize, tensor: usize) -> Option<&Tensor> {
        self.others.get(task)?.get(&tensor).map(|index| &self.checkpoint.tensors()[*index])
    }

    /// Checks one task's factors.
    fn pairs(&self, task: usize, halves: &HashMap<usize, [Option<usize>; 2]>) -> Result<HashMap<usize, [usize; 2]>> {
        let tensors = self.checkpoint.tensors();
        let mut pairs = HashMap::with_capacity(halves.len());
        // In the order of the files, so that of several faults the same one is told each time.
        let mut matrices: Vec<usize> = halves.keys().copied().collect();
        matrices.sort_unstable();
        for index in matrices {
            let (matrix, name) = (&tensors[index], &self.header.tasks[task].name);
            let [Some(left), Some(right)] = halves[&index] else {
                let missing = Side::BOTH.into_iter().zip(halves[&index]).find(|(_, half)| half.is_none());
                let side = missing.map_or(Side::Left, |(side, _)| side);
                let missing = quoted(&factor_name(name, &matrix.name, side));
                return Err(damaged(format!("the factor {missing} is missing, the other half is there")));
            };
            check_pair(matrix, &tensors[left], &tensors[right])?;
            pairs.insert(index, [left, right]);
        }
        Ok(pairs)
    }

    /// Every task must have factors of the same matrices: of one that lost some, the centre would pass for its model.
    fn check_complete(&self) -> Result<()> {
        for matrix in &self.own {
            let name = || quoted(&self.checkpoint.tensors()[*matrix].name);
            let has_factors = |task: &usize| self.factors[*task].contains_key(matrix);
            let has_whole = |task: &usize| self.others[*task].contains_key(matrix);
            if let Some(task) = (0..self.factors.len()).find(|task| has_factors(task) && has_whole(task)) {
                let task = &self.header.tasks[task].name;
                return Err(damaged(format!("task `{task}` has factors of {} and the whole of it", name())));
            }
            let has = |task: &usize| has_factors(task) || has_whole(task);
            let tasks = 0..self.factors.len();
            if let (Some(with), Some(without)) = (tasks.clone().find(has), tasks.clone().find(|t| !has(t))) {
                let task = |task: usize| &self.header.tasks[task].name;
                return Err(damaged(format!(
                    "task `{}` has nothing of its own of {}, and task `{}` has",
                    task(without),
                    name(),
                    task(with)
                )));
            }
        }
        match self.factors.iter().any(|pairs| !pairs.is_empty()) {
            true => Ok(()),
            false => Err(damaged("there are no factors, and the header names tasks".into())),
        }
    }
}

/// The header, which every file must state alike.
fn header(checkpoint: &Checkpoint, path: &Path) -> Result<Header> {
    let mut texts = checkpoint.shards().iter().map(|shard| (shard, shard.metadata().get(METADATA_KEY)));
    let text = match texts.next() {
        Some((_, Some(text))) => text,
        _ => {
            return Err(Error::input(format!("{} holds no low-rank factors", quoted_path(path)))
                .hint("give the output of a merge with `output: factors` in its recipe"));
        }
    };
    if let Some((shard, _)) = texts.find(|(_, other)| *other != Some(text)) {
        let shard = quoted_path(shard.path());
        return Err(damaged(format!("{shard} says something else of its factors than the first file does")));
    }
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| damaged(format!("the header of the factors is no JSON: {e}")))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => {
            return Err(Error::input(format!(
                "the factors are laid out as version {version}, this merganser reads {VERSION}"
            ))
            .hint("use the version of merganser that wrote them"));
        }
        None => return Err(damaged("the header of the factors states no version".into())),
    }
    let header: Header =
        serde_json::from_value(value).map_err(|e| damaged(format!("the header of the factors cannot be read: {e}")))?;
    check_tasks(&header)?;
    Ok(header)
}

fn check_tasks(header: &Header) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut seen = std::collections::HashSet::new();
    for task in &header.tasks {
        if task.name.is_empty() || !task.name.chars().all(is_plain) {
            return Err(damaged(format!("{} is no name of a task", quoted(&task.name))));
        }
        if !seen.insert(&task.name) {
            return Err(damaged(format!("the header names the task `{}` twice", task.name)));
        }
    }
    if header.tasks.is_empty() { Err(damaged("the header names no task".into())) } else { Ok(()) }
}

/// Whether m×k and k×n factors go with an m×n matrix, k being no more than a rank can be.
fn check_pair(matrix: &Tensor, left: &Tensor, right: &Tensor) -> Result<()> {
    let name = quoted(&matrix.name);
    let [m, n] = matrix.shape[..] else {
        return Err(damaged(format!("{name} has factors, but is no matrix: its shape is {:?}", matrix.shape)));
    };
    for tensor in [matrix, left, right] {
        if !tensor.dtype.is_mergeable_float() {
            return Err(damaged(format!("{} is stored as {}, expected floats", quoted(&tensor.name), tensor.dtype)));
        }
    }
    let wrong = |factor: &Tensor, expected: String| {
        let (factor, found) = (quoted(&factor.name), &factor.shape);
        Err(damaged(format!("{factor} has shape {found:?}, expected {expected} for {name} of [{m}, {n}]")))
    };
    match (&left.shape[..], &right.shape[..]) {
        ([rows, k], _) if *rows != m || *k > m.min(n) => {
            wrong(left, format!("[{m}, k] with k of at most {}", m.min(n)))
        }
        ([_, k], [rank, columns]) if rank == k && *columns == n => Ok(()),
        ([_, k], _) => wrong(right, format!("[{k}, {n}]")),
        _ => wrong(left, format!("[{m}, k]")),
    }
}

/// Whether a task's own tensor can stand for the centre's.
fn check_other(centre: &Tensor, own: &Tensor) -> Result<()> {
    for tensor in [centre, own] {
        if !tensor.dtype.is_mergeable_float() {
            return Err(damaged(format!("{} is stored as {}, expected floats", quoted(&tensor.name), tensor.dtype)));
        }
    }
    if own.shape != centre.shape {
        let (name, found, expected) = (quoted(&own.name), &own.shape, &centre.shape);
        return Err(damaged(format!("{name} has shape {found:?}, expected {expected:?} as the centre has it")));
    }
    Ok(())
}

fn damaged(message: String) -> Error {
    Error::input(message).because(Cause::Checkpoint).hint(DAMAGED)
}
