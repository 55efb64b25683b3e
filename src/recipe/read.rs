//! The top level of a recipe: its keys, and what they ask of each other.

use std::path::{Path, PathBuf};

use super::listing::{self, Listing, check_models};
use super::parameters::{self, Place};
use super::reader::{Reader, text};
use super::slices::{self, Around, Module};
use super::stages::{self, methods_here, with_names};
use super::yaml::{self, Data, Entry, Node, quote};
use super::{
    Model, ModelRef, Parameters, Recipe, documents, dtypes, experts, foreign, models, output, patterns, tokens,
};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::hub::Fetcher;
use crate::methods;
use crate::ops::{BaseModel, MethodSpec, ParamDefault, Role};

/// The keys of a recipe.
const KEYS: [&str; 17] = [
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "task_vector_stages",
    "copy",
    "dtype",
    "out_dtype",
    "output",
    "factors",
    "lora_rank",
    "adapter_space",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
];

/// Reads a recipe. `on_disk`: whether its models must exist; `fetcher`: what may be downloaded of those that do not.
pub(super) fn recipe(bytes: &[u8], path: &Path, on_disk: bool, fetcher: Option<&Fetcher>) -> Result<Recipe> {
    let file = path.display().to_string();
    if bytes.len() > yaml::MAX_BYTES {
        return Err(yaml::too_long(&file));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count();
        yaml::error_at(&file, line, "not UTF-8 text").hint("save the recipe as UTF-8")
    })?;
    let roots = yaml::parse(text, &file)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut reader = Reader::new(&file, folder, on_disk, fetcher);
    let mut recipe = match &roots[..] {
        [] => {
            let hint = "a recipe needs at least `merge_method` and `models`";
            return Err(Error::input(format!("{file}: the recipe is empty")).hint(hint));
        }
        [root] => {
            let read = reader.keep(document(&reader, root));
            reader.finish(read.flatten())?
        }
        several => {
            let read = documents::read(&mut reader, several);
            reader.finish(read)?
        }
    };
    for (_, before) in &mut recipe.before {
        (before.path, before.text) = (path.to_path_buf(), text.to_string());
    }
    (recipe.path, recipe.text) = (path.to_path_buf(), text.to_string());
    recipe.warnings = reader.warnings();
    Ok(recipe)
}

/// Reads one document; `None` after mistakes that were noted.
pub(super) fn document(reader: &Reader, root: &Node) -> Result<Option<Recipe>> {
    if let Some(recipe) = experts::read(reader, root)? {
        return Ok(recipe);
    }
    Keys::read(reader, root).and_then(|keys| keys.recipe(reader))
}

/// The entries of the top level, known and not null.
struct Keys<'n> {
    entries: Vec<&'n Entry>,
    /// Whether there were others, one of which may be a key that seems to be missing.
    has_unknown: bool,
}

impl<'n> Keys<'n> {
    fn read(reader: &Reader, root: &'n Node) -> Result<Self> {
        let Data::Map(all) = &root.data else {
            return Err(reader.error(root.line, format_args!("a recipe is a mapping, found {}", root.describe())));
        };
        let (mut entries, mut has_unknown) = (Vec::new(), false);
        for entry in all {
            if KEYS.contains(&entry.key.as_str()) {
                entries.push(entry);
            } else if entry.key == "name" && !reader.names.is_empty() {
                // The name of a document is what others call it.
            } else if foreign::is_ignored_at_top(&entry.key) {
                listing::warn_idle(reader, entry);
            } else {
                reader.keep::<()>(Err(unknown(reader, entry)));
                has_unknown = true;
            }
        }
        entries.retain(|e| !e.value.is_null());
        Ok(Self { entries, has_unknown })
    }

    fn get(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().copied().find(|e| e.key == key)
    }

