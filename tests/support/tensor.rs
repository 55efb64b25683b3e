//! Tensors in memory, and files of them: bytes written by hand, elements coded without the crate under test.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;

/// A stored tensor. `bytes` may be shorter than the shape says: the rest is a hole in the file, which reads as zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Of these values, rounded to the dtype.
    pub fn new(name: &str, dtype: Dtype, shape: &[u64], values: &[f64]) -> Self {
        assert_eq!(shape.iter().product::<u64>(), values.len() as u64, "{name}");
        let mut bytes = Vec::with_capacity(values.len() * dtype.bitsize() / 8);
        values.iter().for_each(|v| encode(*v, dtype, &mut bytes));
        Self { name: name.into(), dtype, shape: shape.into(), bytes }
    }

    pub fn values(&self) -> Vec<f64> {
        let size = self.dtype.bitsize() / 8;
        self.bytes.chunks_exact(size).map(|b| decode(b, self.dtype)).collect()
    }

    /// Bytes that the shape asks for.
    pub fn stored_bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.bitsize() as u64 / 8
    }

    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
    }
}

/// Writes a safetensors file; wider elements first, so that each is aligned.
pub fn write_file(path: &Path, tensors: &[Tensor]) {
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_by_key(|t| std::cmp::Reverse(t.dtype.bitsize()));
    let mut at = 0;
    let mut header = serde_json::Map::new();
    for tensor in &order {
        let end = at + tensor.stored_bytes();
        let dtype = serde_json::to_value(tensor.dtype).unwrap();
        let entry = serde_json::json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [at, end]});
        assert!(header.insert(tensor.name.clone(), entry).is_none(), "{} twice", tensor.name);
        at = end;
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let mut at = 8 + header.len() as u64;
    for tensor in &order {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&tensor.bytes).unwrap();
        at += tensor.stored_bytes();
    }
    file.set_len(at).unwrap();
}

/// Writes a folder with one file, or with several and an index.
pub fn write_folder(folder: &Path, tensors: &[Tensor], files: usize) {
    std::fs::create_dir_all(folder).unwrap();
    if files == 1 {
        return write_file(&folder.join("model.safetensors"), tensors);
    }
    let mut map = serde_json::Map::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(files)).enumerate() {
        let name = format!("model-{:05}-of-{files:05}.safetensors", i + 1);
        write_file(&folder.join(&name), part);
        map.extend(part.iter().map(|t| (t.name.clone(), name.clone().into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn encode(value: f64, dtype: Dtype, to: &mut Vec<u8>) {
    match dtype {
        Dtype::F64 => to.extend(value.to_le_bytes()),
        Dtype::F32 => to.extend((value as f32).to_le_bytes()),
        Dtype::BF16 => to.extend(bf16::from_f64(value).to_le_bytes()),
        Dtype::F16 => to.extend(f16::from_f64(value).to_le_bytes()),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => to.push(nearest_f8(value, dtype)),
        Dtype::I64 | Dtype::U64 => to.extend((value as i64).to_le_bytes()),
        Dtype::I32 => to.extend((value as i32).to_le_bytes()),
        Dtype::U8 | Dtype::BOOL => to.push(value as u8),
        other => panic!("no values of {other}"),
    }
}

fn decode(bytes: &[u8], dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
        Dtype::BF16 => bf16::from_le_bytes(bytes.try_into().unwrap()).into(),
        Dtype::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).into(),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => f8(bytes[0], dtype),
        Dtype::I64 => i64::from_le_bytes(bytes.try_into().unwrap()) as f64,
        Dtype::I32 => i32::from_le_bytes(bytes.try_into().unwrap()).into(),
        Dtype::U8 | Dtype::BOOL => bytes[0].into(),
        other => panic!("no values of {other}"),
    }
}

/// The value of a code of eight bits, from the format's definition.
fn f8(code: u8, dtype: Dtype) -> f64 {
    let (mantissa_bits, bias) = if dtype == Dtype::F8_E4M3 { (3, 7) } else { (2, 15) };
    let (exponent, mantissa) = (i32::from(code & 0x7F) >> mantissa_bits, i32::from(code) & ((1 << mantissa_bits) - 1));
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let unit = f64::from(2).powi(-mantissa_bits);
    let magnitude = match dtype {
        Dtype::F8_E4M3 if code & 0x7F == 0x7F => f64::NAN,
        Dtype::F8_E5M2 if exponent == 31 => {
            if mantissa == 0 {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        _ if exponent == 0 => f64::from(mantissa) * unit * f64::from(2).powi(1 - bias),
        _ => (1.0 + f64::from(mantissa) * unit) * f64::from(2).powi(exponent - bias),
    };
    sign * magnitude
}

/// The code whose finite value is nearest; an even one of two.
fn nearest_f8(value: f64, dtype: Dtype) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let distance = |code: &u8| (f8(*code, dtype) - value.abs()).abs();
    let finite = (0..0x80_u8).filter(|code| f8(*code, dtype).is_finite());
    let best = finite.min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
    sign | best.unwrap()
}
