//! Low-rank factors of tasks, stored instead of their sum: `output: factors` and `output: lora`, and the way back.
//!
//! A merge that adds low-rank parts, `C + λ Σ w'_t L_t`, is kept apart: the centre C as a model, and of each task t and
//! matrix the factors of L_t = left · right, left = U Σ (m×k) and right = Vᵀ (k×n), singular values descending.
//! `docs/factors.md` is the layout's description; [`Header`] is what a file states of it.

pub mod adapter;
pub mod extract;
pub mod lora;
mod piece;
mod rebuild;
pub mod store;
mod tasks;
pub(crate) mod triples;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::ops::Side;
pub use extract::{Extraction, extract};
pub use store::Store;
pub(crate) use tasks::task_names;

/// The key of a file's metadata that holds a [`Header`].
pub const METADATA_KEY: &str = "merganser.factors";

/// The version of the layout that is written and read.
pub const VERSION: u32 = 1;

/// What the names of factors begin with.
const PREFIX: &str = "merganser.factors.";

/// What a file of factors says of them, as JSON under [`METADATA_KEY`]; the same in every file of an output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// The tasks, in model order.
    pub tasks: Vec<Task>,
    /// λ and w' of every matrix that is not among the exceptions.
    #[serde(flatten)]
    pub usual: Coefficients,
    /// Those of matrices that filters or gradients of the recipe give others, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exceptions: BTreeMap<String, Coefficients>,
}

/// What the sum of the low-rank parts, `C + λ Σ w'_t L_t`, is made with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Coefficients {
    /// λ.
    pub lambda: f64,
    /// w'_t: the weights scaled to mean 1, in the tasks' order.
    pub weights: Vec<f64>,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Task {
    /// Its name: letters, digits, `-` and `_`, other than that of any other task.
    pub name: String,
    /// Its model as the recipe wrote it.
    pub model: String,
}

/// What the names of tasks' whole tensors begin with.
const OTHER_PREFIX: &str = "merganser.tasks.";

/// The name of a task's own `tensor`, stored whole.
pub fn other_name(task: &str, tensor: &str) -> String {
    format!("{OTHER_PREFIX}{task}.{tensor}")
}

/// The task and tensor of the name of a task's own tensor; `None` for the name of something else.
pub fn parse_other(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(OTHER_PREFIX)?.split_once('.')
}

/// The name of a factor of `tensor` for a task.
pub fn factor_name(task: &str, tensor: &str, side: Side) -> String {
    format!("{PREFIX}{task}.{tensor}.{}", side.word())
}

/// The task, tensor and side of a factor's name; `None` for the name of something else.
pub fn parse_name(name: &str) -> Option<(&str, &str, Side)> {
    let (task, rest) = name.strip_prefix(PREFIX)?.split_once('.')?;
    Side::BOTH.into_iter().find_map(|side| Some((task, rest.strip_suffix(side.word())?.strip_suffix('.')?, side)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_of_factors_read_back_as_they_were_written() {
        for tensor in ["w", "model.layers.0.mlp.up_proj.weight", "odd.left", "größe/x y"] {
            for side in Side::BOTH {
                assert_eq!(parse_name(&factor_name("task-1_a", tensor, side)), Some(("task-1_a", tensor, side)));
            }
        }
        assert_eq!(parse_other(&other_name("a", "norm.weight")), Some(("a", "norm.weight")));
        for other in ["w.left", "merganser.factors.a", "merganser.factors.a.left", "merganser.factors.a.w.middle"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_header_without_exceptions_says_nothing_of_them() {
        let task = |name: &str| Task { name: name.into(), model: format!("models/{name}") };
        let usual = Coefficients { lambda: 1.5, weights: vec![0.5, 1.5] };
        let header = Header { version: 1, tasks: vec![task("a"), task("b")], usual, exceptions: BTreeMap::new() };
        let text = serde_json::to_string(&header).unwrap();
        let expected = concat!(
            r#"{"version":1,"tasks":[{"name":"a","model":"models/a"},{"name":"b","model":"models/b"}],"#,
            r#""lambda":1.5,"weights":[0.5,1.5]}"#
        );
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Header>(&text).unwrap(), header);
    }
}
