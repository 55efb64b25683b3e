//! The top level of a recipe: its keys, and what they ask of each other.

use std::path::{Path, PathBuf};

use super::parameters::{self, Place};
use super::reader::{Reader, list_of_names, text};
use super::yaml::{self, Data, Entry, Node, quote};
use super::{Model, Parameters, Recipe, Stage, dtypes, foreign, models, output, patterns};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::methods::{self, REGISTRY};
use crate::ops::{BaseModel, MethodSpec, ParamDefault, Role};
use crate::suggest::nearest;

/// The keys of a recipe.
const KEYS: [&str; 10] = [
    "merge_method",
    "base_model",
    "models",
    "parameters",
    "task_vector_stages",
    "copy",
    "dtype",
    "out_dtype",
    "output",
    "factors",
];

/// Most stages: far above use, and a bound on the work that a recipe can ask for.
const MOST_STAGES: usize = 64;

/// Above what any method takes by an order of magnitude.
const FAR_TOO_MANY_MODELS: usize = 1000;

/// Reads a recipe. `on_disk`: whether its models must exist.
pub(super) fn recipe(bytes: &[u8], path: &Path, on_disk: bool) -> Result<Recipe> {
    let file = path.display().to_string();
    if bytes.len() > yaml::MAX_BYTES {
        return Err(yaml::too_long(&file));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
        yaml::error_at(&file, line, "not UTF-8 text").hint("save the recipe as UTF-8")
    })?;
    let root = yaml::parse(text, &file)?;
    let Some(root) = root.filter(|root| !root.is_null()) else {
        let hint = "a recipe needs at least `merge_method` and `models`";
        return Err(Error::input(format!("{file}: the recipe is empty")).hint(hint));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut reader = Reader { file: &file, folder, on_disk, warnings: Vec::new() };
    let keys = Keys::read(&reader, &root)?;
    let mut recipe = keys.recipe(&mut reader)?;
    recipe.path = path.to_path_buf();
    recipe.text = text.to_string();
    recipe.warnings = reader.warnings;
    Ok(recipe)
}

/// The entries of the top level, known and not null.
struct Keys<'n> {
    entries: Vec<&'n Entry>,
}

/// Entries of `models`, taken apart.
#[derive(Default)]
struct Listing {
    models: Vec<Model>,
    base: Option<(usize, Parameters)>,
}

impl<'n> Keys<'n> {
    fn read(reader: &Reader, root: &'n Node) -> Result<Self> {
        let Data::Map(all) = &root.data else {
            return Err(reader.error(root.line, format_args!("a recipe is a mapping, found {}", root.describe())));
        };
        let mut entries = Vec::new();
        for entry in all {
            if KEYS.contains(&entry.key.as_str()) {
                entries.push(entry);
            } else if let Some((key, hint)) = foreign::KEYS.iter().find(|(key, _)| *key == entry.key) {
                if !entry.value.is_null() {
                    return Err(reader.error(entry.line, format_args!("`{key}` is not supported yet")).hint(*hint));
                }
            } else {
                return Err(unknown(reader, entry));
            }
        }
        entries.retain(|e| !e.value.is_null());
        Ok(Self { entries })
    }

    fn get(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().copied().find(|e| e.key == key)
    }

    fn recipe(&self, reader: &mut Reader) -> Result<Recipe> {
        let method_at = self.get("merge_method").ok_or_else(|| {
            Error::input(format!("{}: `merge_method` is missing", reader.file)).hint(methods_here(Role::Method))
        })?;
        let method = method(reader, method_at)?;
        let base = self.get("base_model").map(|e| models::read(reader, &e.value, "base_model")).transpose()?;
        if base.is_none() && method.base == BaseModel::Required {
            let message =
                format!("method `{}` needs `base_model`: the model that the others were trained from", method.name);
            return Err(reader.error(method_at.line, message));
        }
        let models_at = self.get("models").ok_or_else(|| {
            Error::input(format!("{}: `models` is missing", reader.file))
                .hint("list the models to merge: `models: [{model: path}, …]`")
        })?;
        let listing = listing(reader, models_at, method, base.as_ref().map(|(_, identity)| identity))?;
        let counted = match method.base {
            BaseModel::Required => 0,
            // Where the rule does not read the base, a listed base is a model like any other.
            BaseModel::Optional | BaseModel::JoinsByWeight => usize::from(listing.base.is_some()),
        };
        check_count(reader, models_at, method, listing.models.len() + counted)?;
        let parameters = match self.get("parameters") {
            Some(entry) => parameters::read(reader, entry, method, Place::Recipe)?,
            None => Parameters::default(),
        };
        check_required(reader, method_at, method, &parameters, &listing.models)?;
        let stages = match self.get("task_vector_stages") {
            Some(entry) => stages(reader, entry, method, base.is_some())?,
            None => Vec::new(),
        };
        let copy = match self.get("copy") {
            Some(entry) => patterns::read(reader, &entry.value, "copy")?,
            None => Vec::new(),
        };
        let out_dtype = self.out_dtype(reader)?;
        let (written, factors) = (self.get("output"), self.get("factors"));
        let output = output::read(reader, written, factors, method, &parameters, !stages.is_empty())?;
        Ok(Recipe {
            path: PathBuf::new(),
            text: String::new(),
            method,
            base: base.map(|(model, _)| model),
            models: listing.models,
            base_in_models: listing.base,
            parameters,
            stages,
            copy,
            out_dtype,
            output,
            warnings: Vec::new(),
        })
    }

