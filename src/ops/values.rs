//! What a method or stage knows when it is asked about one tensor: its place, and its parameters' values there.

use super::{Prune, Value};
use crate::error::{Error, Result};

/// The values of a method's or a stage's parameters for one tensor, all of them resolved.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values(Vec<(&'static str, Resolved, Option<usize>)>);

/// The value of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolved {
    /// Of the whole merge.
    One(Value),
    /// Of each model that takes part, in model order.
    Each(Vec<Value>),
}

impl Values {
    /// Notes a parameter's value, and the line of the recipe that gives it; none where that is the default.
    pub fn push(&mut self, name: &'static str, value: Resolved, line: Option<usize>) {
        self.0.push((name, value, line));
    }

    /// The line that gives a parameter its value.
    fn line(&self, name: &str) -> Option<usize> {
        self.0.iter().find(|(known, ..)| *known == name).and_then(|(_, _, line)| *line)
    }

    /// The value of a parameter of the whole merge.
    ///
    /// # Errors
    /// Internal, if the method has no such parameter: it asks for what its own specification does not declare.
    pub fn one(&self, name: &str) -> Result<&Value> {
        match self.find(name) {
            Some(Resolved::One(value)) => Ok(value),
            _ => Err(Error::internal(format!("a method asked for `{name}`, which is no parameter of the whole merge"))),
        }
    }

    /// The values of a parameter by model. Errors as [`Values::one`].
    pub fn each(&self, name: &str) -> Result<&[Value]> {
        match self.find(name) {
            Some(Resolved::Each(values)) => Ok(values),
            _ => Err(Error::internal(format!("a method asked for `{name}`, which is no parameter of each model"))),
        }
    }

    fn find(&self, name: &str) -> Option<&Resolved> {
        self.0.iter().find(|(known, ..)| *known == name).map(|(_, value, _)| value)
    }
}

/// One output tensor, for a method.
#[derive(Debug)]
pub struct TensorContext<'a> {
    /// How errors name the recipe.
    pub recipe: &'a str,
    /// The tensor's name.
    pub tensor: &'a str,
    /// Its shape.
    pub shape: &'a [u64],
    /// Seed of random masks.
    pub seed: u64,
    /// How many models take part; the base only where the method treats it as one of them.
    pub models: usize,
    /// Whether there is a base, and it has a part in the tensor.
    pub has_base: bool,
    /// The values of the method's parameters here.
    pub values: Values,
    /// Stages that change this tensor, in order.
    pub stages: Vec<Prune>,
}

impl TensorContext<'_> {
    /// A parameter of the whole merge.
    ///
    /// # Errors
    /// Internal, if the method's specification does not declare it.
    pub fn global(&self, name: &str) -> Result<&Value> {
        self.values.one(name)
    }

    /// A number of the whole merge. Errors as [`Self::global`].
    pub fn float(&self, name: &str) -> Result<f64> {
        self.global(name)?.float()
    }

    /// A whole number of the whole merge. Errors as [`Self::global`].
    pub fn int(&self, name: &str) -> Result<i64> {
        self.global(name)?.int()
    }

    /// A truth value of the whole merge. Errors as [`Self::global`].
    pub fn bool(&self, name: &str) -> Result<bool> {
        self.global(name)?.bool()
    }

    /// A number of each participant. Errors as [`Self::global`].
    pub fn each_float(&self, name: &str) -> Result<Vec<f64>> {
        self.values.each(name)?.iter().map(Value::float).collect()
    }

    /// The error for values of parameters that do not go together: it stands at the line of the first of them that the recipe gives.
    pub fn mistake(&self, parameters: &[&str], message: impl std::fmt::Display) -> Error {
        let line = parameters.iter().find_map(|name| self.values.line(name)).unwrap_or(1);
        Error::input(format!("{}:{line}: {message}, for `{}`", self.recipe, self.tensor))
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
    /// The stage's place among the recipe's stages.
    pub index: usize,
    /// The tensor's name.
    pub tensor: &'a str,
    /// How many task vectors there are.
    pub models: usize,
    /// The values of the stage's parameters here.
    pub values: Values,
}

impl StageContext<'_> {
    /// A parameter of the stage.
    ///
    /// # Errors
    /// Internal, if the stage's specification does not declare it.
    pub fn get(&self, name: &str) -> Result<&Value> {
        self.values.one(name)
    }
}
