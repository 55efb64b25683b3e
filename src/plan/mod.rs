//! From a recipe and headers alone: every output tensor's program, its sources, its bytes, its memory and its place in
//! the output. Reads no tensor data.

pub mod batches;
mod check;
pub mod devices;
mod document;
mod doubts;
mod factors;
pub mod files;
pub mod graph;
pub mod memory;
mod outputs;
mod parts;
mod show;
mod stack;
mod ties;
mod tokens;
mod towers;
mod wholeness;

use std::collections::BTreeSet;
use std::sync::Arc;

use regex::RegexSet;

use crate::checkpoint::{Checkpoint, LayerMap, Shard, Tensor};
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Cause, Error, Result};
use crate::instructions::Instructions;
use crate::ops::{
    Along, Blend, Combine, Fit, Lines, ParamKind, Program, Prune, Rule, Sparsify, StageContext, TensorContext, Value,
    Vectors,
};
use crate::output::{Layout, Share, TensorSpec};
use crate::recipe::{Recipe, compile_names};
use crate::source::core::Core;
pub use devices::OnDevices;
pub use document::{
    PlanDocument, PlannedDevice, PlannedDevices, PlannedFile, PlannedMemory, PlannedSource, PlannedTensor,
    PlannedTotals,
};
pub use factors::Factors;
pub use files::Files;
use graph::Graph;
use memory::{Lanes, Memory};
use outputs::{Output, Part, Parts, Planned};
use ties::Ties;

/// What a merge may use and how it lays out its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// CPU threads that compute.
    pub threads: usize,
    /// Bound on what merganser allocates, in bytes.
    pub memory_budget: u64,
    /// Seed of random masks.
    pub seed: u64,
    /// Output files hold at most this many bytes of tensors.
    pub shard_bytes: u64,
}

/// One checkpoint that takes part.
#[derive(Debug)]
pub struct Source {
    /// Whether it is the base.
    pub is_base: bool,
    /// As the recipe writes it.
    pub written: String,
    /// Its headers.
    pub checkpoint: Checkpoint,
    /// Whether it is stored in fp8 with scales, by which its weights are multiplied as they are read.
    pub is_dequantised: bool,
}

/// A tensor of a source: indices of the source in [`Plan::sources`] and of the tensor in its checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceTensor {
    /// Index of the source.
    pub source: usize,
    /// Index of the tensor.
    pub tensor: usize,
}

/// One output tensor.
#[derive(Debug)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// The adapter's folder that it goes to; its name then begins with it.
    pub folder: Option<String>,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements; of a tensor that is copied, its bytes over [`TensorPlan::elem_bytes`].
    pub elems: u64,
    /// Stored element type.
    pub dtype: Dtype,
    /// Bytes of a stored element (1 for a copied tensor of elements smaller than a byte).
    pub elem_bytes: u64,
    /// What is done.
    pub program: Program,
    /// Whether it is computed in f64, as a source or the output is stored so.
    pub wide: bool,
    /// θ₀, or what is copied.
    pub base: Option<SourceTensor>,
    /// The models' tensors, in model order; none for a copied tensor.
    pub models: Vec<SourceTensor>,
    /// Its layer, as a position in [`LayerMap::groups`].
    pub layer: usize,
    /// The left and right factors that are made along with it, by task, as positions in [`Plan::tensors`].
    pub factors: Vec<[usize; 2]>,
}

impl TensorPlan {
    /// Stages that prune its task vectors.
    pub fn stages(&self) -> &[Prune] {
        match &self.program {
            Program::Copy | Program::Factor { .. } => &[],
            Program::Blend(blend) => &blend.stages,
            Program::LowRank(low_rank) => &low_rank.stages,
        }
    }

    /// A stage of the recipe, where it changes this tensor: its place among the tensor's stages, and what it prunes.
    pub fn stage(&self, id: usize) -> Option<(usize, Prune)> {
        self.stages().iter().copied().enumerate().find(|(_, prune)| prune.stage == id)
    }

