//! Recipes: one for every method of the registry, made from what it declares of itself.

use merganser::methods::REGISTRY;
use merganser::ops::{BaseModel, MethodSpec, ParamDefault, ParamKind, ParamSpec, Role};

use super::family::name;

/// Every merging method.
pub fn methods() -> impl Iterator<Item = &'static MethodSpec> {
    REGISTRY.iter().copied().filter(|m| m.role == Role::Method)
}

/// Methods that stages can stand before.
pub fn staged_methods() -> impl Iterator<Item = &'static MethodSpec> {
    methods().filter(|m| m.takes_stages)
}

/// How many models of three a method takes.
pub fn models_of(method: &MethodSpec) -> usize {
    method.models.1.min(3)
}

/// A recipe in parts.
#[derive(Debug, Clone)]
pub struct Text {
    pub method: String,
    /// Members of a [`Family`](super::family::Family), in model order.
    pub models: Vec<usize>,
    /// The weight of each, where not all have the same.
    pub weights: Vec<f64>,
    /// `key: value` for all models.
    pub parameters: Vec<(String, String)>,
    /// Stages as YAML flow mappings.
    pub stages: Vec<String>,
    /// Further lines at the top level.
    pub more: String,
    pub base: bool,
}

impl Text {
    /// A method over the models 1 to `models`, with nothing set.
    pub fn plain(method: &str, models: usize) -> Self {
        Self {
            method: method.into(),
            models: (1..=models).collect(),
            weights: Vec::new(),
            parameters: Vec::new(),
            stages: Vec::new(),
            more: String::new(),
            base: true,
        }
    }

    /// A method as its declaration allows, with settings that give every part of it work.
    pub fn of(method: &MethodSpec) -> Self {
        let mut text = Self::plain(method.name, models_of(method));
        for parameter in method.parameters {
            if let Some(value) = telling_value(parameter) {
                text = text.set(parameter.name, &value);
            }
        }
        if method.base == BaseModel::Optional {
            text.base = true;
        }
        text
    }

    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.parameters.retain(|(k, _)| k != key);
        self.parameters.push((key.into(), value.into()));
        self
    }

    pub fn unset(mut self, key: &str) -> Self {
        self.parameters.retain(|(k, _)| k != key);
        self
    }

    /// Puts an `lwptv` stage behind the others.
    pub fn lwptv(mut self, parameters: &str) -> Self {
        self.stages.push(format!("{{stage: lwptv, parameters: {{{parameters}}}}}"));
        self
    }

    pub fn weights(mut self, weights: &[f64]) -> Self {
        self.weights = weights.to_vec();
        self
    }

    pub fn models(mut self, models: &[usize]) -> Self {
        self.models = models.to_vec();
        self
    }

    pub fn more(mut self, line: &str) -> Self {
        self.more += line;
        self.more += "\n";
        self
    }

    pub fn yaml(&self) -> String {
        let mut text = format!("merge_method: {}\n", self.method);
        if self.base {
            text += "base_model: base\n";
        }
        text += "models:\n";
        for (i, model) in self.models.iter().enumerate() {
            text += &format!("  - model: {}\n", name(*model));
            if let Some(weight) = self.weights.get(i) {
                text += &format!("    parameters: {{weight: {weight}}}\n");
            }
        }
        if !self.parameters.is_empty() {
            text += "parameters:\n";
            for (key, value) in &self.parameters {
                text += &format!("  {key}: {value}\n");
            }
        }
        if !self.stages.is_empty() {
            text += "task_vector_stages:\n";
            for stage in &self.stages {
                text += &format!("  - {stage}\n");
            }
        }
        text + &self.more
    }
}

/// A value that makes a parameter matter; `None` leaves it at its default.
fn telling_value(parameter: &ParamSpec) -> Option<String> {
    match (parameter.name, parameter.kind, parameter.default) {
        ("density", ..) => Some("0.4".into()),
        ("lambda", ..) => Some("0.7".into()),
        ("scale", ..) => Some("1.5".into()),
        (_, kind, ParamDefault::Required) => Some(match kind {
            ParamKind::Float { min, max } => 0.3_f64.clamp(min, max).to_string(),
            ParamKind::Int { min, max } => 2.clamp(min, max).to_string(),
            ParamKind::Bool | ParamKind::Switch(_) => "true".into(),
            ParamKind::Choice(words) => words[0].into(),
            ParamKind::Patterns => "['.*']".into(),
        }),
        _ => None,
    }
}
