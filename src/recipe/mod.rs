//! Recipes: YAML in, a validated [`Recipe`] out. Every mistake of a user in a recipe ends here.
//!
//! The way of a recipe: `yaml` makes a tree whose nodes know their lines; `read` takes the top level apart; `parameters`
//! checks each setting against the method's [`MethodSpec`]; [`Recipe::global`] and [`Recipe::per_model`] then give a
//! tensor's value, and cannot fail but for a required parameter whose filters leave a tensor out.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::dtype::Dtype;
use crate::error::{Cause, Error, Result};
use crate::ops::{BaseModel, MethodSpec, ParamSpec, Resolved, Scope, Value, Values};

mod documents;
mod dtypes;
mod foreign;
mod json;
mod listing;
mod models;
mod output;
mod parameters;
mod patterns;
mod read;
mod reader;
mod scalar;
mod slices;
mod stages;
mod tokens;
mod value;
mod yaml;

pub use output::{Others, Output, OutputKind};
pub use parameters::Parameters;
pub use patterns::compile_names;
pub use slices::{Module, Slice, SliceSource};
pub use tokens::{ChatTemplate, Token, TokenFrom, TokenRule, Tokenizer, TokenizerSource};

/// A validated recipe. Paths are resolved; every parameter is known to its method and in range.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The recipe's file.
    pub path: PathBuf,
    /// Its text as read.
    pub text: String,
    /// The merging method.
    pub method: &'static MethodSpec,
    /// `base_model`.
    pub base: Option<ModelRef>,
    /// `models`, without the base (which, if listed, is kept in `base`); with slices, every model that they name.
    pub models: Vec<Model>,
    /// Whether the base stands in `models` too, with these parameters (its place in the list, its parameters).
    pub base_in_models: Option<(usize, Parameters)>,
    /// The recipe's own `parameters`.
    pub parameters: Parameters,
    /// Parameters that count before the recipe's own, the innermost first: a slice's and its module's, in the recipe
    /// of [`Recipe::of_slice`].
    pub around: Vec<Parameters>,
    /// `slices` or `modules`; empty where whole models are merged.
    pub modules: Vec<Module>,
    /// `task_vector_stages`, in order.
    pub stages: Vec<Stage>,
    /// `tokenizer_source` or `tokenizer`; `None`: the base's is copied as it is.
    pub tokenizer: Option<Tokenizer>,
    /// `chat_template`.
    pub chat_template: Option<ChatTemplate>,
    /// `copy`: regular expressions that match whole names of tensors taken from the base as they are.
    pub copy: Vec<String>,
    /// `out_dtype`, or else `dtype`: what merged float tensors are stored as; `None`: each keeps the base's dtype.
    pub out_dtype: Option<Dtype>,
    /// `output` and `factors`: what is written.
    pub output: Output,
    /// Documents whose outputs are models of this one or of later ones, by their names, in the order in which they are merged.
    pub before: Vec<(String, Recipe)>,
    /// What is accepted but has no effect, for the user to be told.
    pub warnings: Vec<String>,
}

/// A checkpoint named in a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    /// As written in the recipe.
    pub written: String,
    /// Resolved against the recipe's folder, or found in the Hub's cache.
    pub path: PathBuf,
    /// Adapters that are put on it, in order.
    pub adapters: Vec<PathBuf>,
    /// Whether it is the output of another document, of [`Recipe::before`]; `path` is then its name.
    pub is_made: bool,
}

/// One entry of `models`.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its checkpoint.
    pub model: ModelRef,
    /// Its line in the recipe.
    pub line: usize,
    /// Its own `parameters`.
    pub parameters: Parameters,
}

/// One entry of `task_vector_stages`.
#[derive(Debug, Clone)]
pub struct Stage {
    /// What it is.
    pub spec: &'static MethodSpec,
    /// Its `parameters`.
    pub parameters: Parameters,
}

/// One entry of `models`, in the order of the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// The base stands here.
    Base,
    /// The model of this index in [`Recipe::models`].
    Model(usize),
}

