//! What a parameter's setting says of one tensor: filters, then the gradient over layers.

use crate::ops::{ParamDefault, ParamKind, ParamSpec, Value};

/// What a parameter is where a recipe does not give it; `None` if it must.
pub(super) fn default_of(spec: &ParamSpec) -> Option<Value> {
    match spec.default {
        ParamDefault::Required => None,
        ParamDefault::Absent => Some(Value::Absent),
        ParamDefault::Float(v) => Some(Value::Float(v)),
        ParamDefault::Int(v) => Some(Value::Int(v)),
        ParamDefault::Bool(v) => Some(Value::Bool(v)),
        ParamDefault::Word(v) => Some(Value::Word(v)),
    }
}

/// One validated setting of one parameter.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub spec: &'static ParamSpec,
    /// Line of its key.
    pub line: usize,
    /// At least one; the first whose filter matches gives the value.
    pub rules: Vec<Rule>,
    /// Whether it was written as a list of `{filter, value}` or as one of them, and not as a bare value.
    pub form: Form,
}

/// How a setting was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Bare,
    OneRule,
    Rules,
}

/// A value for the tensors whose name contains a text.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub filter: Option<String>,
    pub gradient: Gradient,
}

/// Values over the layers: at least one, all of the parameter's kind.
#[derive(Debug, Clone)]
pub(super) struct Gradient {
    pub values: Vec<Value>,
    /// Written as a list, even if of one value.
    pub list: bool,
}

impl Setting {
    /// Its value for a tensor; `None` if no filter matches.
    pub fn resolve(&self, tensor: &str, t: f64) -> Option<Value> {
        self.rules.iter().find(|rule| rule.matches(tensor)).map(|rule| rule.gradient.at(t, self.spec.kind))
    }

    /// Whether it has a value for every tensor.
    pub fn is_total(&self) -> bool {
        self.rules.iter().any(Rule::matches_all)
    }

    /// As it was written.
    pub fn to_json(&self) -> serde_json::Value {
        match (self.form, self.rules.as_slice()) {
            (Form::Bare, [rule, ..]) => rule.gradient.to_json(),
            (Form::OneRule, [rule, ..]) => rule.to_json(),
            (_, rules) => rules.iter().map(Rule::to_json).collect(),
        }
    }
}

impl Rule {
    fn matches(&self, tensor: &str) -> bool {
        self.matches_all() || self.filter.as_ref().is_some_and(|part| !tensor.is_empty() && tensor.contains(part))
    }

    pub fn matches_all(&self) -> bool {
        self.filter.as_deref().is_none_or(|part| part == "*")
    }

    fn to_json(&self) -> serde_json::Value {
        let mut map = serde_json::Map::new();
        if let Some(filter) = &self.filter {
            map.insert("filter".into(), filter.as_str().into());
        }
        map.insert("value".into(), self.gradient.to_json());
        map.into()
    }
}

impl Gradient {
    /// The value at `t` of the way from the first layer to the last, as mergekit evaluates it: numbers interpolate
    /// between the two nearest values, words and truth values jump.
    fn at(&self, t: f64, kind: ParamKind) -> Value {
        let last = self.values.len().saturating_sub(1);
        // Also for a NaN, which `clamp` would keep.
        let t = if t > 0.0 { t.min(1.0) } else { 0.0 };
        let scaled = t * last as f64;
        let low = (scaled as usize).min(last);
        let high = (low + 1).min(last);
        match (&self.values[low], &self.values[high]) {
            (Value::Float(a), Value::Float(b)) if a != b => {
                let share = scaled - low as f64;
                let value = (1.0 - share) * a + share * b;
                // Rounding must not leave the range that both ends were checked against.
                Value::Float(if let ParamKind::Float { min, max } = kind { value.clamp(min, max) } else { value })
            }
            // Whole numbers come only as equal ones (checked when read).
            (value, _) => value.clone(),
        }
    }

    fn to_json(&self) -> serde_json::Value {
        match self.values.as_slice() {
            [value] if !self.list => value.to_json(),
            values => values.iter().map(Value::to_json).collect(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ANY: ParamKind = ParamKind::Float { min: -10.0, max: 10.0 };

    fn floats(values: &[f64]) -> Gradient {
        Gradient { values: values.iter().map(|v| Value::Float(*v)).collect(), list: true }
    }

    #[test]
    fn a_gradient_of_numbers_interpolates_between_the_two_nearest() {
        // Five layers over three values: t = 0, 1/4, 1/2, 3/4, 1 fall on 0, 1/2, 1, 3/2, 2 of the list.
        let g = floats(&[0.0, 0.5, 0.75]);
        for (t, expected) in [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.625), (1.0, 0.75)] {
            assert_eq!(g.at(t, ANY), Value::Float(expected), "t = {t}");
        }
    }

    #[test]
    fn a_gradient_of_one_value_is_that_value_at_every_layer() {
        for t in [0.0, 0.3, 1.0] {
            assert_eq!(floats(&[0.7]).at(t, ANY), Value::Float(0.7));
        }
    }

    #[test]
    fn a_gradient_of_words_takes_the_value_at_the_floor_of_its_place() {
        let words = ["a", "b", "c"].map(Value::Word).to_vec();
        let g = Gradient { values: words, list: true };
        // int(t * 2): 0.49 -> 0, 0.5 -> 1, 0.99 -> 1, 1.0 -> 2.
        for (t, expected) in [(0.0, "a"), (0.49, "a"), (0.5, "b"), (0.99, "b"), (1.0, "c")] {
            assert_eq!(g.at(t, ParamKind::Choice(&["a", "b", "c"])), Value::Word(expected), "t = {t}");
        }
    }

    #[test]
    fn places_outside_the_layers_take_the_nearest_end() {
        let g = floats(&[1.0, 2.0]);
        for (t, expected) in [(-1.0, 1.0), (f64::NAN, 1.0), (1.5, 2.0), (f64::INFINITY, 2.0)] {
            assert_eq!(g.at(t, ANY), Value::Float(expected), "t = {t}");
        }
    }

    #[test]
    fn interpolation_stays_inside_the_range() {
        let kind = ParamKind::Float { min: 0.1, max: 0.3 };
        for i in 0..=1000 {
            let Value::Float(v) = floats(&[0.1, 0.3, 0.1]).at(f64::from(i) / 1000.0, kind) else { unreachable!() };
            assert!((0.1..=0.3).contains(&v), "{v}");
        }
    }

    #[test]
    fn asking_for_the_wrong_kind_is_an_internal_error() {
        let error = Value::Bool(true).float().unwrap_err();
        assert_eq!(error.to_string(), "a method asked for a number and its parameter is Bool(true)");
        assert_eq!(error.kind(), crate::error::Kind::Internal);
    }
}