    fn out_dtype(&self, reader: &mut Reader) -> Result<Option<Dtype>> {
        let read = |key| match self.get(key) {
            Some(entry) => dtypes::read(reader, entry).map(|dtype| dtype.map(|d| (entry, d))),
            None => Ok(None),
        };
        let (dtype, out) = (read("dtype")?, read("out_dtype")?);
        if let (Some((at, dtype)), Some((_, out))) = (dtype, out)
            && dtype != out
            && !matches!(dtype, Dtype::F32 | Dtype::F64)
        {
            reader.warn(at.line, "`dtype` has no effect beside `out_dtype`: merging computes in float32 or better");
        }
        Ok(out.or(dtype).map(|(_, d)| d))
    }
}

/// The error for a key that recipes do not have.
fn unknown(reader: &Reader, entry: &Entry) -> Error {
    let key = entry.key.as_str();
    let message = format!("unknown key {}", quote(key));
    if REGISTRY.iter().any(|m| parameters::parameter_of(m, key).is_some()) {
        return reader.error(entry.line, message).hint(format!("`{key}` is a parameter: put it under `parameters`"));
    }
    reader.unknown_key(entry.line, message, key, &KEYS)
}

fn methods_here(role: Role) -> String {
    let names = list_of_names(REGISTRY.iter().filter(|m| m.role == role).map(|m| m.name), "and");
    match role {
        Role::Method => format!("methods: {names}"),
        Role::Stage => format!("stages: {names}"),
    }
}

/// Adds to an error the nearest method or stage and the list of all.
fn with_names(mut error: Error, name: &str, role: Role) -> Error {
    if let Some(near) = nearest(name, REGISTRY.iter().filter(|m| m.role == role).map(|m| m.name)) {
        error = error.hint(format!("did you mean `{near}`?"));
    }
    error.hint(methods_here(role))
}

fn method(reader: &Reader, entry: &Entry) -> Result<&'static MethodSpec> {
    let name = text(reader, entry)?.unwrap_or_default();
    let line = entry.value.line;
    match methods::find(&name) {
        Some(spec) if spec.role == Role::Method => Ok(spec),
        Some(spec) => {
            let error = reader.error(line, format_args!("`{}` is a task-vector stage, not a merge method", spec.name));
            let hint = format!("put it in front of a method: `task_vector_stages: [{{stage: {}}}]`", spec.name);
            Err(error.hint(hint).hint(methods_here(Role::Method)))
        }
        None => match foreign::nearest_method(&name) {
            Some(near) => {
                let message = format!("unknown method `{name}`: mergekit has it, merganser does not yet");
                Err(reader
                    .error(line, message)
                    .hint(format!("the nearest in kind is `{near}`"))
                    .hint(methods_here(Role::Method)))
            }
            None => {
                let error = reader.error(line, format_args!("unknown method {}", quote(&name)));
                Err(with_names(error, &name, Role::Method))
            }
        },
    }
}

/// Whether a method takes so many models.
fn check_count(reader: &Reader, at: &Entry, method: &MethodSpec, found: usize) -> Result<()> {
    let (least, most) = method.models;
    if (least..=most).contains(&found) {
        return Ok(());
    }
    let takes = match (least, most) {
        (1, 1) => "exactly 1 model".to_string(),
        (least, most) if least == most => format!("exactly {least} models"),
        (least, most) => format!("{least} to {most} models"),
    };
    let besides = if method.base == BaseModel::Required { " besides the base" } else { "" };
    Err(reader.error(at.line, format_args!("method `{}` takes {takes}{besides}, found {found}", method.name)))
}

/// Reads `models`.
fn listing(reader: &mut Reader, at: &Entry, method: &'static MethodSpec, base: Option<&PathBuf>) -> Result<Listing> {
    let mut listing = Listing::default();
    let mut seen: Vec<(PathBuf, usize)> = Vec::new();
    let items = reader.list(&at.value, "`models`")?;
    // Too many by far: not looked up on disk and compared one by one, only to be counted.
    if items.len() > method.models.1.max(FAR_TOO_MANY_MODELS) {
        check_count(reader, at, method, items.len())?;
    }
    for (place, item) in items.iter().enumerate() {
        let (named, parameters_at) = named(reader, item, "models", "model")?;
        let (model, identity) = models::read(reader, named, "model")?;
        let own = match parameters_at {
            Some(entry) => parameters::read(reader, entry, method, Place::Model)?,
            None => Parameters::default(),
        };
        if base == Some(&identity) {
            if listing.base.is_some() {
                let message = format!("the base {} stands in `models` twice", quote(&model.written));
                return Err(reader.error(item.line, message).hint("list it once"));
            }
            if method.base == BaseModel::Required && own.names().next().is_some() {
                let names = list_of_names(own.names(), "and");
                reader.warn(item.line, format_args!("{names} of the base has no effect with {}", method.name));
            }
            listing.base = Some((place, own));
            continue;
        }
        if let Some((_, first)) = seen.iter().find(|(other, _)| *other == identity) {
            let message = format!("{} is the model of line {first} again: it counts twice", quote(&model.written));
            reader.warn(item.line, message);
        } else {
            seen.push((identity, item.line));
        }
        listing.models.push(Model { model, parameters: own });
    }
    Ok(listing)
}