impl Recipe {
    /// Reads and validates a recipe's file, whose models must exist.
    ///
    /// # Errors
    /// Input, for every mistake in the recipe and every model that is not there; environment, if reading fails.
    pub fn load(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| cannot_read(path, &e))?;
        Self::read_from(file, path)
    }

    /// Reads and validates a recipe from anywhere, such as standard input. Relative paths start at `path`'s folder; errors
    /// name `path`, which need not exist.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn read_from(from: impl std::io::Read, path: &Path) -> Result<Self> {
        let mut bytes = Vec::new();
        from.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| cannot_read(path, &e))?;
        read::recipe(&bytes, path, true).map_err(|e| e.input_is(Cause::Recipe))
    }

    /// Validates a recipe's text as [`Recipe::load`] does its file's. Relative paths start at `path`'s folder; `path`
    /// itself need not exist.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        read::recipe(text.as_bytes(), path, true).map_err(|e| e.input_is(Cause::Recipe))
    }

    /// The value of a parameter of the whole merge, for one tensor at `t` of the way from the first layer to the last
    /// (0 for tensors outside the layers).
    ///
    /// # Errors
    /// Input, if the method requires the parameter and none of its filters matches the tensor. Internal, if the method
    /// has no such parameter.
    pub fn global(&self, name: &str, tensor: &str, t: f64) -> Result<Value> {
        self.resolve(None, name, tensor, t)
    }

    /// The value of a parameter for `models[i]`: its own, else the recipe's, else the default. Errors as
    /// [`Recipe::global`].
    pub fn per_model(&self, i: usize, name: &str, tensor: &str, t: f64) -> Result<Value> {
        let model = self.models.get(i).ok_or_else(|| Error::internal(format!("the recipe has no model {i}")))?;
        self.resolve(Some(&model.parameters), name, tensor, t)
    }

    /// The value of a parameter for the base where it takes part as one of the models. Errors as [`Recipe::global`].
    pub fn of_base(&self, name: &str, tensor: &str, t: f64) -> Result<Value> {
        match &self.base_in_models {
            Some((_, own)) => self.resolve(Some(own), name, tensor, t),
            None => self.global(name, tensor, t),
        }
    }

    /// Whether the recipe's own `parameters`, or those of the slice, name this parameter, be it for some tensors only.
    pub fn global_is_set(&self, name: &str) -> bool {
        self.around.iter().chain([&self.parameters]).any(|level| level.is_set(name))
    }

    /// The entries of `models` in the order of the recipe.
    pub fn listed(&self) -> Vec<Listed> {
        let mut listed: Vec<_> = (0..self.models.len()).map(Listed::Model).collect();
        if let Some((place, _)) = self.base_in_models {
            listed.insert(place.min(listed.len()), Listed::Base);
        }
        listed
    }

    /// Who takes part in the merge, in model order.
    ///
    /// Where θ₀ is not what changes are measured from, a base that the recipe lists among its models is one of them; see also
    /// [`BaseModel`].
    pub fn participants(&self) -> Vec<Listed> {
        let mut listed = self.listed();
        match self.method.base {
            of if of.is_origin(self.base.is_some()) => listed.retain(|l| *l != Listed::Base),
            // The rule knows of it.
            BaseModel::Joins => listed.retain(|l| *l != Listed::Base),
            BaseModel::JoinsByWeight
                if self.base.is_some() && !listed.contains(&Listed::Base) && self.global_is_set("weight") =>
            {
                listed.push(Listed::Base);
            }
            _ => {}
        }
        listed
    }

    /// The values of the method's parameters for one tensor at `t` of the way from the first layer to the last (0 for tensors
    /// outside the layers). Errors as [`Recipe::global`].
    ///
    /// Filters of a parameter of the whole merge see the output's name `tensor`; those of a model's see the name of its own
    /// tensor in `inputs`, which with slices is another.
    pub fn values(&self, participants: &[Listed], tensor: &str, inputs: &[&str], t: f64) -> Result<Values> {
        let mut values = Values::default();
        for spec in self.method.parameters {
            let value = match spec.scope {
                Scope::Global => Resolved::One(self.global(spec.name, tensor, t)?),
                Scope::PerModel => {
                    let of = |(at, listed): (usize, &Listed)| {
                        let name = inputs.get(at).copied().unwrap_or(tensor);
                        match listed {
                            Listed::Base => self.of_base(spec.name, name, t),
                            Listed::Model(i) => self.per_model(*i, spec.name, name, t),
                        }
                    };
                    Resolved::Each(participants.iter().enumerate().map(of).collect::<Result<_>>()?)
                }
            };
            values.push(spec.name, value, self.line_of(spec.name));
        }
        Ok(values)
    }

    /// The line of a parameter of the method: where a model gives it, else the slice, else the whole recipe.
    pub fn line_of(&self, name: &str) -> Option<usize> {
        let own = self.models.iter().map(|model| &model.parameters);
        let all = own.chain(&self.around).chain([&self.parameters]);
        all.filter_map(|parameters| parameters.setting(name)).map(|setting| setting.line).next()
    }

    /// Every model that the recipe names, the base too.
    pub fn references_mut(&mut self) -> impl Iterator<Item = &mut ModelRef> {
        let slices = self.modules.iter_mut().flat_map(|module| &mut module.slices);
        let sliced =
            slices.flat_map(|slice| slice.base.iter_mut().chain(slice.sources.iter_mut().map(|s| &mut s.model)));
        let tokens = self.tokenizer.iter_mut().flat_map(tokens::references_mut);
        self.base.iter_mut().chain(self.models.iter_mut().map(|m| &mut m.model)).chain(sliced).chain(tokens)
    }

    /// The recipe as resolved, for the manifest and for `plan`. Keys are the recipe's; `defaults` holds the values of
    /// the parameters that the recipe does not give for the whole merge.
    pub fn to_json(&self) -> serde_json::Value {
        json::recipe(self)
    }

    /// What is merged by itself: a slice of a module, as a recipe of its sources.
    pub fn of_slice(&self, module: &Module, slice: &Slice) -> Self {
        let mut part = self.clone();
        part.modules.clear();
        part.around = vec![slice.parameters.clone(), module.parameters.clone()];
        part.base = slice.base.clone().or(part.base);
        part.base_in_models = slice
            .sources
            .iter()
            .enumerate()
            .find(|(_, source)| source.is_base)
            .map(|(at, source)| (at, source.parameters.clone()));
        let models = slice.sources.iter().filter(|source| !source.is_base);
        part.models = models
            .map(|source| Model {
                model: source.model.clone(),
                line: source.line,
                parameters: source.parameters.clone(),
            })
            .collect();
        part
    }

    fn resolve(&self, own: Option<&Parameters>, name: &str, tensor: &str, t: f64) -> Result<Value> {
        let spec = spec_of(self.method, name)?;
        let settings: Vec<&Parameters> = own.into_iter().chain(&self.around).chain([&self.parameters]).collect();
        resolve(&settings, spec, tensor, t).ok_or_else(|| {
            let line = self.parameters.setting(name).map_or(1, |s| s.line);
            let message = format!("parameter `{name}` has no value for {}: no filter matches", yaml::quote(tensor));
            yaml::error_at(&self.path.display().to_string(), line, message)
                .hint("end its list with `- value: …`, which matches every tensor")
        })
    }
}

