//! The model card: what was merged, how, and how to do it again.

use std::fmt::Write;

use serde_json::Value;

use super::manifest::MANIFEST_NAME;

/// What a model card says. It holds nothing of when or where a merge ran, so that equal merges have equal cards.
#[derive(Debug, Clone)]
pub struct Card<'a> {
    /// The output's name.
    pub title: &'a str,
    /// The method's name.
    pub method: &'a str,
    /// What the method does, in a sentence.
    pub method_summary: &'a str,
    /// Where the method comes from.
    pub method_source: &'a str,
    /// What was merged, the base first.
    pub models: Vec<CardModel<'a>>,
    /// The recipe's text.
    pub recipe: &'a str,
    /// Seed of random masks.
    pub seed: u64,
    /// Version of merganser.
    pub version: &'a str,
    /// Element types that the output's tensors have, as safetensors names them.
    pub dtypes: Vec<String>,
    /// Number of elements of all tensors.
    pub parameters: u64,
    /// Whether the output has a `config.json`, which makes it a model that `transformers` loads.
    pub has_config: bool,
    /// What else the output holds than a merged model.
    pub note: Option<String>,
}

/// One row of the table of models.
#[derive(Debug, Clone)]
pub struct CardModel<'a> {
    /// As the recipe writes it.
    pub name: &'a str,
    /// `base` or `model`.
    pub role: &'a str,
    /// Its own parameters, such as `weight: 0.5`; empty for none.
    pub parameters: &'a str,
}

impl Card<'_> {
    /// The text of `README.md`.
    pub fn render(&self) -> String {
        let mut text = String::from("---\n");
        let mut line = |s: &str| {
            text.push_str(s);
            text.push('\n');
        };
        if self.has_config {
            line("library_name: transformers");
        }
        let mut names: Vec<&str> = Vec::new();
        for model in &self.models {
            let name = hub_name(model.name);
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        if !names.is_empty() {
            line("base_model:");
            names.iter().for_each(|name| line(&format!("- {}", yaml_string(name))));
            line("base_model_relation: merge");
        }
        line("tags:\n- merge\n- merganser\n---\n");
        line(&format!("# {}\n", plain(self.title)));
        line(&format!(
            "A merge of {} checkpoints, made with merganser {} by the method {}: {}\n",
            self.models.len(),
            plain(self.version),
            code(self.method),
            plain(self.method_summary)
        ));
        line(&format!("Source of the method: {}\n", plain(self.method_source)));
        line(&format!("{} parameters, stored as {}.\n", self.parameters, plain(&self.dtypes.join(", "))));
        if let Some(note) = &self.note {
            line(&format!("{note}\n"));
        }
        line("## Models\n\n| model | role | parameters |\n|---|---|---|");
        for model in &self.models {
            let parameters = if model.parameters.is_empty() { String::new() } else { code(model.parameters) };
            line(&format!("| {} | {} | {parameters} |", code(model.name), plain(model.role)));
        }
        let fence = "`".repeat(longest_backticks(self.recipe).max(2) + 1);
        line(&format!("\n## Recipe\n\n{fence}yaml\n{}\n{fence}\n", self.recipe.trim_end()));
        line("## How to make it again\n\nSave the recipe above as `recipe.yaml` and run\n");
        line(&format!("```\nmerganser merge recipe.yaml -o merged --seed {}\n```\n", self.seed));
        line(&format!(
            "`{MANIFEST_NAME}` has the digests of every source and of every tensor; `merganser verify` checks them."
        ));
        text
    }
}

/// The card of a task's model that was rebuilt from factors. Holds nothing of when or where that happened.
#[derive(Debug, Clone)]
pub struct RebuiltCard<'a> {
    /// The output's name.
    pub title: &'a str,
    /// The task's name.
    pub task: &'a str,
    /// The task's model, as the recipe of the merge wrote it.
    pub model: &'a str,
    /// What its low-rank part is multiplied by.
    pub lambda: f64,
    /// Version of merganser.
    pub version: &'a str,
    /// Element types that the output's tensors have, as safetensors names them.
    pub dtypes: Vec<String>,
    /// Number of elements of all tensors.
    pub parameters: u64,
    /// Tensors rebuilt from factors.
    pub rebuilt: usize,
    /// Whether the output has a `config.json`.
    pub has_config: bool,
}

