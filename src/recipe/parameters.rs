//! `parameters`: each setting read against its method's specification, so that resolving it later cannot fail.

use std::rc::Rc;

use super::foreign;
use super::patterns;
use super::reader::{Reader, list_of_names, text};
use super::scalar::{self, NotNumber, Number};
use super::value::{Form, Gradient, Rule, Setting};
use super::yaml::{Data, Entry, Node, quote};
use crate::error::{Error, Result};
use crate::ops::{MethodSpec, ParamKind, ParamSpec, Patterns, Role, Scope, Value};
use crate::suggest::nearest;

/// Parameter settings by name, in the order of the recipe.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    settings: Vec<Setting>,
}

impl Parameters {
    /// The value that these settings give a tensor at `t` of the way from the first layer to the last (0 for tensors
    /// outside the layers); `None` where they do not name the parameter or none of its filters matches.
    pub fn resolve(&self, spec: &ParamSpec, tensor: &str, t: f64) -> Option<Value> {
        self.setting(spec.name)?.resolve(tensor, t)
    }

    /// Whether the parameter is named here, be it for some tensors only.
    pub fn is_set(&self, name: &str) -> bool {
        self.setting(name).is_some()
    }

    /// The parameters named here, in the order of the recipe.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.settings.iter().map(|s| s.spec.name)
    }

    pub(super) fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|s| s.spec.name == name)
    }

    /// As written, in the order of the recipe.
    pub fn to_json(&self) -> serde_json::Value {
        let map: serde_json::Map<_, _> = self.settings.iter().map(|s| (s.spec.name.to_string(), s.to_json())).collect();
        map.into()
    }
}

/// Whose `parameters` are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Recipe,
    /// A slice's or a module's: like the recipe's, for a part of the layers.
    Part,
    Model,
    Stage,
}

/// The parameter of this name.
pub(super) fn parameter_of(method: &MethodSpec, name: &str) -> Option<&'static ParamSpec> {
    method.parameters.iter().find(|p| p.name == name)
}

/// Reads a `parameters` mapping; mistakes in it are noted, so that those after the first are found too.
pub(super) fn read(reader: &Reader, at: &Entry, method: &'static MethodSpec, place: Place) -> Result<Parameters> {
    let entries = reader.map(&at.value, "`parameters`")?;
    let mut settings = Vec::new();
    for entry in entries {
        let Some(Some(spec)) = reader.keep(known(reader, entry, method, place)) else { continue };
        settings.extend(reader.keep(setting(reader, entry, spec)).flatten());
    }
    for group in method.exclusive {
        let mut given = settings.iter().filter(|s| group.contains(&s.spec.name));
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            let message = format!("`{}` and `{}` exclude each other", first.spec.name, second.spec.name);
            let names = list_of_names(group.iter().copied(), "or");
            reader.keep::<()>(Err(reader.error(second.line, message).hint(format!("give at most one of {names}"))));
        }
    }
    Ok(Parameters { settings })
}

/// The specification of a key, `None` for one that has no effect, or the error that says where it belongs.
fn known(
    reader: &Reader,
    entry: &Entry,
    method: &'static MethodSpec,
    place: Place,
) -> Result<Option<&'static ParamSpec>> {
    let key = entry.key.as_str();
    let as_in_mergekit = method.role == Role::Method && foreign::is_mergekits(method.name);
    if let Some(spec) = parameter_of(method, key) {
        if place != Place::Model || spec.scope != Scope::Global {
            return Ok(Some(spec));
        }
        if as_in_mergekit {
            let message = format!(
                "`{key}` under a model has no effect: it is one value for the whole merge; mergekit ignores it too"
            );
            reader.warn(entry.line, message);
            return Ok(None);
        }
        let message = format!("`{key}` stands in a model's `parameters`, but it is one value for the whole merge");
        return Err(reader.error(entry.line, message).hint("move it to the recipe's own `parameters`"));
    }
    if !as_in_mergekit || foreign::is_only_ours(key) {
        return Err(unknown(reader, entry, method, place));
    }
    ignored(reader, entry)?;
    let near = nearest(key, method.parameters.iter().map(|p| p.name)).filter(|_| !is_parameter(key));
    let near = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
    let message = format!("{} has no effect with {}{near}; mergekit ignores it too", quote(key), method.name);
    reader.warn(entry.line, message);
    Ok(None)
}

/// Whether any method or stage has a parameter of this name.
fn is_parameter(key: &str) -> bool {
    crate::methods::REGISTRY.iter().any(|m| parameter_of(m, key).is_some())
}

/// A value that nothing reads must still have a form that mergekit takes.
fn ignored(reader: &Reader, entry: &Entry) -> Result<()> {
    let wrong = |node: &Node| {
        let message = format!("{} is no value of a parameter: {}", quote(&entry.key), node.describe());
        Err(reader
            .error(node.line, message)
            .hint("a value is a number, a truth value, a word, a list of these, or `{filter: …, value: …}`"))
    };
    let has_value = |node: &Node| match &node.data {
        Data::Map(entries) => entries.iter().any(|e| e.key == "value"),
        Data::Scalar { .. } => true,
        Data::List(_) => false,
    };
    match &entry.value.data {
        Data::List(items) => items.iter().find(|item| !has_value(item)).map_or(Ok(()), |item| wrong(item)),
        _ if has_value(&entry.value) => Ok(()),
        _ => wrong(&entry.value),
    }
}

