//! What a survey found, ready to be written: numbers of every task in every layer and tensor, and of the tasks among
//! themselves.
//!
//! A number that is not defined (the cosine of zeros, a norm with a NaN in it) is `None`: `null` in JSON.

use serde::Serialize;

use super::stage::Kept;
use super::survey::{Query, Survey};
use crate::ops::pairs::{Measures, Task};
use crate::ops::{Granularity, Prune, Rescale, Score};

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    /// 2.
    pub schema: u32,
    /// `saliency`.
    pub command: &'static str,
    /// The version that wrote it.
    pub merganser: &'static str,
    /// What the user should know of the recipe.
    pub warnings: Vec<String>,
    /// The recipe's path.
    pub recipe: String,
    /// Its method, which nothing here depends on.
    pub method: &'static str,
    /// The base, as the recipe writes it.
    pub base: String,
    /// The tasks, as the recipe writes them; every list and matrix below is in their order.
    pub tasks: Vec<String>,
    /// Tensors with task vectors.
    #[serde(rename = "compared_tensors")]
    pub tensors: usize,
    /// Tensors that have none: copied from the base.
    pub copied_tensors: usize,
    /// What stages were asked; every `pruned` below answers in this order.
    pub choices: Vec<Choice>,
    /// Over all tensors.
    #[serde(rename = "totals")]
    pub total: Group,
    /// By layer: blocks, and modules outside them.
    pub layers: Vec<LayerReport>,
}

/// A question to a stage: what would it prune?
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Choice {
    /// The stage's place in the recipe, from 0.
    pub stage: usize,
    /// Its name.
    pub name: &'static str,
    /// Whether it is what a merge of the recipe does; else the share was asked for.
    pub of_recipe: bool,
    /// The stage's parameters, each where it is the same for all tensors that the stage changes.
    #[serde(flatten)]
    pub rule: StageReport,
}

/// Parameters of a stage; `None` where they differ between tensors, or no tensor is changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StageReport {
    /// The saliency score.
    pub score: Option<&'static str>,
    /// What is kept or pruned as one.
    pub granularity: Option<&'static str>,
    /// Share kept.
    pub keep: Option<f64>,
    /// Which end of the scores is kept.
    pub order: Option<&'static str>,
    /// The norm that is restored.
    pub rescale: Option<&'static str>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LayerReport {
    /// Its name.
    pub name: String,
    /// Its numbers.
    #[serde(flatten)]
    pub group: Group,
    /// Its tensors.
    pub tensors: Vec<TensorReport>,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its numbers.
    #[serde(flatten)]
    pub group: Group,
}

/// Numbers of a tensor, a layer, or all.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Group {
    /// Elements of a task vector.
    pub elements: u64,
    /// By task.
    pub tasks: Vec<TaskReport>,
    /// ⟨τ_s, τ_t⟩ / (‖τ_s‖ ‖τ_t‖), by tasks s and t.
    pub cosine: Vec<Vec<Option<f64>>>,
    /// The share of equal signs among the elements that neither task left as they were, by tasks s and t.
    pub sign_agreement: Vec<Vec<Option<f64>>>,
}

/// One task's numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TaskReport {
    /// ‖τ_t‖ here.
    pub norm: Option<f64>,
    /// ‖τ_t‖² here over that of the whole task vector.
    pub energy_share: Option<f64>,
    /// Elements that the task changed.
    pub changed: u64,
    /// Elements whose change is NaN or infinite.
    pub nonfinite: u64,
    /// Scores of the whole tensor or layer.
    pub scores: Scores,
    /// The cosine with R, the sum of the other tasks.
    pub cosine_with_others: Option<f64>,
    /// The share of equal signs among the elements where neither the task nor R is 0.
    pub sign_agreement_with_others: Option<f64>,
    /// Answers to [`Report::choices`].
    pub pruned: Vec<Pruned>,
}

/// `lwptv`'s scores in the form for a whole tensor or layer; those that compare tasks need two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Scores {
    /// The root mean square of τ_t.
    pub magnitude: Option<f64>,
    /// ‖τ_t‖ / ‖θ₀‖
    pub relative: Option<f64>,
    /// ‖τ_t − mean τ‖ / ‖θ₀‖
    pub deviation: Option<f64>,
    /// (1 + cosine with R) / 2
    pub agreement: Option<f64>,
    /// ‖τ_t‖ / (‖τ_t‖ + ‖R‖)
    pub tall: Option<f64>,
}

