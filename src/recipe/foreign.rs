//! What mergekit's configurations may hold that merganser does not do: told apart from mistakes, by name.

use crate::methods;
use crate::ops::{ParamSpec, Role};

/// Top-level keys of mergekit with what to do instead.
pub(super) const KEYS: [(&str, &str); 5] = [
    ("slices", "merge whole models: list them under `models`"),
    ("modules", "merge whole models: list them under `models`"),
    ("tokenizer_source", "leave it out: the base's tokenizer is copied as it is"),
    ("tokenizer", "leave it out: the base's tokenizer is copied as it is"),
    ("chat_template", "leave it out: the base's chat template is copied as it is"),
];

/// Methods of mergekit, each with the method here that does most nearly the same.
const METHODS: [(&str, &str); 13] = [
    ("breadcrumbs", "dare_linear"),
    ("breadcrumbs_ties", "ties"),
    ("della", "dare_ties"),
    ("della_linear", "dare_linear"),
    ("sce", "ties"),
    ("model_stock", "linear"),
    ("nuslerp", "slerp"),
    ("multislerp", "linear"),
    ("karcher", "linear"),
    ("nearswap", "slerp"),
    ("ram", "magmax"),
    ("ramplus_tl", "magmax"),
    ("arcee_fusion", "ties"),
];

/// Parameters that mergekit accepts for a method and ignores.
const WITHOUT_EFFECT: [(&str, &[&str]); 1] = [("task_arithmetic", &["density", "rescale"])];

/// For a method that mergekit has and merganser has not: the nearest here.
pub(super) fn nearest_method(name: &str) -> Option<&'static str> {
    METHODS.iter().find(|(n, _)| *n == name).map(|(_, near)| *near)
}

/// For a parameter that mergekit accepts here without effect: what it is where it has one.
pub(super) fn without_effect(method: &str, key: &str) -> Option<&'static ParamSpec> {
    let (_, keys) = WITHOUT_EFFECT.iter().find(|(m, _)| *m == method)?;
    keys.contains(&key).then_some(())?;
    methods::REGISTRY
        .iter()
        .filter(|m| m.role == Role::Method)
        .find_map(|m| m.parameters.iter().find(|p| p.name == key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_method_to_each_of_mergekits_exists_here() {
        for (name, near) in METHODS {
            assert!(methods::find(near).is_some_and(|m| m.role == Role::Method), "{name}: {near}");
        }
    }

    #[test]
    fn parameters_without_effect_have_one_elsewhere() {
        for (method, keys) in WITHOUT_EFFECT {
            for key in keys {
                assert!(without_effect(method, key).is_some(), "{method}: {key}");
            }
        }
        assert!(without_effect("ties", "density").is_none());
    }
}
