//! merganser merges model checkpoints: streamed, bounded in memory, with the same bytes every time.
//!
//! The command line ([`cli`]) is a thin layer over this library. A merge takes three calls: [`recipe::Recipe::load`] reads
//! and validates what the user wants, [`plan::Plan::new`] opens the checkpoints' headers and decides everything (each
//! output tensor's program, its place in the output, the memory that it takes), and [`engine::merge`] does it.
//!
//! ```
//! use merganser::engine::{self, Progress, Stop};
//! use merganser::plan::{Options, Plan};
//! use merganser::recipe::Recipe;
//! use safetensors::tensor::{Dtype, SafeTensors, TensorView};
//!
//! // A tiny family of checkpoints: a base, and two fine-tunes that changed an element each.
//! let dir = tempfile::tempdir()?;
//! for (name, weights) in [("base", [1_f32, 2.0, 3.0]), ("a", [1.5, 2.0, 3.0]), ("b", [1.0, 2.0, 2.0])] {
//!     let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
//!     let tensor = TensorView::new(Dtype::F32, vec![3], &bytes)?;
//!     let file = safetensors::serialize([("layers.0.weight", tensor)], None)?;
//!     std::fs::write(dir.path().join(format!("{name}.safetensors")), file)?;
//! }
//! let recipe = dir.path().join("recipe.yaml");
//! std::fs::write(
//!     &recipe,
//!     "merge_method: task_arithmetic
//! base_model: base.safetensors
//! models:
//!   - model: a.safetensors
//!   - model: b.safetensors
//!     parameters: {weight: 0.5}
//! ",
//! )?;
//!
//! let options = Options { threads: 2, memory_budget: 256 << 20, seed: 0, shard_bytes: 5_000_000_000 };
//! let plan = Plan::new(Recipe::load(&recipe)?, options)?;
//! let out = dir.path().join("merged");
//! let request = engine::Request { plan: &plan, out: &out, resume: false, overwrite: false };
//! let done = engine::merge(&request, &Progress::default(), &Stop::default())?;
//! assert_eq!(done.manifest.totals.parameters, 3);
//!
//! let file = std::fs::read(out.join("model.safetensors"))?;
//! let merged = SafeTensors::deserialize(&file)?;
//! let bytes = merged.tensor("layers.0.weight")?.data();
//! let weights: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
//! assert_eq!(weights, [1.5, 2.0, 2.5]); // base + (a − base) + 0.5 · (b − base)
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`recipe`] | YAML to a validated recipe; every mistake of a user in it ends there |
//! | [`checkpoint`] | safetensors files in: headers validated, bytes mapped; no arithmetic |
//! | [`methods`] | merging methods and task-vector stages, each as data and one rule |
//! | [`plan`] | recipe and headers to a plan; reads no tensor data |
//! | [`engine`] | runs a plan: reads ahead, computes and writes at once, bounded and resumable |
//! | [`ops`] | the language of a merge: programs and what is measured for them, as data |
//! | [`backend`] | who carries operations out: the CPU and CUDA devices |
//! | [`linalg`] | dense linear algebra of low-rank methods |
//! | [`factors`] | low-rank factors stored instead of their sum, and models rebuilt from them |
//! | [`output`] | the output's files, built beside it and renamed into place once complete |
//! | [`report`] | manifest, model card, verification, comparison |
//! | [`saliency`] | what task vectors look like before they are merged, and what a stage would prune |
//! | [`mod@bench`] | how fast this machine moves bytes, and how near a merge's paths come to that |
//! | [`cli`] | the command line |

pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod explain;
pub mod factors;
mod hub;
mod instructions;
pub mod linalg;
pub mod methods;
pub mod ops;
pub mod output;
pub mod plan;
pub mod recipe;
pub mod report;
pub mod saliency;
mod source;
mod suggest;
mod tokenizer;
pub mod units;

pub use error::{Cause, Error, Result};
