//! The entry points of the merging kernels, made from the table of rules: their CUDA source, and the Rust that knows their names.

use std::fmt::Write as _;

use crate::rules::{Kernels, RuleId, Sources};

/// A form of kernel: a template of one source, and what stands before each entry point that is made of it.
struct Form {
    name: &'static str,
    /// File of `kernels/` that holds the template.
    source: &'static str,
    /// The template with its arguments up to the sources' type.
    template: &'static str,
    /// Launch bounds, and those of kernels that compute in f64.
    bounds: [&'static str; 2],
    /// Whether it counts what it keeps in shared memory.
    counts: bool,
    of: fn(&Kernels) -> Sources,
}

const FORMS: [Form; 4] = [
    Form {
        name: "plain",
        source: "blend_plain",
        template: "blend_plain<RULE",
        bounds: ["256", "256"],
        counts: false,
        of: |kernels| kernels.plain,
    },
    Form {
        name: "sparse",
        source: "blend_pruned",
        template: "blend_pruned<RULE, false",
        bounds: ["256, 3", "256"],
        counts: true,
        of: |kernels| kernels.sparse,
    },
    Form {
        name: "staged",
        source: "blend_pruned",
        template: "blend_pruned<RULE, true",
        bounds: ["256", "256"],
        counts: true,
        of: |kernels| kernels.staged,
    },
    Form {
        name: "tile",
        source: "blend_tile",
        template: "blend_tile<RULE",
        bounds: ["128", "128"],
        counts: true,
        of: |kernels| kernels.tile,
    },
];

/// The kinds of sources that kernels are compiled for: suffix, type of the sources, computing type.
const EACH: [(&str, &str, &str); 5] =
    [("bf16", "BF16", "float"), ("f16", "F16", "float"), ("f32", "F32", "float"), ANY[0], ANY[1]];
const ANY: [(&str, &str, &str); 2] = [("any", "ANY", "float"), ("f64", "ANY", "double")];

fn kinds(sources: Sources) -> &'static [(&'static str, &'static str, &'static str)] {
    match sources {
        Sources::None => &[],
        Sources::Each => &EACH,
        Sources::Any => &ANY,
    }
}

fn name(form: &Form, rule: RuleId, suffix: &str) -> String {
    format!("blend_{}_{}_{suffix}", form.name, rule.name())
}

/// What is added to the end of a source of `kernels/`.
pub fn of_source(stem: &str) -> String {
    let mut text = String::new();
    for form in FORMS.iter().filter(|form| form.source == stem) {
        for rule in RuleId::ALL {
            for (suffix, source, computed) in kinds((form.of)(&rule.kernels())) {
                let bounds = form.bounds[usize::from(*computed == "double")];
                let template = form.template.replace("RULE", rule.type_name());
                let _ = writeln!(
                    text,
                    "extern \"C\" __launch_bounds__({bounds}) __global__ void {}(const __grid_constant__ Blend p) {{",
                    name(form, *rule, suffix)
                );
                if form.counts {
                    let _ = writeln!(text, "  __shared__ u32 kept[MAX_MODELS];");
                }
                let kept = if form.counts { ", kept" } else { "" };
                let _ = writeln!(text, "  {template}, {source}, {computed}>(p{kept});\n}}");
            }
        }
    }
    text
}

/// Rust: the module and the name of each entry point, by rule, form and kind.
pub fn names() -> String {
    let mut text = String::from(
        "/// Module and name of the kernel of a rule, in a form, for a kind of sources; `None` where there is none.\n\
         pub(super) fn blend_entry(rule: &str, form: &str, kind: &str) -> Option<(&'static str, &'static str)> {\n    \
         Some(match (rule, form, kind) {\n",
    );
    for form in &FORMS {
        for rule in RuleId::ALL {
            for (suffix, ..) in kinds((form.of)(&rule.kernels())) {
                let (form_name, rule_name) = (form.name, rule.name());
                let entry = name(form, *rule, suffix);
                let _ = writeln!(
                    text,
                    "        (\"{rule_name}\", \"{form_name}\", \"{suffix}\") => (\"{}\", \"{entry}\"),",
                    form.source
                );
            }
        }
    }
    text.push_str("        _ => return None,\n    })\n}\n");
    text
}
