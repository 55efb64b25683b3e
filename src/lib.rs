//! merganser merges model checkpoints: streamed, bounded in memory, with the same bytes every time.
//!
//! A merge takes three calls: [`Recipe::load`] reads and validates what the user wants, [`Plan::new`] opens the checkpoints' headers
//! and decides everything (each output tensor's program, its place in the output, the memory that it takes), and [`merge`] does it,
//! or [`merge_on_devices`] on CUDA devices that [`choose_device`] found.
//!
//! ```
//! use merganser::{Options, Plan, Progress, Recipe, Request, Stop, merge, verify};
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
//! let request = Request { plan: &plan, out: &out, resume: false, overwrite: false };
//! let done = merge(&request, &Progress::default(), &Stop::default())?;
//! assert_eq!(done.manifest.totals.parameters, 3);
//!
//! let file = std::fs::read(out.join("model.safetensors"))?;
//! let merged = SafeTensors::deserialize(&file)?;
//! let bytes = merged.tensor("layers.0.weight")?.data();
//! let weights: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
//! assert_eq!(weights, [1.5, 2.0, 2.5]); // base + (a − base) + 0.5 · (b − base)
//! assert!(verify(&out, 2, &|_bytes| ())?.ok);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | | |
//! |---|---|
//! | [`Recipe`] | YAML, validated; every mistake of a user in it ends there |
//! | [`Plan`], [`Options`] | what a merge would do, from headers alone; [`Plan::to_text`], [`Plan::document`] |
//! | [`merge`], [`Request`], [`Done`] | the merge: streamed, bounded, resumable; OUT appears by one rename |
//! | [`Progress`], [`Stop`] | how far it is, and how it is stopped, from other threads |
//! | [`choose_device`], [`plan_for_devices`], [`merge_on_devices`] | CUDA devices |
//! | [`Explanation`], [`find_tensor`], [`trace_element`] | where one tensor comes from, and what becomes of one element |
//! | [`extract`], [`Store`] | one task's model again, from a merge with `output: factors` |
//! | [`verify`] | whether an output is as its [`Manifest`] says |
//! | [`saliency`] | what task vectors look like before they are merged, and what a stage would prune |
//! | [`Error`] | what failed, where, who must act, and what to do about it |
//!
//! What is not on this page serves the command line, tests and benchmarks, and may change in every version.

// What lanes of devices alone call stands unused in a build without any.
#![cfg_attr(not(feature = "cuda"), allow(dead_code))]

#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod checkpoint;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod cost;
#[doc(hidden)]
pub mod dtype;
#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod explain;
#[doc(hidden)]
pub mod factors;
mod hub;
#[doc(hidden)]
pub mod instructions;
#[doc(hidden)]
pub mod linalg;
#[doc(hidden)]
pub mod methods;
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod output;
#[doc(hidden)]
pub mod plan;
#[doc(hidden)]
pub mod recipe;
#[doc(hidden)]
pub mod report;
mod run;
pub mod saliency;
pub mod selfcheck;
mod source;
mod suggest;
mod tokenizer;
#[doc(hidden)]
pub mod units;

pub use backend::device::{CudaDevice, Device, Request as DeviceRequest, choose as choose_device};
pub use engine::{Done, Progress, Request, Stop, Target, merge, merge_on_devices, plan_for_devices};
pub use error::{Cause, Error, Kind, Result};
pub use explain::{Explanation, Index, element as trace_element, find as find_tensor};
pub use factors::Store;
pub use factors::extract::{Done as Extracted, Extraction, extract};
pub use output::manifest::Manifest;
pub use plan::{Options, Plan};
pub use recipe::Recipe;
pub use report::verify::{Problem, VerifyReport, verify};
