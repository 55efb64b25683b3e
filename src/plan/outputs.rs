//! What is written, and of which tensors: the outputs of a recipe, each with the sources that are merged for it.
//!
//! Whole models are one part, whose outputs are the reference's tensors. With slices each slice is a part: its layers are
//! numbered on from those of the slice before, and so a layer's tensors come of tensors of other names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::files::config_of;
use super::stack::Stack;
use super::towers::Towers;
use super::wholeness;
use super::{Source, SourceTensor};
use crate::checkpoint::{Checkpoint, Tensor, quoted};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::recipe::{Expert, Experts, Listed, ModelRef, Module, Recipe, Slice};
use crate::source::core::Core;
use crate::source::experts::{Kind, assemble};

/// What is merged by one rule with one set of sources.
pub(super) struct Part {
    /// The recipe of its sources: a slice's parameters count before the whole recipe's.
    pub recipe: Recipe,
    /// Who takes part, in model order.
    pub participants: Vec<Listed>,
    /// The source of each participant.
    pub sources: Vec<usize>,
    /// The source that lends names, dtypes and copied tensors, and θ₀ where there is one.
    pub reference: usize,
}

/// One output tensor.
pub(super) struct Output {
    /// Its part.
    pub part: usize,
    pub name: String,
    /// Its place in gradients.
    pub t: f64,
    pub reference: SourceTensor,
    /// Whether the reference's tensor is copied.
    pub is_copied: bool,
    /// The participants' tensors; none where the reference's is copied.
    pub inputs: Vec<SourceTensor>,
}

/// The parts of a recipe and the checkpoints that they are made of.
pub(super) struct Parts {
    pub sources: Vec<Source>,
    pub parts: Vec<Part>,
    /// What the user should know of them.
    pub warnings: Vec<String>,
    /// Plans of documents that are merged before, by name.
    planned: Vec<(String, Planned)>,
    /// What adapters alone are merged as.
    pub core: Option<Arc<Core>>,
    /// What a mixture of experts changes in its base's `config.json`.
    pub config: Map<String, Value>,
    /// Whether stored bytes are copied: codes and scales then stay as they are.
    copies: bool,
}

/// What another document will write: its tensors, and where its small files come from.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub folder: Option<PathBuf>,
    pub tensors: Vec<(String, Dtype, Vec<u64>)>,
}

impl Parts {
    /// Opens every checkpoint once. `seed`: of random gates.
    pub fn open(recipe: &Recipe, planned: Vec<(String, Planned)>, seed: u64) -> Result<Self> {
        let mut parts = Self {
            sources: Vec::new(),
            parts: Vec::new(),
            warnings: Vec::new(),
            planned,
            core: None,
            config: Map::new(),
            copies: wholeness::copies_bytes(recipe),
        };
        if recipe.output.in_core {
            parts.core(recipe)?;
            return Ok(parts);
        }
        let mut paths = Vec::new();
        if let Some(base) = &recipe.base {
            parts.source(base, true, &mut paths)?;
        }
        if let Some(experts) = &recipe.experts {
            parts.mix(recipe, experts, seed, &mut paths)?;
        }
        if recipe.modules.is_empty() {
            let participants = recipe.participants();
            parts.add(recipe.clone(), participants, &mut paths)?;
        }
        for (module, slice) in slices(recipe) {
            let part = recipe.of_slice(module, slice);
            let mut participants = part.participants();
            // A base that is no source of a slice takes no part in it.
            participants.retain(|p| *p != Listed::Base || part.base_in_models.is_some());
            parts.add(part, participants, &mut paths)?;
        }
        parts.dequantise_unless_alike()?;
        Ok(parts)
    }

    fn source(&mut self, model: &ModelRef, is_base: bool, paths: &mut Vec<Vec<PathBuf>>) -> Result<usize> {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let path: Vec<PathBuf> = [&model.path].into_iter().chain(&model.adapters).map(|p| real(p)).collect();
        if let Some(known) = paths.iter().position(|p| *p == path) {
            return Ok(known);
        }
        let document = self.planned.iter().find(|(name, _)| model.is_made && *name == model.written);
        let mut checkpoint = match document {
            Some((name, planned)) => Checkpoint::planned(name, planned.folder.as_deref(), planned.tensors.clone())?,
            None => Checkpoint::open(&model.path)?,
        };
        let base = model.written.split('+').next().unwrap_or_default();
        let is_copied = self.copies && model.adapters.is_empty();
        let dequantised = if is_copied { None } else { crate::source::dequantise(&mut checkpoint, base)? };
        self.warnings.extend(dequantised.map(|done| done.note(base)));
        let is_dequantised = dequantised.is_some();
        for adapter in &model.adapters {
            self.warnings.extend(crate::source::apply(&mut checkpoint, base, adapter)?);
        }
        self.sources.push(Source { is_base, written: model.written.clone(), checkpoint, is_dequantised });
        paths.push(path);
        Ok(self.sources.len() - 1)
    }

