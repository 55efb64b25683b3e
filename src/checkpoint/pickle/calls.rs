//! What a pickle may make beyond plain values: storages, descriptions of tensors, ordered mappings and inert records.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::text::quoted;
use super::machine::{Described, Storage, Value};

const MAP: &str = "collections.OrderedDict";
const TENSOR: &str = "torch._utils._rebuild_tensor_v2";
const PARAMETER: &str = "torch._utils._rebuild_parameter";
/// Calls that make a plain value which no tensor's description needs: nothing is called, and the value is dropped.
const INERT: [&str; 9] = [
    "__builtin__.set",
    "builtins.set",
    "__builtin__.frozenset",
    "builtins.frozenset",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
];
pub(super) fn record(class: Value) -> Result<Value, String> {
    match class {
        Value::Name(class) if &*class == MAP => Ok(Value::Map(Rc::default())),
        Value::Name(_) => Ok(Value::Record(Rc::new(RefCell::new(Value::Nothing)))),
        _ => Err("its pickle makes an object of something that is no class".into()),
    }
}

/// `("storage", class, key, location, elements)`.
pub(super) fn storage(id: &Value) -> Result<Value, String> {
    if let Value::Tuple(parts) = id
        && let [Value::Text(kind), Value::Name(class), Value::Text(key), _, Value::Number(elems), ..] = &parts[..]
        && &**kind == "storage"
    {
        let elems = u64::try_from(*elems).map_err(|_| "a storage has a negative size")?;
        return Ok(Value::Storage(Rc::new(Storage { class: Rc::clone(class), key: Rc::clone(key), elems })));
    }
    Err("its pickle refers to something that is no storage".into())
}

/// The calls that are known: those that describe tensors, and ordered mappings.
pub(super) fn call(function: &Value, arguments: &Value) -> Result<Value, String> {
    let (Value::Name(function), Value::Tuple(arguments)) = (function, arguments) else {
        return Err("its pickle calls something that has no name".into());
    };
    match (&**function, &arguments[..]) {
        (MAP, []) => Ok(Value::Map(Rc::default())),
        (MAP, [Value::List(pairs)]) => {
            let mut map = Vec::new();
            for pair in pairs.borrow().iter() {
                match pair {
                    Value::Tuple(pair) if pair.len() == 2 => map.push((pair[0].clone(), pair[1].clone())),
                    _ => return Err("an ordered mapping is made of something that is no pair".into()),
                }
            }
            Ok(Value::Map(Rc::new(RefCell::new(map))))
        }
        (TENSOR, [Value::Storage(storage), Value::Number(offset), Value::Tuple(shape), Value::Tuple(strides), ..]) => {
            let numbers = |values: &[Value]| -> Option<Vec<u64>> {
                values.iter().map(|v| if let Value::Number(n) = v { u64::try_from(*n).ok() } else { None }).collect()
            };
            let (Some(shape), Some(strides), Ok(offset)) = (numbers(shape), numbers(strides), u64::try_from(*offset))
            else {
                return Err("a tensor's shape is made of something that is no number".into());
            };
            if shape.len() != strides.len() {
                return Err("a tensor has as many strides as dimensions, and one here has not".into());
            }
            Ok(Value::Tensor(Rc::new(Described { storage: Rc::clone(storage), offset, shape, strides })))
        }
        (PARAMETER, [tensor @ Value::Tensor(_), ..]) => Ok(tensor.clone()),
        (name, _) if INERT.contains(&name) => Ok(Value::Other),
        (name, _) => Err(format!("its pickle calls {}, which is not done", quoted(name))),
    }
}