    /// The recipe; `None` after mistakes that leave nothing to read the rest against, all of them noted.
    fn recipe(&self, reader: &Reader) -> Result<Option<Recipe>> {
        let (simple, full) = (self.get("tokenizer_source"), self.get("tokenizer"));
        let tokenizer = reader.keep(tokens::read(reader, simple, full)).flatten();
        let template = self.get("chat_template");
        let chat_template = template.and_then(|entry| reader.keep(tokens::chat_template(reader, entry)).flatten());
        let base = self.get("base_model").and_then(|e| reader.keep(models::read(reader, &e.value, "base_model")));
        let out_dtype = reader.keep(self.out_dtype(reader)).flatten();
        let copy = match self.get("copy") {
            Some(entry) => reader.keep(patterns::read(reader, &entry.value, "copy")).unwrap_or_default(),
            None => Vec::new(),
        };
        let Some((method_at, method)) = reader.keep(self.method(reader)).flatten() else {
            self.look_for_models(reader);
            return Ok(None);
        };
        let before = reader.found();
        let parameters = match self.get("parameters") {
            Some(entry) => reader.keep(parameters::read(reader, entry, method, Place::Recipe)).unwrap_or_default(),
            None => Parameters::default(),
        };
        if self.get("base_model").is_none() && method.base == BaseModel::Required {
            let message =
                format!("method `{}` needs `base_model`: the model that the others were trained from", method.name);
            reader.keep::<()>(Err(reader.error(method_at.line, message)));
        }
        let sound = reader.found() == before;
        let before = reader.found();
        let Some((content, listing, modules)) = reader.keep(self.content(reader, method, base.as_ref())).flatten()
        else {
            return Ok(None);
        };
        // What could not be read is not missing as well.
        let listed = reader.found() == before;
        if content.key == "models" && listed {
            let (models, has_base) = (listing.models.len(), listing.base.is_some());
            reader.keep(check_models(reader, content.line, method, models, has_base));
            let given = |name: &str| {
                let by_model = models > 0 && listing.models.iter().all(|m| m.parameters.is_set(name));
                parameters.is_set(name) || by_model
            };
            if sound {
                reader.keep(check_required(reader, method_at.line, method, given));
            }
        }
        if listed && sound {
            reader.keep(check_slices(reader, &modules, method, &parameters));
        }
        if let (Some((base, _)), "models", true) = (&base, content.key.as_str(), listed)
            && method.base == BaseModel::JoinsByWeight
            && listing.base.is_none()
            && !parameters.is_set("weight")
        {
            let message = format!(
                "the base {} is not listed and has no weight: it takes no part in the average (in mergekit that is an error)",
                quote(&base.written)
            );
            reader.warn(method_at.line, message);
        }
        let stages = match self.get("task_vector_stages") {
            Some(entry) => {
                reader.keep(stages::read(reader, entry, method, self.get("base_model").is_some())).unwrap_or_default()
            }
            None => Vec::new(),
        };
        let (written, factors) = (self.get("output"), self.get("factors"));
        for module in modules.iter().filter(|_| !stages.is_empty()) {
            if let Some(other) = module.method.filter(|method| !method.takes_stages) {
                let message =
                    format!("method `{}` does not work on task vectors: no stage can stand before it", other.name);
                reader.keep::<()>(Err(reader.error(module.line, message)));
            }
        }
        let adapters = output::OfAdapters {
            are_alone: are_adapters(&listing.models) && modules.is_empty(),
            rank: self.get("lora_rank"),
            space: self.get("adapter_space"),
            has_base: base.is_some(),
        };
        let mut output = output::read(reader, written, factors, method, &parameters, !stages.is_empty(), &adapters)?;
        let mut out_dtype = out_dtype;
        if output.in_core {
            // Core matrices stay in float64: the types are of what is made of them.
            output.factor_dtype = output.factor_dtype.or(out_dtype.take());
            if let Some(entry) = simple.or(full).or(template) {
                let message = format!("`{}` has no effect on an adapter", entry.key);
                reader.keep::<()>(Err(reader.error(entry.line, message).hint("leave it out")));
            }
        }
        Ok(Some(Recipe {
            path: PathBuf::new(),
            text: String::new(),
            method,
            base: base.map(|(model, _)| model),
            models: listing.models,
            base_in_models: listing.base,
            parameters,
            around: Vec::new(),
            modules,
            stages,
            tokenizer,
            chat_template,
            copy,
            out_dtype,
            output,
            cuts_embeddings: false,
            experts: None,
            before: Vec::new(),
            warnings: Vec::new(),
        }))
    }

    /// The method; `None` where its key may be one that is misspelt, and was told.
    fn method(&self, reader: &Reader) -> Result<Option<(&'n Entry, &'static MethodSpec)>> {
        match self.get("merge_method").or_else(|| self.method_of_modules()) {
            Some(at) => Ok(Some((at, method(reader, at)?))),
            None if self.has_unknown => Ok(None),
            None => {
                let error = Error::input(format!("{}: `merge_method` is missing", reader.file));
                Err(error.hint(methods_here(Role::Method)))
            }
        }
    }

    /// The first module's `merge_method`, where every module has its own.
    fn method_of_modules(&self) -> Option<&'n Entry> {
        let Data::Map(modules) = &self.get("modules")?.value.data else { return None };
        let own = |module: &'n Entry| match &module.value.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == "merge_method" && !entry.value.is_null()),
            _ => None,
        };
        let all: Option<Vec<&Entry>> = modules.iter().map(own).collect();
        all?.first().copied()
    }

    /// What is merged: the key that says so, and whole models or slices of them; `None` as for [`Self::method`].
    fn content(
        &self,
        reader: &Reader,
        method: &'static MethodSpec,
        base: Option<&(ModelRef, PathBuf)>,
    ) -> Result<Option<(&'n Entry, Listing, Vec<Module>)>> {
        let given: Vec<&Entry> = ["models", "slices", "modules"].iter().filter_map(|key| self.get(key)).collect();
        let [at] = given[..] else {
            let Some(second) = given.get(1) else {
                if self.has_unknown {
                    return Ok(None);
                }
                return Err(Error::input(format!("{}: `models` is missing", reader.file))
                    .hint("list the models to merge: `models: [{model: path}, …]`"));
            };
            let message = format!("a recipe has `{}` or `{}`, not both", given[0].key, second.key);
            return Err(reader.error(second.line, message));
        };
        let around = Around { method, base };
        let modules = match at.key.as_str() {
            "models" => {
                let listing = listing::read(reader, at, method, base.map(|(_, identity)| identity))?;
                return Ok(Some((at, listing, Vec::new())));
            }
            "slices" => {
                let slices = slices::slices(reader, at, &around)?;
                vec![Module { name: None, line: at.line, method: None, parameters: Parameters::default(), slices }]
            }
            _ => slices::modules(reader, at, &around)?,
        };
        Ok(Some((at, models_of(&modules), modules)))
    }

    /// Looks for the models of a recipe whose method is unknown, so that those that are missing are named as well.
    fn look_for_models(&self, reader: &Reader) {
        for at in ["models", "slices", "modules"].iter().filter_map(|key| self.get(key)) {
            look_for_models(reader, &at.value);
        }
    }

    fn out_dtype(&self, reader: &Reader) -> Result<Option<Dtype>> {
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
    if foreign::is_only_ours(key) {
        return reader.error(entry.line, message).hint(format!("`{key}` is a parameter: put it under `parameters`"));
    }
    reader.unknown_key(entry.line, message, key, &KEYS)
}