    /// Adapters of one base as core matrices, and the base as zeros.
    fn core(&mut self, recipe: &Recipe) -> Result<()> {
        let Some(first) = recipe.models.first() else { return Err(Error::internal("a merge of no adapters")) };
        let name = |model: &ModelRef| model.written.split('+').next().unwrap_or_default().to_owned();
        let (mut base, written) = (Checkpoint::open(&first.model.path)?, name(&first.model));
        let done = crate::source::dequantise(&mut base, &written)?;
        self.warnings.extend(done.map(|done| done.note(&written)));
        if let Some(other) =
            recipe.base.as_ref().filter(|other| other.path != first.model.path || !other.adapters.is_empty())
        {
            return Err(Error::input(format!(
                "{}: the adapters are of {}, and `base_model` is {}",
                recipe.path.display(),
                quoted(&written),
                quoted(&other.written)
            ))
            .hint("`output: lora` of adapters alone measures from the base that they are put on: name that one"));
        }
        let adapters: Vec<(&str, &Path)> = recipe
            .models
            .iter()
            .filter_map(|model| Some((model.model.written.as_str(), model.model.adapters.first()?.as_path())))
            .collect();
        let core = Arc::new(Core::open(&base, &written, &adapters)?);
        let mut add = |is_base: bool, written: String, checkpoint: Checkpoint| {
            self.sources.push(Source { is_base, written, checkpoint, is_dequantised: false });
        };
        add(true, written, core.checkpoint(&base, None)?);
        for (at, (written, _)) in adapters.iter().enumerate() {
            add(false, (*written).to_owned(), core.checkpoint(&base, Some(at))?);
        }
        let participants = recipe.participants();
        let source = |listed: &Listed| match listed {
            Listed::Base => 0,
            Listed::Model(i) => i + 1,
        };
        let sources = participants.iter().map(source).collect();
        self.parts.push(Part { recipe: recipe.clone(), participants, sources, reference: 0 });
        self.core = Some(core);
        Ok(())
    }

    /// Cuts embeddings and heads to the rows that all sources have.
    pub fn cut_embeddings(&mut self) -> Result<()> {
        let mut models: Vec<(&str, &mut Checkpoint)> =
            self.sources.iter_mut().map(|source| (source.written.as_str(), &mut source.checkpoint)).collect();
        self.warnings.extend(crate::source::cut_embeddings(&mut models)?);
        Ok(())
    }

    /// Puts a mixture of experts in the place of its base.
    fn mix(&mut self, recipe: &Recipe, experts: &Experts, seed: u64, paths: &mut Vec<Vec<PathBuf>>) -> Result<()> {
        let at = |line: usize, error: Error| {
            let mut told = Error::input(format!("{}:{line}: {error}", recipe.path.display()));
            for hint in error.hints() {
                told = told.hint(hint.clone());
            }
            told
        };
        let mut open = |expert: &Expert| self.source(&expert.model, false, paths);
        let models: Vec<usize> = experts.experts.iter().map(&mut open).collect::<Result<_>>()?;
        let shared = experts.shared.as_ref().map(open).transpose()?;
        let of = |source: &usize| &self.sources[*source].checkpoint;
        let kind_of = |source: usize| {
            let config = config_of(of(&source));
            let kind = config.as_ref().and_then(|config| config.get("model_type")?.as_str()).unwrap_or_default();
            kind.to_owned()
        };
        let mut kinds: Vec<String> = [0].into_iter().chain(models.iter().copied()).chain(shared).map(kind_of).collect();
        kinds.sort();
        kinds.dedup();
        let kind = Kind::of(experts, &kinds).map_err(|e| at(experts.line, e))?;
        let opened: Vec<&Checkpoint> = models.iter().map(of).collect();
        let (checkpoint, [width, shared_width]) =
            assemble(kind, experts, of(&0), &opened, shared.as_ref().map(of), seed).map_err(|e| at(experts.line, e))?;
        self.sources[0].checkpoint = checkpoint;
        self.config = kind.config(experts, width, shared_width);
        Ok(())
    }

    /// Copies of codes mean something only where every source is quantised in the same way.
    fn dequantise_unless_alike(&mut self) -> Result<()> {
        let of = |source: &Source| crate::source::quantisation(&source.checkpoint);
        let Some(first) = self.sources.first().map(of) else { return Ok(()) };
        if !self.copies || self.sources.iter().all(|source| of(source) == first && !source.is_dequantised) {
            return Ok(());
        }
        for source in self.sources.iter_mut().filter(|source| !source.is_dequantised) {
            let done = crate::source::dequantise(&mut source.checkpoint, &source.written)?;
            source.is_dequantised = done.is_some();
            self.warnings.extend(done.map(|done| done.note(&source.written)));
        }
        Ok(())
    }

