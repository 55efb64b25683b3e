//! fp8 checkpoints with scales: each weight times its scale, made tile by tile as it is read, in float32.
//!
//! A weight `X` in float8 has a companion `X_scale_inv` (DeepSeek, Qwen) or `X_scale` (compressed-tensors, fbgemm, ModelOpt)
//! of one number, of one a row, or of one a block. Both names hold what codes are multiplied by.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Held;
use crate::backend::cpu::stored::Stored;
use crate::checkpoint::{Checkpoint, Made, Origin, Shard, Tensor, json_in, quoted};
use crate::dtype::{Dtype, DtypeExt, RECIPE_DTYPES};
use crate::error::{Error, Result};

/// What a weight's name ends with as its scale's.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];
/// Ends of names of what quantised activations and caches are multiplied by: of no use to weights.
const ACTIVATIONS: [&str; 5] = [".input_scale", ".output_scale", ".k_scale", ".v_scale", ".activation_scale"];
/// Quantisers whose fp8 weights are codes times scales.
const METHODS: [&str; 4] = ["fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"];
/// Rows and columns of a block where nothing says so.
const BLOCK: u64 = 128;
/// What weights are stored as where `config.json` does not say.
const DTYPE: Dtype = Dtype::BF16;
const F32_BYTES: u64 = 4;

/// What was done to a checkpoint whose weights are codes times scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dequantised {
    /// Weights that are multiplied by their scales.
    pub weights: usize,
    /// Scales of activations and caches that are left out.
    pub left: usize,
    /// What the weights count as stored in.
    pub dtype: Dtype,
}

impl Dequantised {
    /// What the user is told of it.
    pub fn note(&self, written: &str) -> String {
        let left = match self.left {
            0 => String::new(),
            n => format!("; {n} scales of activations and caches are left out"),
        };
        format!(
            "{} is stored in fp8 with scales: its {} weights are dequantised as they are read, and count as {}{left}",
            quoted(written),
            self.weights,
            self.dtype.recipe_name().unwrap_or_default()
        )
    }
}

/// Replaces fp8 weights by their products with their scales, and leaves the scales out. `None` for a checkpoint that is not
/// of this kind, which is then as it was.
///
/// # Errors
/// Input, for a weight without a scale or a scale that does not fit, naming it.
pub(crate) fn dequantise(checkpoint: &mut Checkpoint, written: &str) -> Result<Option<Dequantised>> {
    let config = config_of(checkpoint);
    let settings = settings_of(&config);
    let method = settings.and_then(|s| s.get("quant_method")).and_then(Value::as_str);
    if settings.is_some() && !method.is_some_and(|method| METHODS.contains(&method)) {
        return Ok(None);
    }
    let weights: Vec<&Tensor> = checkpoint.tensors().iter().filter(|t| is_fp8(t.dtype)).collect();
    let scale_of = |weight: &Tensor| {
        SCALES.iter().find_map(|end| checkpoint.get(&format!("{}{end}", weight.name))).filter(|s| !is_fp8(s.dtype))
    };
    let with_scale = weights.iter().find(|weight| scale_of(weight).is_some());
    if weights.is_empty() || (settings.is_none() && with_scale.is_none()) {
        return Ok(None);
    }
    let why = match (with_scale, method) {
        (Some(other), _) => format!("as {} has", quoted(&other.name)),
        (None, method) => format!("and `config.json` says `quant_method: {}`", method.unwrap_or_default()),
    };
    let label = quoted(written);
    let mut found = Vec::with_capacity(weights.len());
    for weight in &weights {
        let Some(scale) = scale_of(weight) else {
            return Err(Error::input(format!(
                "{} of {label} is stored as {} and has no scale ({}), {why}",
                quoted(&weight.name),
                weight.dtype,
                SCALES.map(|end| quoted(&format!("{}{end}", weight.name))).join(" or "),
            ))
            .hint("the checkpoint is not whole: download it again, with all of its files"));
        };
        let grid = Grid::of(weight, scale, block_of(settings)).ok_or_else(|| {
            Error::input(format!(
                "the scale {} of {label} has the shape {:?} ({}), which does not fit {} of {:?}",
                quoted(&scale.name),
                scale.shape,
                scale.dtype,
                quoted(&weight.name),
                weight.shape
            ))
            .hint(
                "expected one float, one for each row, or one for each block of `weight_block_size` (else 128 by 128)",
            )
        })?;
        let held =
            |tensor: &Tensor| Held { shard: Arc::clone(checkpoint.shared_shard(tensor.shard)), tensor: tensor.clone() };
        let scaled = Scaled { weight: held(weight), scale: held(scale), grid, source: written.to_owned() };
        found.push((weight.name.clone(), scaled));
    }
    let scales: std::collections::BTreeSet<String> = found.iter().map(|(_, s)| s.scale.tensor.name.clone()).collect();
    let is_of_activations = |t: &Tensor| ACTIVATIONS.iter().any(|end| t.name.ends_with(end));
    let left = checkpoint.tensors().iter().filter(|t| is_of_activations(t)).count();
    checkpoint.leave_out(|t| scales.contains(&t.name) || is_of_activations(t));
    let dtype = dtype_of(&config);
    let weights = found.len();
    for (name, scaled) in found {
        let at = checkpoint.position(&name).ok_or_else(|| Error::internal(format!("`{name}` vanished")))?;
        checkpoint.replace_as(at, dtype, Dtype::F32, Arc::new(scaled))?;
    }
    Ok(Some(Dequantised { weights, left, dtype }))
}

