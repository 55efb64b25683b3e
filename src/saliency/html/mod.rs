//! A report as one page that needs nothing but itself: no script, no font, nothing from elsewhere.
//!
//! Names come from strangers' files: the template escapes all that it is given, control characters are shown as what they
//! are, and the page forbids itself everything but its own style.

mod measures;
mod scale;
mod tables;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::report::{Choice, Group, Report, TaskReport};
use crate::checkpoint::escaped;
use measures::Measure;
use scale::Kind;
use tables::{Heat, Name, Row};

/// The page's style.
const STYLE: &str = include_str!("report.css");
/// What the page may load: its own style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
/// Cells of a table beyond which tensors are left to the JSON: a page must open.
const MOST_CELLS: u64 = 40_000;
/// Pairs of tasks up to which a table has a column for each.
const MOST_PAIRS: usize = 45;
/// Bytes of a cell with its title, more or less.
const CELL_BYTES: u64 = 220;

/// Bytes of a page, and of its parts while it is put together.
pub(super) fn bytes(entries: u64, models: u64, choices: u64) -> u64 {
    let tables = 9 + 2 * choices;
    let pairs = models * models;
    let most = |cells: u64| if cells > MOST_CELLS { 0 } else { cells };
    // Layers, which are never left out, are no more than entries; tensors are another table.
    2 * CELL_BYTES * (tables * (entries * models + most(entries * models)) + 2 * (pairs + entries * pairs.min(45)))
}

/// The page.
pub(super) fn page(report: &Report) -> String {
    let page = Page { report, tasks: short_names(&report.tasks) };
    page.render().into_string()
}

struct Page<'a> {
    report: &'a Report,
    tasks: Vec<Name>,
}

