//! What mergekit's configurations hold beyond what merganser reads: told apart from mistakes, by name.

use crate::methods::REGISTRY;
use crate::ops::Role;

/// mergekit's methods.
const METHODS: [&str; 20] = [
    "linear",
    "slerp",
    "passthrough",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "dare_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "model_stock",
    "nuslerp",
    "multislerp",
    "karcher",
    "nearswap",
    "sce",
    "arcee_fusion",
    "ram",
    "ramplus_tl",
];

/// Parameters of mergekit's methods, those of today's releases and of earlier ones, and what recipes took for one.
const PARAMETERS: [&str; 31] = [
    "weight",
    "density",
    "gamma",
    "epsilon",
    "scale",
    "normalize",
    "rescale",
    "int8_mask",
    "lambda",
    "t",
    "select_topk",
    "filter_wise",
    "max_iter",
    "tol",
    "eps",
    "normalize_weights",
    "nuslerp_row_wise",
    "nuslerp_flatten",
    "r",
    "alpha",
    "embed_slerp",
    "dtype",
    "out_dtype",
    "lamda",
    "lambda_",
    "dare_pruning_rate",
    "drop_rate",
    "smooth",
    "allow_negative_weights",
    "random_seed",
    "seed",
];

/// Top-level keys that published recipes hold and that neither mergekit nor merganser reads.
const TOP: [&str; 14] = [
    "name",
    "random_seed",
    "seed",
    "description",
    "author",
    "license",
    "tags",
    "version",
    "comment",
    "model_name",
    "output_dir",
    "lora_merge_cache",
    "trust_remote_code",
    "allow_crimes",
];

/// Whether mergekit has a method of this name.
pub(super) fn is_mergekits(method: &str) -> bool {
    METHODS.contains(&method)
}

/// Whether it is a parameter of merganser's own methods and stages alone.
pub(super) fn is_only_ours(key: &str) -> bool {
    let has = |mergekits: bool| {
        let methods = REGISTRY.iter().filter(|m| (m.role == Role::Method && is_mergekits(m.name)) == mergekits);
        methods.flat_map(|m| m.parameters).any(|p| p.name == key)
    };
    !PARAMETERS.contains(&key) && has(false) && !has(true)
}

/// Whether mergekit's users know a top-level key that mergekit ignores: a parameter outside `parameters`, or a remark.
pub(super) fn is_ignored_at_top(key: &str) -> bool {
    TOP.contains(&key) || PARAMETERS.contains(&key)
}

/// Whether it is, or was, a parameter of some method of mergekit.
pub(super) fn is_parameter(key: &str) -> bool {
    let elsewhere = ["dtype", "out_dtype", "seed", "random_seed"];
    (PARAMETERS.contains(&key) && !elsewhere.contains(&key))
        || REGISTRY.iter().flat_map(|m| m.parameters).any(|p| p.name == key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_mergekit_has_its_row_in_the_documentation() {
        let page = include_str!("../../docs/mergekit.md");
        for method in METHODS {
            let is_there = page.lines().any(|line| line.starts_with("| `") && line.contains(&format!("`{method}`")));
            assert!(is_there, "{method}");
        }
    }

    #[test]
    fn parameters_of_methods_that_mergekit_has_are_not_ours_alone() {
        for method in REGISTRY.iter().filter(|m| m.role == Role::Method && is_mergekits(m.name)) {
            for parameter in method.parameters {
                assert!(!is_only_ours(parameter.name), "{}: {}", method.name, parameter.name);
            }
        }
        for own in ["keep", "rank", "rank_ratio", "energy", "eligible", "granularity"] {
            assert!(is_only_ours(own), "{own}");
        }
        assert!(!is_only_ours("frobnicate") && !is_only_ours("lamda"));
    }
}
