//! The pickle machine, restricted: it builds numbers, texts, lists, mappings, tensors' descriptions and inert records. It
//! calls nothing and imports nothing; any other opcode or name is refused by name.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::calls::{call, record, storage};

/// A value on the machine's stack. Lists and mappings are shared by reference, as in Python, so that a small file cannot
/// grow without bound.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Nothing,
    Number(i64),
    /// A number with a fraction, bytes, or whatever else no tensor's description needs.
    Other,
    Text(Rc<str>),
    Tuple(Rc<[Value]>),
    List(Rc<RefCell<Vec<Value>>>),
    Map(Rc<RefCell<Vec<(Value, Value)>>>),
    /// A name that the file refers to.
    Name(Rc<str>),
    Storage(Rc<Storage>),
    Tensor(Rc<Described>),
    /// An object of a class, which is not looked up: its state.
    Record(Rc<RefCell<Value>>),
}

/// A storage: a member of the archive.
#[derive(Debug)]
pub(super) struct Storage {
    /// Its class, such as `torch.BFloat16Storage`.
    pub class: Rc<str>,
    pub key: Rc<str>,
    pub elems: u64,
}

/// A tensor: a view of a storage.
#[derive(Debug)]
pub(super) struct Described {
    pub storage: Rc<Storage>,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// Longest text.
const MOST_TEXT: usize = 1 << 20;

/// Runs a pickle.
pub(super) fn run(bytes: &[u8]) -> Result<Value, String> {
    let mut machine = Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        let opcode = machine.take(1)?[0];
        if opcode == b'.' {
            return machine.pop();
        }
        machine.step(opcode)?;
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or("its pickle is cut off")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of up to eight bytes.
    fn number(&mut self, bytes: usize) -> Result<u64, String> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take(MOST_TEXT).position(|b| *b == b'\n').ok_or("a line of its pickle has no end")?;
        let line = String::from_utf8(rest[..length].to_vec()).map_err(|_| "a text of its pickle is not UTF-8")?;
        self.at += length + 1;
        Ok(line)
    }

    fn text(&mut self, length: u64) -> Result<(), String> {
        let length =
            usize::try_from(length).ok().filter(|l| *l <= MOST_TEXT).ok_or("a text of its pickle is too long")?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a text of its pickle is not UTF-8")?.into();
        self.stack.push(Value::Text(text));
        Ok(())
    }

    /// Bytes that nothing here needs.
    fn skip(&mut self, length: u64) -> Result<(), String> {
        self.take(usize::try_from(length).map_err(|_| "its pickle is cut off")?)?;
        self.stack.push(Value::Other);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("its pickle takes more than it gave".into());
        }
        self.stack.pop().ok_or_else(|| "its pickle takes more than it gave".into())
    }

    fn top(&self) -> Result<&Value, String> {
        self.stack.last().ok_or_else(|| "its pickle takes more than it gave".into())
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or("its pickle has no mark where it needs one")?;
        if mark > self.stack.len() {
            return Err("its pickle takes more than it gave".into());
        }
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, at: u32) -> Result<(), String> {
        let value = self.top()?.clone();
        self.memo.insert(at, value);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Result<(), String> {
        let value = self.memo.get(&at).ok_or("its pickle recalls what it never noted")?.clone();
        self.stack.push(value);
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.pop()?);
        }
        values.reverse();
        self.stack.push(Value::Tuple(values.into()));
        Ok(())
    }

    fn set(&mut self, items: Vec<Value>) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("its pickle has a key without a value".into());
        }
        let Value::Map(map) = self.top()? else { return Ok(()) };
        let mut items = items.into_iter();
        let mut map = map.borrow_mut();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            map.push((key, value));
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Result<(), String> {
        if let Value::List(list) = self.top()? {
            list.borrow_mut().extend(items);
        }
        Ok(())
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::Nothing),
            0x88 => self.stack.push(Value::Number(1)),
            0x89 => self.stack.push(Value::Number(0)),
            b'J' => {
                let number = self.number(4)? as u32 as i32;
                self.stack.push(Value::Number(number.into()));
            }
            b'K' => {
                let number = self.number(1)?;
                self.stack.push(Value::Number(number as i64));
            }
            b'M' => {
                let number = self.number(2)?;
                self.stack.push(Value::Number(number as i64));
            }
            0x8a => {
                let length = self.number(1)? as usize;
                let value = if length <= 8 {
                    let shift = 64 - 8 * length as u32;
                    let number = self.number(length)?;
                    Value::Number(if length == 0 { 0 } else { (number << shift) as i64 >> shift })
                } else {
                    self.take(length)?;
                    Value::Other
                };
                self.stack.push(value);
            }
            b'G' => self.skip(8)?,
            b'I' | b'L' => {
                let line = self.line()?;
                let number = line.trim_end_matches('L').parse().map_or(Value::Other, Value::Number);
                self.stack.push(number);
            }
            b'F' => {
                self.line()?;
                self.stack.push(Value::Other);
            }
            b'X' | b'T' => {
                let length = self.number(4)?;
                self.text(length)?;
            }
            0x8c | b'U' => {
                let length = self.number(1)?;
                self.text(length)?;
            }
            0x8d => {
                let length = self.number(8)?;
                self.text(length)?;
            }
            b'V' => {
                let line = self.line()?;
                self.stack.push(Value::Text(line.into()));
            }
            b'B' => {
                let length = self.number(4)?;
                self.skip(length)?;
            }
            b'C' => {
                let length = self.number(1)?;
                self.skip(length)?;
            }
            0x8e => {
                let length = self.number(8)?;
                self.skip(length)?;
            }
            b')' => self.stack.push(Value::Tuple(Rc::from([]))),
            0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
            b't' => {
                let items = self.since_mark()?;
                self.stack.push(Value::Tuple(items.into()));
            }
            b']' | 0x8f => self.stack.push(Value::List(Rc::default())),
            b'l' | 0x91 => {
                let items = self.since_mark()?;
                self.stack.push(Value::List(Rc::new(RefCell::new(items))));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b'}' => self.stack.push(Value::Map(Rc::default())),
            b'd' => {
                let items = self.since_mark()?;
                self.stack.push(Value::Map(Rc::default()));
                self.set(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(items)?;
            }
            b'q' => {
                let at = self.number(1)? as u32;
                self.remember(at)?;
            }
            b'r' => {
                let at = self.number(4)? as u32;
                self.remember(at)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let at = self.number(1)? as u32;
                self.recall(at)?;
            }
            b'j' => {
                let at = self.number(4)? as u32;
                self.recall(at)?;
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?.clone();
                self.stack.push(top);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Name(format!("{module}.{name}").into()));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return Err("its pickle names something without a text".into());
                };
                self.stack.push(Value::Name(format!("{module}.{name}").into()));
            }
            b'Q' => {
                let id = self.pop()?;
                self.stack.push(storage(&id)?);
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.stack.push(call(&function, &arguments)?);
            }
            // An object of a class: a record, whose class is never looked up.
            0x81 => {
                let (_, class) = (self.pop()?, self.pop()?);
                self.stack.push(record(class)?);
            }
            0x92 => {
                let (_, _, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.stack.push(record(class)?);
            }
            // An object's state: of records it is kept; mappings and tensors have nothing there that matters.
            b'b' => {
                let state = self.pop()?;
                if let Value::Record(kept) = self.top()? {
                    *kept.borrow_mut() = state;
                }
            }
            other => return Err(format!("its pickle has the opcode 0x{other:02x}, which is not read")),
        }
        Ok(())
    }
}
