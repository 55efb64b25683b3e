//! What is measured: the recipe's task vectors, the stages to ask about, and the memory that it takes.

use std::path::PathBuf;

use super::memory::{self, Memory};
use super::ordered::Pool;
use super::report::Report;
use super::{measure, stage};
use crate::engine::Stop;
use crate::error::{Error, Result};
use crate::methods;
use crate::ops::{Granularity, Program, Prune};
use crate::plan::{self, Plan, TensorPlan};
use crate::recipe::{Listed, Output, Parameters, Recipe, Stage};

/// The stage that is asked about where a recipe has none.
const STAGE: &str = "lwptv";
/// Task vectors as they are, whatever the recipe's method makes of them.
const PLAIN: &str = "task_arithmetic";

/// What a survey may use, and what it is to answer beside the recipe's own questions.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// CPU threads that compute.
    pub threads: usize,
    /// Bound on what merganser allocates, in bytes.
    pub memory_budget: u64,
    /// Shares kept, in [0, 1], of which it shall say what the recipe's last stage would prune; of `lwptv` with its
    /// defaults where the recipe has no stage.
    pub keep: Vec<f64>,
}

/// A stage's question: what would it prune?
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Query {
    /// The stage, by its place in the recipe.
    pub stage: usize,
    /// The share kept; `None`: as the recipe has it.
    pub keep: Option<f64>,
}

/// A survey of task vectors, ready to run.
#[derive(Debug)]
pub struct Survey {
    /// The recipe's sources and tensors; of the method nothing but the task vectors and the stages in front of it.
    pub(super) plan: Plan,
    /// The recipe's own method.
    pub(super) method: &'static str,
    /// Whether the stage is the recipe's.
    pub(super) has_stages: bool,
    /// Tensors with task vectors, as places in the plan.
    pub(super) tensors: Vec<usize>,
    /// The tasks, as the recipe writes them.
    pub(super) tasks: Vec<String>,
    /// What stages are asked.
    pub(super) asked: Vec<Query>,
    /// What it takes.
    pub(super) memory: Memory,
}

impl Survey {
    /// Plans a survey from a recipe and its checkpoints' headers.
    ///
    /// # Errors
    /// `Input` for a recipe without a base or without task vectors, for checkpoints that do not fit together, for shares
    /// outside [0, 1], and for a memory budget that cannot do.
    pub fn new(mut recipe: Recipe, options: &Options) -> Result<Self> {
        let Some(base) = &recipe.base else {
            return Err(Error::input(format!(
                "`{}` names no `base_model`, so there are no task vectors to look at",
                recipe.path.display()
            ))
            .hint("add `base_model: PATH`: task vectors are differences from it"));
        };
        if recipe.models.is_empty() {
            return Err(Error::input(format!(
                "`{}` lists no model besides its base `{}`, so there are no task vectors to look at",
                recipe.path.display(),
                base.written
            ))
            .hint("list the fine-tuned models under `models:`"));
        }
        if !recipe.modules.is_empty() || !recipe.before.is_empty() {
            let message = format!(
                "`{}` has slices or several documents, and task vectors are those of whole models",
                recipe.path.display()
            );
            return Err(Error::input(message));
        }
        let method = recipe.method;
        let find = |name| methods::find(name).ok_or_else(|| Error::internal(format!("`{name}` is not registered")));
        recipe.method = find(PLAIN)?;
        recipe.output = Output::default();
        let has_stages = !recipe.stages.is_empty();
        if !has_stages && !options.keep.is_empty() {
            let (spec, parameters) = (find(STAGE)?, Parameters::default());
            recipe.stages.push(Stage { spec, parameters });
        }
        let tasks: Vec<String> = (recipe.participants().iter())
            .filter_map(|listed| match listed {
                Listed::Model(i) => Some(recipe.models[*i].model.written.clone()),
                Listed::Base => None,
            })
            .collect();
        // The plan's own memory is that of a merge, which this is not; ours is fitted below.
        let roomy = plan::Options { threads: 1, memory_budget: u64::MAX, seed: 0, shard_bytes: u64::MAX };
        let plan = Plan::new(recipe, roomy)?;
        let tensors: Vec<usize> =
            (0..plan.tensors.len()).filter(|t| plan.tensors[*t].program != Program::Copy).collect();
        if tensors.is_empty() {
            return Err(Error::input(format!(
                "`{}` has no task vectors: every tensor of its base is copied",
                plan.recipe.path.display()
            ))
            .hint("task vectors are of float tensors that `copy:` leaves out"));
        }
        let asked = asked(&plan, &tensors, has_stages, &options.keep)?;
        let memory = memory::fit(&plan, &tensors, &asked, options)?;
        Ok(Self { plan, method: method.name, has_stages, tensors, tasks, asked, memory })
    }

