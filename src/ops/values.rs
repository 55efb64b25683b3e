//! What a method or stage knows when it is asked about one tensor: its place, and its parameters' values there.

use super::{Prune, Value};
use crate::error::{Error, Result};

/// The values of a method's or a stage's parameters for one tensor, all of them resolved.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Values(Vec<(&'static str, Resolved)>);

/// The value of one parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolved {
    /// Of the whole merge.
    One(Value),
    /// Of each model that takes part, in model order.
    Each(Vec<Value>),
}

impl Values {
    /// Notes a parameter's value.
    pub fn push(&mut self, name: &'static str, value: Resolved) {
        self.0.push((name, value));
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
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// One output tensor, for a method.
#[derive(Debug)]
pub struct TensorContext<'a> {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_average_divides_by_any_sum_of_weights_but_0() {
        let tensor = TensorContext {
            tensor: "a.weight",
            shape: &[2],
            seed: 0,
            models: 2,
            has_base: true,
            values: Values::default(),
            stages: Vec::new(),
        };
        assert_eq!(tensor.weight_sum(&[-1.0, -2.0]).unwrap(), -3.0);
        assert_eq!(tensor.weight_sum(&[2.0, -0.5]).unwrap(), 1.5);
        assert_eq!(tensor.weight_sum(&[1e-7, 0.0]).unwrap(), 1e-7);
        for none in [[1.0, -1.0], [0.0, 0.0], [-1e-9, 0.0]] {
            let error = tensor.weight_sum(&none).unwrap_err();
            assert!(error.to_string().contains("the models' weights for `a.weight` sum to"), "{error}");
        }
    }
}
