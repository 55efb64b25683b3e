//! What `output: factors` and `output: lora` add to a plan: the centre in place of the sum, and the factors of every task.
//!
//! A factor is an output tensor of its own, but has no steps: the step that makes its matrix makes its factors too.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Source, SourceTensor, TensorPlan};
use crate::checkpoint::Checkpoint;
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Result};
use crate::factors::{
    Coefficients, Header, METADATA_KEY, Side, Task, VERSION, factor_name, lora, other_name, task_names,
};
use crate::ops::{Blend, Centre, Combine, LowRank, MatrixRule, Program, Sparsify};
use crate::output::{Content, SmallFile};
use crate::recipe::{Listed, Others, OutputKind, Recipe};

/// How many matrices a warning names.
const NAMED: usize = 3;

/// The factors of a plan.
#[derive(Debug)]
pub struct Factors {
    /// Whether they are factors or adapters.
    pub kind: OutputKind,
    /// The tasks, and λ and weights of their sum.
    pub header: Header,
    /// The first factor among the plan's tensors; what comes before is the model.
    pub first: usize,
    /// How many matrices have factors.
    pub matrices: usize,
    /// How many other tensors are stored for each task.
    pub others: usize,
    /// Element types that factors are stored as.
    pub dtypes: Vec<Dtype>,
    /// Bytes of all factors and of tasks' other tensors.
    pub bytes: u64,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Modules of an adapter with their ranks, which are the same for all tasks.
    modules: lora::Modules,
}

impl Factors {
    /// Makes a merge's plan one that keeps its low-rank parts apart; `None` if the recipe wants them summed.
    ///
    /// # Errors
    /// `Input` if there is nothing to keep apart.
    pub(super) fn plan(
        recipe: &Recipe,
        participants: &[Listed],
        sources: &[Source],
        tensors: &mut Vec<TensorPlan>,
    ) -> Result<Option<Self>> {
        let (kind, reference) = (recipe.output.kind, &sources[0].checkpoint);
        if kind == OutputKind::Merged || recipe.output.in_core {
            return Ok(None);
        }
        let others = match recipe.output.others {
            Others::Task => others(tensors),
            Others::Centre => Vec::new(),
        };
        let mut warnings = Vec::new();
        if kind == OutputKind::Lora {
            warnings.extend(leave_out(reference, tensors)?);
        }
        // Around the base, what has no low-rank part of its own is the base's for every task.
        if tensors.iter().any(|t| matches!(&t.program, Program::LowRank(work) if work.centre == Centre::Base)) {
            let is_other = |(_, t): &(usize, &mut TensorPlan)| matches!(t.program, Program::Blend(_));
            tensors.iter_mut().enumerate().filter(is_other).for_each(|(index, t)| keep_base(reference, index, t));
        }
        let mut coefficients: BTreeMap<String, Coefficients> = BTreeMap::new();
        let mut matrices = Vec::new();
        for (index, tensor) in tensors.iter_mut().enumerate() {
            if let Program::LowRank(work) = &mut tensor.program {
                coefficients.insert(tensor.name.clone(), coefficients_of(work));
                // What is left is the centre.
                work.lambda = 0.0;
                matrices.push(index);
            }
        }
        let Some(first_matrix) = matrices.first() else {
            let word = kind.word();
            return Err(Error::input(format!(
                "no tensor is an eligible matrix: there is nothing for `output: {word}` to store"
            ))
            .hint("name the matrices under `eligible` in `parameters`, or merge without `output`"));
        };
        let usual = coefficients.get(&tensors[*first_matrix].name).cloned().unwrap_or_default();
        coefficients.retain(|_, own| *own != usual);
        let header = Header { version: VERSION, tasks: tasks(recipe, participants), usual, exceptions: coefficients };

        let first = tensors.len();
        let mut factors = Self {
            kind,
            header,
            first,
            matrices: matrices.len(),
            others: others.len(),
            dtypes: Vec::new(),
            bytes: 0,
            warnings,
            modules: lora::Modules::default(),
        };
        for task in 0..factors.header.tasks.len() {
            for matrix in &matrices {
                let pair = factors.pair(recipe, task, *matrix, &tensors[*matrix])?;
                let next = tensors.len();
                tensors[*matrix].factors.push([next, next + 1]);
                tensors.extend(pair);
            }
        }
        for dtype in tensors[first..].iter().map(|t| t.dtype) {
            if !factors.dtypes.contains(&dtype) {
                factors.dtypes.push(dtype);
            }
        }
        for (task, Task { name, .. }) in factors.header.tasks.iter().enumerate() {
            tensors.extend(others.iter().filter_map(|other| other.of(sources, task, name)));
        }
        factors.bytes = tensors[first..].iter().map(|t| t.elems * t.elem_bytes).sum();
        Ok(Some(factors))
    }