impl Page<'_> {
    fn render(&self) -> Markup {
        let report = self.report;
        let measures = self.measures();
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="generator" content=(format!("merganser {}", report.merganser));
                    title { "Task vectors of " (escaped(&report.recipe)) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    (self.head(&measures))
                    (self.overview())
                    (self.between_tasks())
                    @for (i, measure) in measures.iter().enumerate() { (self.section(i, measure)) }
                }
            }
        }
    }

    fn head(&self, measures: &[Measure]) -> Markup {
        let report = self.report;
        html! {
            header {
                h1 { "Task vectors of " (escaped(&report.recipe)) }
                p {
                    (count(report.tasks.len() as u64, "task")) " on the base " (escaped(&report.base)) ": "
                    (count(report.tensors as u64, "tensor")) " in " (count(report.layers.len() as u64, "layer")) ", "
                    (count(report.total.elements, "parameter")) ". "
                    @if report.copied_tensors > 0 {
                        (count(report.copied_tensors as u64, "tensor")) " copied from the base: no task vector. "
                    }
                    "A task vector τ is a fine-tuned model minus the base; R is the sum of the other tasks' vectors."
                }
                nav aria-label="Contents" {
                    @for (i, measure) in measures.iter().enumerate() { a href=(format!("#m{i}")) { (measure.title) } " " }
                }
                @if !report.choices.is_empty() {
                    ul { @for (i, choice) in report.choices.iter().enumerate() { li { (self.choice(i, choice)) } } }
                }
            }
        }
    }

    /// What a stage was asked, in words.
    fn choice(&self, i: usize, choice: &Choice) -> String {
        let rule = &choice.rule;
        let word = |word: Option<&'static str>| word.unwrap_or("as the recipe says");
        let keep = rule.keep.map_or("as the recipe says".into(), |keep| keep.to_string());
        let whose = if choice.of_recipe { "as a merge of the recipe does it" } else { "asked for" };
        format!(
            "{}: score {}, by {}, keep {keep}, order {}, rescale {} ({whose})",
            self.choice_name(i),
            word(rule.score),
            word(rule.granularity),
            word(rule.order),
            word(rule.rescale),
        )
    }

    /// A stage's question, short.
    fn choice_name(&self, i: usize) -> String {
        let choices = &self.report.choices;
        let choice = &choices[i];
        let stages = choices.iter().map(|c| c.stage).max().unwrap_or_default() + 1;
        let which =
            if stages > 1 { format!("{} (stage {})", choice.name, choice.stage + 1) } else { choice.name.into() };
        match (choice.of_recipe, choice.rule.keep) {
            (false, Some(keep)) => format!("{which}, keep {keep}"),
            _ => which,
        }
    }

    /// A row for each task, over the whole model.
    fn overview(&self) -> Markup {
        let total = &self.report.total;
        let share = |kind: Kind, value: Option<f64>| {
            value.map_or("–".into(), |v| if kind.is_percent() { kind.text(v) + " %" } else { kind.text(v) })
        };
        let changed = |task: &TaskReport| (total.elements > 0).then(|| task.changed as f64 / total.elements as f64);
        let any_nonfinite = total.tasks.iter().any(|t| t.nonfinite > 0);
        html! {
            section {
                h2 { "Tasks" }
                @if any_nonfinite {
                    p { strong { "Some changes are NaN or infinite" } ": numbers that they are part of are not defined (–)." }
                }
                div.scroll { table.plain {
                    caption { "Every task over the whole model" }
                    thead { tr {
                        th scope="col" { "task" }
                        th scope="col" { "‖τ‖" }
                        th scope="col" { "‖τ‖ / ‖θ₀‖" }
                        th scope="col" { "changed" }
                        @if any_nonfinite { th scope="col" { "NaN or infinite" } }
                        th scope="col" { "cosine with R" }
                        th scope="col" { "signs as R" }
                        @for i in 0..self.report.choices.len() {
                            th scope="col" { "pruned: " (self.choice_name(i)) }
                            th scope="col" { "‖τ‖² pruned" }
                        }
                    } }
                    tbody { @for (name, task) in self.tasks.iter().zip(&total.tasks) {
                        tr {
                            th scope="row" title=(name.full) { (name.short) }
                            td { (share(Kind::Size, task.norm)) }
                            td { (share(Kind::Size, task.scores.relative)) }
                            td { (share(Kind::Share, changed(task))) }
                            @if any_nonfinite { td { (task.nonfinite) } }
                            td { (share(Kind::Signed, task.cosine_with_others)) }
                            td { (share(Kind::Agreement, task.sign_agreement_with_others)) }
                            @for pruned in &task.pruned {
                                td { (share(Kind::Share, pruned.share)) }
                                td { (share(Kind::Share, pruned.energy_share)) }
                            }
                        }
                    } }
                } }
            }
        }
    }

    /// Task × task over the whole model, and a column for each pair by layer.
    fn between_tasks(&self) -> Markup {
        let report = self.report;
        if report.tasks.len() < 2 {
            return html! {};
        }
        let of = |title: &str, kind, cells: fn(&Group) -> &Vec<Vec<Option<f64>>>| {
            html! {
                div {
                    h3 { (title) }
                    (self.matrix(title, kind, cells(&report.total)))
                    (self.by_pair(title, kind, cells))
                }
            }
        };
        html! {
            section {
                h2 { "Tasks against each other" }
                p.soft {
                    "The cosine says whether two tasks move the model in the same direction. Signs are compared where "
                    "neither task left an element as it was; one half is what chance gives."
                }
                div.matrices {
                    (of("Cosine", Kind::Signed, |group| &group.cosine))
                    (of("Equal signs, %", Kind::Agreement, |group| &group.sign_agreement))
                }
            }
        }
    }

    fn matrix(&self, title: &str, kind: Kind, cells: &[Vec<Option<f64>>]) -> Markup {
        // The diagonal is 1 whatever the tasks are, and would drown the rest.
        let own = |s: usize, row: &[Option<f64>]| -> Vec<Option<f64>> {
            row.iter().enumerate().map(|(t, cell)| cell.filter(|_| s != t)).collect()
        };
        let rows = self.tasks.iter().zip(cells).enumerate();
        let row = |s: usize, name: &Name, row: &[Option<f64>]| Row {
            name: name.clone(),
            cells: own(s, row),
            weight: 1.0,
            is_total: false,
        };
        let rows = rows.map(|(s, (name, cells))| row(s, name, cells));
        let caption = format!("{title} between tasks over the whole model");
        Heat { caption, kind, corner: "", columns: &self.tasks, rows: rows.collect() }.render()
    }

    fn by_pair(&self, title: &str, kind: Kind, cells: fn(&Group) -> &Vec<Vec<Option<f64>>>) -> Markup {
        let tasks = self.tasks.len();
        let pairs: Vec<(usize, usize)> = (0..tasks).flat_map(|s| (s + 1..tasks).map(move |t| (s, t))).collect();
        if pairs.len() > MOST_PAIRS {
            return html! { p.soft { "There are too many pairs to show them by layer here: the JSON report has them." } };
        }
        let name = |(s, t): &(usize, usize)| Name {
            short: format!("{} · {}", self.tasks[*s].short, self.tasks[*t].short),
            full: format!("{} · {}", self.tasks[*s].full, self.tasks[*t].full),
        };
        let columns: Vec<Name> = pairs.iter().map(name).collect();
        let row = |name: &str, group: &Group| {
            let cells = cells(group);
            let cells = pairs.iter().map(|(s, t)| cells[*s][*t]).collect();
            Row { name: Name::of(name), cells, weight: self.weight(group), is_total: false }
        };
        let rows = self.report.layers.iter().map(|layer| row(&layer.name, &layer.group)).collect();
        let caption = format!("{title} between tasks by layer");
        html! {
            details {
                summary { "by layer" }
                (Heat { caption, kind, corner: "layer", columns: &columns, rows }.render())
            }
        }
    }

    /// A group's share of all elements.
    fn weight(&self, group: &Group) -> f64 {
        group.elements as f64 / self.report.total.elements.max(1) as f64
    }

    /// A heat map of layers × tasks, and one of tensors to unfold.
    fn section(&self, i: usize, measure: &Measure) -> Markup {
        let report = self.report;
        let row = |name: &str, group: &Group, is_total| Row {
            name: Name::of(name),
            cells: group.tasks.iter().map(&measure.of).collect(),
            weight: self.weight(group),
            is_total,
        };
        let total = || row("whole model", &report.total, true);
        let layers = report.layers.iter().map(|layer| row(&layer.name, &layer.group, false));
        let tensors = report.layers.iter().flat_map(|layer| &layer.tensors);
        let heat = |what: &str, corner, rows| Heat {
            caption: format!("{} by {what} and task", measure.title),
            kind: measure.kind,
            corner,
            columns: &self.tasks,
            rows,
        };
        let is_shown = (report.tensors * self.tasks.len()) as u64 <= MOST_CELLS;
        html! {
            section class=[(report.layers.len() > 40).then_some("long")] id=(format!("m{i}")) {
                h2 { (measure.title) }
                figure {
                    figcaption { (measure.note) }
                    (heat("layer", "layer", layers.chain([total()]).collect()).render())
                    @if is_shown {
                        details {
                            summary { "by tensor (" (report.tensors) ")" }
                            (heat("tensor", "tensor", tensors.map(|t| row(&t.name, &t.group, false)).collect()).render())
                        }
                    } @else {
                        p.soft { "There are too many tensors to show them here: the JSON report has them." }
                    }
                }
            }
        }
    }
}

