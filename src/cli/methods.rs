//! `merganser methods`: the registry, shown.

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::JsonFlag;
use super::document::{Document, print_document};
use super::print::print;
use crate::checkpoint::quoted;
use crate::error::{Error, Result};
use crate::methods::{REGISTRY, find};
use crate::ops::{BaseModel, MethodSpec, ParamDefault, ParamKind, ParamSpec, Role, Scope};
use crate::suggest::nearest;

/// List merging methods and task-vector stages, or show the parameters of one
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser methods
  merganser methods ties
  merganser methods --json | jq '.methods[].name'")]
pub(super) struct Methods {
    /// A method or stage
    name: Option<String>,
    #[command(flatten)]
    json: JsonFlag,
}

impl Methods {
    pub fn run(self) -> Result<u8> {
        let one = self.name.as_deref().map(|name| find(name).ok_or_else(|| unknown(name))).transpose()?;
        if self.json.json {
            let shown = one.map_or_else(|| REGISTRY.to_vec(), |spec| vec![spec]);
            print_document(Vec::new(), MethodsDocument { methods: shown.into_iter().map(document).collect() })?;
        } else {
            print(&one.map_or_else(list, in_words))?;
        }
        Ok(0)
    }
}

fn unknown(name: &str) -> Error {
    let error = Error::input(format!("{} is neither a merging method nor a task-vector stage", quoted(name)));
    match nearest(name, REGISTRY.iter().map(|spec| spec.name)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint("`merganser methods` lists them all"),
    }
}

fn list() -> String {
    let mut out = String::new();
    for (role, title) in [(Role::Method, "Methods"), (Role::Stage, "Stages in front of a method")] {
        out += &format!("{title}\n");
        for spec in REGISTRY.iter().filter(|spec| spec.role == role) {
            out += &hanging(&format!("  {:<17}", spec.name), &format!("{} ({})", spec.summary, spec.source));
        }
        out.push('\n');
    }
    out + "`merganser methods NAME` shows the parameters of one, and a recipe to copy.\n"
}

fn in_words(spec: &MethodSpec) -> String {
    let mut out = hanging("", &format!("{}: {}", spec.name, spec.summary)) + "\n";
    let mut line = |name: &str, text: &str| out += &hanging(&format!("{name:<12}"), text);
    line("source", spec.source);
    line(
        "named in",
        match spec.role {
            Role::Method => "merge_method",
            Role::Stage => "task_vector_stages",
        },
    );
    line(
        "base_model",
        match spec.base {
            BaseModel::Required => "required",
            _ => "optional",
        },
    );
    let models = match spec.models {
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("{least} to {most}"),
    };
    line("models", &models);
    if spec.role == Role::Method {
        line("stages", if spec.takes_stages { "may stand before it" } else { "cannot stand before it" });
    }
    line("tolerance", &format!("{:e} of the change, against a float64 reference", spec.tolerance));
    if !spec.parameters.is_empty() {
        out += "\nParameters\n";
    }
    for parameter in spec.parameters {
        let given = match parameter.scope {
            Scope::Global => "once",
            Scope::PerModel => "once or per model",
        };
        let (name, kind) = (parameter.name, kind(parameter.kind));
        let facts = match parameter.default {
            ParamDefault::Required => format!("{kind}; required; {given}"),
            ParamDefault::Absent => format!("{kind}; {given}"),
            other => format!("{kind}; {} by default; {given}", shown(other)),
        };
        out += &hanging(&format!("  {name:<10} "), &facts);
        out += &hanging("             ", parameter.help);
    }
    for group in spec.exclusive {
        let names: Vec<String> = group.iter().map(|name| format!("`{name}`")).collect();
        out += &hanging("\n", &format!("At most one of {}.", names.join(", ")));
    }
    if !spec.notes.is_empty() {
        out += &hanging("\n", spec.notes);
    }
    out + "\nA recipe to copy\n" + &indented(&recipe(spec))
}

/// Columns that text is broken at, between words.
const COLUMNS: usize = 80;

