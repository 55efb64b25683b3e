//! `models`: which checkpoints take part, and whether a method takes so many.

use std::path::PathBuf;

use super::foreign;
use super::parameters::{self, Place};
use super::reader::{Reader, list_of_names};
use super::yaml::{Data, Entry, Node, quote};
use super::{Model, ModelRef, Parameters, models};
use crate::error::Result;
use crate::ops::{BaseModel, MethodSpec};

/// Above what any method takes by an order of magnitude.
const FAR_TOO_MANY_MODELS: usize = 1000;

/// Entries of `models`, taken apart.
#[derive(Default)]
pub(super) struct Listing {
    pub models: Vec<Model>,
    pub base: Option<(usize, Parameters)>,
}

/// An entry of a list, taken apart.
pub(super) struct Named<'n> {
    pub name: &'n Node,
    pub parameters: Option<&'n Entry>,
    pub layer_range: Option<&'n Entry>,
}

/// Models of one list, to find those that stand there twice.
#[derive(Default)]
pub(super) struct Seen(Vec<(PathBuf, usize)>);

impl Seen {
    /// Notes a model.
    ///
    /// # Errors
    /// Input, if it is there already: mergekit refuses that too, and counting it twice is said by its weight.
    pub fn add(&mut self, reader: &Reader, line: usize, model: &ModelRef, identity: &PathBuf) -> Result<()> {
        if let Some((_, first)) = self.0.iter().find(|(other, _)| other == identity) {
            let message = format!("{} is the model of line {first} again", quote(&model.written));
            return Err(reader.error(line, message).hint("list it once; to let it count twice, double its weight"));
        }
        self.0.push((identity.clone(), line));
        Ok(())
    }
}

/// Reads `models`.
pub(super) fn read(
    reader: &Reader,
    at: &Entry,
    method: &'static MethodSpec,
    base: Option<&PathBuf>,
) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut seen = Seen::default();
    let items = reader.list(&at.value, "`models`")?;
    check_length(reader, at, method, items.len())?;
    for (place, item) in items.iter().enumerate() {
        let mut read = || {
            let Named { name, parameters, .. } = named(reader, item, "models", "model", false)?;
            let found = reader.keep(models::read(reader, name, "model"));
            let own = match parameters {
                Some(entry) => parameters::read(reader, entry, method, Place::Model)?,
                None => Parameters::default(),
            };
            let Some((model, identity)) = found else { return Ok(()) };
            seen.add(reader, item.line, &model, &identity)?;
            if base != Some(&identity) {
                listing.models.push(Model { model, line: item.line, parameters: own });
                return Ok(());
            }
            if method.base.is_origin(true) && own.names().next().is_some() {
                let names = list_of_names(own.names(), "and");
                reader.warn(item.line, format_args!("{names} of the base has no effect with {}", method.name));
            }
            listing.base = Some((place, own));
            Ok(())
        };
        let read = read();
        reader.keep(read);
    }
    Ok(listing)
}

/// Refuses lists that are too long by far: not looked up on disk and compared one by one, only counted.
pub(super) fn check_length(reader: &Reader, at: &Entry, method: &MethodSpec, found: usize) -> Result<()> {
    if found > method.models.1.max(FAR_TOO_MANY_MODELS) {
        return check_count(reader, at.line, method, found);
    }
    Ok(())
}

/// Whether a method takes so many models; `base_too`: the base stands among them and is not counted.
pub(super) fn check_models(
    reader: &Reader,
    line: usize,
    method: &MethodSpec,
    models: usize,
    base_too: bool,
) -> Result<()> {
    match method.base {
        // As in mergekit: the base alone is what methods that add to it give where there is nothing to add.
        BaseModel::Required if base_too && models == 0 && method.models.0 == 1 && method.models.1 > 1 => Ok(()),
        BaseModel::Required | BaseModel::Origin => check_count(reader, line, method, models),
        // The base takes the place of none of the others, wherever it stands.
        BaseModel::Joins => check_count(reader, line, method, if models == 0 { usize::from(base_too) } else { models }),
        // Where the rule does not read the base, a listed base is a model like any other.
        BaseModel::Optional | BaseModel::JoinsByWeight => {
            check_count(reader, line, method, models + usize::from(base_too))
        }
    }
}

fn check_count(reader: &Reader, line: usize, method: &MethodSpec, found: usize) -> Result<()> {
    let (least, most) = method.models;
    if (least..=most).contains(&found) {
        return Ok(());
    }
    let takes = match (least, most) {
        (1, 1) => "exactly 1 model".to_string(),
        (least, most) if least == most => format!("exactly {least} models"),
        (least, most) => format!("{least} to {most} models"),
    };
    let besides =
        if !matches!(method.base, BaseModel::Optional | BaseModel::JoinsByWeight) { " besides the base" } else { "" };
    Err(reader.error(line, format_args!("method `{}` takes {takes}{besides}, found {found}", method.name)))
}

/// The `key`, the `parameters` and, where it has a meaning, the `layer_range` of an entry of the list `of`.
pub(super) fn named<'n>(reader: &Reader, item: &'n Node, of: &str, key: &str, with_layers: bool) -> Result<Named<'n>> {
    let Data::Map(entries) = &item.data else {
        let message = format!("an entry of `{of}` must be a mapping, found {}", item.describe());
        return Err(reader.error(item.line, message).hint(format!("write `- {key}: …`")));
    };
    let (mut name, mut parameters, mut layer_range, mut unknown) = (None, None, None, None);
    for entry in entries {
        match entry.key.as_str() {
            k if k == key => name = Some(&*entry.value),
            "parameters" => parameters = Some(entry),
            "layer_range" if with_layers => layer_range = Some(entry),
            "layer_range" if key == "model" => {
                let message =
                    "`layer_range` has no effect under `models`, which merges whole models; mergekit ignores it too";
                reader.warn(entry.line, message);
            }
            k if key == "model" && is_idle(k) => warn_idle(reader, entry),
            k => {
                let message = format!("unknown key {} in an entry of `{of}`", quote(k));
                let known =
                    if with_layers { &[key, "layer_range", "parameters"][..] } else { &[key, "parameters"][..] };
                unknown = Some(reader.unknown_key(entry.line, message, k, known));
            }
        }
    }
    match (name, unknown) {
        (Some(name), unknown) => {
            unknown.map(|mistake| reader.keep::<()>(Err(mistake)));
            Ok(Named { name, parameters, layer_range })
        }
        // It may be the name, misspelt.
        (None, Some(mistake)) => Err(mistake),
        (None, None) => Err(reader.error(item.line, format_args!("an entry of `{of}` has no `{key}`"))),
    }
}

/// Whether a key outside `parameters` is one that mergekit's users know and that mergekit ignores there.
pub(super) fn is_idle(key: &str) -> bool {
    foreign::is_ignored_at_top(key)
}

/// Says that a key outside `parameters` has no effect.
pub(super) fn warn_idle(reader: &Reader, entry: &Entry) {
    let place = if foreign::is_parameter(&entry.key) { "outside `parameters`" } else { "here" };
    reader.warn(entry.line, format_args!("{} has no effect {place}; mergekit ignores it too", quote(&entry.key)));
}