/// The last parts of paths where they tell the tasks apart, or else the whole.
fn short_names(tasks: &[String]) -> Vec<Name> {
    let last = |task: &String| {
        let name = task.trim_end_matches('/').rsplit('/').next().unwrap_or(task);
        name.strip_suffix(".safetensors").unwrap_or(name).to_owned()
    };
    let mut shorts: Vec<String> = tasks.iter().map(last).collect();
    shorts.sort_unstable();
    shorts.dedup();
    let is_clear = shorts.len() == tasks.len() && !shorts.iter().any(String::is_empty);
    let short = |task: &String| if is_clear { escaped(&last(task)) } else { escaped(task) };
    tasks.iter().map(|task| Name { short: short(task), full: escaped(task) }).collect()
}

/// `1 layer`, `12 345 layers`.
fn count(n: u64, what: &str) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    format!("{text} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_short_names_where_these_differ() {
        let short = |tasks: &[&str]| -> Vec<String> {
            let tasks: Vec<String> = tasks.iter().map(|t| (*t).to_owned()).collect();
            short_names(&tasks).into_iter().map(|name| name.short).collect()
        };
        assert_eq!(short(&["models/cars", "models/dtd/", "c.safetensors"]), ["cars", "dtd", "c"]);
        assert_eq!(short(&["a/x", "b/x"]), ["a/x", "b/x"]);
        assert_eq!(short(&["/"]), ["/"]);
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        assert_eq!(count(1, "layer"), "1 layer");
        assert_eq!(count(1_234_567, "parameter"), "1\u{202f}234\u{202f}567 parameters");
    }
}