impl RebuiltCard<'_> {
    /// The text of `README.md`.
    pub fn render(&self) -> String {
        let library = if self.has_config { "library_name: transformers\n" } else { "" };
        let model = yaml_string(hub_name(self.model));
        format!(
            "---\n{library}base_model:\n- {model}\ntags:\n- merganser\n---\n\n# {title}\n\n\
             The model {name} as merganser {version} rebuilt it from low-rank factors, task {task}: the centre of a merge plus \
             {lambda} times the task's own low-rank part in {rebuilt} matrices, and the centre in all other tensors.\n\n\
             {parameters} parameters, stored as {dtypes}.\n\n\
             `{MANIFEST_NAME}` has the merge's recipe, and the digests of the factors and of every tensor; `merganser verify` \
             checks them.\n",
            title = plain(self.title),
            name = code(self.model),
            version = plain(self.version),
            task = code(self.task),
            lambda = self.lambda,
            rebuilt = self.rebuilt,
            parameters = self.parameters,
            dtypes = plain(&self.dtypes.join(", ")),
        )
    }
}

/// What the card of an adapter says that was extracted from a fine-tune.
#[derive(Debug, Clone)]
pub struct AdapterCard<'a> {
    /// The output's name.
    pub title: &'a str,
    /// The base as the user wrote it.
    pub base: &'a str,
    /// The fine-tune as the user wrote it.
    pub tuned: &'a str,
    /// Version of merganser.
    pub version: &'a str,
    /// Matrices with factors.
    pub matrices: usize,
    /// The greatest rank of them.
    pub rank: u64,
    /// Tensors that are stored whole.
    pub whole: usize,
}

impl AdapterCard<'_> {
    /// The text of `README.md`.
    pub fn render(&self) -> String {
        format!(
            "---\nlibrary_name: peft\nbase_model:\n- {base_yaml}\ntags:\n- lora\n- merganser\n---\n\n# {title}\n\n\
             A LoRA adapter (PEFT) that merganser {version} extracted: on {base} it makes {tuned}, whose changes it holds as \
             factors of rank {rank} or less in {matrices} matrices, and whole in {whole} other tensors.\n\n\
             `{MANIFEST_NAME}` has the rank, the captured energy and the residual of every matrix, and the digests of both \
             models and of every tensor; `merganser verify` checks them.\n",
            base_yaml = yaml_string(hub_name(self.base)),
            title = plain(self.title),
            version = plain(self.version),
            base = code(hub_name(self.base)),
            tuned = code(hub_name(self.tuned)),
            rank = self.rank,
            matrices = self.matrices,
            whole = self.whole,
        )
    }
}

/// What the card of an adapter says that was merged from adapters.
#[derive(Debug, Clone)]
pub struct MergedAdapterCard<'a> {
    /// The output's name.
    pub title: &'a str,
    /// The base of all adapters.
    pub base: &'a str,
    /// The models as the recipe writes them.
    pub models: &'a [&'a str],
    /// The method's name.
    pub method: &'a str,
    /// The recipe's text.
    pub recipe: &'a str,
    /// Version of merganser.
    pub version: &'a str,
}

impl MergedAdapterCard<'_> {
    /// The text of `README.md`.
    pub fn render(&self) -> String {
        let fence = "`".repeat(longest_backticks(self.recipe).max(2) + 1);
        let models: Vec<String> = self.models.iter().map(|model| code(model)).collect();
        format!(
            "---\nlibrary_name: peft\nbase_model:\n- {base_yaml}\ntags:\n- lora\n- merge\n- merganser\n---\n\n# {title}\n\n\
             A LoRA adapter (PEFT) for {base} that merganser {version} merged by `{method}`, in core space, from {models}.\n\n\
             {fence}yaml\n{recipe}\n{fence}\n\n\
             `{MANIFEST_NAME}` has the recipe as resolved and the digests of sources and tensors; `merganser verify` checks them.\n",
            base_yaml = yaml_string(hub_name(self.base)),
            title = plain(self.title),
            base = code(hub_name(self.base)),
            version = plain(self.version),
            method = self.method,
            models = models.join(", "),
            recipe = self.recipe.trim_end(),
        )
    }
}

/// What the Hub may know a model by: `owner/name` as it is, of any other path only the last part, which tells nobody
/// how a disk is organised.
fn hub_name(name: &str) -> &str {
    let is_word = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    match name.split_once('/') {
        Some((owner, model)) if is_word(owner) && is_word(model) => name,
        _ => name.trim_end_matches('/').rsplit('/').next().unwrap_or(name),
    }
}

