//! What a merging method or task-vector stage declares of itself: the data that the command line, recipe validation,
//! the documentation's table and the tests all read.

use super::{Program, Prune, StageContext, TensorContext};
use crate::error::Result;

/// One merging method or task-vector stage, as data.
#[derive(Debug)]
pub struct MethodSpec {
    /// The name in a recipe, and the stem of the file that holds the rule.
    pub name: &'static str,
    /// One line: what the merged parameter is.
    pub summary: &'static str,
    /// The paper or program that defines it.
    pub source: &'static str,
    /// Whether it is a method or a stage in front of one.
    pub role: Role,
    /// Whether `base_model` must be named.
    pub base: BaseModel,
    /// Least and greatest number of models besides the base.
    pub models: (usize, usize),
    /// Whether task-vector stages may stand before it.
    pub takes_stages: bool,
    /// Whether it merges tensors as whole matrices, and what that leaves.
    pub matrices: Matrices,
    /// Its parameters.
    pub parameters: &'static [ParamSpec],
    /// Groups of parameters of which a recipe may give at most one.
    pub exclusive: &'static [&'static [&'static str]],
    /// What it does to one tensor.
    pub rule: Rule,
    /// Tolerance of agreement with a float64 reference, relative to the size of the change.
    pub tolerance: f64,
    /// Where our definition needs words: differences from mergekit, choices that a paper leaves open.
    pub notes: &'static str,
}

/// What a method or stage does to one tensor, in terms of a backend's operations.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// A method: the tensor's whole program.
    Method(fn(&TensorContext<'_>) -> Result<Program>),
    /// A stage: what it prunes; `None` where it changes nothing.
    Stage(fn(&StageContext<'_>) -> Result<Option<Prune>>),
}

/// Method, or stage in front of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Named by `merge_method`.
    Method,
    /// Named in `task_vector_stages`.
    Stage,
}

/// Whether a method merges eligible tensors as whole matrices, by their singular vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrices {
    /// It merges every tensor by its elements.
    No,
    /// It does.
    Whole,
    /// It does, and what it adds of each task has a low rank known from the recipe, so that its factors can be stored.
    Factors,
}

/// Whether a method needs `base_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseModel {
    /// The rule reads θ₀.
    Required,
    /// The rule does not read θ₀; a base, if named, lends its configuration files, dtypes and copied tensors.
    Optional,
    /// As [`BaseModel::Optional`]; but where the recipe gives a `weight` to all models, a base that is not listed among them is
    /// one of them, as in mergekit.
    JoinsByWeight,
    /// A base that is given is one more of what is merged, listed or not (with slices: where it is a source); to stages it is θ₀.
    Joins,
    /// A base may be given: then the rule works on changes from it, and it is none of the models.
    Origin,
}

impl BaseModel {
    /// Whether θ₀ is what changes are measured from, and none of the models.
    pub fn is_origin(self, is_given: bool) -> bool {
        self == BaseModel::Required || (self == BaseModel::Origin && is_given)
    }
}

/// One parameter.
#[derive(Debug)]
pub struct ParamSpec {
    /// Key in the recipe.
    pub name: &'static str,
    /// Type and range.
    pub kind: ParamKind,
    /// Where it may stand.
    pub scope: Scope,
    /// Value where the recipe gives none.
    pub default: ParamDefault,
    /// One line of help.
    pub help: &'static str,
}

/// Type and range of a parameter. Floats are always finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParamKind {
    /// A number in `[min, max]`; gradients interpolate.
    Float {
        /// Least value.
        min: f64,
        /// Greatest value.
        max: f64,
    },
    /// A whole number in `[min, max]`.
    Int {
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// `true` or `false`.
    Bool,
    /// `true`, `false`, or one of a few words.
    Switch(&'static [&'static str]),
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// A list of regular expressions over tensor names (never a gradient).
    Patterns,
}

/// Where a parameter may stand in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only in the recipe's (or the stage's) own `parameters`.
    Global,
    /// In a model's `parameters`; the recipe's own `parameters` give the value for models that have none.
    PerModel,
}

/// The value of a parameter that a recipe does not give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParamDefault {
    /// The recipe must give it.
    Required,
    /// Absent means absent (as for `rank`, of which at most one form is given).
    Absent,
    /// This number.
    Float(f64),
    /// This whole number.
    Int(i64),
    /// This truth value.
    Bool(bool),
    /// This word.
    Word(&'static str),
}