    /// Every source tensor that is read, θ₀ first.
    pub fn reads(&self) -> impl Iterator<Item = SourceTensor> + '_ {
        self.base.into_iter().chain(self.models.iter().copied())
    }

    /// How the numbers of its rule are found.
    ///
    /// # Errors
    /// Internal, where they are not measured.
    pub fn fit(&self) -> Result<&Fit> {
        self.fitted().ok_or_else(|| Error::internal(format!("nothing is fitted to `{}`", self.name)))
    }

    fn fitted(&self) -> Option<&Fit> {
        if let Program::Blend(blend) = &self.program { blend.combine.fit.as_ref() } else { None }
    }

    /// Vectors whose products [`TensorPlan::fit`] takes; none where it takes none.
    pub fn fitted_vectors(&self) -> usize {
        let has_base = |fit: &Fit| fit.of != Vectors::TaskVectors && self.base.is_some();
        self.fitted().map_or(0, |fit| self.models.len() + usize::from(has_base(fit)))
    }

    /// The lines of which each has numbers of its own in [`TensorPlan::fit`]; one where none has.
    pub fn lines(&self) -> Lines {
        Lines::of(&self.shape, self.fitted().map_or(Along::Whole, |fit| fit.along))
    }

    /// Whether [`TensorPlan::fit`] has numbers for each line.
    pub fn weighs_lines(&self) -> bool {
        self.fitted().is_some_and(|fit| fit.along != Along::Whole)
    }

    /// Rows and columns of a matrix; (elements, 1) else.
    pub fn matrix(&self) -> (u64, u64) {
        if let [m, n] = self.shape[..] { (m, n) } else { (self.elems, 1) }
    }
}

/// A whole merge, ready to run.
#[derive(Debug)]
pub struct Plan {
    /// The recipe.
    pub recipe: Recipe,
    /// What it may use.
    pub options: Options,
    /// Distinct checkpoints, the base (if any) first.
    pub sources: Vec<Source>,
    /// Layers of the output's tensors.
    pub layers: LayerMap,
    /// Output tensors, in the order of the base's files, and then the factors.
    pub tensors: Vec<TensorPlan>,
    /// What is said of factors, where the recipe wants them stored.
    pub factors: Option<Factors>,
    /// What adapters alone are merged as, where their merge is to be an adapter.
    pub(crate) core: Option<Arc<Core>>,
    /// The output's small files, where they are not the reference's.
    pub files: Files,
    /// The output's files.
    pub layout: Layout,
    /// The steps that make the output tensors.
    pub graph: Graph,
    /// The memory that they take.
    pub memory: Memory,
    /// What CUDA devices do of it; `None` where the CPU does everything.
    pub devices: Option<OnDevices>,
    /// What of it is to be done here; `None` where all of it is.
    pub part: Option<Share>,
    /// What the user should know before the merge starts.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Opens the recipe's checkpoints and plans the merge.
    ///
    /// # Errors
    /// `Input` for checkpoints that are damaged or do not fit together, and for a memory budget that cannot do.
    pub fn new(recipe: Recipe, options: Options) -> Result<Self> {
        Instructions::from_environment()?;
        // Of what the user gave, all but checkpoints and budget stands in the recipe.
        Self::of(recipe, options).map_err(|e| e.input_is(Cause::Recipe))
    }

    fn of(recipe: Recipe, options: Options) -> Result<Self> {
        let mut before: Vec<(String, Planned)> = Vec::new();
        for (name, document) in &recipe.before {
            let plan = Self::behind(document.clone(), options, before.clone())?;
            let tensors = plan.tensors.iter().map(|t| (t.name.clone(), t.dtype, t.shape.clone())).collect();
            before.push((name.clone(), Planned { folder: plan.reference().folder().map(Into::into), tensors }));
        }
        Self::behind(recipe, options, before)
    }