/// The keys of `config.json` that tell of quantised weights.
pub(crate) const CONFIG_KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// What a checkpoint's configuration says of quantised weights.
pub(crate) fn quantisation(checkpoint: &Checkpoint) -> Option<Value> {
    settings_of(&config_of(checkpoint)).map(|settings| Value::Object(settings.clone()))
}

/// The configuration in a checkpoint's folder, or beside a file that is given by itself.
fn config_of(checkpoint: &Checkpoint) -> Map<String, Value> {
    let folder = checkpoint.folder().or_else(|| checkpoint.path().parent());
    folder.and_then(|folder| json_in(folder, "config.json")).unwrap_or_default()
}

fn settings_of(config: &Map<String, Value>) -> Option<&Map<String, Value>> {
    let text = config.get("text_config").and_then(Value::as_object);
    [Some(config), text].into_iter().flatten().find_map(|section| {
        CONFIG_KEYS.iter().find_map(|key| section.get(*key)?.as_object().filter(|settings| !settings.is_empty()))
    })
}

/// Rows and columns of a block.
fn block_of(settings: Option<&Map<String, Value>>) -> [u64; 2] {
    let stated = settings.and_then(|settings| {
        let grouped = || {
            let groups = settings.get("config_groups")?.as_object()?;
            groups.values().find_map(|group| group.get("weights")?.get("block_structure"))
        };
        settings.get("weight_block_size").or_else(grouped)?.as_array()
    });
    match stated.map(|block| block.iter().map(Value::as_u64).collect::<Vec<_>>()).as_deref() {
        Some([Some(rows), Some(columns)]) if *rows > 0 && *columns > 0 => [*rows, *columns],
        _ => [BLOCK, BLOCK],
    }
}

fn dtype_of(config: &Map<String, Value>) -> Dtype {
    let text = config.get("text_config").and_then(Value::as_object);
    let stated = [Some(config), text].into_iter().flatten().find_map(|section| {
        let name = section.get("dtype").or_else(|| section.get("torch_dtype"))?.as_str()?;
        RECIPE_DTYPES.iter().find(|(known, _)| *known == name.trim_start_matches("torch.")).map(|(_, dtype)| *dtype)
    });
    stated.filter(|dtype| !is_fp8(*dtype)).unwrap_or(DTYPE)
}

fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// Which scale an element has: a weight of matrices of `rows` by `columns`, each with a grid of scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grid {
    rows: u64,
    columns: u64,
    block: [u64; 2],
    /// Scales in a row and in a column of a matrix's grid.
    grid: [u64; 2],
    /// Whether all matrices have one scale.
    is_one: bool,
}

