//! YAML text into a tree whose nodes know their lines, within limits that a hostile text cannot pass.
//!
//! The parser hands over events one at a time, so nothing here recurses while reading; the depth limit bounds what
//! recurses afterwards. Aliases share their node, and count as often as they are used.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use super::scalar;
use crate::error::{Error, Result};

/// Longest text. A recipe is a few kilobytes; in a flow list the parser holds some 190 bytes for each of the text.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// Most nodes, each alias counted as the nodes it stands for.
const MAX_NODES: usize = 100_000;
/// Most documents.
const MAX_DOCUMENTS: usize = 100;
/// Deepest nesting, through aliases too.
const MAX_DEPTH: usize = 64;

/// A value and the line it starts on.
#[derive(Debug)]
pub(super) struct Node {
    /// From 1.
    pub line: usize,
    pub data: Data,
    /// Nodes in it, itself included and aliases expanded.
    nodes: usize,
    /// Levels of lists and mappings in it.
    height: usize,
}

#[derive(Debug)]
pub(super) enum Data {
    Scalar {
        text: String,
        /// Not plain: the text is a string, whatever it looks like.
        quoted: bool,
    },
    List(Vec<Rc<Node>>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    /// The key's line.
    pub line: usize,
    pub value: Rc<Node>,
}

impl Node {
    /// One that stands on this line.
    pub fn new(line: usize, data: Data) -> Self {
        let inner: Vec<&Node> = match &data {
            Data::Scalar { .. } => Vec::new(),
            Data::List(items) => items.iter().map(|n| &**n).collect(),
            Data::Map(entries) => entries.iter().map(|entry| &*entry.value).collect(),
        };
        let keys = if matches!(data, Data::Map(_)) { inner.len() } else { 0 };
        let nodes = inner.iter().fold(1 + keys, |sum, n| sum.saturating_add(n.nodes));
        let height = inner.iter().map(|n| n.height + 1).max().unwrap_or_default();
        Self { line, data, nodes, height }
    }

    /// Whether YAML reads it as null: what a recipe treats as absent.
    pub fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, quoted: false } if scalar::is_null(text))
    }

    /// What it is, in the words of an error message.
    pub fn describe(&self) -> String {
        match &self.data {
            Data::Scalar { .. } if self.is_null() => "nothing (null)".into(),
            Data::Scalar { text, .. } => quote(text),
            Data::List(_) => "a list".into(),
            Data::Map(_) => "a mapping".into(),
        }
    }
}

/// An input error at a place in a recipe.
pub(super) fn error_at(file: &str, line: usize, message: impl std::fmt::Display) -> Error {
    Error::at_line(file, line, message)
}

/// A user's text in an error message: escaped, so that it cannot steer a terminal, and cut when long.
pub(super) fn quote(text: &str) -> String {
    format!("`{}`", safe(text))
}

fn safe(text: &str) -> String {
    const LONGEST_CHARS: usize = 80;
    let mut shown = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == LONGEST_CHARS {
            shown.push('…');
            break;
        }
        match c {
            '\'' | '"' | '\\' => shown.push(c),
            c => shown.extend(c.escape_debug()),
        }
    }
    shown
}

/// The documents of `text`, those that are empty left out. `file` is how errors name the text.
pub(super) fn parse(text: &str, file: &str) -> Result<Vec<Rc<Node>>> {
    if text.len() > MAX_BYTES {
        return Err(too_long(file));
    }
    let mut parser = Parser::new_from_str(text);
    let mut tree = Tree { file, nodes: 0, open: Vec::new(), anchors: HashMap::new(), root: None };
    let mut documents = Vec::new();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|e| {
            error_at(file, e.marker().line().max(1), format_args!("not valid YAML: {}", safe(e.info())))
        })?;
        let line = span.start.line().max(1);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
            Event::DocumentEnd => {
                // Anchors of one document are not known in the next.
                tree.anchors.clear();
                documents.extend(tree.root.take());
                if documents.len() > MAX_DOCUMENTS {
                    return Err(error_at(file, line, format_args!("more than {MAX_DOCUMENTS} documents")));
                }
            }
            Event::Alias(id) => tree.alias(id, line)?,
            Event::Scalar(text, style, anchor, tag) => {
                tree.count(1, line)?;
                let data = tree.scalar(text.into_owned(), style, tag.as_deref(), line)?;
                tree.close(Node { line, data, nodes: 1, height: 0 }, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                tree.collection_tag(tag.as_deref(), "seq", line)?;
                tree.open(Content::List(Vec::new()), anchor, line)?;
            }
            Event::MappingStart(anchor, tag) => {
                tree.collection_tag(tag.as_deref(), "map", line)?;
                tree.open(Content::Map(Map::default()), anchor, line)?;
            }
            Event::SequenceEnd | Event::MappingEnd => tree.end(line)?,
        }
    }
    documents.extend(tree.root);
    documents.retain(|root| !root.is_null());
    Ok(documents)
}