    /// The left and right factor of a task's low-rank part of a matrix, as outputs.
    fn pair(&mut self, recipe: &Recipe, task: usize, index: usize, matrix: &TensorPlan) -> Result<[TensorPlan; 2]> {
        let Program::LowRank(LowRank { rule: MatrixRule::Truncate(rank), .. }) = &matrix.program else {
            return Err(Error::internal(format!("`{}` has no low-rank parts", matrix.name)));
        };
        let (m, n) = matrix.matrix();
        let k = rank.most(m, n);
        let wide = matches!(matrix.dtype, Dtype::F32 | Dtype::F64);
        let dtype = recipe.output.factor_dtype.unwrap_or(if wide { Dtype::F32 } else { Dtype::BF16 });
        let name = &self.header.tasks[task].name;
        let module = matrix.name.strip_suffix(".weight").unwrap_or(&matrix.name);
        if self.kind == OutputKind::Lora && task == 0 {
            self.modules.factors.push((module.to_owned(), k));
        }
        Ok(Side::BOTH.map(|side| {
            let (name, folder) = match self.kind {
                OutputKind::Lora => (format!("{name}/{}", lora::factor_name(module, side)), Some(name.clone())),
                _ => (factor_name(name, &matrix.name, side), None),
            };
            let shape = match side {
                Side::Left => vec![m, k],
                Side::Right => vec![k, n],
            };
            TensorPlan {
                name,
                folder,
                elems: shape.iter().product(),
                shape,
                dtype,
                elem_bytes: dtype.size_bytes().unwrap_or(1),
                program: Program::Factor { of: index, task, side },
                wide: false,
                base: None,
                models: Vec::new(),
                layer: matrix.layer,
                factors: Vec::new(),
            }
        }))
    }

    /// Entries of the metadata of the model's own files.
    ///
    /// # Errors
    /// A number that JSON cannot hold.
    pub(super) fn metadata(&self) -> Result<Vec<(&'static str, String)>> {
        if self.kind == OutputKind::Lora {
            return Ok(Vec::new());
        }
        let text = serde_json::to_string(&self.header).map_err(|e| Error::internal(format!("factors: {e}")))?;
        Ok(vec![(METADATA_KEY, text)])
    }

    /// The adapters' configurations. `out`: the name of OUT; `config`: what OUT's `config.json` holds, if it has one.
    pub fn small_files(&self, recipe: &Recipe, out: &str, config: Option<&Value>) -> Vec<SmallFile> {
        if self.kind != OutputKind::Lora {
            return Vec::new();
        }
        let base = recipe.output.base_name.as_deref().unwrap_or(out);
        let text = lora::config(&self.modules, base, config.and_then(lora::task_type));
        let file = |task: &Task| SmallFile {
            name: format!("{}/{}", task.name, lora::CONFIG_NAME),
            content: Content::Bytes(text.clone().into_bytes()),
        };
        self.header.tasks.iter().map(file).collect()
    }

    /// What the model card says of the output, in a sentence or two.
    pub fn in_words(&self) -> String {
        let names: Vec<String> = self.header.tasks.iter().map(|t| format!("`{}`", t.name)).collect();
        let names = names.join(", ");
        let n = self.matrices;
        match self.kind {
            OutputKind::Lora => format!(
                "This is the centre of the tasks, and each folder {names} is a LoRA adapter (PEFT) that makes of it the \
                 low-rank approximation of that task's model, in {n} matrices."
            ),
            _ => {
                let others = match self.others {
                    0 => String::new(),
                    others => format!(" and {others} other tensors"),
                };
                format!(
                    "This is the centre of the tasks, with low-rank factors of {n} matrices{others} for each of {names}: \
                     `merganser extract` rebuilds a task's model from it."
                )
            }
        }
    }

    pub(super) fn to_json(&self, tensors: &[TensorPlan]) -> Value {
        json!({
            "kind": self.kind.word(),
            "tasks": self.header.tasks,
            "matrices": self.matrices,
            "others": self.others,
            "tensors": tensors.len() - self.first,
            "factor_dtypes": self.dtypes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "bytes": self.bytes,
        })
    }
}