impl Stage {
    /// The values of the stage's parameters for one tensor, as [`Recipe::values`] for the method's.
    pub fn values(&self, tensor: &str, t: f64) -> Result<Values> {
        let mut values = Values::default();
        for spec in self.spec.parameters {
            let line = self.parameters.setting(spec.name).map(|setting| setting.line);
            values.push(spec.name, Resolved::One(self.global(spec.name, tensor, t)?), line);
        }
        Ok(values)
    }

    /// The value of one of the stage's parameters, as [`Recipe::global`] for the method's.
    pub fn global(&self, name: &str, tensor: &str, t: f64) -> Result<Value> {
        let spec = spec_of(self.spec, name)?;
        resolve(&[&self.parameters], spec, tensor, t).ok_or_else(|| {
            let stage = self.spec.name;
            let tensor = yaml::quote(tensor);
            Error::input(format!(
                "parameter `{name}` of the stage `{stage}` has no value for {tensor}: no filter matches"
            ))
            .hint("end its list with `- value: …`, which matches every tensor")
        })
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::io(format_args!("read the recipe `{}`", path.display()), error)
        .in_file(path.display())
        .input_is(Cause::Recipe)
}

/// The first of `settings` that has a value, or the default; `None` if the parameter is required and none has.
fn resolve(settings: &[&Parameters], spec: &ParamSpec, tensor: &str, t: f64) -> Option<Value> {
    settings.iter().find_map(|s| s.resolve(spec, tensor, t)).or_else(|| value::default_of(spec))
}

fn spec_of(method: &MethodSpec, name: &str) -> Result<&'static ParamSpec> {
    parameters::parameter_of(method, name)
        .ok_or_else(|| Error::internal(format!("`{}` has no parameter `{name}`", method.name)))
}

/// Everything that reading a recipe does but for looking whether the models exist: what the fuzzer runs.
#[doc(hidden)]
pub fn parse_bytes(bytes: &[u8]) -> Result<Recipe> {
    read::recipe(bytes, Path::new("recipe.yaml"), false)
}
