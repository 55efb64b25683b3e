//! Outputs and their work folders, by a small plan whose tensors' bytes are known, and a merge that writes them.

mod environment;
mod resume;
mod states;
mod verify;

use std::path::{Path, PathBuf};

use merganser::dtype::Dtype;
use merganser::output::{Fingerprint, JournalEntry, Layout, Nonfinite, OpenOptions, Opened, TensorSpec, WorkDir};
use merganser::report::manifest::{Device, DigestKinds, Manifest, OutputTensor, SCHEMA, Timings, Totals};
use serde_json::{Value, json};

pub use crate::support::partial;

pub fn tensors() -> Vec<TensorSpec> {
    let one = |name: &str, dtype: Dtype, shape: &[u64]| {
        let bytes = shape.iter().product::<u64>() * dtype.bitsize() as u64 / 8;
        TensorSpec { name: name.into(), folder: None, dtype, shape: shape.into(), bytes }
    };
    vec![
        one("embed", Dtype::BF16, &[40, 10]),
        one("layers.0.w", Dtype::F32, &[30, 7]),
        one("layers.0.flags", Dtype::BOOL, &[5]),
        one("layers.1.w", Dtype::F32, &[30, 7]),
        one("empty", Dtype::F16, &[0, 4]),
        one("step", Dtype::I64, &[]),
    ]
}

/// In files of at most 1000 bytes: several.
pub fn layout() -> Layout {
    Layout::new(&tensors(), 1000).unwrap()
}

pub fn fingerprint(seed: u64) -> Fingerprint {
    Fingerprint::new(json!({"seed": seed, "recipe": "linear"}).as_object().unwrap().clone())
}

/// A tensor's bytes: finite in every float type, different for each tensor.
pub fn content(index: usize) -> Vec<u8> {
    (0..tensors()[index].bytes).map(|i| (i * 7 + index as u64 * 13) as u8 % 60).collect()
}

pub fn options(out: &Path, seed: u64, resume: bool, overwrite: bool) -> OpenOptions {
    OpenOptions { out: out.to_owned(), resume, overwrite, fingerprint: fingerprint(seed), sources: vec![], part: None }
}

pub fn open(out: &Path, seed: u64, resume: bool, overwrite: bool) -> merganser::Result<Opened> {
    WorkDir::open(options(out, seed, resume, overwrite), &layout())
}

pub fn work(opened: Opened) -> Box<WorkDir> {
    match opened {
        Opened::Work(work) => work,
        Opened::AlreadyDone(_) => panic!("the output is done already"),
        Opened::PartDone(_) => panic!("this is no part"),
    }
}

pub fn write_tensor(work: &WorkDir, index: usize) {
    let (name, bytes) = (&tensors()[index].name, content(index));
    let place = work.placement(name).unwrap();
    // In two parts, the second first, as an engine may.
    let middle = bytes.len() / 2;
    work.write_at(place.file, place.offset + middle as u64, &bytes[middle..]).unwrap();
    work.write_at(place.file, place.offset, &bytes[..middle]).unwrap();
    work.record(entry(index)).unwrap();
}

pub fn entry(index: usize) -> JournalEntry {
    JournalEntry {
        tensor: tensors()[index].name.clone(),
        digest: blake3::hash(&content(index)).to_hex().to_string(),
        nonfinite: Nonfinite::default(),
        facts: json!({"index": index}),
        sources: vec![],
        boot: String::new(),
    }
}

pub fn manifest(work: &WorkDir) -> Manifest {
    let layout = work.layout();
    let finished = work.finished();
    let tensors: Vec<OutputTensor> = (layout.tensors().iter().enumerate())
        .map(|(i, t)| OutputTensor {
            name: t.name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
            file: layout.files()[layout.placement(i).file].name.clone(),
            digest: finished[&t.name].digest.clone(),
            nonfinite: finished[&t.name].nonfinite,
            facts: finished[&t.name].facts.clone(),
        })
        .collect();
    Manifest {
        schema: SCHEMA,
        merganser: "0.1.0".into(),
        created: "2026-03-01T09:30:00Z".into(),
        fingerprint: String::new(),
        digests: DigestKinds::default(),
        recipe: Value::Null,
        recipe_text: String::new(),
        sources: vec![],
        device: Device { name: "test".into(), instructions: None, ..Device::cpu() },
        threads: 1,
        memory_budget: 0,
        seed: 0,
        timings: Timings::default(),
        files: vec![],
        totals: Totals { tensors: tensors.len(), ..Totals::default() },
        tensors,
        matrices: None,
        reproducible: true,
    }
}

/// Writes what is not finished yet and ends the merge.
pub fn complete(work: Box<WorkDir>) -> merganser::Result<merganser::output::Finished> {
    let finished = work.finished();
    for (i, tensor) in tensors().iter().enumerate() {
        if !finished.contains_key(&tensor.name) {
            write_tensor(&work, i);
        }
    }
    let manifest = manifest(&work);
    work.finish(manifest, "# card\n", &[])
}

/// A finished output of the plan with this seed.
pub fn finished_output(out: &Path, seed: u64) {
    complete(work(open(out, seed, false, true).unwrap())).unwrap();
}

/// An interrupted merge with the first two tensors done.
pub fn interrupted(out: &Path, seed: u64, overwrite: bool) {
    let work = work(open(out, seed, false, overwrite).unwrap());
    write_tensor(&work, 0);
    write_tensor(&work, 1);
    work.abandon();
}

/// Every file of a folder that holds tensors, read by the safetensors crate; tensor names and bytes, sorted.
pub fn stored(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(out).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = std::fs::read(&path).unwrap();
            let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            all.extend(read.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())));
        }
    }
    all.sort();
    all
}

pub fn expected() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = tensors().into_iter().enumerate().map(|(i, t)| (t.name, content(i))).collect();
    all.sort();
    all
}

/// Every file under a folder by its path, with its content.
pub fn everything(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut all = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.insert(path.clone(), vec![]);
            all.extend(everything(&path));
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