/// A tensor without factors that is stored for every task.
struct Other {
    /// Its name in the model.
    name: String,
    layer: usize,
    /// The tasks' own, in model order.
    models: Vec<SourceTensor>,
}

/// The tensors that are merged, and not as matrices.
fn others(tensors: &[TensorPlan]) -> Vec<Other> {
    let merged = tensors.iter().filter(|t| matches!(t.program, Program::Blend(_)));
    merged.map(|t| Other { name: t.name.clone(), layer: t.layer, models: t.models.clone() }).collect()
}

impl Other {
    /// As an output: a copy of the task's own.
    fn of(&self, sources: &[Source], task: usize, name: &str) -> Option<TensorPlan> {
        let from = *self.models.get(task)?;
        let stored = &sources[from.source].checkpoint.tensors()[from.tensor];
        Some(TensorPlan {
            name: other_name(name, &self.name),
            folder: None,
            shape: stored.shape.clone(),
            elems: stored.elems,
            dtype: stored.dtype,
            elem_bytes: stored.dtype.size_bytes().unwrap_or(1),
            program: Program::Copy,
            wide: false,
            base: Some(from),
            models: Vec::new(),
            layer: self.layer,
            factors: Vec::new(),
        })
    }
}

/// λ and the weights scaled to mean 1.
fn coefficients_of(work: &LowRank) -> Coefficients {
    Coefficients { lambda: work.lambda, weights: work.scaled_weights() }
}

fn tasks(recipe: &Recipe, participants: &[Listed]) -> Vec<Task> {
    let models = participants.iter().filter_map(|listed| match listed {
        Listed::Model(i) => recipe.models.get(*i).map(|m| &m.model),
        Listed::Base => recipe.base.as_ref(),
    });
    let paths: Vec<&str> = models.map(|m| m.written.as_str()).collect();
    let tasks = task_names(&paths).into_iter().zip(&paths);
    tasks.map(|(name, model)| Task { name, model: (*model).to_owned() }).collect()
}

/// Makes the average of matrices that no adapter can change, and says so.
fn leave_out(reference: &Checkpoint, tensors: &mut [TensorPlan]) -> Result<Option<String>> {
    let mut left_out = Vec::new();
    for tensor in tensors.iter_mut() {
        let Program::LowRank(work) = &tensor.program else { continue };
        let Err(reason) = lora::module_of(&tensor.name, |name| reference.get(name).is_some()) else { continue };
        left_out.push(format!("`{}`, {reason}", tensor.name));
        tensor.program = centre(work);
    }
    if left_out.is_empty() {
        return Ok(None);
    }
    if !tensors.iter().any(|t| matches!(t.program, Program::LowRank(_))) {
        return Err(Error::input(format!(
            "no matrix can be changed by a LoRA adapter; the first that cannot is {}",
            left_out[0]
        ))
        .hint("`output: factors` stores the factors of any matrix"));
    }
    let more = match left_out.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let named = &left_out[..left_out.len().min(NAMED)];
    Ok(Some(format!(
        "matrices that stay out of the adapters and are the same for every task: {}{more}",
        named.join("; ")
    )))
}

/// Makes a tensor the base's, rounded to what it is stored as.
fn keep_base(reference: &Checkpoint, index: usize, tensor: &mut TensorPlan) {
    let here = SourceTensor { source: 0, tensor: index };
    match &mut tensor.program {
        // Layers may be ranked against each other, and this one counts there: it stays what it is, but for its size.
        Program::Blend(Blend { stages, combine, .. }) if !stages.is_empty() => combine.numbers.lambda = 0.0,
        _ if reference.tensors().get(index).is_some_and(|stored| stored.dtype == tensor.dtype) => {
            tensor.program = Program::Copy;
            (tensor.base, tensor.models, tensor.wide) = (Some(here), Vec::new(), false);
        }
        _ => {
            let combine = Combine::average(vec![1.0], 1.0);
            tensor.program = Program::Blend(Blend { stages: Vec::new(), sparsify: Sparsify::None, combine });
            (tensor.base, tensor.models) = (None, vec![here]);
        }
    }
}

/// What is made of a matrix whose low-rank parts are not wanted.
fn centre(work: &LowRank) -> Program {
    let (weights, divisor) = (work.weights.clone(), work.weights.iter().sum());
    let combine = if work.stages.is_empty() && work.centre == Centre::Average {
        Combine::average(weights, divisor)
    } else {
        Combine::sum(weights, divisor, 1.0)
    };
    Program::Blend(Blend { stages: work.stages.clone(), sparsify: Sparsify::None, combine })
}