pub(super) fn method(reader: &Reader, entry: &Entry) -> Result<&'static MethodSpec> {
    let name = text(reader, entry)?.unwrap_or_default();
    let line = entry.value.line;
    match methods::find(&name) {
        Some(spec) if spec.role == Role::Method => Ok(spec),
        Some(spec) => {
            let error = reader.error(line, format_args!("`{}` is a task-vector stage, not a merge method", spec.name));
            let hint = format!("put it in front of a method: `task_vector_stages: [{{stage: {}}}]`", spec.name);
            Err(error.hint(hint).hint(methods_here(Role::Method)))
        }
        None if foreign::is_mergekits(&name) => {
            let message = format!("unknown method `{name}`: mergekit has it, merganser does not yet");
            Err(reader.error(line, message).hint(methods_here(Role::Method)))
        }
        None => {
            let error = reader.error(line, format_args!("unknown method {}", quote(&name)));
            Err(with_names(error, &name, Role::Method))
        }
    }
}

/// Whether every model is the same base with one adapter.
fn are_adapters(models: &[Model]) -> bool {
    let is_one = |model: &Model| model.model.adapters.len() == 1 && !model.model.is_made;
    models.first().is_some_and(|first| models.iter().all(|m| is_one(m) && m.model.path == first.model.path))
}

/// Every model that the slices name, once.
fn models_of(modules: &[Module]) -> Listing {
    let mut listing = Listing::default();
    for source in modules.iter().flat_map(|m| &m.slices).flat_map(|s| &s.sources).filter(|source| !source.is_base) {
        if !listing.models.iter().any(|known| known.model == source.model) {
            let (model, line) = (source.model.clone(), source.line);
            listing.models.push(Model { model, line, parameters: Parameters::default() });
        }
    }
    listing
}

/// Notes every `model` in there that is not on this machine.
fn look_for_models(reader: &Reader, node: &Node) {
    match &node.data {
        Data::Scalar { .. } => {}
        Data::List(items) => items.iter().for_each(|item| look_for_models(reader, item)),
        Data::Map(entries) => {
            for entry in entries {
                match entry.key.as_str() {
                    "model" => drop(reader.keep(models::read(reader, &entry.value, "model"))),
                    "parameters" => {}
                    _ => look_for_models(reader, &entry.value),
                }
            }
        }
    }
}

/// Whether each slice has as many sources as the method takes, and the parameters that it requires.
fn check_slices(reader: &Reader, modules: &[Module], method: &MethodSpec, parameters: &Parameters) -> Result<()> {
    for (module, slice) in modules.iter().flat_map(|module| module.slices.iter().map(move |slice| (module, slice))) {
        let method = module.method.unwrap_or(method);
        let has_base = slice.sources.iter().any(|source| source.is_base);
        let models = slice.sources.len() - usize::from(has_base);
        reader.keep(check_models(reader, slice.line, method, models, has_base));
        let given = |name: &str| {
            let around = [&slice.parameters, &module.parameters, parameters];
            let mut own = slice.sources.iter().filter(|source| !source.is_base).peekable();
            let by_source = own.peek().is_some() && own.all(|source| source.parameters.is_set(name));
            around.iter().any(|level| level.is_set(name)) || by_source
        };
        check_required(reader, slice.line, method, given)?;
    }
    Ok(())
}

/// Whether every required parameter is given for every model, at least for some tensors.
fn check_required(reader: &Reader, line: usize, method: &MethodSpec, given: impl Fn(&str) -> bool) -> Result<()> {
    for spec in method.parameters.iter().filter(|p| p.default == ParamDefault::Required) {
        if !given(spec.name) {
            let message = format!("method `{}` needs the parameter `{}`: {}", method.name, spec.name, spec.help);
            return Err(reader.error(line, message).hint(format!("write `parameters: {{{}: …}}`", spec.name)));
        }
    }
    Ok(())
}
