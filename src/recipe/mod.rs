//! Recipes: YAML in, a validated [`Recipe`] out. Every mistake of a user in a recipe ends here.

use std::path::PathBuf;

use crate::dtype::Dtype;
use crate::methods::MethodSpec;

/// A validated recipe. Paths are resolved; every parameter is known to its method and in range.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The recipe's file.
    pub path: PathBuf,
    /// The merging method.
    pub method: &'static MethodSpec,
    /// `base_model`.
    pub base: Option<ModelRef>,
    /// `models`, without the base (which, if listed, is kept in `base`).
    pub models: Vec<Model>,
    /// Whether the base stands in `models` too, with these parameters (its place in the list, its parameters).
    pub base_in_models: Option<(usize, Parameters)>,
    /// The recipe's own `parameters`.
    pub parameters: Parameters,
    /// `task_vector_stages`, in order.
    pub stages: Vec<Stage>,
    /// `copy`: regular expressions that match whole names of tensors taken from the base as they are.
    pub copy: Vec<String>,
    /// `out_dtype`, or else `dtype`: what merged float tensors are stored as; `None`: each keeps the base's dtype.
    pub out_dtype: Option<Dtype>,
    /// What is accepted but has no effect, for the user to be told.
    pub warnings: Vec<String>,
}

/// A checkpoint named in a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRef {
    /// As written in the recipe.
    pub written: String,
    /// Resolved against the recipe's folder.
    pub path: PathBuf,
}

/// One entry of `models`.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its checkpoint.
    pub model: ModelRef,
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

/// Parameter settings by name, in the order of the recipe.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    // to be filled in by the recipe module
}
