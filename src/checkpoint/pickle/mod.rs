//! PyTorch's files (`.bin`, `.pt`, `.pth`): zip archives of raw storages and a pickle that says which tensor is which part
//! of them. The pickle is read by a machine that runs nothing, and storages are mapped where they lie.

mod calls;
mod machine;
mod strided;
mod zip;

use std::collections::HashMap;
use std::rc::Rc;

use self::machine::{Described, Storage, Value};
pub(super) use self::strided::Strided;
use self::zip::{Member, ReadAt};
use super::text::quoted;
use crate::dtype::{Dtype, DtypeExt};

/// Largest pickle: descriptions alone.
const MOST_BYTES: u64 = 1 << 28;
/// Deepest nesting of modules.
const MOST_DEPTH: usize = 64;
/// Most tensors.
const MOST_TENSORS: usize = 1 << 20;
/// Most dimensions, as in safetensors.
const MOST_RANK: usize = super::header::MAX_RANK;

/// A tensor of a file: where it lies, and how it is strided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    /// In elements.
    pub strides: Vec<u64>,
    /// Where its storage begins in the file, and its bytes.
    pub storage: (u64, u64),
    /// Where it begins in its storage, in elements.
    pub offset: u64,
}

impl Found {
    /// How many elements it has.
    pub fn elems(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Whether its elements lie one behind the other.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(dim, stride)| {
            let fits = *dim <= 1 || *stride == expected;
            expected *= (*dim).max(1);
            fits
        })
    }
}

/// The tensors of an archive, and the bytes that describe them; the error is a text.
pub(super) fn tensors(size: u64, read: ReadAt<'_>) -> Result<(Vec<Found>, Vec<u8>), String> {
    if size >= 2 && read(0, 2)?[..] != *b"PK" {
        return Err("it is in PyTorch's format before 1.6, which is not read".into());
    }
    let members = zip::members(size, read)?;
    let main =
        members.iter().find(|m| m.name == "data.pkl" || m.name.ends_with("/data.pkl")).ok_or("it has no `data.pkl`")?;
    let folder = main.name.strip_suffix("data.pkl").unwrap_or_default();
    let member = |name: &str| members.iter().find(|m| m.name.strip_prefix(folder) == Some(name));
    if let Some(order) = member("byteorder")
        && read(order.begin, order.bytes.min(16))? != b"little"
    {
        return Err("its numbers are big-endian, which is not read".into());
    }
    if main.bytes > MOST_BYTES {
        return Err(format!("its pickle has {} bytes, more than {MOST_BYTES}", main.bytes));
    }
    let pickle = read(main.begin, main.bytes)?;
    let root = machine::run(&pickle)?;
    let storages: HashMap<&str, &Member> =
        members.iter().filter_map(|m| Some((m.name.strip_prefix(folder)?.strip_prefix("data/")?, m))).collect();
    let mut walk = Walk { storages, found: Vec::new(), seen: 0 };
    walk.from(&root, "", 0)?;
    if walk.found.is_empty() {
        return Err("it holds no tensors".into());
    }
    let mut names: Vec<&str> = walk.found.iter().map(|f| f.name.as_str()).collect();
    names.sort_unstable();
    if let Some([name, _]) = names.array_windows().find(|[a, b]| a == b) {
        return Err(format!("two of its tensors have the name {}", quoted(name)));
    }
    Ok((walk.found, pickle))
}

struct Walk<'a> {
    storages: HashMap<&'a str, &'a Member>,
    found: Vec<Found>,
    /// Values looked at, which a file that shares them could multiply.
    seen: usize,
}

