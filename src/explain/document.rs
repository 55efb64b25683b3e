//! What is said of a tensor, as data.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::backend::cpu::trace::instructions;
use crate::ops::{Combine, LowRank, Program, Prune, Sparsify};
use crate::plan::devices::Place;
use crate::plan::graph::Kind;
use crate::plan::{Plan, PlannedTensor, SourceTensor, TensorPlan};

/// Where an output tensor comes from, and how it is made.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Explanation {
    /// Its name.
    pub tensor: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its stored element type.
    pub dtype: String,
    /// Its layer.
    pub layer: String,
    /// Where it goes.
    pub output: OfOutput,
    /// What it is made of: the base first, then the models that take part, in their order.
    pub sources: Vec<OfSource>,
    /// What is done.
    pub program: OfProgram,
    /// The steps that its merge waits for and the merge, in their order; those of other tensors are left out.
    pub steps: Vec<OfStep>,
    /// How often its sources are read.
    pub passes: u64,
    /// Bytes read of them, in all passes.
    pub bytes_read: u64,
    /// What computes it.
    pub path: OfPath,
    /// What becomes of the element that was asked for; null where none was.
    pub element: Option<OfElement>,
}

/// Where a tensor goes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfOutput {
    /// The output's file.
    pub file: String,
    /// Where its bytes begin, from the start of the file.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
}

/// A tensor of a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfSource {
    /// `base`, or `model` and its number among those that take part, from 1.
    pub role: String,
    /// The model, as the recipe writes it.
    pub model: String,
    /// Its tensor: with slices another than the output's.
    pub tensor: String,
    /// Its shape there.
    pub shape: Vec<u64>,
    /// The element type that is read.
    pub dtype: String,
    /// The file that holds it; null where it is made as it is read.
    pub file: Option<String>,
    /// Where its bytes begin, from the start of the file; null where it is made.
    pub offset: Option<u64>,
    /// Its bytes, as they are read.
    pub bytes: u64,
    /// How it is made, of the parts; null where a file holds it.
    pub made: Option<String>,
    /// What it is made of: an adapter's tensors beside the base's, or those whose rows are taken.
    pub parts: Vec<OfPart>,
}

/// A stored tensor that a source's is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfPart {
    /// What it is there.
    pub what: String,
    /// The file that holds it.
    pub file: String,
    /// Its name there.
    pub tensor: String,
    /// Its shape there.
    pub shape: Vec<u64>,
    /// Its stored element type.
    pub dtype: String,
    /// Where its bytes begin, from the start of the file.
    pub offset: u64,
    /// How many they are.
    pub bytes: u64,
}

/// What is done to a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfProgram {
    /// `copy`, `elementwise`, `matrix` or `factor`.
    pub kind: &'static str,
    /// The recipe's method.
    pub method: String,
    /// In a few words.
    pub work: String,
    /// Stages that change its task vectors, with their values here.
    pub stages: Vec<Map<String, Value>>,
    /// What the method drops of task vectors; null where it drops nothing.
    pub drop: Option<OfDrop>,
    /// The element-wise rule; null elsewhere.
    pub rule: Option<&'static str>,
    /// Weights, by model; none where the rule has none, or measures them.
    pub weights: Vec<f64>,
    /// The rule's other numbers.
    pub numbers: Map<String, Value>,
    /// What weights and numbers are measured from: products of the vectors, or what they change together; null where all are known.
    pub fit: Option<String>,
    /// What it is as a merge of a matrix; null elsewhere.
    pub matrix: Option<OfMatrix>,
}

/// What a method drops of task vectors.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfDrop {
    /// What chooses, and its values, by model.
    #[serde(flatten)]
    pub rule: Map<String, Value>,
}

/// A merge of a matrix.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfMatrix {
    /// What task vectors are measured from: `average` or `base`.
    pub centre: Value,
    /// How they become one.
    pub rule: Value,
    /// How they are decomposed.
    pub decomposition: Option<String>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfStep {
    /// What it does.
    pub step: &'static str,
    /// The stage that it is for, as its place among the recipe's; null where it is for none.
    pub stage: Option<usize>,
    /// Whether all tensors or layers have a part in it.
    pub of_all: bool,
    /// Parts that may run at the same time.
    pub units: u64,
    /// Memory that it takes, in bytes.
    pub memory_bytes: u64,
}