impl Grid {
    fn of(weight: &Tensor, scale: &Tensor, block: [u64; 2]) -> Option<Self> {
        if !scale.dtype.is_mergeable_float() {
            return None;
        }
        let (lead, rows, columns) = match &weight.shape[..] {
            [lead @ .., rows, columns] => (lead, *rows, *columns),
            [columns] => (&[][..], 1, *columns),
            [] => (&[][..], 1, 1),
        };
        if scale.elems == 1 {
            let block = [rows.max(1), columns.max(1)];
            return Some(Self { rows, columns, block, grid: [1, 1], is_one: true });
        }
        let of_matrix = scale.shape.strip_prefix(lead).filter(|_| weight.shape.len() > 1)?;
        let blocks = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
        let (block, grid) = match *of_matrix {
            [] | [1] | [1, 1] => ([rows.max(1), columns.max(1)], [1, 1]),
            [n] | [n, 1] if n == rows => ([1, columns.max(1)], [rows, 1]),
            [a, b] if [a, b] == blocks => (block, blocks),
            _ => return None,
        };
        Some(Self { rows, columns, block, grid, is_one: false })
    }

    /// The scales of columns `from..to` of a row of all matrices' rows, as positions among the scale's elements.
    fn scales(&self, row: u64, from: u64, to: u64) -> Range<u64> {
        if self.is_one {
            return 0..1;
        }
        let (matrix, row) = (row / self.rows, row % self.rows);
        let start = (matrix * self.grid[0] + row / self.block[0]) * self.grid[1];
        start + from / self.block[1]..start + (to - 1) / self.block[1] + 1
    }
}

/// Codes times scales.
#[derive(Debug)]
struct Scaled {
    weight: Held,
    scale: Held,
    grid: Grid,
    /// The model, for messages.
    source: String,
}

impl Scaled {
    fn read(held: &Held, elems: Range<u64>, into: &mut Vec<f32>, scratch: &mut Vec<u8>) -> Result<()> {
        let size = held.tensor.dtype.size_bytes().unwrap_or(1);
        into.clear();
        into.resize((elems.end - elems.start) as usize, 0.0);
        let begin = held.tensor.begin;
        let bytes = held.shard.bytes(begin + elems.start * size..begin + elems.end * size, scratch)?;
        Stored { dtype: held.tensor.dtype, bytes }.widen(0, into);
        Ok(())
    }

    fn bad_scale(&self, value: f32) -> Error {
        Error::input(format!(
            "{} of {} holds the scale {value}, which makes no weight",
            quoted(&self.scale.tensor.name),
            quoted(&self.source)
        ))
        .because(crate::Cause::Checkpoint)
        .hint("its file is damaged: download it again")
    }
}