impl Walk<'_> {
    /// Notes every tensor of a state, whose names begin with `prefix`.
    fn from(&mut self, value: &Value, prefix: &str, depth: usize) -> Result<(), String> {
        self.seen += 1;
        if depth > MOST_DEPTH || self.seen > 4 * MOST_TENSORS || self.found.len() > MOST_TENSORS {
            return Err("its state is nested too deeply, or too large".into());
        }
        match value {
            Value::Map(map) => {
                let map = map.borrow();
                let inner = map.iter().find(|(key, _)| matches!(key, Value::Text(key) if &**key == "state_dict"));
                if let (Some((_, inner)), "") = (inner, prefix) {
                    return self.from(inner, "", depth + 1);
                }
                for (key, value) in map.iter() {
                    let Value::Text(key) = key else { continue };
                    if let Value::Tensor(tensor) = value {
                        let found = self.tensor(format!("{prefix}{key}"), tensor)?;
                        self.found.push(found);
                    }
                }
                Ok(())
            }
            // A module: its tensors, then its modules. Its class is a name and nothing more.
            Value::Record(state) => {
                let state = state.borrow();
                let Value::Map(state) = &*state else { return Ok(()) };
                let state = state.borrow();
                let of = |name: &str| {
                    state.iter().find(|(key, _)| matches!(key, Value::Text(key) if &**key == name)).map(|(_, v)| v)
                };
                for part in ["_parameters", "_buffers"] {
                    if let Some(Value::Map(tensors)) = of(part) {
                        for (key, value) in tensors.borrow().iter() {
                            if let (Value::Text(key), Value::Tensor(tensor)) = (key, value) {
                                let found = self.tensor(format!("{prefix}{key}"), tensor)?;
                                self.found.push(found);
                            }
                        }
                    }
                }
                if let Some(Value::Map(modules)) = of("_modules") {
                    for (key, module) in modules.borrow().iter() {
                        if let Value::Text(key) = key {
                            self.from(module, &format!("{prefix}{key}."), depth + 1)?;
                        }
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tensor(&self, name: String, tensor: &Described) -> Result<Found, String> {
        let Storage { class, key, elems } = &*tensor.storage;
        let wrong = |what: &str| format!("tensor {}: {what}", quoted(&name));
        if name.is_empty() || name.contains(|c: char| c.is_control()) {
            return Err(wrong("its name is empty or holds control characters"));
        }
        let dtype =
            dtype_of(class).ok_or_else(|| wrong(&format!("its storage is {}, which is not known", quoted(class))))?;
        let size = dtype.size_bytes().unwrap_or(1);
        let member =
            self.storages.get(&**key).ok_or_else(|| wrong(&format!("the archive has no storage {}", quoted(key))))?;
        if elems.checked_mul(size).is_none_or(|bytes| bytes > member.bytes) {
            return Err(wrong(&format!("its storage has {} bytes, too few for {elems} elements", member.bytes)));
        }
        if tensor.shape.len() > MOST_RANK {
            return Err(wrong("it has too many dimensions"));
        }
        let count = tensor.shape.iter().try_fold(1_u64, |count, dim| count.checked_mul(*dim).filter(|c| *c <= 1 << 53));
        let last = tensor.shape.iter().zip(&tensor.strides).try_fold(tensor.offset, |last, (dim, stride)| {
            last.checked_add(dim.saturating_sub(1).checked_mul(*stride)?)
        });
        match (count, last) {
            (Some(0), _) => {}
            (Some(_), Some(last)) if last < *elems => {}
            _ => {
                return Err(wrong(&format!(
                    "its shape {:?} does not fit its storage of {elems} elements",
                    tensor.shape
                )));
            }
        }
        // A few elements that stand for many, in an expanded tensor: nothing that a model stores.
        if count.is_some_and(|count| count > elems.saturating_mul(64).max(1 << 20)) {
            return Err(wrong("it expands beyond its storage"));
        }
        Ok(Found {
            name,
            dtype,
            shape: tensor.shape.clone(),
            strides: tensor.strides.clone(),
            storage: (member.begin, member.bytes),
            offset: tensor.offset,
        })
    }
}

/// The element type of a class of storages.
fn dtype_of(class: &Rc<str>) -> Option<Dtype> {
    Some(match class.strip_prefix("torch.")?.strip_suffix("Storage")? {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::BOOL,
        _ => return None,
    })
}

/// Reads an archive that is wholly in memory; for tests and fuzzing. Gives how many tensors it has.
///
/// # Errors
/// For anything but a valid archive.
pub(super) fn read_bytes(file: &[u8]) -> Result<usize, String> {
    let read = |at: u64, bytes: u64| -> Result<Vec<u8>, String> {
        let end = at.checked_add(bytes).ok_or("out of bounds")?;
        let range = usize::try_from(at).ok().zip(usize::try_from(end).ok()).ok_or("out of bounds")?;
        Ok(file.get(range.0..range.1).ok_or("out of bounds")?.to_vec())
    };
    tensors(file.len() as u64, &read).map(|(found, _)| found.len())
}