/// The error for a text above [`MAX_BYTES`].
pub(super) fn too_long(file: &str) -> Error {
    Error::input(format!("{file}: longer than {} MiB, which no recipe is", MAX_BYTES >> 20))
        .hint("is this the file you meant?")
}

/// The tree under construction.
struct Tree<'a> {
    file: &'a str,
    nodes: usize,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
}

/// A list or mapping whose end has not come yet.
struct Open {
    content: Content,
    line: usize,
    anchor: usize,
}

enum Content {
    List(Vec<Rc<Node>>),
    Map(Map),
}

#[derive(Default)]
struct Map {
    entries: Vec<Entry>,
    /// Lines of the keys so far.
    lines: HashMap<String, usize>,
    /// The key whose value comes next.
    key: Option<(String, usize)>,
    /// Values of `<<`.
    merged: Option<(Rc<Node>, usize)>,
    next_is_merged: bool,
}

impl Tree<'_> {
    fn error(&self, line: usize, message: impl std::fmt::Display) -> Error {
        error_at(self.file, line, message)
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<()> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            return Err(self.error(line, format_args!("more than {MAX_NODES} values, aliases expanded")));
        }
        Ok(())
    }

    fn deep(&self, levels: usize, line: usize) -> Result<()> {
        if self.open.len().saturating_add(levels) > MAX_DEPTH {
            return Err(self.error(line, format_args!("nested more than {MAX_DEPTH} levels deep")));
        }
        Ok(())
    }

    fn open(&mut self, content: Content, anchor: usize, line: usize) -> Result<()> {
        self.count(1, line)?;
        self.deep(1, line)?;
        self.open.push(Open { content, line, anchor });
        Ok(())
    }

    fn alias(&mut self, id: usize, line: usize) -> Result<()> {
        // The parser knows every anchor; one that is not here yet holds the alias itself.
        let Some(node) = self.anchors.get(&id).cloned() else {
            return Err(self.error(line, "an alias stands inside the value it names"));
        };
        self.count(node.nodes, line)?;
        self.deep(node.height, line)?;
        self.place(node, line)
    }

    /// Ends the innermost list or mapping.
    fn end(&mut self, line: usize) -> Result<()> {
        let Some(open) = self.open.pop() else {
            return Err(Error::internal(format!("{}:{line}: the YAML parser ended what it had not begun", self.file)));
        };
        let mut nodes = 1_usize;
        let mut height = 0;
        let mut take = |n: &Node| {
            nodes = nodes.saturating_add(n.nodes).saturating_add(1);
            height = height.max(n.height);
        };
        let data = match open.content {
            Content::List(items) => {
                items.iter().for_each(|n| take(n));
                Data::List(items)
            }
            Content::Map(map) => {
                let entries = self.merge(map)?;
                entries.iter().for_each(|e| take(&e.value));
                Data::Map(entries)
            }
        };
        self.close(Node { line: open.line, data, nodes, height: height + 1 }, open.anchor)
    }

    /// The entries of a mapping with those that `<<` adds; its own keys win, then the earlier mapping's.
    fn merge(&self, mut map: Map) -> Result<Vec<Entry>> {
        let Some((merged, line)) = map.merged else { return Ok(map.entries) };
        let wrong = || self.error(line, "`<<` takes a mapping or a list of mappings");
        let sources = match &merged.data {
            Data::Map(_) => std::slice::from_ref(&merged),
            Data::List(items) => items,
            Data::Scalar { .. } => return Err(wrong()),
        };
        for source in sources {
            let Data::Map(entries) = &source.data else { return Err(wrong()) };
            for entry in entries {
                if let Slot::Vacant(slot) = map.lines.entry(entry.key.clone()) {
                    slot.insert(entry.line);
                    map.entries.push(entry.clone());
                }
            }
        }
        Ok(map.entries)
    }

    /// Gives a finished node its anchor and its place.
    fn close(&mut self, node: Node, anchor: usize) -> Result<()> {
        let line = node.line;
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.place(node, line)
    }

    fn place(&mut self, node: Rc<Node>, line: usize) -> Result<()> {
        let file = self.file;
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map(map)) => map.place(node, line, file)?,
        }
        Ok(())
    }

    fn scalar(&self, text: String, style: ScalarStyle, tag: Option<&Tag>, line: usize) -> Result<Data> {
        let plain = style == ScalarStyle::Plain;
        let Some(tag) = tag else { return Ok(Data::Scalar { text, quoted: !plain }) };
        let (fits, quoted) = match core_tag(tag) {
            Some("str" | "!") => (true, true),
            Some("null") => (scalar::is_null(&text), false),
            Some("bool") => (scalar::boolean(&text).is_some(), false),
            Some("int") => (matches!(scalar::number(&text), Ok(scalar::Number::Int(_))), false),
            // Infinite and not-a-number are refused where the number is used, by the parameter's name.
            Some("float") => (!matches!(scalar::number(&text), Err(scalar::NotNumber::Other)), false),
            _ => return Err(self.foreign_tag(tag, line)),
        };
        if !fits {
            return Err(self.error(line, format_args!("{} is not what its tag {} says", quote(&text), shown(tag))));
        }
        Ok(Data::Scalar { text, quoted })
    }

    fn collection_tag(&self, tag: Option<&Tag>, fits: &str, line: usize) -> Result<()> {
        match tag {
            None => Ok(()),
            Some(tag) if matches!(core_tag(tag), Some(name) if name == fits || name == "!") => Ok(()),
            Some(tag) => Err(self.foreign_tag(tag, line)),
        }
    }

    fn foreign_tag(&self, tag: &Tag, line: usize) -> Error {
        self.error(line, format_args!("the tag {} has no meaning here", shown(tag)))
            .hint("write the value without a tag")
    }
}