/// What a stage would prune.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pruned {
    /// Elements that it keeps.
    pub kept: u64,
    /// Share of the elements that it drops.
    pub share: Option<f64>,
    /// Share of ‖τ_t‖², of the task vector that enters the stage, that goes with them.
    pub energy_share: Option<f64>,
}

impl Report {
    pub(super) fn new(survey: &Survey, measures: &[Measures], kept: &[Vec<Vec<Kept>>]) -> Self {
        let tensors = measures.len();
        let all: Vec<usize> = (0..tensors).collect();
        let total = Sum::of(survey, &all, measures, kept);
        let energies: Vec<f64> = total.measures.tasks.iter().map(|t| t.sums.squares).collect();
        let of = |places: &[usize]| Sum::of(survey, places, measures, kept).group(&energies);
        let mut layers = Vec::new();
        for (layer, facts) in survey.plan.layers.groups().iter().enumerate() {
            let places: Vec<usize> = (0..tensors).filter(|at| survey.tensor(*at).layer == layer).collect();
            if places.is_empty() {
                continue;
            }
            let report = |at: &usize| {
                let tensor = survey.tensor(*at);
                let group = of(&[*at]);
                TensorReport { name: tensor.name.clone(), shape: tensor.shape.clone(), group }
            };
            let tensors = places.iter().map(report).collect();
            layers.push(LayerReport { name: facts.label.clone(), group: of(&places), tensors });
        }
        let recipe = &survey.plan.recipe;
        Self {
            schema: 2,
            command: "saliency",
            merganser: env!("CARGO_PKG_VERSION"),
            warnings: survey.warnings().cloned().collect(),
            recipe: recipe.path.display().to_string(),
            method: survey.method,
            base: recipe.base.as_ref().map(|b| b.written.clone()).unwrap_or_default(),
            tasks: survey.tasks.clone(),
            tensors,
            copied_tensors: survey.plan.tensors.len() - tensors,
            choices: survey.asked.iter().map(|asked| choice(survey, *asked)).collect(),
            total: total.group(&energies),
            layers,
        }
    }
}

/// Bytes of a report of so many layers and tensors, and of the page that shows it.
pub(super) fn bytes(entries: u64, models: u64, choices: u64) -> u64 {
    let task = (size_of::<TaskReport>() + size_of::<Pruned>() * choices as usize) as u64;
    let matrices = 2 * models * (models * size_of::<Option<f64>>() as u64 + 24);
    entries * (models * task + matrices + size_of::<TensorReport>() as u64)
        + super::html::bytes(entries, models, choices)
}

fn choice(survey: &Survey, asked: Query) -> Choice {
    let prunes: Vec<Prune> = (0..survey.tensors.len()).filter_map(|at| asked.prune(survey.tensor(at))).collect();
    Choice {
        stage: asked.stage,
        name: survey.plan.recipe.stages[asked.stage].spec.name,
        of_recipe: survey.has_stages && asked.keep.is_none(),
        rule: StageReport {
            score: same(&prunes, |p| match p.score {
                Score::Magnitude => "magnitude",
                Score::Relative => "relative",
                Score::Deviation => "deviation",
                Score::Agreement => "agreement",
                Score::Tall => "tall",
            }),
            granularity: same(&prunes, |p| match p.granularity {
                Granularity::Layer => "layer",
                Granularity::Tensor => "tensor",
                Granularity::Row => "row",
                Granularity::Column => "column",
                Granularity::Element => "element",
            }),
            keep: same(&prunes, |p| p.keep),
            order: same(&prunes, |p| if p.keep_redundant { "keep_redundant" } else { "keep_salient" }),
            rescale: same(&prunes, |p| match p.rescale {
                Rescale::None => "none",
                Rescale::L1 => "l1",
                Rescale::L2 => "l2",
            }),
        },
    }
}

/// What all have in common.
fn same<T: PartialEq>(prunes: &[Prune], of: impl Fn(&Prune) -> T) -> Option<T> {
    let first = of(prunes.first()?);
    prunes.iter().all(|p| of(p) == first).then_some(first)
}