fn unknown(reader: &Reader, entry: &Entry, method: &MethodSpec, place: Place) -> Error {
    let key = entry.key.as_str();
    let kind = if method.role == Role::Stage { "stage" } else { "method" };
    let (methods, stages): (Vec<&MethodSpec>, Vec<&MethodSpec>) = crate::methods::REGISTRY
        .iter()
        .copied()
        .filter(|m| parameter_of(m, key).is_some())
        .partition(|m| m.role == Role::Method);
    if methods.is_empty() && stages.is_empty() {
        let whose = match place {
            Place::Recipe | Place::Part => "`parameters`".to_string(),
            Place::Model => "a model's `parameters`".to_string(),
            Place::Stage => format!("`parameters` of the stage `{}`", method.name),
        };
        let mut error = reader.error(entry.line, format_args!("unknown key {} in {whose}", quote(key)));
        if let Some(near) = nearest(key, method.parameters.iter().map(|p| p.name)) {
            error = error.hint(format!("did you mean `{near}`?"));
        }
        return error.hint(parameters_of(method));
    }
    let mut error = reader.error(entry.line, format_args!("{kind} `{}` has no parameter `{key}`", method.name));
    if !methods.is_empty() {
        error = error.hint(format!("methods that have it: {}", list_of_names(methods.iter().map(|m| m.name), "and")));
    }
    if !stages.is_empty() {
        let names = list_of_names(stages.iter().map(|m| m.name), "and");
        error = error.hint(format!("stages that have it: {names}; it goes into the stage's own `parameters`"));
    }
    error.hint(parameters_of(method))
}

fn parameters_of(method: &MethodSpec) -> String {
    if method.parameters.is_empty() {
        return format!("`{}` has no parameters", method.name);
    }
    let names = list_of_names(method.parameters.iter().map(|p| p.name), "and");
    format!("parameters of `{}`: {names}", method.name)
}

/// One parameter's setting; `None` if it is null.
fn setting(reader: &Reader, entry: &Entry, spec: &'static ParamSpec) -> Result<Option<Setting>> {
    let node = &entry.value;
    // As in mergekit, an empty list says nothing: the next level's value counts.
    if node.is_null()
        || (spec.kind != ParamKind::Patterns && matches!(&node.data, Data::List(items) if items.is_empty()))
    {
        return Ok(None);
    }
    let (rules, form) = match &node.data {
        _ if spec.kind == ParamKind::Patterns => {
            let values = vec![Value::Patterns(Patterns::new(patterns::read(reader, node, spec.name)?)?)];
            (vec![Rule { filter: None, gradient: Gradient { values, list: false } }], Form::Bare)
        }
        Data::Map(entries) => (vec![rule(reader, spec, node, entries)?], Form::OneRule),
        Data::List(items) if items.iter().any(|i| matches!(i.data, Data::Map(_))) => {
            (rules(reader, spec, items)?, Form::Rules)
        }
        Data::Scalar { .. } | Data::List(_) => {
            (vec![Rule { filter: None, gradient: gradient(reader, spec, node)? }], Form::Bare)
        }
    };
    Ok(Some(Setting { spec, line: entry.line, rules, form }))
}

/// A list of `{filter, value}`.
fn rules(reader: &Reader, spec: &'static ParamSpec, items: &[Rc<Node>]) -> Result<Vec<Rule>> {
    let mut rules: Vec<Rule> = Vec::with_capacity(items.len());
    for item in items {
        let Data::Map(entries) = &item.data else {
            let message = format!("parameter `{}` mixes `{{filter, value}}` with {}", spec.name, item.describe());
            let hint = "a list holds either values, from the first layer to the last, or mappings; \
                        `- value: …` without a filter matches every tensor";
            return Err(reader.error(item.line, message).hint(hint));
        };
        rules.push(rule(reader, spec, item, entries)?);
    }
    if let Some(idle) = rules.iter().position(Rule::matches_all).and_then(|all| items.get(all + 1)) {
        let message =
            format!("values of `{}` from here on are never used: the one before matches every tensor", spec.name);
        reader.warn(idle.line, message);
    }
    Ok(rules)
}

/// One `{filter, value}`.
fn rule(reader: &Reader, spec: &'static ParamSpec, node: &Node, entries: &[Entry]) -> Result<Rule> {
    let mut filter = None;
    let mut value = None;
    for entry in entries {
        match entry.key.as_str() {
            "filter" => filter = text(reader, entry)?,
            "value" => value = Some(&entry.value),
            key => {
                let message = format!("unknown key {} in the value of `{}`", quote(key), spec.name);
                return Err(reader.unknown_key(entry.line, message, key, &["filter", "value"]));
            }
        }
    }
    let Some(value) = value.filter(|v| !v.is_null()) else {
        let message = format!("parameter `{}`: this mapping has no `value`", spec.name);
        return Err(reader.error(node.line, message).hint("write `{filter: part-of-a-tensor-name, value: …}`"));
    };
    Ok(Rule { filter, gradient: gradient(reader, spec, value)? })
}