/// A double-quoted YAML scalar.
fn yaml_string(text: &str) -> String {
    let json = Value::from(text).to_string();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // JSON lets pass what YAML does not: DEL, the C1 controls, line separators, the byte-order mark.
        if matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Text that Markdown shows as it is, on one line.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '~' | '&' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A code span, fit for a cell of a table too.
fn code(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let ticks = "`".repeat(longest_backticks(&text) + 1);
    // The spaces keep backticks at the ends apart from the fence; Markdown drops them.
    let space = if text.starts_with('`') || text.ends_with('`') || text.is_empty() { " " } else { "" };
    format!("{ticks}{space}{}{space}{ticks}", text.replace('|', "\\|"))
}

fn longest_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn card() -> Card<'static> {
        Card {
            title: "my_merge",
            method: "task_arithmetic",
            method_summary: "adds scaled task vectors to the base.",
            method_source: "arXiv 2212.04089",
            models: vec![
                CardModel { name: "org/base-7b", role: "base", parameters: "" },
                CardModel { name: "/home/someone/models/math", role: "model", parameters: "weight: 0.5" },
                CardModel { name: "../models/math/", role: "model", parameters: "" },
            ],
            recipe: "merge_method: task_arithmetic\n",
            seed: 7,
            version: "0.1.0",
            dtypes: vec!["BF16".into(), "I64".into()],
            parameters: 1234,
            has_config: true,
            note: None,
        }
    }

    #[test]
    fn a_card_reads_as_it_should() {
        let expected = r#"---
library_name: transformers
base_model:
- "org/base-7b"
- "math"
base_model_relation: merge
tags:
- merge
- merganser
---

# my\_merge

A merge of 3 checkpoints, made with merganser 0.1.0 by the method `task_arithmetic`: adds scaled task vectors to the base.

Source of the method: arXiv 2212.04089

1234 parameters, stored as BF16, I64.

## Models

| model | role | parameters |
|---|---|---|
| `org/base-7b` | base |  |
| `/home/someone/models/math` | model | `weight: 0.5` |
| `../models/math/` | model |  |

## Recipe

```yaml
merge_method: task_arithmetic
```

## How to make it again

Save the recipe above as `recipe.yaml` and run

```
merganser merge recipe.yaml -o merged --seed 7
```

`merganser.json` has the digests of every source and of every tensor; `merganser verify` checks them.
"#;
        assert_eq!(card().render(), expected);
        assert!(!Card { has_config: false, ..card() }.render().contains("transformers"));
    }

    #[test]
    fn a_rebuilt_models_card_names_its_task_and_cannot_be_broken_out_of() {
        let card = RebuiltCard {
            title: "ma_th",
            task: "math",
            model: "models/math",
            lambda: 0.5,
            version: "0.1.0",
            dtypes: vec!["BF16".into()],
            parameters: 7,
            rebuilt: 3,
            has_config: true,
        };
        let text = card.render();
        assert!(text.starts_with(
            "---\nlibrary_name: transformers\nbase_model:\n- \"models/math\"\ntags:\n- merganser\n---\n\n# ma\\_th\n"
        ));
        assert!(text.contains("task `math`: the centre of a merge plus 0.5 times") && text.contains("in 3 matrices"));
        let evil = RebuiltCard { model: "x\n---\n# y", ..card }.render();
        assert_eq!(evil.lines().filter(|line| *line == "---").count(), 2);
        assert_eq!(evil.lines().filter(|line| line.starts_with("# ")).count(), 1);
    }

    #[test]
    fn no_recipe_can_end_its_fence() {
        let recipe = "a: 1\n`````\n# evil\n";
        let text = Card { recipe, ..card() }.render();
        assert!(text.contains(&format!("\n``````yaml\n{}\n``````\n", recipe.trim_end())));
    }

    #[test]
    fn names_cannot_break_out_of_the_front_matter_or_the_table() {
        let name = "x\"\n---\n| `evil` <b>\u{85}";
        let models = vec![CardModel { name, role: "base", parameters: "a|b" }];
        let text = Card { title: name, models, ..card() }.render();
        let front: Vec<&str> = text.lines().take_while(|l| !l.starts_with("# ")).collect();
        assert_eq!(front.iter().filter(|l| **l == "---").count(), 2);
        let yaml = front.iter().find(|l| l.starts_with("- \"")).unwrap();
        let read: String = serde_json::from_str(&yaml[2..]).unwrap();
        assert_eq!(read, name);
        assert!(yaml.contains("\\u0085"));
        let row = text.lines().find(|l| l.contains("base |")).unwrap();
        assert_eq!(row, "| ``x\" --- \\| `evil` <b> `` | base | `a\\|b` |");
    }

    #[test]
    fn names_from_a_disk_keep_only_their_last_part() {
        for (name, expected) in [
            ("org/model", "org/model"),
            ("model", "model"),
            ("./model", "model"),
            ("a/b/c", "c"),
            ("/x/y/", "y"),
            ("../m.safetensors", "m.safetensors"),
            ("/", ""),
        ] {
            assert_eq!(hub_name(name), expected);
        }
    }
}
