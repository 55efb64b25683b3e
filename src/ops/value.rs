//! A parameter's value for one tensor.

use super::Patterns;
use crate::error::{Error, Result};

/// A parameter's value for one tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A finite number in the parameter's range.
    Float(f64),
    /// A whole number in the parameter's range.
    Int(i64),
    /// A truth value.
    Bool(bool),
    /// One of the parameter's words.
    Word(&'static str),
    /// Regular expressions.
    Patterns(Patterns),
    /// Not given, and the method has a meaning for that.
    Absent,
}

impl Value {
    /// The number.
    ///
    /// # Errors
    /// Internal, if the parameter is of another kind: a method asks for what its own specification does not declare.
    pub fn float(&self) -> Result<f64> {
        match self {
            Self::Float(v) => Ok(*v),
            other => Err(other.mismatch("a number")),
        }
    }

    /// The whole number. Errors as [`Value::float`].
    pub fn int(&self) -> Result<i64> {
        match self {
            Self::Int(v) => Ok(*v),
            other => Err(other.mismatch("a whole number")),
        }
    }

    /// The truth value. Errors as [`Value::float`].
    pub fn bool(&self) -> Result<bool> {
        match self {
            Self::Bool(v) => Ok(*v),
            other => Err(other.mismatch("a truth value")),
        }
    }

    /// The word. Errors as [`Value::float`].
    pub fn word(&self) -> Result<&'static str> {
        match self {
            Self::Word(v) => Ok(v),
            other => Err(other.mismatch("a word")),
        }
    }

    /// The regular expressions. Errors as [`Value::float`].
    pub fn patterns(&self) -> Result<&Patterns> {
        match self {
            Self::Patterns(v) => Ok(v),
            other => Err(other.mismatch("a list of patterns")),
        }
    }

    /// The value, or `None` where it is absent: `value.given().map(Value::float).transpose()`.
    pub fn given(&self) -> Option<&Self> {
        (*self != Self::Absent).then_some(self)
    }

    fn mismatch(&self, expected: &str) -> Error {
        Error::internal(format!("a method asked for {expected} and its parameter is {self:?}"))
    }

    /// As JSON; `null` for absent.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Float(v) => (*v).into(),
            Self::Int(v) => (*v).into(),
            Self::Bool(v) => (*v).into(),
            Self::Word(v) => (*v).into(),
            Self::Patterns(v) => v.texts().into(),
            Self::Absent => serde_json::Value::Null,
        }
    }
}
