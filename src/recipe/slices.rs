//! `slices` and `modules`: layers of models, put on top of each other.

use std::ops::Range;
use std::path::PathBuf;

use super::listing::{self, Named};
use super::parameters::{self, Place};
use super::reader::Reader;
use super::scalar::{self, Number};
use super::yaml::{Data, Entry, Node, quote};
use super::{ModelRef, Parameters, models, read};
use crate::error::Result;
use crate::ops::MethodSpec;

/// Most slices of a recipe: far above use, and a bound on the work that a recipe can ask for.
const MOST_SLICES: usize = 1024;
/// Above the depth of any model.
const MOST_LAYERS: u32 = 100_000;

/// A part of a model that is merged by itself: all of it, or one of several towers.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its key under `modules`; `None` for `slices` at the top.
    pub name: Option<String>,
    /// The line of its key.
    pub line: usize,
    /// Its own `merge_method`; `None`: the recipe's.
    pub method: Option<&'static MethodSpec>,
    /// Its own `parameters`.
    pub parameters: Parameters,
    /// What it is made of, from the first layer up.
    pub slices: Vec<Slice>,
}

/// Layers that are merged of the same number of layers of each source.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Its line.
    pub line: usize,
    /// Its own `base_model`.
    pub base: Option<ModelRef>,
    /// Its own `parameters`.
    pub parameters: Parameters,
    /// Its sources, in the order of the recipe.
    pub sources: Vec<SliceSource>,
}

/// Layers of one model.
#[derive(Debug, Clone)]
pub struct SliceSource {
    /// The model.
    pub model: ModelRef,
    /// Whether it is the base.
    pub is_base: bool,
    /// The layers, the last excluded; `None` for all of them, as in `models`.
    pub layers: Option<Range<u32>>,
    /// Its line.
    pub line: usize,
    /// Its own `parameters`.
    pub parameters: Parameters,
}

/// What every slice of a recipe is read against.
pub(super) struct Around<'a> {
    pub method: &'static MethodSpec,
    /// The recipe's base and what tells it apart.
    pub base: Option<&'a (ModelRef, PathBuf)>,
}

/// Reads `modules`.
pub(super) fn modules(reader: &Reader, at: &Entry, around: &Around<'_>) -> Result<Vec<Module>> {
    let entries = reader.map(&at.value, "`modules`")?;
    if entries.is_empty() {
        return Err(reader
            .error(at.line, "`modules` is empty")
            .hint("name a module: `modules: {default: {slices: …}}`"));
    }
    Ok(entries.iter().filter_map(|entry| reader.keep(module(reader, entry, around))).collect())
}

fn module(reader: &Reader, at: &Entry, around: &Around<'_>) -> Result<Module> {
    let what = format!("the module {}", quote(&at.key));
    let mut module = Module {
        name: Some(at.key.clone()),
        line: at.line,
        method: None,
        parameters: Parameters::default(),
        slices: Vec::new(),
    };
    let entries = reader.map(&at.value, &what)?;
    // First: the rest is read against it.
    if let Some(entry) = entries.iter().find(|entry| entry.key == "merge_method" && !entry.value.is_null()) {
        module.method = Some(read::method(reader, entry)?);
    }
    let around = &Around { method: module.method.unwrap_or(around.method), base: around.base };
    let mut content = None;
    for entry in entries.iter().filter(|entry| !entry.value.is_null()) {
        match entry.key.as_str() {
            "merge_method" => {}
            "slices" | "models" if content.is_some() => {
                let message = format!("{what} has both `slices` and `models`");
                return Err(reader.error(entry.line, message).hint("give one of the two"));
            }
            "slices" => content = Some(slices(reader, entry, around)?),
            "models" => content = Some(vec![whole(reader, entry, around)?]),
            "parameters" => module.parameters = parameters::read(reader, entry, around.method, Place::Part)?,
            key => {
                let message = format!("unknown key {} in {what}", quote(key));
                return Err(reader.unknown_key(
                    entry.line,
                    message,
                    key,
                    &["slices", "models", "parameters", "merge_method"],
                ));
            }
        }
    }
    module.slices =
        content.ok_or_else(|| reader.error(at.line, format_args!("{what} has neither `slices` nor `models`")))?;
    Ok(module)
}

/// Reads `slices`.
pub(super) fn slices(reader: &Reader, at: &Entry, around: &Around<'_>) -> Result<Vec<Slice>> {
    let items = reader.list(&at.value, "`slices`")?;
    if items.is_empty() {
        return Err(reader.error(at.line, "`slices` is empty"));
    }
    if items.len() > MOST_SLICES {
        return Err(reader.error(at.line, format_args!("{} slices are more than {MOST_SLICES}", items.len())));
    }
    Ok(items.iter().filter_map(|item| reader.keep(slice(reader, item, around))).collect())
}

