//! `merganser inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::JsonFlag;
use super::document::{Document, absolute, print_document};
use super::print::{Align, Table, count, print, shape};
use crate::checkpoint::{Checkpoint, LayerMap, Shard, Tensor, escaped};
use crate::error::Result;
use crate::units::format_bytes;

/// Show what is in a checkpoint: tensors, shapes, dtypes, bytes, shards
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser inspect models/base
  merganser inspect model.safetensors | less
  merganser inspect models/base --json | jq '.tensors[] | select(.dtype == \"F32\") | .name'")]
pub(super) struct Inspect {
    /// A folder with model.safetensors or shards and their index, or one .safetensors file
    checkpoint: PathBuf,
    #[command(flatten)]
    json: JsonFlag,
}

impl Inspect {
    pub fn run(self) -> Result<u8> {
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let found = Found::of(&checkpoint);
        if self.json.json {
            print_document(Vec::new(), found.document())?
        } else {
            print(&found.to_text())?
        }
        Ok(0)
    }
}

/// Tensors of one kind, summed.
#[derive(Debug, Default, Clone, Copy, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Sum {
    tensors: u64,
    #[serde(rename = "elements")]
    parameters: u64,
    bytes: u64,
}

/// The document of a checkpoint.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct InspectDocument {
    /// The checkpoint, absolute.
    path: String,
    totals: Totals,
    files: Vec<File>,
    dtypes: Vec<OfDtype>,
    layers: Vec<OfLayer>,
    tensors: Vec<TensorEntry>,
}

