//! What a method or stage knows when it is asked about one tensor.

use crate::error::{Error, Result};
use crate::ops::Prune;
use crate::recipe::{Listed, Recipe, Stage, Value};

/// One output tensor, for a method.
#[derive(Debug)]
pub struct TensorContext<'a> {
    /// The recipe, which resolves parameters for the tensor.
    pub recipe: &'a Recipe,
    /// The tensor's name.
    pub tensor: &'a str,
    /// Its shape.
    pub shape: &'a [u64],
    /// Place of its layer in gradients, in [0, 1].
    pub t: f64,
    /// Seed of random masks.
    pub seed: u64,
    /// Who takes part in the merge, in model order; the base only where the method treats it as one of the models.
    pub participants: &'a [Listed],
    /// Stages that change this tensor, in order.
    pub stages: Vec<Prune>,
}

impl TensorContext<'_> {
    /// A parameter of the whole merge.
    ///
    /// # Errors
    /// If the recipe leaves it without a value for this tensor.
    pub fn global(&self, name: &str) -> Result<Value> {
        self.recipe.global(name, self.tensor, self.t)
    }

    /// A number of the whole merge. Errors as [`Self::global`].
    pub fn float(&self, name: &str) -> Result<f64> {
        self.global(name)?.float()
    }

    /// A truth value of the whole merge. Errors as [`Self::global`].
    pub fn bool(&self, name: &str) -> Result<bool> {
        self.global(name)?.bool()
    }

    /// A parameter of each participant. Errors as [`Self::global`].
    pub fn each(&self, name: &str) -> Result<Vec<Value>> {
        self.participants
            .iter()
            .map(|p| match p {
                Listed::Base => self.recipe.of_base(name, self.tensor, self.t),
                Listed::Model(i) => self.recipe.per_model(*i, name, self.tensor, self.t),
            })
            .collect()
    }

    /// A number of each participant. Errors as [`Self::global`].
    pub fn each_float(&self, name: &str) -> Result<Vec<f64>> {
        self.each(name)?.iter().map(Value::float).collect()
    }

    /// The sum of weights that an average divides by.
    ///
    /// # Errors
    /// If they sum to 0.
    pub fn weight_sum(&self, weights: &[f64]) -> Result<f64> {
        let sum: f64 = weights.iter().sum();
        if sum.abs() < 1e-8 {
            return Err(Error::input(format!(
                "the models' weights for `{}` sum to {sum}: no average exists",
                self.tensor
            ))
            .hint("give weights that sum to something other than 0"));
        }
        Ok(sum)
    }
}

/// One output tensor, for a stage.
#[derive(Debug)]
pub struct StageContext<'a> {
    /// The stage, which resolves its parameters for the tensor.
    pub stage: &'a Stage,
    /// Its place among the recipe's stages.
    pub index: usize,
    /// The tensor's name.
    pub tensor: &'a str,
    /// Place of its layer in gradients, in [0, 1].
    pub t: f64,
    /// How many task vectors there are.
    pub models: usize,
}

impl StageContext<'_> {
    /// A parameter of the stage.
    ///
    /// # Errors
    /// If the recipe leaves it without a value for this tensor.
    pub fn get(&self, name: &str) -> Result<Value> {
        self.stage.global(name, self.tensor, self.t)
    }
}