fn slice(reader: &Reader, item: &Node, around: &Around<'_>) -> Result<Slice> {
    const KEYS: [&str; 3] = ["sources", "base_model", "parameters"];
    let Data::Map(entries) = &item.data else {
        let message = format!("an entry of `slices` must be a mapping, found {}", item.describe());
        return Err(reader.error(item.line, message).hint("write `- sources: [{model: …, layer_range: [0, 8]}]`"));
    };
    let mut slice = Slice { line: item.line, base: None, parameters: Parameters::default(), sources: Vec::new() };
    let mut own_base = None;
    let (mut sources_at, mut unknown) = (None, None);
    for entry in entries.iter().filter(|entry| !entry.value.is_null()) {
        match entry.key.as_str() {
            "sources" => sources_at = Some(entry),
            "base_model" => own_base = reader.keep(models::read(reader, &entry.value, "base_model")),
            "parameters" => slice.parameters = parameters::read(reader, entry, around.method, Place::Part)?,
            // Part of mergekit's schema, and read by nothing.
            "residual_weight" => listing::warn_idle(reader, entry),
            key if listing::is_idle(key) => listing::warn_idle(reader, entry),
            key => {
                let message = format!("unknown key {} in an entry of `slices`", quote(key));
                unknown = Some(reader.unknown_key(entry.line, message, key, &KEYS));
            }
        }
    }
    let Some(sources_at) = sources_at else {
        // It may be that key, misspelt.
        return Err(unknown.unwrap_or_else(|| reader.error(item.line, "an entry of `slices` has no `sources`")));
    };
    unknown.map(|mistake| reader.keep::<()>(Err(mistake)));
    let base = own_base.as_ref().or(around.base);
    slice.sources = sources(reader, sources_at, around.method, base, true)?;
    slice.base = own_base.map(|(model, _)| model);
    let mut lengths = slice.sources.iter().filter_map(|s| Some((s, s.layers.as_ref()?.len())));
    if let Some((first, length)) = lengths.next()
        && let Some((other, another)) = lengths.find(|(_, another)| *another != length)
    {
        let message = format!(
            "the sources of a slice must have as many layers each: {} has {another}, {} of line {} has {length}",
            quote(&other.model.written),
            quote(&first.model.written),
            first.line
        );
        return Err(reader.error(other.line, message));
    }
    Ok(slice)
}

/// Reads `models` of a module.
fn whole(reader: &Reader, at: &Entry, around: &Around<'_>) -> Result<Slice> {
    let sources = sources(reader, at, around.method, around.base, false)?;
    Ok(Slice { line: at.line, base: None, parameters: Parameters::default(), sources })
}

fn sources(
    reader: &Reader,
    at: &Entry,
    method: &'static MethodSpec,
    base: Option<&(ModelRef, PathBuf)>,
    with_layers: bool,
) -> Result<Vec<SliceSource>> {
    let items = reader.list(&at.value, &format!("`{}`", at.key))?;
    if items.is_empty() {
        return Err(
            reader.error(at.line, format_args!("`{}` is empty: a slice is made of one source at least", at.key))
        );
    }
    listing::check_length(reader, at, method, items.len())?;
    let mut seen = listing::Seen::default();
    let mut sources = Vec::with_capacity(items.len());
    for item in items {
        let mut read = || {
            let Named { name, parameters, layer_range } = listing::named(reader, item, &at.key, "model", with_layers)?;
            let (model, identity) = models::read(reader, name, "model")?;
            seen.add(reader, item.line, &model, &identity)?;
            let layers = match layer_range {
                Some(entry) => Some(range(reader, entry)?),
                None if with_layers => {
                    let message = format!("{} has no `layer_range`", quote(&model.written));
                    let hint = "write `layer_range: [FIRST, END]`: layers from FIRST on, END excluded";
                    return Err(reader.error(item.line, message).hint(hint));
                }
                None => None,
            };
            let parameters = match parameters {
                Some(entry) => parameters::read(reader, entry, method, Place::Model)?,
                None => Parameters::default(),
            };
            let is_base = base.is_some_and(|(_, base)| *base == identity);
            Ok(SliceSource { model, is_base, layers, line: item.line, parameters })
        };
        sources.extend(reader.keep(read()));
    }
    Ok(sources)
}

/// `[FIRST, END]`.
fn range(reader: &Reader, at: &Entry) -> Result<Range<u32>> {
    let wrong = |found: &str| {
        let message = format!("`layer_range` must be two whole numbers, found {found}");
        reader
            .error(at.value.line, message)
            .hint("write `layer_range: [FIRST, END]`: layers from FIRST on, END excluded")
    };
    let Data::List(items) = &at.value.data else { return Err(wrong(&at.value.describe())) };
    let [first, end] = &items[..] else { return Err(wrong(&format!("a list of {}", items.len()))) };
    let number = |node: &Node| match &node.data {
        Data::Scalar { text, .. } => match scalar::number(text) {
            Ok(Number::Int(number)) => u32::try_from(number).ok().filter(|n| *n <= MOST_LAYERS),
            _ => None,
        },
        _ => None,
    };
    let (Some(from), Some(to)) = (number(first), number(end)) else {
        let found = if number(first).is_none() { first } else { end };
        return Err(wrong(&found.describe()));
    };
    if from >= to {
        return Err(reader.error(at.value.line, format_args!("`layer_range: [{from}, {to}]` holds no layer")));
    }
    Ok(from..to)
}