/// What computes a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfPath {
    /// `portable`, `avx2` or `avx512` on the CPU; the devices that may take it, as `cuda:0`; null where it is copied.
    pub computed_by: Option<String>,
    /// Why the CPU computes it beside devices; null elsewhere.
    pub why_there: Option<String>,
    /// `float32` or `float64`; null where it is copied.
    pub computed_in: Option<&'static str>,
}

/// One element.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfElement {
    /// Its place along each dimension, from 0.
    pub index: Vec<u64>,
    /// Its place in the order in which elements are stored, from 0.
    pub flat: u64,
    /// What each source stores, in the order of `sources`. Here and below, what is no finite number is a word: `NaN`, `inf`.
    pub stored: Vec<Value>,
    /// What becomes of it, step by step.
    pub steps: Vec<OfValues>,
    /// Weights, by model, as measured.
    pub weights: Vec<f64>,
    /// The rule's other numbers, as measured, and what was done to a matrix.
    pub numbers: Map<String, Value>,
    /// The merged element before it is rounded to what is stored, in the type that computes; null where it is copied.
    pub merged: Option<Value>,
    /// The same where every operation is done in float64, on what the masks leave; null where it is copied.
    pub merged_in_float64: Option<Value>,
    /// What is stored.
    pub result: Value,
}

/// Values behind a step, by model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct OfValues {
    /// The step.
    pub step: String,
    /// By model.
    pub values: Vec<Value>,
}

/// A number, or the word for what JSON has no number for.
pub(super) fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| value.to_string().into(), Value::Number)
}

impl Explanation {
    /// What the plan says of a tensor, and the element that was traced, if one was.
    pub fn of(plan: &Plan, tensor: usize, element: Option<OfElement>) -> Self {
        let (planned, at) = (PlannedTensor::of(plan, tensor), &plan.tensors[tensor]);
        let flat = element.as_ref().map(|element| element.flat);
        Self {
            tensor: at.name.clone(),
            shape: at.shape.clone(),
            dtype: planned.dtype,
            layer: planned.layer,
            output: OfOutput { file: planned.file, offset: planned.offset, bytes: planned.bytes },
            sources: sources(plan, at, flat),
            program: program(plan, at, planned.work, planned.decomposition),
            steps: steps(plan, tensor),
            passes: planned.passes,
            bytes_read: planned.bytes_read,
            path: path(plan, tensor),
            element,
        }
    }
}

fn sources(plan: &Plan, tensor: &TensorPlan, element: Option<u64>) -> Vec<OfSource> {
    let of = |role: String, at: SourceTensor| {
        let (stored, shard) = plan.stored(at);
        let origin = shard.origin(element);
        let file = |path: &std::path::Path| path.display().to_string();
        OfSource {
            role,
            model: plan.sources[at.source].written.clone(),
            tensor: stored.name.clone(),
            shape: stored.shape.clone(),
            dtype: stored.dtype.to_string(),
            file: origin.is_none().then(|| file(shard.path())),
            offset: origin.is_none().then_some(stored.begin),
            bytes: stored.bytes,
            made: origin.as_ref().map(|origin| origin.how.clone()),
            parts: origin.map_or_else(Vec::new, |origin| {
                let part = |part: crate::checkpoint::Part| OfPart {
                    what: part.what,
                    file: file(&part.file),
                    tensor: part.tensor,
                    shape: part.shape,
                    dtype: part.dtype.to_string(),
                    offset: part.begin,
                    bytes: part.bytes,
                };
                origin.parts.into_iter().map(part).collect()
            }),
        }
    };
    let base = tensor.base.map(|at| of(if plan.sources[at.source].is_base { "base" } else { "model 1" }.into(), at));
    let models = tensor.models.iter().enumerate().map(|(i, at)| of(format!("model {}", i + 1), *at));
    base.into_iter().chain(models).collect()
}