    /// Plans a document whose models are outputs of others, too.
    fn behind(recipe: Recipe, options: Options, before: Vec<(String, Planned)>) -> Result<Self> {
        let copied = compile_names(&recipe.copy)?;
        let mut parts = Parts::open(&recipe, before, options.seed)?;
        if recipe.cuts_embeddings && recipe.tokenizer.is_none() {
            parts.cut_embeddings()?;
        }
        let mut warnings = wholeness::check(&recipe, &parts.sources).map_err(|e| e.input_is(Cause::Checkpoint))?;
        let (ties, tie_warnings) = ties::tie(&mut parts.sources)?;
        let mut files = Files::of_slices(&recipe, &parts);
        if parts.sources[0].is_dequantised {
            files.dropped = crate::source::CONFIG_KEYS.to_vec();
        }
        let edit = |(key, value): (&String, &serde_json::Value)| files::Edit {
            section: String::new(),
            key: key.clone(),
            value: value.clone(),
        };
        files.config.extend(parts.config.iter().map(edit));
        let token_warnings = tokens::plan(&recipe, &mut parts, &mut files)?;
        let is_copied = |name: &str, t: &Tensor| copied.is_match(name) || !t.dtype.is_mergeable_float();
        let made = if recipe.modules.is_empty() {
            check::tensors_fit(&parts.sources, &parts.parts[0].sources, &copied)?;
            parts.whole(|t| is_copied(&t.name, t))?
        } else {
            check::takes_slices(&recipe, &parts.parts)?;
            parts.sliced(&recipe, is_copied)?
        };
        let layers = LayerMap::new(made.iter().map(|output| output.name.as_str()));

        let planner = Planner { options, parts: &parts, ties: &ties };
        let mut tensors = made
            .iter()
            .map(|output| planner.tensor(output, layers.group(&output.name).unwrap_or_default()))
            .collect::<Result<Vec<_>>>()?;
        check_stages(&recipe, &tensors)?;
        wholeness::copied_whole(&recipe, &parts.sources, &tensors).map_err(|e| e.input_is(Cause::Checkpoint))?;
        let Parts { sources, parts, warnings: of_sources, core, .. } = parts;
        let factors = Factors::plan(&recipe, &parts[0].participants, &sources, &mut tensors)?;

        let specs: Vec<_> = tensors
            .iter()
            .map(|t| TensorSpec {
                name: t.name.clone(),
                folder: t.folder.clone(),
                dtype: t.dtype,
                shape: t.shape.clone(),
                // Of what is copied the elements may be smaller than a byte.
                bytes: match (&t.program, t.base) {
                    (Program::Copy, Some(from)) => sources[from.source].checkpoint.tensors()[from.tensor].bytes,
                    _ => t.elems * t.elem_bytes,
                },
            })
            .collect();
        let metadata = factors.as_ref().map(Factors::metadata).transpose()?.unwrap_or_default();
        let layout = Layout::with_metadata(&specs, options.shard_bytes, &metadata)?;
        // Bases of core matrices are held beside what steps take.
        let held = core.as_ref().map_or(0, |core| core.bytes());
        let left = Options { memory_budget: options.memory_budget.saturating_sub(held), ..options };
        let memory = Memory::fit(&tensors, left, Lanes::default())?;
        let graph = Graph::new(&tensors, &layers, memory.chunk_elems);
        warnings.extend(sources.iter().flat_map(|s| s.checkpoint.warnings().iter().cloned()));
        warnings.extend(idle_patterns(&recipe, &copied, &sources));
        warnings.extend(of_sources);
        warnings.extend(tie_warnings);
        warnings.extend(doubts::untied(&ties, &tensors));
        warnings.extend(token_warnings);
        warnings.extend(doubts::warnings(&recipe, &tensors, doubts::coverage(&recipe, &tensors).as_ref()));
        warnings.extend(factors.iter().flat_map(|f| f.warnings.clone()));
        let (devices, part) = (None, None);
        Ok(Self {
            recipe,
            options,
            sources,
            layers,
            tensors,
            factors,
            core,
            files,
            layout,
            graph,
            memory,
            devices,
            part,
            warnings,
        })
    }