impl Made for Scaled {
    fn make(&self, range: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let (start, end) = (range.start / F32_BYTES, range.end / F32_BYTES);
        let (mut values, mut scales, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        Self::read(&self.weight, start..end, &mut values, &mut scratch)?;
        let n = self.grid.columns.max(1);
        let mut known = None;
        let mut at = start;
        while at < end {
            let (row, from) = (at / n, at % n);
            let to = (from + end - at).min(n);
            let wanted = self.grid.scales(row, from, to);
            // Rows of a block have the same scales.
            if known.as_ref() != Some(&wanted) {
                Self::read(&self.scale, wanted.clone(), &mut scales, &mut scratch)?;
                if let Some(bad) = scales.iter().find(|scale| !scale.is_finite()) {
                    return Err(self.bad_scale(*bad));
                }
                known = Some(wanted);
            }
            let [_, width] = self.grid.block;
            let mut column = from;
            for scale in &scales {
                let next = ((column / width + 1) * width).min(to);
                let first = (at - start + column - from) as usize;
                values[first..first + (next - column) as usize].iter_mut().for_each(|v| *v *= scale);
                column = next;
            }
            at += to - from;
        }
        out.extend_from_slice(bytemuck::cast_slice(&values));
        Ok(())
    }

    fn of(&self, range: Range<u64>) -> Option<(&Shard, Range<u64>)> {
        let begin = self.weight.tensor.begin;
        Some((&self.weight.shard, begin + range.start / F32_BYTES..begin + range.end.div_ceil(F32_BYTES)))
    }

    fn origin(&self, _: Option<u64>) -> Origin {
        let [rows, columns] = self.grid.block;
        Origin {
            how: format!("codes times their scales, in blocks of {rows} by {columns}"),
            parts: vec![self.weight.part("codes"), self.scale.part("scales")],
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tensor(shape: &[u64], dtype: Dtype) -> Tensor {
        let elems = shape.iter().product();
        Tensor { name: "w".into(), dtype, shape: shape.to_vec(), elems, shard: 0, begin: 0, bytes: elems }
    }

    fn grid(weight: &[u64], scale: &[u64], block: [u64; 2]) -> Option<Grid> {
        Grid::of(&tensor(weight, Dtype::F8_E4M3), &tensor(scale, Dtype::F32), block)
    }

    #[test]
    fn an_element_has_the_scale_of_its_block_row_or_tensor() {
        let blocks = grid(&[5, 7], &[3, 2], [2, 4]).unwrap();
        assert_eq!([blocks.scales(0, 0, 7), blocks.scales(1, 4, 5), blocks.scales(4, 0, 4)], [0..2, 1..2, 4..5]);
        let rows = grid(&[5, 7], &[5, 1], [128, 128]).unwrap();
        assert_eq!([rows.scales(0, 0, 7), rows.scales(4, 6, 7)], [0..1, 4..5]);
        assert_eq!(rows, grid(&[5, 7], &[5], [128, 128]).unwrap());
        for one in [&[][..], &[1], &[1, 1]] {
            assert_eq!(grid(&[5, 7], one, [2, 4]).unwrap().scales(4, 0, 7), 0..1);
        }
        let experts = grid(&[3, 5, 7], &[3, 3, 2], [2, 4]).unwrap();
        assert_eq!([experts.scales(0, 0, 7), experts.scales(5, 0, 7), experts.scales(14, 6, 7)], [0..2, 6..8, 17..18]);
        assert_eq!(grid(&[3, 5, 7], &[3, 1, 1], [2, 4]).unwrap().scales(14, 0, 7), 2..3);
        for wrong in [&[3, 3][..], &[7], &[2, 2], &[5, 2], &[1, 5], &[0]] {
            assert_eq!(grid(&[5, 7], wrong, [2, 4]), None, "{wrong:?}");
        }
        assert_eq!(Grid::of(&tensor(&[5, 7], Dtype::F8_E4M3), &tensor(&[1], Dtype::I32), [2, 4]), None);
    }

    #[test]
    fn blocks_and_the_type_are_read_from_the_configuration() {
        let block = |config: Value| block_of(settings_of(config.as_object().unwrap()));
        assert_eq!(block(json!({"quantization_config": {"weight_block_size": [64, 32]}})), [64, 32]);
        assert_eq!(block(json!({"quantization_config": {"weight_block_size": null, "a": 1}})), [128, 128]);
        assert_eq!(block(json!({"quantization_config": {"weight_block_size": [0, 32]}})), [128, 128]);
        let grouped = json!({"config_groups": {"group_0": {"weights": {"block_structure": [16, 8]}}}});
        assert_eq!(block(json!({"text_config": {"quantization_config": grouped}})), [16, 8]);
        let dtype = |config: Value| dtype_of(config.as_object().unwrap());
        assert_eq!(dtype(json!({"torch_dtype": "float16"})), Dtype::F16);
        assert_eq!(dtype(json!({"text_config": {"dtype": "float32"}})), Dtype::F32);
        assert_eq!(dtype(json!({"dtype": "float8_e4m3fn"})), Dtype::BF16);
        assert_eq!(dtype(json!({})), Dtype::BF16);
    }
}