impl Map {
    /// Takes the next key or value.
    fn place(&mut self, node: Rc<Node>, line: usize, file: &str) -> Result<()> {
        if self.next_is_merged {
            self.next_is_merged = false;
            self.merged = Some((node, line));
            return Ok(());
        }
        if let Some((key, line)) = self.key.take() {
            self.entries.push(Entry { key, line, value: node });
            return Ok(());
        }
        let Data::Scalar { text, quoted } = &node.data else {
            return Err(error_at(file, line, format_args!("a key must be a word, found {}", node.describe())));
        };
        match self.lines.entry(text.clone()) {
            Slot::Occupied(first) => {
                let message = format!("duplicate key {} (first on line {})", quote(text), first.get());
                return Err(error_at(file, line, message).hint("keep one of the two"));
            }
            Slot::Vacant(slot) => slot.insert(line),
        };
        if text == "<<" && !quoted {
            self.next_is_merged = true;
        } else {
            self.key = Some((text.clone(), line));
        }
        Ok(())
    }
}

/// The name of a tag of YAML's own, `!` for the non-specific tag; `None` for any other.
fn core_tag(tag: &Tag) -> Option<&str> {
    const CORE: &str = "tag:yaml.org,2002:";
    if tag.handle == CORE {
        return Some(&tag.suffix);
    }
    match (tag.handle.as_str(), tag.suffix.as_str()) {
        ("", "!") | ("!", "") => Some("!"),
        ("", suffix) => suffix.strip_prefix(CORE),
        _ => None,
    }
}

fn shown(tag: &Tag) -> String {
    match core_tag(tag) {
        Some("!") => "`!`".into(),
        Some(name) => quote(&format!("!!{name}")),
        None => quote(&format!("{}{}", tag.handle, tag.suffix)),
    }
}
