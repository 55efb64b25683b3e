//! What the tests of whole merges share: small families of checkpoints, recipes for every method, merges in this process
//! and in a child, and what they leave behind.
#![allow(dead_code)]

pub mod child;
pub mod family;
pub mod files;
pub mod goldens;
pub mod matrix;
pub mod mount;
pub mod operations;
pub mod recipes;
mod skip;
pub mod tensor;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merganser::checkpoint::Checkpoint;
use merganser::engine::{self, Done, Progress, Request, Stop};
use merganser::plan::{Options, Plan};
use merganser::recipe::Recipe;
use merganser::report::manifest::{Manifest, OutputTensor};

pub use files::{quick_folder, root};
pub use skip::skip;
use tensor::Tensor;

/// What a merge in this process may use.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub threads: usize,
    pub budget: u64,
    pub shard_bytes: u64,
    pub seed: u64,
    pub resume: bool,
    pub overwrite: bool,
    /// Read the sources instead of mapping them.
    pub unmapped: bool,
}

pub const MIB: u64 = 1 << 20;

impl Default for Run {
    fn default() -> Self {
        let (budget, shard_bytes) = (1 << 31, 5_000_000_000);
        Self { threads: 2, budget, shard_bytes, seed: 0, resume: false, overwrite: false, unmapped: false }
    }
}

impl Run {
    pub fn plan(&self, recipe: &Path) -> merganser::Result<Plan> {
        let options = Options {
            threads: self.threads,
            memory_budget: self.budget,
            seed: self.seed,
            shard_bytes: self.shard_bytes,
        };
        let mut plan = Plan::new(Recipe::load(recipe)?, options)?;
        if self.unmapped {
            for source in &mut plan.sources {
                source.checkpoint = Checkpoint::open_unmapped(source.checkpoint.path())?.into();
            }
        }
        Ok(plan)
    }

    pub fn merge(&self, recipe: &Path, out: &Path) -> merganser::Result<Done> {
        let plan = self.plan(recipe)?;
        let request = Request { plan: &plan, out, resume: self.resume, overwrite: self.overwrite };
        engine::merge(&request, &Progress::default(), &Stop::default())
    }
}

/// Merges in this process with two threads and much memory.
pub fn merge(recipe: &Path, out: &Path) -> merganser::Result<Done> {
    Run::default().merge(recipe, out)
}

/// The binary: the one that was built along with the tests, or that which `MERGANSER_TEST_BINARY` names.
pub fn binary() -> PathBuf {
    std::env::var_os("MERGANSER_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_merganser").into(), PathBuf::from)
}

/// Every tensor of an output, by name, read with the safetensors crate.
pub fn read(out: &Path) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(out).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            for (name, view) in file.tensors() {
                let shape = view.shape().iter().map(|d| *d as u64).collect();
                let tensor = Tensor { name: name.clone(), dtype: view.dtype(), shape, bytes: view.data().to_vec() };
                assert!(all.insert(name, tensor).is_none(), "a tensor stands in two files");
            }
        }
    }
    all
}

/// The digests of an output's tensors, by name, as its manifest states them.
pub fn digests(out: &Path) -> BTreeMap<String, String> {
    let manifest = Manifest::read(out).unwrap();
    manifest.tensors.into_iter().map(|t| (t.name, t.digest)).collect()
}

/// The manifest's entry of one tensor.
pub fn stated(out: &Path, tensor: &str) -> OutputTensor {
    let manifest = Manifest::read(out).unwrap();
    manifest.tensors.into_iter().find(|t| t.name == tensor).unwrap()
}

/// Fails unless the output is whole: every file, header and digest as its manifest says.
pub fn assert_whole(out: &Path) {
    let report = merganser::report::verify::verify(out, 2, &|_| {}).unwrap();
    assert!(report.ok, "{}: {:?}", out.display(), report.problems);
}

/// The work folder beside an output.
pub fn partial(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap().to_owned();
    name.push(".merganser-partial");
    out.with_file_name(name)
}

/// How many tensors the journal of an unfinished merge notes as finished.
pub fn journalled(out: &Path) -> usize {
    let journal = std::fs::read(partial(out).join("merganser.journal.jsonl")).unwrap_or_default();
    journal
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| line.starts_with(b"{\"done\"") && line.ends_with(b"\n"))
        .count()
}