/// The `key` and the `parameters` of an entry of the list `of`.
fn named<'n>(reader: &Reader, item: &'n Node, of: &str, key: &str) -> Result<(&'n Node, Option<&'n Entry>)> {
    let Data::Map(entries) = &item.data else {
        let message = format!("an entry of `{of}` must be a mapping, found {}", item.describe());
        return Err(reader.error(item.line, message).hint(format!("write `- {key}: …`")));
    };
    let (mut name, mut parameters) = (None, None);
    for entry in entries {
        match entry.key.as_str() {
            k if k == key => name = Some(&*entry.value),
            "parameters" => parameters = Some(entry),
            "layer_range" => {
                let error = reader.error(entry.line, "`layer_range` is not supported yet");
                return Err(error.hint("merge whole models: leave it out"));
            }
            k => {
                let message = format!("unknown key {} in an entry of `{of}`", quote(k));
                return Err(reader.unknown_key(entry.line, message, k, &[key, "parameters"]));
            }
        }
    }
    match name {
        Some(name) => Ok((name, parameters)),
        None => Err(reader.error(item.line, format_args!("an entry of `{of}` has no `{key}`"))),
    }
}

/// Reads `task_vector_stages`.
fn stages(reader: &mut Reader, at: &Entry, method: &'static MethodSpec, has_base: bool) -> Result<Vec<Stage>> {
    let items = reader.list(&at.value, "`task_vector_stages`")?;
    if items.len() > MOST_STAGES {
        return Err(reader.error(at.line, format_args!("{} stages are more than {MOST_STAGES}", items.len())));
    }
    let mut stages = Vec::with_capacity(items.len());
    for item in items {
        let (named, parameters_at) = named(reader, item, "task_vector_stages", "stage")?;
        let spec = stage(reader, named)?;
        let parameters = match parameters_at {
            Some(entry) => parameters::read(reader, entry, spec, Place::Stage)?,
            None => Parameters::default(),
        };
        if let Some(missing) =
            spec.parameters.iter().find(|p| p.default == ParamDefault::Required && !parameters.is_set(p.name))
        {
            return Err(
                reader.error(item.line, format_args!("stage `{}` needs the parameter `{}`", spec.name, missing.name))
            );
        }
        stages.push(Stage { spec, parameters });
    }
    if stages.is_empty() {
        return Ok(stages);
    }
    if !method.takes_stages {
        let able = REGISTRY.iter().filter(|m| m.role == Role::Method && m.takes_stages).map(|m| m.name);
        let message = format!("method `{}` does not work on task vectors: no stage can stand before it", method.name);
        return Err(reader
            .error(at.line, message)
            .hint(format!("methods that take stages: {}", list_of_names(able, "and"))));
    }
    if !has_base {
        let error =
            reader.error(at.line, "`task_vector_stages` needs `base_model`: a task vector is a model minus the base");
        return Err(error);
    }
    Ok(stages)
}

fn stage(reader: &Reader, node: &Node) -> Result<&'static MethodSpec> {
    let Data::Scalar { text: name, .. } = &node.data else {
        return Err(reader.error(node.line, format_args!("`stage` must be a word, found {}", node.describe())));
    };
    match methods::find(name) {
        Some(spec) if spec.role == Role::Stage => Ok(spec),
        Some(spec) => {
            let error =
                reader.error(node.line, format_args!("`{}` is a merge method, not a task-vector stage", spec.name));
            Err(error.hint(format!("name it as `merge_method: {}`", spec.name)).hint(methods_here(Role::Stage)))
        }
        None => {
            let error = reader.error(node.line, format_args!("unknown stage {}", quote(name)));
            Err(with_names(error, name, Role::Stage))
        }
    }
}

/// Whether every required parameter is given for every model, at least for some tensors.
fn check_required(
    reader: &Reader,
    at: &Entry,
    method: &MethodSpec,
    parameters: &Parameters,
    models: &[Model],
) -> Result<()> {
    for spec in method.parameters.iter().filter(|p| p.default == ParamDefault::Required) {
        let by_model = !models.is_empty() && models.iter().all(|m| m.parameters.is_set(spec.name));
        if !parameters.is_set(spec.name) && !by_model {
            let message = format!("method `{}` needs the parameter `{}`: {}", method.name, spec.name, spec.help);
            return Err(reader.error(at.line, message).hint(format!("write `parameters: {{{}: …}}`", spec.name)));
        }
    }
    Ok(())
}
