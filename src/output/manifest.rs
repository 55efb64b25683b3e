//! `merganser.json`: what an output is made of and how, so that it can be checked, and made again.

use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::journal::Nonfinite;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::instructions::Instructions;

/// The manifest's name in an output.
pub const MANIFEST_NAME: &str = "merganser.json";
/// The schema that this version writes and reads.
pub const SCHEMA: u32 = 1;
/// The longest manifest that is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// The manifest of a finished output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of merganser that wrote it.
    pub merganser: String,
    /// When it was finished: RFC 3339, UTC.
    pub created: String,
    /// Digest of the plan; set by [`crate::output::WorkDir::finish`].
    pub fingerprint: String,
    /// How the digests below are made.
    pub digests: DigestKinds,
    /// The recipe as resolved: every parameter with its value.
    pub recipe: Value,
    /// The recipe's text.
    pub recipe_text: String,
    /// What was read.
    pub sources: Vec<Source>,
    /// What computed.
    pub device: Device,
    /// CPU threads.
    pub threads: usize,
    /// Bound on the memory allocated, in bytes.
    pub memory_budget: u64,
    /// Seed of random masks.
    pub seed: u64,
    /// How long it took.
    pub timings: Timings,
    /// All files of the output but this one; set by [`crate::output::WorkDir::finish`].
    pub files: Vec<OutputFile>,
    /// The output's tensors, in the base's order.
    pub tensors: Vec<OutputTensor>,
    /// Sums over the tensors.
    pub totals: Totals,
    /// How much was merged as matrices; of methods that do so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrices: Option<Coverage>,
    /// Whether the same command gives the same bytes: not where matrices were merged elsewhere than planned, as their facts say.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub reproducible: bool,
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it so
fn is_yes(value: &bool) -> bool {
    *value
}

/// How much of a merge by a method on matrices was merged as matrices, embeddings, heads, norms and biases aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Coverage {
    /// Tensors merged as matrices.
    pub matrices: usize,
    /// Their elements.
    pub matrix_parameters: u64,
    /// Tensors that stayed average.
    pub averaged: usize,
    /// Their elements.
    pub averaged_parameters: u64,
}

/// Names of the digests' algorithms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestKinds {
    /// Of output tensors and copied files.
    pub output: String,
    /// Of sources.
    pub sources: String,
}

impl Default for DigestKinds {
    fn default() -> Self {
        Self { output: "blake3".into(), sources: "xxh3-128 of 65536-element blocks, then of tensors".into() }
    }
}

/// One checkpoint that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// What it is to the recipe: `base` or `model`.
    pub role: String,
    /// Its path as the recipe writes it.
    pub path: String,
    /// Its files.
    pub files: Vec<SourceFile>,
}

/// One file of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Its name in the source's folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last changed: RFC 3339, UTC.
    pub modified: String,
    /// Digest of its header and of the tensors that were read.
    pub digest: String,
    /// How many of its tensors were read.
    pub tensors_read: usize,
    /// How many tensors it has.
    pub tensors: usize,
}

/// What computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Device {
    /// The device's own name.
    pub name: String,
    /// `cpu` or `cuda`. Where a merge on devices left a tensor to the CPU, the tensor's facts say so and why.
    pub backend: String,
    /// Device memory taken, in bytes; of CUDA devices only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The instruction set of the loops that computed on the CPU: `portable`, `avx2` or `avx512`. Outputs of versions before
    /// 0.2 do not state it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<String>,
    /// When `merganser devices --check` of this version last found every operation of these devices right: RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// What of the devices' work the CPU has done again; of CUDA devices only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// Why devices that were to do some of it did not, or not all; of a merge that went on on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
}

impl Device {
    /// This process's CPU.
    pub fn cpu() -> Self {
        Self {
            name: crate::backend::cpu::features::name(),
            backend: "cpu".into(),
            memory_bytes: None,
            instructions: Some(Instructions::chosen().to_string()),
            check: None,
            audit: None,
            left: None,
        }
    }
}

/// What devices made that the CPU made again, and found to be the same; of the last run of a merge that was interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Audit {
    /// Segments of tensors that are merged element by element, compared bit for bit.
    pub segments: u64,
    /// How many there are.
    pub of_segments: u64,
    /// Elements of the compared ones.
    pub elements: u64,
    /// Matrices that were decomposed again.
    pub matrices: u64,
    /// How many there are.
    pub of_matrices: u64,
}

/// How long a merge took, all of its runs' last one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Timings {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Bytes read from sources.
    pub bytes_read: u64,
    /// Bytes written to the output.
    pub bytes_written: u64,
    /// Bytes read and written per second, in 10⁹.
    pub gb_per_s: f64,
    /// Parts of it.
    pub phases: Vec<Phase>,
}

/// One part of a merge's time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// One file of the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutputFile {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its digest; absent for files of tensors, whose tensors have their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// One tensor of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputTensor {
    /// Its name.
    pub name: String,
    /// Its stored element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The file that it is in.
    pub file: String,
    /// Digest of its stored bytes, hexadecimal.
    pub digest: String,
    /// Its elements that are not finite.
    pub nonfinite: Nonfinite,
    /// What the method states of it: ranks kept, captured energy, elements pruned.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub facts: Value,
}