    /// Measures, telling `progress` the number of bytes just read.
    ///
    /// # Errors
    /// `Input` if a file changes meanwhile, `Environment` if one cannot be read, `Interrupted` once `stop` says so.
    pub fn run(&self, progress: &(dyn Fn(u64) + Sync), stop: &Stop) -> Result<Report> {
        crate::backend::cpu::allocator::return_freed_memory();
        let run = Run { survey: self, pool: Pool::new(self.memory.threads, self.tasks.len()), progress, stop };
        let measures = measure::measures(&run)?;
        let kept = stage::kept(&run, &measures)?;
        self.plan.sources.iter().try_for_each(|source| source.checkpoint.check_unchanged())?;
        Ok(Report::new(self, &measures, &kept))
    }

    /// Bytes that [`Survey::run`] reads, as far as is known before: a search for a cut may take another pass.
    pub fn bytes_to_read(&self) -> u64 {
        let of = |t: &usize| self.plan.pass_bytes(*t);
        let passes = |t: &usize| 1 + self.asked.iter().map(|asked| self.passes(*t, asked)).sum::<u64>();
        self.tensors.iter().map(|t| of(t) * passes(t)).sum()
    }

    /// Passes over a tensor that an answer takes.
    fn passes(&self, tensor: usize, asked: &Query) -> u64 {
        let is_first = asked.keep.is_none() || self.asked.iter().all(|a| a.stage != asked.stage || a.keep.is_some());
        match self.plan.tensors[tensor].stage(asked.stage).map(|(_, prune)| prune.granularity) {
            None => 0,
            // The norms of the first stage are known already, and masks of whole tensors need no pass.
            Some(Granularity::Layer | Granularity::Tensor) => u64::from(is_first && asked.stage > 0),
            // A search each; what they all keep is summed in one pass.
            Some(Granularity::Element) => 1 + u64::from(is_first),
            Some(Granularity::Row | Granularity::Column) => 2 * u64::from(is_first),
        }
    }

    /// Threads that compute; fewer than asked for where the budget does not hold more.
    pub fn threads(&self) -> usize {
        self.memory.threads
    }

    /// The most that is allocated, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.total
    }

    /// What the user should know before it starts.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.plan.recipe.warnings.iter().chain(&self.plan.warnings)
    }

    /// Files and folders that are read.
    pub fn reads(&self) -> Vec<PathBuf> {
        let checkpoints = self.plan.sources.iter().map(|s| s.checkpoint.path().to_owned());
        checkpoints.chain([self.plan.recipe.path.clone()]).collect()
    }

    /// A tensor with task vectors, by its place among them.
    pub(super) fn tensor(&self, at: usize) -> &TensorPlan {
        &self.plan.tensors[self.tensors[at]]
    }
}

/// A survey as it runs.
pub(super) struct Run<'a> {
    pub survey: &'a Survey,
    pub pool: Pool,
    pub progress: &'a (dyn Fn(u64) + Sync),
    pub stop: &'a Stop,
}

/// The recipe's own choice for every stage, and the shares asked for of its last.
fn asked(plan: &Plan, tensors: &[usize], has_stages: bool, keep: &[f64]) -> Result<Vec<Query>> {
    if let Some(share) = keep.iter().find(|k| !(0.0..=1.0).contains(*k)) {
        return Err(Error::input(format!("a share kept must be in [0, 1], found {share}")));
    }
    let stages = plan.recipe.stages.len();
    let mut asked = Vec::new();
    if has_stages {
        asked.extend((0..stages).map(|stage| Query { stage, keep: None }));
    }
    let prunes = |stage: usize| tensors.iter().any(|t| plan.tensors[*t].stage(stage).is_some());
    if !keep.is_empty() && !prunes(stages - 1) {
        let message = "the recipe's last stage keeps everything (`keep: 1`), so no other share can be asked of it";
        return Err(Error::input(message).hint("give the stage a `keep` below 1, if only to ask about others"));
    }
    let mut seen: Vec<f64> = Vec::new();
    for share in keep {
        if !seen.contains(share) {
            seen.push(*share);
            asked.push(Query { stage: stages - 1, keep: Some(*share) });
        }
    }
    Ok(asked)
}

impl Query {
    /// What it would prune of a tensor; `None` where the recipe's stage leaves the tensor alone.
    pub fn prune(self, tensor: &TensorPlan) -> Option<Prune> {
        let (_, prune) = tensor.stage(self.stage)?;
        Some(Prune { keep: self.keep.unwrap_or(prune.keep), ..prune })
    }
}