/// Some tensors together.
struct Sum {
    elements: u64,
    measures: Measures,
    /// By question and model.
    kept: Vec<Vec<Kept>>,
}

impl Sum {
    fn of(survey: &Survey, places: &[usize], measures: &[Measures], kept: &[Vec<Vec<Kept>>]) -> Self {
        let models = survey.tasks.len();
        let mut sum = Self {
            elements: places.iter().map(|at| survey.tensor(*at).elems).sum(),
            measures: Measures::new(models),
            kept: vec![vec![Kept::default(); models]; kept.len()],
        };
        for at in places {
            sum.measures.add(&measures[*at]);
            for (total, answer) in sum.kept.iter_mut().zip(kept) {
                for (total, kept) in total.iter_mut().zip(&answer[*at]) {
                    total.elements += kept.elements;
                    total.before += kept.before;
                    total.after += kept.after;
                }
            }
        }
        sum
    }

    /// `totals`: ‖τ_t‖² of the whole task vectors.
    fn group(&self, totals: &[f64]) -> Group {
        let tasks = &self.measures.tasks;
        let matrix = |of: &dyn Fn(usize, usize) -> Option<f64>| -> Vec<Vec<Option<f64>>> {
            (0..tasks.len()).map(|s| (0..tasks.len()).map(|t| of(s, t)).collect()).collect()
        };
        let pruned = |t: usize| self.kept.iter().map(|kept| self.pruned(&kept[t])).collect();
        Group {
            elements: self.elements,
            tasks: (0..tasks.len()).map(|t| self.task(&tasks[t], totals[t], pruned(t))).collect(),
            cosine: matrix(&|s, t| {
                let (a, b) = (tasks[s].sums.squares, tasks[t].sums.squares);
                cosine(if s == t { a } else { self.measures.pair(s, t).dot }, a, b)
            }),
            sign_agreement: matrix(&|s, t| match s == t {
                true => (tasks[s].changed > 0).then_some(1.0),
                false => self.measures.pair(s, t).signs.agreement(),
            }),
        }
    }

    fn task(&self, task: &Task, total: f64, pruned: Vec<Pruned>) -> TaskReport {
        let sums = &task.sums;
        let score = |score: Score| {
            let is_defined = !score.is_relational() || self.measures.tasks.len() > 1;
            finite(sums.score(score, self.elements)).filter(|_| is_defined)
        };
        TaskReport {
            norm: finite(sums.squares.sqrt()),
            energy_share: ratio(sums.squares, total),
            changed: task.changed,
            nonfinite: task.nonfinite,
            scores: Scores {
                magnitude: score(Score::Magnitude),
                relative: score(Score::Relative),
                deviation: score(Score::Deviation),
                agreement: score(Score::Agreement),
                tall: score(Score::Tall),
            },
            cosine_with_others: cosine(sums.dot, sums.squares, sums.rest),
            sign_agreement_with_others: task.others.agreement(),
            pruned,
        }
    }

    fn pruned(&self, kept: &Kept) -> Pruned {
        Pruned {
            kept: kept.elements,
            share: ratio(self.elements as f64 - kept.elements as f64, self.elements as f64),
            // Summed apart, the two may differ in their last bits where nothing is dropped.
            energy_share: ratio(kept.before - kept.after, kept.before).map(|share| share.clamp(0.0, 1.0)),
        }
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    finite(part / whole)
}

/// From a product and two squared norms. The roots are taken first: the squares' product may be beyond f64.
fn cosine(dot: f64, a: f64, b: f64) -> Option<f64> {
    finite(dot / (a.sqrt() * b.sqrt())).map(|c| c.clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_defined_is_none() {
        assert_eq!(cosine(0.0, 0.0, 1.0), None);
        assert_eq!(cosine(f64::NAN, 1.0, 1.0), None);
        assert_eq!(cosine(1e200, 1e200, 1e200), Some(1.0));
        assert_eq!(cosine(1e300, 1e300, 1e300), Some(1.0));
        assert_eq!(cosine(1.0 + 1e-15, 1.0, 1.0), Some(1.0));
        assert_eq!(ratio(0.0, 0.0), None);
        assert_eq!(ratio(1.0, 4.0), Some(0.25));
    }
}