/// Sums over the tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// How many tensors.
    pub tensors: usize,
    /// Of those, how many were copied as they are.
    pub copied: usize,
    /// Elements.
    pub parameters: u64,
    /// Bytes of tensors.
    pub bytes: u64,
    /// Elements that are not finite.
    pub nonfinite: Nonfinite,
}

impl Timings {
    /// From what was measured; the rate is 0 where no time passed.
    pub fn new(seconds: f64, bytes_read: u64, bytes_written: u64, phases: Vec<Phase>) -> Self {
        let rate = (bytes_read as f64 + bytes_written as f64) / 1e9 / seconds;
        let gb_per_s = if rate.is_finite() { rate } else { 0.0 };
        Self { seconds, bytes_read, bytes_written, gb_per_s, phases }
    }
}

impl Manifest {
    /// Reads the manifest of the output in `folder`.
    ///
    /// # Errors
    ///
    /// There is none, it is damaged, or a later version wrote it in a schema that this one does not know.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_NAME);
        let shown = path.display();
        let file = File::open(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::input(format!("`{}` has no `{MANIFEST_NAME}`", folder.display()))
                .hint("give the folder of an output that `merganser merge` finished"),
            _ => Error::io(format_args!("read `{shown}`"), &e),
        })?;
        let meta = file.metadata().map_err(|e| Error::io(format_args!("read `{shown}`"), &e))?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(Error::input(format!("`{shown}` is not a manifest: it has {} bytes", meta.len())));
        }
        let damaged = |e: &serde_json::Error| {
            if e.is_io() {
                return Error::environment(format!("cannot read `{shown}`: {e}"));
            }
            Error::input(format!("`{shown}` is damaged: {e}"))
                .hint("without its manifest an output cannot be checked; merge again with `--overwrite`")
        };
        let value: Value = serde_json::from_reader(BufReader::new(file)).map_err(|e| damaged(&e))?;
        match value.get("schema").and_then(Value::as_u64) {
            Some(schema) if schema == u64::from(SCHEMA) => {}
            Some(schema) => {
                return Err(Error::input(format!("`{shown}` has schema {schema}, this merganser reads {SCHEMA}"))
                    .hint("use the version of merganser that wrote it"));
            }
            None => return Err(Error::input(format!("`{shown}` is not a merganser manifest: it has no `schema`"))),
        }
        serde_json::from_value(value).map_err(|e| damaged(&e))
    }

    /// Its text, as it is written.
    ///
    /// # Errors
    ///
    /// A value that JSON cannot hold.
    pub fn to_text(&self) -> Result<String> {
        let mut text =
            serde_json::to_string_pretty(self).map_err(|e| Error::internal(format!("{MANIFEST_NAME}: {e}")))?;
        text.push('\n');
        Ok(text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A manifest without tensors.
    pub(crate) fn sample() -> Manifest {
        Manifest {
            schema: SCHEMA,
            merganser: "0.1.0".into(),
            created: "2026-03-01T09:30:00Z".into(),
            fingerprint: String::new(),
            digests: DigestKinds::default(),
            recipe: json!({"merge_method": "linear"}),
            recipe_text: "merge_method: linear\n".into(),
            sources: vec![Source { role: "base".into(), path: "models/base".into(), files: vec![] }],
            device: Device { name: "a CPU".into(), instructions: None, ..Device::cpu() },
            threads: 2,
            memory_budget: 1 << 30,
            seed: u64::MAX,
            timings: Timings { seconds: 0.1, ..Timings::default() },
            files: vec![],
            tensors: vec![],
            totals: Totals::default(),
            matrices: None,
            reproducible: true,
        }
    }

    #[test]
    fn a_manifest_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = sample();
        manifest.tensors.push(OutputTensor {
            name: "a".into(),
            dtype: Dtype::F8_E4M3,
            shape: vec![2, 3],
            file: "model.safetensors".into(),
            digest: "00".into(),
            nonfinite: Nonfinite { output: 1, introduced: 0 },
            facts: json!({"rank": 3, "energy": 0.1 + 0.2}),
        });
        std::fs::write(dir.path().join(MANIFEST_NAME), manifest.to_text().unwrap()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), manifest);
    }

    #[test]
    fn a_damaged_manifest_is_an_input_error_that_says_where() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MANIFEST_NAME);
        let none = Manifest::read(dir.path()).unwrap_err();
        assert!(none.to_string().contains("has no `merganser.json`"));
        let text = sample().to_text().unwrap();
        for (content, expected) in [
            (&text[..100], "line"),
            ("", "EOF"),
            ("[]", "no `schema`"),
            ("{\"schema\": \"x\"}", "no `schema`"),
            ("{\"schema\": 2}", "schema 2"),
            ("{\"schema\": 1}", "missing field"),
            (&text.replace("\"threads\": 2", "\"threads\": -2"), "invalid value"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = Manifest::read(dir.path()).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains(expected), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(Manifest::read(dir.path()).is_err());
    }

    #[test]
    fn deeply_nested_json_is_an_error_and_not_an_overflow() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST_NAME), "[".repeat(200_000)).unwrap();
        assert!(Manifest::read(dir.path()).unwrap_err().to_string().contains("damaged"));
    }
}