    /// The checkpoint that lends names, dtypes, copied tensors and configuration files: the base, or the first model.
    pub fn reference(&self) -> &Checkpoint {
        &self.sources[0].checkpoint
    }

    /// A source's tensor and the file that holds it.
    pub fn stored(&self, at: SourceTensor) -> (&Tensor, &Shard) {
        let checkpoint = &self.sources[at.source].checkpoint;
        let tensor = &checkpoint.tensors()[at.tensor];
        (tensor, checkpoint.shard_of(tensor))
    }

    /// Bytes of an output tensor's sources: what one pass over it reads.
    pub fn pass_bytes(&self, tensor: usize) -> u64 {
        self.tensors[tensor].reads().map(|at| self.stored(at).0.bytes).sum()
    }

    /// Bytes that all passes read.
    pub fn read_bytes(&self) -> u64 {
        (0..self.tensors.len()).map(|t| self.pass_bytes(t) * self.graph.passes(t)).sum()
    }

    /// What must be the same for an interrupted merge to be gone on with.
    pub fn fingerprint(&self) -> crate::output::Fingerprint {
        show::fingerprint(self)
    }

    /// The plan for programs.
    pub fn document(&self) -> PlanDocument {
        PlanDocument::of(self)
    }

    /// The plan as a person reads it.
    pub fn to_text(&self) -> String {
        show::text(self)
    }
}

/// Patterns that match no tensor: most likely typing errors.
fn idle_patterns(recipe: &Recipe, copied: &RegexSet, sources: &[Source]) -> Vec<String> {
    let names = || sources.iter().flat_map(|s| s.checkpoint.tensors()).map(|t| &t.name);
    let idle = |key: &str, patterns: &[String], set: &RegexSet| -> Vec<String> {
        let matched: BTreeSet<usize> = names().flat_map(|name| set.matches(name)).collect();
        let missing = (0..patterns.len()).filter(|i| !matched.contains(i));
        missing.map(|i| format!("the pattern `{}` of `{key}` matches no tensor", patterns[i])).collect()
    };
    let mut warnings = idle("copy", &recipe.copy, copied);
    for parameter in recipe.method.parameters.iter().filter(|p| p.kind == ParamKind::Patterns) {
        if let Ok(Value::Patterns(patterns)) = recipe.global(parameter.name, "", 0.0) {
            warnings.extend(idle(parameter.name, patterns.texts(), patterns.set()));
        }
    }
    warnings
}

struct Planner<'a> {
    options: Options,
    parts: &'a Parts,
    ties: &'a Ties,
}