fn program(plan: &Plan, tensor: &TensorPlan, work: String, decomposition: Option<String>) -> OfProgram {
    let mut program = OfProgram {
        kind: "copy",
        method: plan.recipe.method.name.to_owned(),
        work,
        stages: tensor.stages().iter().map(|prune| stage(plan, prune)).collect(),
        drop: None,
        rule: None,
        weights: Vec::new(),
        numbers: Map::new(),
        fit: None,
        matrix: None,
    };
    match &tensor.program {
        Program::Copy => {}
        Program::Blend(blend) => {
            program.kind = "elementwise";
            program.drop = (blend.sparsify != Sparsify::None).then(|| OfDrop { rule: object(json!(blend.sparsify)) });
            program.rule = Some(blend.combine.rule.words());
            program.weights = blend.combine.weights.clone();
            program.numbers = numbers(&blend.combine);
            let overlap = blend.combine.overlap.map(|_| "what task vectors change together".to_owned());
            program.fit = blend.combine.fit.as_ref().map(|fit| fit.name.to_owned()).or(overlap);
        }
        Program::LowRank(work) => {
            program.kind = "matrix";
            program.weights = work.weights.clone();
            program.numbers = Map::from_iter([("lambda".to_owned(), json!(work.lambda))]);
            program.matrix = Some(matrix(work, decomposition));
        }
        Program::Factor { of, task, side } => {
            program.kind = "factor";
            let matrix =
                [("matrix", json!(plan.tensors[*of].name)), ("task", json!(task)), ("side", json!(side.word()))];
            program.numbers = matrix.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        }
    }
    program
}

fn stage(plan: &Plan, prune: &Prune) -> Map<String, Value> {
    let mut stage = object(json!(prune));
    let name = plan.recipe.stages.get(prune.stage).map(|stage| stage.spec.name);
    stage.insert("stage".into(), name.into());
    stage
}

fn matrix(work: &LowRank, decomposition: Option<String>) -> OfMatrix {
    OfMatrix { centre: json!(work.centre), rule: json!(work.rule), decomposition }
}

/// The numbers of a rule beside its weights.
pub(super) fn numbers(combine: &Combine) -> Map<String, Value> {
    let n = &combine.numbers;
    let all = [
        ("divisor", number(n.divisor)),
        ("lambda", number(n.lambda)),
        ("base", number(n.base)),
        ("threshold", number(n.threshold)),
        ("normalize", n.normalize.into()),
    ];
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn steps(plan: &Plan, tensor: usize) -> Vec<OfStep> {
    let own = plan.graph.steps.iter().filter(|step| step.tensor == tensor && step.kind == Kind::Merge);
    let before = plan.graph.before_merge(tensor).into_iter().map(|id| &plan.graph.steps[id]);
    let of_all = |kind: Kind| matches!(kind, Kind::Rank(_) | Kind::Restore { .. });
    before
        .filter(|step| step.tensor == tensor || of_all(step.kind))
        .chain(own)
        .map(|step| OfStep {
            step: step.kind.words(),
            stage: step.kind.stage(),
            of_all: of_all(step.kind),
            units: step.units,
            memory_bytes: step.reserve,
        })
        .collect()
}

fn path(plan: &Plan, tensor: usize) -> OfPath {
    let at = &plan.tensors[tensor];
    let copied = matches!(at.program, Program::Copy);
    let place = plan.devices.as_ref().map(|on| (on, on.places[tensor]));
    let dtypes: Vec<_> = at.models.iter().map(|model| plan.stored(*model).0.dtype).collect();
    let cpu = || match at.program {
        Program::Blend(_) => instructions(at.wide, &dtypes, at.dtype),
        _ => crate::instructions::Instructions::chosen(),
    };
    let computed_by = match place {
        _ if copied => None,
        Some((on, Place::Device)) => {
            Some(on.devices.iter().map(|d| format!("cuda:{}", d.ordinal)).collect::<Vec<_>>().join(", "))
        }
        _ => Some(cpu().to_string()),
    };
    let why_there = match place {
        Some((_, Place::Host(why))) => Some(why.to_owned()),
        _ => None,
    };
    let matrix = matches!(at.program, Program::LowRank(_) | Program::Factor { .. });
    let computed_in = (!copied).then_some(if at.wide || matrix { "float64" } else { "float32" });
    OfPath { computed_by, why_there, computed_in }
}

/// The entries of a JSON object.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(entries) => entries,
        _ => Map::new(),
    }
}
