//! `merganser methods`: the registry, shown.

use clap::Args;
use serde_json::{Map, Value, json};

use super::JsonFlag;
use super::print::{Align, Table, print, print_json};
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
            let methods: Vec<Value> = shown.into_iter().map(document).collect();
            print_json(&json!({ "schema": 1, "methods": methods }))?;
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
    for (role, title) in [(Role::Method, "method"), (Role::Stage, "stage")] {
        let mut table = Table::new(&[(title, Align::Left), ("source", Align::Left), ("what it computes", Align::Left)]);
        for spec in REGISTRY.iter().filter(|spec| spec.role == role) {
            table.row(vec![spec.name.into(), spec.source.into(), spec.summary.into()]);
        }
        out += &table.render("");
        out.push('\n');
    }
    out + "`merganser methods NAME` shows the parameters of one.\n"
}

fn in_words(spec: &MethodSpec) -> String {
    let mut out = format!("{}: {}\n\n", spec.name, spec.summary);
    let mut line = |name: &str, text: String| out += &format!("{name:<12}{text}\n");
    line("source", spec.source.into());
    line(
        "named in",
        match spec.role {
            Role::Method => "merge_method".into(),
            Role::Stage => "task_vector_stages".into(),
        },
    );
    line(
        "base_model",
        match spec.base {
            BaseModel::Required => "required".into(),
            BaseModel::Optional | BaseModel::JoinsByWeight => "optional".into(),
        },
    );
    line(
        "models",
        match spec.models {
            (least, most) if least == most => least.to_string(),
            (least, most) => format!("{least} to {most}"),
        },
    );
    if spec.role == Role::Method {
        let stages = if spec.takes_stages { "may stand before it" } else { "cannot stand before it" };
        line("stages", stages.into());
    }
    line("tolerance", format!("{:e} of the change, against a float64 reference", spec.tolerance));
    if !spec.parameters.is_empty() {
        use Align::Left;
        let mut table = Table::new(&[
            ("parameter", Left),
            ("value", Left),
            ("default", Left),
            ("given", Left),
            ("what it is", Left),
        ]);
        for parameter in spec.parameters {
            table.row(vec![
                parameter.name.into(),
                kind(parameter.kind),
                shown(parameter.default),
                match (parameter.default, parameter.scope) {
                    (ParamDefault::Required, Scope::Global) => "once, required".into(),
                    (ParamDefault::Required, Scope::PerModel) => "once or per model, required".into(),
                    (_, Scope::Global) => "once".into(),
                    (_, Scope::PerModel) => "once or per model".into(),
                },
                parameter.help.into(),
            ]);
        }
        out += &format!("\n{}", table.render(""));
    }
    for group in spec.exclusive {
        let names: Vec<String> = group.iter().map(|name| format!("`{name}`")).collect();
        out += &format!("\nAt most one of {}.\n", names.join(", "));
    }
    if !spec.notes.is_empty() {
        out += &format!("\n{}\n", spec.notes);
    }
    out
}

fn kind(kind: ParamKind) -> String {
    match kind {
        // The least positive number stands for an open interval.
        ParamKind::Float { min, max } if min == f64::MIN_POSITIVE => format!("number in (0, {}]", number(max)),
        ParamKind::Float { min, max } => format!("number in [{}, {}]", number(min), number(max)),
        ParamKind::Int { min, max } => format!("whole number in [{min}, {max}]"),
        ParamKind::Bool => "true or false".into(),
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
        ParamDefault::Bool(value) => value.into(),
        ParamDefault::Word(value) => value.into(),
    }
}

fn document(spec: &'static MethodSpec) -> Value {
    json!({
        "name": spec.name,
        "role": match spec.role { Role::Method => "method", Role::Stage => "stage" },
        "summary": spec.summary,
        "source": spec.source,
        "base_model": match spec.base { BaseModel::Required => "required", BaseModel::Optional | BaseModel::JoinsByWeight => "optional" },
        "models": { "min": spec.models.0, "max": spec.models.1 },
        "takes_stages": spec.takes_stages,
        "parameters": spec.parameters.iter().map(parameter).collect::<Vec<_>>(),
        "exclusive": spec.exclusive,
        "tolerance": spec.tolerance,
        "notes": spec.notes,
    })
}

fn parameter(spec: &ParamSpec) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| drop(out.insert(key.into(), value));
    put("name", spec.name.into());
    match spec.kind {
        ParamKind::Float { min, max } => {
            put("kind", "float".into());
            put("min", min.into());
            put("max", max.into());
        }
        ParamKind::Int { min, max } => {
            put("kind", "int".into());
            put("min", min.into());
            put("max", max.into());
        }
        ParamKind::Bool => put("kind", "bool".into()),
        ParamKind::Choice(words) => {
            put("kind", "choice".into());
            put("choices", words.into());
        }
        ParamKind::Patterns => put("kind", "patterns".into()),
    }
    put("default", default(spec.default));
    put("required", (spec.default == ParamDefault::Required).into());
    put(
        "scope",
        match spec.scope {
            Scope::Global => "global",
            Scope::PerModel => "per_model",
        }
        .into(),
    );
    put("help", spec.help.into());
    Value::Object(out)
}