impl Planner<'_> {
    fn stored(&self, at: SourceTensor) -> &Tensor {
        &self.parts.sources[at.source].checkpoint.tensors()[at.tensor]
    }

    fn tensor(&self, output: &Output, layer: usize) -> Result<TensorPlan> {
        let part = &self.parts.parts[output.part];
        let (here, tensor, name, t) = (output.reference, self.stored(output.reference), &output.name, output.t);
        let stored_dtype = self.parts.sources[here.source].checkpoint.stored_dtype(here.tensor);
        if output.is_copied && stored_dtype == tensor.dtype {
            return Ok(self.copy(here, name, layer));
        }
        let mut stages = Vec::new();
        for (index, stage) in part.recipe.stages.iter().enumerate() {
            let Rule::Stage(rule) = stage.spec.rule else {
                return Err(Error::internal(format!("`{}` is not a stage", stage.spec.name)));
            };
            let tensor = self.ties.name(name);
            let values = stage.values(tensor, t)?;
            let context = StageContext { index, tensor, models: part.participants.len(), values };
            stages.extend(rule(&context)?);
        }
        let has_stages = !stages.is_empty();
        // The base alone stays as it is, whatever the method adds to it; so does what is copied, in its own type.
        let (program, models) = if part.participants.is_empty() || output.is_copied {
            let combine = Combine::average(vec![1.0], 1.0);
            (Program::Blend(Blend { stages: Vec::new(), sparsify: Sparsify::None, combine }), vec![here])
        } else {
            (self.program(part, output, stages)?, output.inputs.clone())
        };
        let dtype = part.recipe.out_dtype.filter(|_| !output.is_copied).unwrap_or(stored_dtype);
        if let Program::Blend(blend) = &program
            && blend.combine.is_copy()
            && self.stored(models[0]).dtype == dtype
        {
            return Ok(self.copy(models[0], name, layer));
        }
        let reads_base = match &program {
            Program::Blend(blend) => blend.combine.reads_base(),
            Program::LowRank(work) => work.reads_base(),
            Program::Copy | Program::Factor { .. } => has_stages,
        };
        let wide = models.iter().any(|at| self.stored(*at).dtype == Dtype::F64)
            || dtype == Dtype::F64
            || (reads_base && tensor.dtype == Dtype::F64);
        Ok(TensorPlan {
            name: name.clone(),
            folder: None,
            shape: tensor.shape.clone(),
            elems: tensor.elems,
            dtype,
            elem_bytes: dtype.size_bytes().unwrap_or(1),
            program,
            wide,
            base: reads_base.then_some(here),
            models,
            layer,
            factors: Vec::new(),
        })
    }

    /// What the method does to a tensor.
    fn program(&self, part: &Part, output: &Output, stages: Vec<Prune>) -> Result<Program> {
        let recipe = &part.recipe;
        let Rule::Method(rule) = recipe.method.rule else {
            return Err(Error::internal(format!("`{}` is not a method", recipe.method.name)));
        };
        let mut inputs: Vec<&str> = output.inputs.iter().map(|at| self.stored(*at).name.as_str()).collect();
        let tensor = self.ties.name(&output.name);
        if self.ties.has(&output.name) {
            inputs.fill(tensor);
        }
        rule(&TensorContext {
            tensor,
            shape: &self.stored(output.reference).shape,
            seed: self.options.seed,
            models: part.participants.len(),
            // A base that is no source of a slice may lend its name to other methods, but has no part in the slice.
            has_base: recipe.base.is_some()
                && (recipe.method.base.is_origin(true) || recipe.base_in_models.is_some() || recipe.around.is_empty()),
            values: recipe.values(&part.participants, tensor, &inputs, output.t)?,
            stages,
        })
    }

    fn copy(&self, from: SourceTensor, name: &str, layer: usize) -> TensorPlan {
        let tensor = self.stored(from);
        let elem_bytes = tensor.dtype.size_bytes().unwrap_or(1);
        TensorPlan {
            name: name.to_owned(),
            folder: None,
            shape: tensor.shape.clone(),
            elems: tensor.bytes / elem_bytes,
            dtype: tensor.dtype,
            elem_bytes,
            program: Program::Copy,
            wide: false,
            base: Some(from),
            models: Vec::new(),
            layer,
            factors: Vec::new(),
        }
    }
}

/// Ranking whole layers or tensors needs one rule for all of them.
fn check_stages(recipe: &Recipe, tensors: &[TensorPlan]) -> Result<()> {
    let merged = || tensors.iter().filter(|t| t.program != Program::Copy);
    for (index, stage) in recipe.stages.iter().enumerate() {
        let of = |t: &TensorPlan| t.stage(index).map(|(_, prune)| prune);
        if !merged().filter_map(of).any(graph::ranks_groups) {
            continue;
        }
        let mut rules = merged().map(|t| (t, of(t)));
        let Some((_, first)) = rules.next() else { continue };
        if let Some((other, _)) = rules.find(|(_, rule)| *rule != first) {
            return Err(Error::input(format!(
                "the stage `{}` ranks layers or tensors against each other, so its parameters must be the same for all, \
                 but they differ at `{}`",
                stage.spec.name, other.name
            ))
            .hint("give each parameter one value, or name `granularity: row`, `column` or `element`, which rank inside a tensor"));
        }
    }
    Ok(())
}