/// `text` behind `label`, in lines that begin where it does; no line is longer than [`COLUMNS`] but for a single long word.
fn hanging(label: &str, text: &str) -> String {
    let first = label.rsplit('\n').next().unwrap_or(label);
    let indent = " ".repeat(first.chars().count());
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let room = COLUMNS.saturating_sub(indent.len());
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(std::mem::take(&mut line));
        }
        line += if line.is_empty() { "" } else { " " };
        line += word;
    }
    lines.push(line);
    format!("{label}{}\n", lines.join(&format!("\n{indent}")))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// A recipe that names every parameter which has a value to show.
fn recipe(spec: &MethodSpec) -> String {
    let method = if spec.role == Role::Method { spec.name } else { "task_arithmetic" };
    let mut out = format!("merge_method: {method}\n");
    if spec.base == BaseModel::Required || spec.role == Role::Stage {
        out += "base_model: models/base\n";
    }
    out += "models:\n";
    let names = ["math", "code", "chat"];
    for name in names.iter().take(spec.models.1.min(names.len()).max(spec.models.0)) {
        out += &format!("  - model: models/{name}\n");
        for parameter in spec.parameters.iter().filter(|p| p.name == "weight") {
            let weight =
                if parameter.default == ParamDefault::Required { "1".into() } else { shown(parameter.default) };
            out += &format!("    parameters: {{weight: {weight}}}\n");
        }
    }
    let settings: Vec<String> = spec.parameters.iter().filter_map(setting).collect();
    let block = |indent: &str| settings.iter().map(|line| format!("{indent}{line}\n")).collect::<String>();
    match spec.role {
        Role::Stage => {
            out += &format!("task_vector_stages:\n  - stage: {}\n    parameters:\n{}", spec.name, block("      "))
        }
        Role::Method if settings.is_empty() => {}
        Role::Method => out += &format!("parameters:\n{}", block("  ")),
    }
    out
}

/// `density: 1`; `None` for what is better left out: it stands elsewhere, changes nothing, or is absent by default.
fn setting(parameter: &ParamSpec) -> Option<String> {
    let value = match (parameter.default, parameter.kind) {
        _ if ["weight", "int8_mask"].contains(&parameter.name) => return None,
        (ParamDefault::Absent, _) => return None,
        (ParamDefault::Required, ParamKind::Float { min, max }) => number(0.5f64.clamp(min, max)),
        (ParamDefault::Required, ParamKind::Int { min, .. }) => min.to_string(),
        (ParamDefault::Required, ParamKind::Choice(words)) => (*words.first()?).into(),
        (ParamDefault::Required, _) => return None,
        (other, _) => shown(other),
    };
    Some(format!("{}: {value}", parameter.name))
}

fn kind(kind: ParamKind) -> String {
    match kind {
        // The least positive number stands for an open interval.
        ParamKind::Float { min, max } if min == f64::MIN_POSITIVE => format!("number in (0, {}]", number(max)),
        ParamKind::Float { min, max } => format!("number in [{}, {}]", number(min), number(max)),
        ParamKind::Int { min, max } => format!("whole number in [{min}, {max}]"),
        ParamKind::Bool => "true or false".into(),
        ParamKind::Switch(words) => format!("true | false | {}", words.join(" | ")),
        ParamKind::Choice(words) => words.join(" | "),
        ParamKind::Patterns => "list of regular expressions".into(),
    }
}

/// `0.5`, `1`, `-1e6`.
fn number(value: f64) -> String {
    if value.abs() >= 1e5 { format!("{value:e}") } else { value.to_string() }
}

/// A default in the table: a word bare, none as a dash.
fn shown(of: ParamDefault) -> String {
    default(of).to_string().trim_matches('"').replace("null", "–")
}

fn default(default: ParamDefault) -> Value {
    match default {
        ParamDefault::Required | ParamDefault::Absent => Value::Null,
        ParamDefault::Float(value) => value.into(),
        ParamDefault::Int(value) => value.into(),
        ParamDefault::Bool(value) => value.into(),
        ParamDefault::Word(value) => value.into(),
    }
}

