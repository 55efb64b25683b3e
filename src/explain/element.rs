//! What becomes of one element.

use faer::traits::RealField;
use serde_json::{Map, Value, json};

use super::Index;
use super::document::{OfElement, OfValues, number, numbers, object};
use crate::backend::cpu::low_rank::{self, ReadRuns};
use crate::backend::cpu::prune::Sources;
use crate::backend::cpu::stored::{Stored, Widen};
use crate::backend::cpu::trace;
use crate::checkpoint::quoted;
use crate::dtype::{Dtype, DtypeExt};
use crate::engine::{measure, with_sources};
use crate::error::{Error, Result};
use crate::ops::{Centre, LowRank, Measured, Program};
use crate::plan::{Plan, TensorPlan};

/// Traces an element. The tensor's statistics are measured for it on the CPU, and a matrix is merged whole.
///
/// # Errors
/// `Input` for an element whose values cannot be told alone; else as a merge's of the tensor.
pub fn element(plan: &Plan, tensor: usize, index: &Index) -> Result<OfElement> {
    let at = &plan.tensors[tensor];
    if !plan.recipe.before.is_empty() {
        return Err(Error::input("a recipe of several documents has its elements once the others are merged").hint(
            "leave the index out, or explain a recipe of the last document, whose models are the others' outputs",
        ));
    }
    let traced = match &at.program {
        Program::Copy => copied(plan, at, index),
        Program::Factor { of, .. } => {
            let matrix = quoted(&plan.tensors[*of].name);
            Err(Error::input(format!("{} is a factor of {matrix}, whose elements it shares", quoted(&at.name)))
                .of_tensor(&at.name)
                .hint(format!("explain an element of {matrix}")))
        }
        Program::Blend(_) if at.wide => blended::<f64>(plan, tensor, index),
        Program::Blend(_) => blended::<f32>(plan, tensor, index),
        Program::LowRank(work) if at.wide => of_matrix::<f64>(plan, tensor, work, index),
        Program::LowRank(work) => of_matrix::<f32>(plan, tensor, work, index),
    };
    traced.map_err(|error| error.at_tensor(&at.name))
}

fn values(values: &[f64]) -> Vec<Value> {
    values.iter().copied().map(number).collect()
}

fn step(step: impl Into<String>, of: &[f64]) -> OfValues {
    OfValues { step: step.into(), values: values(of) }
}

/// Calls `take` with what every source stores of the element.
fn with_element<T>(plan: &Plan, tensor: &TensorPlan, flat: u64, take: impl FnOnce(&Sources<'_>) -> T) -> Result<T> {
    let mut raw = vec![Vec::new(); tensor.models.len() + 1];
    let mut taken = None;
    with_sources(plan, tensor, flat, flat + 1, &mut raw, |sources| taken = Some(take(sources)))?;
    taken.ok_or_else(|| Error::internal("an element was not read"))
}

fn names_of_stages(plan: &Plan, tensor: &TensorPlan) -> Vec<String> {
    let name = |stage: usize| plan.recipe.stages.get(stage).map_or("stage", |stage| stage.spec.name);
    tensor.stages().iter().map(|prune| format!("after {}", name(prune.stage))).collect()
}

fn blended<C: Widen>(plan: &Plan, tensor: usize, index: &Index) -> Result<OfElement> {
    let (at, measured) = (&plan.tensors[tensor], measure(plan, tensor)?.of_element(index.flat));
    let traced = with_element(plan, at, index.flat, |sources| trace::trace::<C>(&measured, sources, at.dtype))?;
    let mut steps = Vec::new();
    if let Some(task_vectors) = &traced.task_vectors {
        steps.push(step("task vector", task_vectors));
    }
    let names = names_of_stages(plan, at);
    steps.extend(traced.stages.iter().zip(names).map(|(values, name)| step(name, values)));
    if let Some(sparsified) = &traced.sparsified {
        steps.push(step("after the method's drop", sparsified));
    }
    let mut found = numbers(&measured.combine);
    cuts::<C>(&measured, &mut found);
    Ok(OfElement {
        index: index.along.clone(),
        flat: index.flat,
        stored: values(&[traced.base.as_slice(), &traced.models].concat()),
        steps,
        weights: measured.combine.weights.clone(),
        numbers: found,
        merged: Some(number(traced.merged)),
        merged_in_float64: Some(number(traced.merged_in_f64)),
        result: number(traced.stored),
    })
}

/// The magnitudes at and above which a method keeps elements, and up to which where there are such cuts, by model.
fn cuts<C: Widen>(measured: &Measured, found: &mut Map<String, Value>) {
    if measured.cuts.is_empty() {
        return;
    }
    // A model that keeps nothing has a key beyond all.
    let cut = |key: &u64| if *key >> C::KEY_BITS == 0 { number(C::from_key(*key).f64()) } else { Value::Null };
    found.insert("cuts".into(), measured.cuts.iter().map(cut).collect());
    if !measured.tops.is_empty() {
        found.insert("tops".into(), measured.tops.iter().map(cut).collect());
    }
    found.insert("factors".into(), json!(measured.factors));
}

/// The runs of a matrix's sources.
struct Reads<'a> {
    plan: &'a Plan,
    tensor: &'a TensorPlan,
    raw: Vec<Vec<u8>>,
}