    fn add(&mut self, recipe: Recipe, participants: Vec<Listed>, paths: &mut Vec<Vec<PathBuf>>) -> Result<()> {
        let mut sources = Vec::with_capacity(participants.len());
        for participant in &participants {
            sources.push(match (participant, &recipe.base) {
                (Listed::Model(i), _) => self.source(&recipe.models[*i].model, false, paths)?,
                (Listed::Base, Some(base)) => self.source(base, true, paths)?,
                (Listed::Base, None) => return Err(Error::internal("the base takes part, but there is none")),
            });
        }
        let needs_base = recipe.method.base.is_origin(recipe.base.is_some());
        let lends =
            recipe.base.as_ref().filter(|_| needs_base || recipe.base_in_models.is_some() || recipe.modules.is_empty());
        let reference = match (lends, sources.first()) {
            (Some(base), _) => self.source(base, true, paths)?,
            (None, Some(first)) => *first,
            (None, None) => return Err(Error::internal("a recipe without models")),
        };
        self.parts.push(Part { recipe, participants, sources, reference });
        Ok(())
    }

    /// The outputs of whole models: the reference's tensors.
    pub fn whole(&self, copied: impl Fn(&Tensor) -> bool) -> Result<Vec<Output>> {
        let part = &self.parts[0];
        let reference = &self.sources[part.reference].checkpoint;
        let layers = crate::checkpoint::LayerMap::new(reference.tensors().iter().map(|t| t.name.as_str()));
        let outputs = reference.tensors().iter().enumerate().map(|(tensor, stored)| {
            let t = layers.layer(&stored.name).map_or(0.0, |layer| layer.t);
            let is_copied = copied(stored);
            let inputs = if is_copied { Vec::new() } else { self.inputs(part, &stored.name)? };
            let reference = SourceTensor { source: part.reference, tensor };
            Ok(Output { part: 0, name: stored.name.clone(), t, reference, is_copied, inputs })
        });
        outputs.collect()
    }

    /// The participants' tensors of this name.
    fn inputs(&self, part: &Part, name: &str) -> Result<Vec<SourceTensor>> {
        let each = part.sources.iter().map(|source| {
            let checkpoint = &self.sources[*source].checkpoint;
            let tensor = checkpoint
                .position(name)
                .ok_or_else(|| Error::internal(format!("`{name}` vanished from `{}`", checkpoint.label())))?;
            Ok(SourceTensor { source: *source, tensor })
        });
        each.collect()
    }

    /// The outputs of slices.
    pub fn sliced(&self, recipe: &Recipe, copied: impl Fn(&str, &Tensor) -> bool) -> Result<Vec<Output>> {
        let towers: Vec<Towers> = self.sources.iter().map(|s| Towers::of(&s.checkpoint)).collect();
        let mut outputs = Vec::new();
        let mut part = 0;
        let file = recipe.path.display().to_string();
        for module in &recipe.modules {
            let parts = part..part + module.slices.len();
            part = parts.end;
            Stack { all: self, towers: &towers, file: &file, module, parts }.outputs(&copied, &mut outputs)?;
        }
        self.check_modules(recipe, &towers, &outputs)?;
        Ok(outputs)
    }

    /// Every module of the model must be there: a tensor that none of them makes is not left out in silence.
    fn check_modules(&self, recipe: &Recipe, towers: &[Towers], outputs: &[Output]) -> Result<()> {
        let made: std::collections::HashSet<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
        let named: Vec<&str> = recipe.modules.iter().filter_map(|m| m.name.as_deref()).collect();
        let (reference, towers) = (self.parts[0].reference, &towers[self.parts[0].reference]);
        let is_left = |name: &str| {
            let module = towers.module_of(name);
            let list = towers.named(module).map(|tower| tower.list.as_str());
            !made.contains(name) && !named.contains(&module) && list.is_none_or(|list| !named.contains(&list))
        };
        let all = self.sources[reference].checkpoint.tensors();
        let left: Vec<&str> = all.iter().map(|t| t.name.as_str()).filter(|name| is_left(name)).collect();
        let (Some(first), true) = (left.first(), !named.is_empty()) else { return Ok(()) };
        let line = recipe.modules.first().map_or(1, |m| m.line);
        let message = format!(
            "no module makes {} tensors of `{}`, {} first: they belong to the module `{}`",
            left.len(),
            self.sources[reference].written,
            quoted(first),
            towers.module_of(first)
        );
        Err(Error::at_line(&recipe.path.display().to_string(), line, message)
            .hint("name that module too: `modules: {NAME: {models: […]}}`"))
    }
}

fn slices(recipe: &Recipe) -> impl Iterator<Item = (&Module, &Slice)> {
    recipe.modules.iter().flat_map(|module| module.slices.iter().map(move |slice| (module, slice)))
}