/// The document of methods.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct MethodsDocument {
    methods: Vec<Method>,
}

impl Document for MethodsDocument {
    const COMMAND: &'static str = "methods";
}

/// A method or stage.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Method {
    name: &'static str,
    /// `method` or `stage`.
    role: &'static str,
    summary: &'static str,
    source: &'static str,
    /// `required` or `optional`.
    base_model: &'static str,
    models: Range,
    takes_stages: bool,
    parameters: Vec<Parameter>,
    /// Groups of parameters of which at most one may be given.
    exclusive: Vec<Vec<&'static str>>,
    tolerance: f64,
    notes: &'static str,
    /// A recipe to copy.
    recipe: String,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Range {
    min: usize,
    max: usize,
}

/// A parameter; what does not apply to its kind is null.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Parameter {
    name: &'static str,
    /// `float`, `int`, `bool`, `choice` or `patterns`.
    kind: &'static str,
    /// The least value, a number.
    min: Option<Value>,
    /// The greatest value, a number.
    max: Option<Value>,
    choices: Option<Vec<&'static str>>,
    default: Value,
    required: bool,
    /// `global` or `per_model`.
    scope: &'static str,
    help: &'static str,
}

fn document(spec: &'static MethodSpec) -> Method {
    Method {
        name: spec.name,
        role: match spec.role {
            Role::Method => "method",
            Role::Stage => "stage",
        },
        summary: spec.summary,
        source: spec.source,
        base_model: match spec.base {
            BaseModel::Required => "required",
            _ => "optional",
        },
        models: Range { min: spec.models.0, max: spec.models.1 },
        takes_stages: spec.takes_stages,
        parameters: spec.parameters.iter().map(parameter).collect(),
        exclusive: spec.exclusive.iter().map(|group| group.to_vec()).collect(),
        tolerance: spec.tolerance,
        notes: spec.notes,
        recipe: recipe(spec),
    }
}

fn parameter(spec: &ParamSpec) -> Parameter {
    let (kind, range, choices) = match spec.kind {
        ParamKind::Float { min, max } => ("float", Some((min.into(), max.into())), None),
        ParamKind::Int { min, max } => ("int", Some((min.into(), max.into())), None),
        ParamKind::Bool => ("bool", None, None),
        ParamKind::Switch(words) => ("switch", None, Some([&["true", "false"][..], words].concat())),
        ParamKind::Choice(words) => ("choice", None, Some(words.to_vec())),
        ParamKind::Patterns => ("patterns", None, None),
    };
    let (min, max) = range.unzip();
    Parameter {
        name: spec.name,
        kind,
        min,
        max,
        choices,
        default: default(spec.default),
        required: spec.default == ParamDefault::Required,
        scope: match spec.scope {
            Scope::Global => "global",
            Scope::PerModel => "per_model",
        },
        help: spec.help,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::recipe::parse_bytes;

    #[test]
    fn every_method_and_stage_shows_a_recipe_that_is_valid() {
        for spec in REGISTRY {
            let text = recipe(spec);
            let read = parse_bytes(text.as_bytes()).unwrap_or_else(|e| panic!("{e} in\n{text}"));
            let named = [vec![read.method.name], read.stages.iter().map(|s| s.spec.name).collect()].concat();
            assert!(named.contains(&spec.name), "{text}");
            assert!(in_words(spec).contains(&indented(&text)), "{}", spec.name);
        }
    }

    #[test]
    fn no_line_is_wider_than_a_terminal_and_no_word_is_broken() {
        let texts = REGISTRY.iter().map(|spec| in_words(spec)).chain([list()]);
        for line in texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()) {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
        assert_eq!(hanging("a: ", "bb  cc\ndd"), "a: bb cc dd\n");
        let words = hanging("x ", &"word ".repeat(40));
        assert_eq!(words.split_whitespace().filter(|word| *word == "word").count(), 40, "{words}");
        assert!(words.lines().skip(1).all(|line| line.starts_with("  word")), "{words}");
    }
}