impl ReadRuns for Reads<'_> {
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()> {
        with_sources(self.plan, self.tensor, start, start + len as u64, &mut self.raw, |sources| take(sources))
    }
}

fn of_matrix<C: Widen + RealField>(plan: &Plan, tensor: usize, work: &LowRank, index: &Index) -> Result<OfElement> {
    let (at, measured) = (&plan.tensors[tensor], measure(plan, tensor)?);
    let mut steps = Vec::new();
    let (stored, behind) = with_element(plan, at, index.flat, |sources| {
        let stored: Vec<f64> = sources.base.iter().chain(sources.models).map(value).collect();
        let behind = (!measured.stages.is_empty())
            .then(|| trace::task_vectors::<C>(measured.geometry, &measured.stages, sources));
        (stored, behind)
    })?;
    if let Some((task_vectors, behind)) = behind {
        steps.push(step("task vector", &task_vectors));
        steps.extend(behind.iter().zip(names_of_stages(plan, at)).map(|(values, name)| step(name, values)));
    }
    let mut reads = Reads { plan, tensor: at, raw: vec![Vec::new(); at.models.len() + 1] };
    let (_, n) = at.matrix();
    let place = ((index.flat / n) as usize, (index.flat % n) as usize);
    let element = low_rank::element::<C>(work, at.matrix(), &measured.stages, &mut reads, place)?;
    let from = match work.centre {
        Centre::Average => "minus the average",
        Centre::Base => "minus the base",
    };
    steps.push(step(from, &element.task_vectors));
    if !element.parts.is_empty() {
        steps.push(step("its low-rank part", &element.parts));
    }
    let mut found = object(json!(element.facts));
    found.insert("origin".into(), number(element.origin));
    found.insert("lambda".into(), number(work.lambda));
    let mut bytes = vec![0; at.elem_bytes as usize];
    f64::narrow(&[element.merged], at.dtype, &mut bytes);
    Ok(OfElement {
        index: index.along.clone(),
        flat: index.flat,
        stored: values(&stored),
        steps,
        weights: work.scaled_weights(),
        numbers: found,
        merged: Some(number(element.merged)),
        merged_in_float64: Some(number(element.merged)),
        result: number(value(&Stored { dtype: at.dtype, bytes: &bytes })),
    })
}

/// The first stored element.
fn value(stored: &Stored<'_>) -> f64 {
    let mut value = [0.0];
    stored.widen(0, &mut value);
    value[0]
}

fn copied(plan: &Plan, tensor: &TensorPlan, index: &Index) -> Result<OfElement> {
    let Some(from) = tensor.base else { return Err(Error::internal("a copy of nothing")) };
    let (stored, shard) = plan.stored(from);
    let Some(size) = stored.dtype.size_bytes() else {
        let message = format!("{} has elements of {}, smaller than a byte", quoted(&tensor.name), stored.dtype);
        return Err(Error::input(message).of_tensor(&tensor.name).hint("leave the index out"));
    };
    let begin = stored.begin + index.flat * size;
    let mut scratch = Vec::new();
    let value = plain(stored.dtype, shard.bytes(begin..begin + size, &mut scratch)?);
    Ok(OfElement {
        index: index.along.clone(),
        flat: index.flat,
        stored: vec![value.clone()],
        steps: Vec::new(),
        weights: Vec::new(),
        numbers: Map::new(),
        merged: None,
        merged_in_float64: None,
        result: value,
    })
}

/// An element of a type that nothing computes with, too; of those that are no numbers, its bytes.
fn plain(dtype: Dtype, bytes: &[u8]) -> Value {
    if dtype.is_mergeable_float() {
        return number(value(&Stored { dtype, bytes }));
    }
    let mut wide = [0_u8; 8];
    let signed = matches!(dtype, Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
    if signed && bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
        wide = [0xFF; 8];
    }
    match dtype {
        Dtype::BOOL => Value::Bool(bytes != [0]),
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 | Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => {
            wide[..bytes.len()].copy_from_slice(bytes);
            if signed { i64::from_le_bytes(wide).into() } else { u64::from_le_bytes(wide).into() }
        }
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
    }
}