impl Document for InspectDocument {
    const COMMAND: &'static str = "inspect";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Totals {
    files: usize,
    #[serde(flatten)]
    of: Sum,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct File {
    name: String,
    bytes: u64,
    header_bytes: u64,
    /// The file's own, a text by key.
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct OfDtype {
    dtype: String,
    #[serde(flatten)]
    of: Sum,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct OfLayer {
    name: String,
    /// Its number in its list of blocks; null outside them.
    index: Option<u32>,
    #[serde(flatten)]
    of: Sum,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TensorEntry {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    elements: u64,
    bytes: u64,
    file: String,
    /// Where its bytes begin behind the header.
    offset: u64,
}

impl Sum {
    fn add(&mut self, tensor: &Tensor) {
        // Headers are validated against the sizes of files, so that none of these can overflow.
        self.tensors += 1;
        self.parameters += tensor.elems;
        self.bytes += tensor.bytes;
    }
}

/// What there is to say of a checkpoint.
struct Found<'a> {
    checkpoint: &'a Checkpoint,
    total: Sum,
    dtypes: BTreeMap<String, Sum>,
    layers: LayerMap,
    of_layer: Vec<Sum>,
}

impl<'a> Found<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Self {
        let tensors = checkpoint.tensors();
        let layers = LayerMap::new(tensors.iter().map(|t| t.name.as_str()));
        let mut of_layer = vec![Sum::default(); layers.groups().len()];
        let (mut total, mut dtypes) = (Sum::default(), BTreeMap::<String, Sum>::new());
        for tensor in tensors {
            total.add(tensor);
            dtypes.entry(tensor.dtype.to_string()).or_default().add(tensor);
            if let Some(layer) = layers.group(&tensor.name) {
                of_layer[layer].add(tensor);
            }
        }
        Self { checkpoint, total, dtypes, layers, of_layer }
    }

    fn document(&self) -> InspectDocument {
        let checkpoint = self.checkpoint;
        let file = |shard: &Shard| File {
            name: file_name(shard),
            bytes: shard.size(),
            header_bytes: shard.header_bytes(),
            metadata: shard.metadata().iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        };
        let tensor = |t: &Tensor| TensorEntry {
            name: t.name.clone(),
            dtype: t.dtype.to_string(),
            shape: t.shape.clone(),
            elements: t.elems,
            bytes: t.bytes,
            file: file_name(checkpoint.shard_of(t)),
            offset: t.begin,
        };
        let dtypes = self.dtypes.iter().map(|(dtype, of)| OfDtype { dtype: dtype.clone(), of: *of });
        let layers = self.layers.groups().iter().zip(&self.of_layer);
        let layers = layers.map(|(layer, of)| OfLayer { name: layer.label.clone(), index: layer.index, of: *of });
        InspectDocument {
            path: absolute(checkpoint.path()),
            totals: Totals { files: checkpoint.shards().len(), of: self.total },
            files: checkpoint.shards().iter().map(|shard| file(shard)).collect(),
            dtypes: dtypes.collect(),
            layers: layers.collect(),
            tensors: checkpoint.tensors().iter().map(tensor).collect(),
        }
    }

    fn to_text(&self) -> String {
        let Sum { tensors, parameters, bytes } = self.total;
        let mut out = format!("path        {}\n", escaped(&self.checkpoint.path().to_string_lossy()));
        out += &format!(
            "tensors     {tensors}\nparameters  {parameters}\nbytes       {bytes} ({})\n",
            format_bytes(bytes)
        );
        out += &format!("\n{}\n{}", count(self.checkpoint.shards().len() as u64, "file"), self.files());
        out += &format!("\n{}\n{}", count(self.dtypes.len() as u64, "dtype"), self.dtypes());
        out += &format!("\n{}", self.blocks());
        out += &self.metadata();
        out += &format!("\n{}", self.tensors());
        out
    }

    fn files(&self) -> String {
        let mut table = Table::new(&[("name", Align::Left), ("bytes", Align::Right), ("size", Align::Right)]);
        for shard in self.checkpoint.shards() {
            table.row(vec![escaped(&file_name(shard)), shard.size().to_string(), format_bytes(shard.size())]);
        }
        table.render("  ")
    }

    fn dtypes(&self) -> String {
        use Align::{Left, Right};
        let header = [("name", Left), ("tensors", Right), ("parameters", Right), ("bytes", Right), ("size", Right)];
        let mut table = Table::new(&header);
        for (dtype, sum) in &self.dtypes {
            let Sum { tensors, parameters, bytes } = *sum;
            let numbers = [tensors, parameters, bytes].map(|n| n.to_string());
            table.row([vec![dtype.clone()], numbers.into(), vec![format_bytes(bytes)]].concat());
        }
        table.render("  ")
    }

    /// Lists of blocks in a line each, and what stands outside them.
    fn blocks(&self) -> String {
        let mut lists = BTreeMap::<&str, (u64, Sum)>::new();
        let (mut outside, mut modules) = (Sum::default(), 0_u64);
        for (layer, sum) in self.layers.groups().iter().zip(&self.of_layer) {
            let into = match (layer.index, layer.label.rsplit_once('.')) {
                (Some(_), Some((list, _))) => {
                    let (blocks, into) = lists.entry(list).or_default();
                    *blocks += 1;
                    into
                }
                _ => {
                    modules += 1;
                    &mut outside
                }
            };
            into.tensors += sum.tensors;
            into.parameters += sum.parameters;
            into.bytes += sum.bytes;
        }
        use Align::{Left, Right};
        let mut table = Table::new(&[
            ("layers", Left),
            ("number", Right),
            ("tensors", Right),
            ("parameters", Right),
            ("size", Right),
        ]);
        let mut row = |name: String, layers: u64, sum: Sum| {
            table.row(vec![
                name,
                layers.to_string(),
                sum.tensors.to_string(),
                sum.parameters.to_string(),
                format_bytes(sum.bytes),
            ]);
        };
        for (list, (blocks, sum)) in lists {
            row(format!("{}.*", escaped(list)), blocks, sum);
        }
        row("(outside blocks)".into(), modules, outside);
        table.render("")
    }

    /// Each entry of the files' metadata once, with the files that have it unless all do.
    fn metadata(&self) -> String {
        let shards = self.checkpoint.shards();
        let mut entries = BTreeMap::<(&str, &str), Vec<&Shard>>::new();
        for shard in shards {
            for (key, value) in shard.metadata() {
                entries.entry((key, value)).or_default().push(shard);
            }
        }
        if entries.is_empty() {
            return String::new();
        }
        let mut table = Table::new(&[("metadata", Align::Left), ("value", Align::Left), ("", Align::Left)]);
        for ((key, value), have) in entries {
            let place = match &have[..] {
                have if have.len() == shards.len() => String::new(),
                [only] => format!("in {}", escaped(&file_name(only))),
                some => format!("in {} of {} files", some.len(), shards.len()),
            };
            table.row(vec![escaped(key), escaped(value), place]);
        }
        format!("\n{}", table.render(""))
    }

    fn tensors(&self) -> String {
        use Align::{Left, Right};
        let mut table =
            Table::new(&[("tensor", Left), ("dtype", Left), ("shape", Left), ("bytes", Right), ("file", Left)]);
        for tensor in self.checkpoint.tensors() {
            table.row(vec![
                escaped(&tensor.name),
                tensor.dtype.to_string(),
                shape(&tensor.shape),
                tensor.bytes.to_string(),
                escaped(&file_name(self.checkpoint.shard_of(tensor))),
            ]);
        }
        table.render("")
    }
}

fn file_name(shard: &Shard) -> String {
    shard.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
