//! merganser merges model checkpoints: streamed, exact, bounded in memory.
//!
//! A [`recipe::Recipe`] says what to merge, a [`plan::Plan`] is made of it and the checkpoints' headers, and
//! [`engine::merge`] runs the plan. The command line is a thin layer over these three.
//!
//! ```
//! use merganser::engine::{self, Progress, Request, Stop};
//! use merganser::plan::{Options, Plan};
//! use merganser::recipe::Recipe;
//! # use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
//! # fn save(path: &std::path::Path, values: [f32; 2]) {
//! #     let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
//! #     let view = TensorView::new(Dtype::F32, vec![2], &bytes).unwrap();
//! #     serialize_to_file([("a.weight", view)], None, path).unwrap();
//! # }
//! # let folder = tempfile::tempdir().unwrap();
//! # save(&folder.path().join("base.safetensors"), [1.0, 2.0]);
//! # save(&folder.path().join("math.safetensors"), [3.0, 2.0]);
//! # save(&folder.path().join("code.safetensors"), [1.0, 6.0]);
//!
//! let text = "
//! merge_method: task_arithmetic
//! base_model: base.safetensors
//! models:
//!   - model: math.safetensors
//!   - model: code.safetensors
//! parameters: {lambda: 0.5}
//! ";
//! // Relative paths start at the recipe's folder; `Recipe::load` reads a file.
//! let recipe = Recipe::parse(text, &folder.path().join("recipe.yaml"))?;
//! let options = Options { threads: 2, memory_budget: 1 << 30, seed: 0, shard_bytes: 5_000_000_000 };
//! let plan = Plan::new(recipe, options)?;
//!
//! let out = folder.path().join("merged");
//! let request = Request { plan: &plan, out: &out, resume: false, overwrite: false };
//! let done = engine::merge(&request, &Progress::default(), &Stop::default())?;
//! assert_eq!(done.manifest.totals.tensors, 1);
//!
//! let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
//! let merged = safetensors::SafeTensors::deserialize(&bytes).unwrap();
//! let expected: Vec<u8> = [2.0f32, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
//! assert_eq!(merged.tensor("a.weight").unwrap().data(), expected);
//! # Ok::<(), merganser::Error>(())
//! ```

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod linalg;
pub mod methods;
pub mod output;
pub mod plan;
pub mod recipe;
pub mod report;
mod suggest;
pub mod units;

pub use error::{Error, Result};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