/// A value, or a list of them over the layers.
fn gradient(reader: &Reader, spec: &'static ParamSpec, node: &Node) -> Result<Gradient> {
    let Data::List(items) = &node.data else {
        return Ok(Gradient { values: vec![value(reader, spec, node)?], list: false });
    };
    let values = items.iter().map(|item| value(reader, spec, item)).collect::<Result<Vec<_>>>()?;
    match values.as_slice() {
        [] => {
            let error = reader.error(node.line, format_args!("parameter `{}` is an empty list", spec.name));
            Err(error.hint("give it a value, or leave the key out"))
        }
        [Value::Int(first), rest @ ..] if rest.iter().any(|v| *v != Value::Int(*first)) => {
            let message = format!("parameter `{}` is a whole number, and these have fractions between them", spec.name);
            let hint = "give one value, or choose by tensor name: a list of `{filter: …, value: …}`";
            Err(reader.error(node.line, message).hint(hint))
        }
        _ => Ok(Gradient { values, list: true }),
    }
}

/// One scalar of the parameter's kind.
fn value(reader: &Reader, spec: &'static ParamSpec, node: &Node) -> Result<Value> {
    let wrong = |expected: &str| {
        let message = format!("parameter `{}` must be {expected}, found {}", spec.name, node.describe());
        reader.error(node.line, message)
    };
    let Data::Scalar { text, quoted } = &node.data else {
        return Err(wrong(expected(spec.kind)));
    };
    if node.is_null() {
        return Err(wrong(expected(spec.kind)));
    }
    let number = || {
        // As in mergekit: a weight of `true` is 1.
        if !quoted && let Some(truth) = scalar::plain_boolean(text) {
            return Ok(Number::Int(truth.into()));
        }
        scalar::number(text).map_err(|reason| match reason {
            NotNumber::NotFinite => wrong("a finite number"),
            NotNumber::Octal => wrong(expected(spec.kind))
                .hint("YAML readers differ on a leading zero, some count in eights: write the number without it"),
            NotNumber::Other => wrong(expected(spec.kind)),
        })
    };
    let outside = |range: String| {
        reader.error(node.line, format_args!("parameter `{}` is {}, outside {range}", spec.name, quote(text)))
    };
    match spec.kind {
        ParamKind::Float { min, max } => {
            let v = match number()? {
                Number::Int(v) => v as f64,
                Number::Float(v) => v,
            };
            if (min..=max).contains(&v) { Ok(Value::Float(v)) } else { Err(outside(float_range(min, max))) }
        }
        ParamKind::Int { min, max } => {
            let v = match number()? {
                Number::Int(v) => v,
                Number::Float(v) if v.fract() != 0.0 => return Err(wrong(expected(spec.kind))),
                // Saturates: what does not fit an i64 is outside every range.
                Number::Float(v) => v as i64,
            };
            if (min..=max).contains(&v) { Ok(Value::Int(v)) } else { Err(outside(format!("[{min}, {max}]"))) }
        }
        ParamKind::Switch(words) => match (words.iter().find(|w| *w == text), scalar::boolean(text)) {
            (Some(word), _) => Ok(Value::Word(word)),
            (None, Some(truth)) => Ok(Value::Bool(truth)),
            (None, None) => {
                let all = ["true", "false"].into_iter().chain(words.iter().copied());
                Err(wrong(&format!("one of {}", list_of_names(all, "or"))))
            }
        },
        ParamKind::Bool => scalar::boolean(text).map(Value::Bool).ok_or_else(|| wrong(expected(spec.kind))),
        ParamKind::Choice(words) => match words.iter().find(|w| *w == text) {
            Some(word) => Ok(Value::Word(word)),
            None => {
                let error = wrong(&format!("one of {}", list_of_names(words.iter().copied(), "or")));
                Err(match nearest(text, words.iter().copied()) {
                    Some(near) => error.hint(format!("did you mean `{near}`?")),
                    None => error,
                })
            }
        },
        ParamKind::Patterns => Err(Error::internal(format!("`{}` was read as a scalar", spec.name))),
    }
}

fn expected(kind: ParamKind) -> &'static str {
    match kind {
        ParamKind::Float { .. } => "a number",
        ParamKind::Int { .. } => "a whole number",
        ParamKind::Bool => "true or false",
        ParamKind::Switch(_) => "true, false or a word",
        ParamKind::Choice(_) => "a word",
        ParamKind::Patterns => "a list of regular expressions",
    }
}

fn float_range(min: f64, max: f64) -> String {
    if min == f64::MIN_POSITIVE { format!("(0, {max}]") } else { format!("[{min}, {max}]") }
}
