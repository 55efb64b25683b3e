//! A plan as a person reads it, and as the fingerprint that an interrupted merge must match.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, json};

use super::devices::{OnDevices, Place};
use super::graph::Kind;
use super::{Plan, TensorPlan, doubts};
use crate::backend::cpu::low_rank;
use crate::ops::rules::RuleId;
use crate::ops::{Blend, MatrixRule, Program, Rank, Sparsify};
use crate::output::Fingerprint;
use crate::output::source_digest::to_hex;
use crate::recipe::OutputKind;
use crate::units::format_bytes;

pub(super) fn fingerprint(plan: &Plan) -> Fingerprint {
    let sources = plan.sources.iter().map(|source| {
        let files = source.checkpoint.shards().iter().map(|shard| {
            let (seconds, nanoseconds) = shard.modified();
            json!({
                "path": shard.path().display().to_string(),
                "size": shard.size(),
                "modified": format!("{seconds}.{nanoseconds:09}"),
                "header": to_hex(shard.header_digest()),
            })
        });
        json!({ "path": source.written, "files": files.collect::<Vec<_>>() })
    });
    let mut parts = Map::new();
    parts.insert("recipe".into(), plan.recipe.to_json());
    parts.insert("sources".into(), sources.collect());
    parts.insert("seed".into(), plan.options.seed.into());
    parts.insert("layout".into(), plan.layout.digest().into());
    parts.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    Fingerprint::new(parts)
}

/// What is done to a tensor, in a word or two.
pub(super) fn describe(tensor: &TensorPlan) -> String {
    match &tensor.program {
        Program::Copy => "copy".into(),
        Program::Blend(Blend { sparsify, combine, .. }) => {
            let sparsify = match sparsify {
                Sparsify::None => "",
                Sparsify::TopK { whole_model: true, .. } => "trim by one cut a model + ",
                Sparsify::TopK { .. } => "trim + ",
                Sparsify::Band { .. } => "trim both ends + ",
                Sparsify::Spread { .. } => "keep where models differ + ",
                Sparsify::Importance => "keep what matters to its row + ",
                Sparsify::Ranked { .. } => "drop at random by rank + ",
                Sparsify::Random { .. } => "drop at random + ",
            };
            let combine = match &combine.fit {
                Some(fit) => fit.name,
                None if combine.rule == RuleId::Average && combine.weights.len() == 1 => "scale",
                None => combine.rule.words(),
            };
            format!("{sparsify}{combine}")
        }
        Program::LowRank(work) => {
            let (m, n) = tensor.matrix();
            match work.rule {
                MatrixRule::Truncate(Rank::Energy(share)) => format!("low rank, energy {share}"),
                MatrixRule::Truncate(rank) => format!("low rank, k = {}", rank.most(m, n)),
                MatrixRule::TaskSingular => "task singular vectors".into(),
                MatrixRule::Isotropic => "isotropic".into(),
                MatrixRule::CommonAndSpecific { .. } => "isotropic, common and specific".into(),
            }
        }
        Program::Factor { .. } => "factor of a low-rank part".into(),
    }
}

/// Floating-point operations of a tensor's linear algebra; 0 for element-wise work, which moving bytes bounds.
pub(super) fn operations(tensor: &TensorPlan) -> f64 {
    match &tensor.program {
        Program::LowRank(work) => {
            let (m, n) = tensor.matrix();
            low_rank::operations(work, (m, n), tensor.wide)
        }
        _ => 0.0,
    }
}

/// How a matrix is decomposed.
pub(super) fn decomposition(tensor: &TensorPlan) -> Option<String> {
    match &tensor.program {
        Program::LowRank(work) => Some(low_rank::algorithm(work, tensor.matrix(), tensor.wide)),
        _ => None,
    }
}

/// For a person: the devices, and what is left to the CPU beside them.
fn write_devices(on: &OnDevices, plan: &Plan, out: &mut String) -> std::fmt::Result {
    for (device, bytes) in on.devices.iter().zip(&on.pool_bytes) {
        let (label, bytes) = (device.label(), format_bytes(*bytes));
        match on.lanes {
            0 => writeln!(out, "device    {label}: makes none of these tensors")?,
            1 => writeln!(out, "device    {label}: {bytes} of its memory, 1 lane")?,
            lanes => writeln!(out, "device    {label}: {bytes} of its memory, {lanes} lanes")?,
        }
    }
    if on.lanes > 0 {
        writeln!(out, "          {} page-locked and beside it on the host", format_bytes(plan.memory.lanes))?;
    }
    let mut whys: BTreeMap<&str, usize> = BTreeMap::new();
    for (place, tensor) in on.places.iter().zip(&plan.tensors) {
        if let (Place::Host(why), Program::Blend(_) | Program::LowRank(_)) = (place, &tensor.program) {
            *whys.entry(why).or_default() += 1;
        }
    }
    let batched: Vec<usize> = on.batches.iter().map(|batch| batch.tensors.len()).collect();
    if let Some(most) = batched.iter().max() {
        let (all, count) = (batched.iter().sum::<usize>(), batched.len());
        let word = if count == 1 { "batch" } else { "batches" };
        writeln!(out, "          {all} matrices in {count} {word} of one shape each, {most} together at most")?;
    }
    for (why, count) in whys {
        writeln!(out, "          {count} of {} tensors on the CPU: {why}", plan.tensors.len())?;
    }
    Ok(())
}

pub(super) fn text(plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(plan, &mut out);
    out
}

fn write_text(plan: &Plan, out: &mut String) -> std::fmt::Result {
    writeln!(out, "method    {}", plan.recipe.method.name)?;
    for stage in &plan.recipe.stages {
        writeln!(out, "stage     {}", stage.spec.name)?;
    }
    for source in &plan.sources {
        let role = if source.is_base { "base " } else { "model" };
        let (tensors, bytes) = (source.checkpoint.tensors().len(), source.checkpoint.tensor_bytes());
        writeln!(
            out,
            "{role}     {}  ({tensors} tensors, {})",
            crate::checkpoint::escaped(&source.written),
            format_bytes(bytes)
        )?;
    }
    writeln!(out)?;
    let mut kinds: BTreeMap<String, (usize, u64, u64, f64)> = BTreeMap::new();
    for (i, tensor) in plan.tensors.iter().enumerate() {
        let passes = plan.graph.passes(i);
        let kind = match passes {
            0 => describe(tensor),
            1 => format!("{}  (1 pass)", describe(tensor)),
            _ => format!("{}  ({passes} passes)", describe(tensor)),
        };
        let sum = kinds.entry(kind).or_default();
        sum.0 += 1;
        sum.1 += plan.pass_bytes(i) * passes;
        sum.2 += plan.layout.placement(i).bytes;
        sum.3 += operations(tensor);
    }
    let width = kinds.keys().map(|k| k.chars().count()).max().unwrap_or(4).max(4);
    writeln!(out, "{:<width$}  {:>8}  {:>10}  {:>10}  {:>10}", "work", "tensors", "read", "written", "GFLOP")?;
    for (kind, (count, read, written, flop)) in &kinds {
        let flop = if *flop == 0.0 { "–".into() } else { format!("{:.1}", flop / 1e9) };
        writeln!(
            out,
            "{kind:<width$}  {count:>8}  {:>10}  {:>10}  {flop:>10}",
            format_bytes(*read),
            format_bytes(*written)
        )?;
    }
    let mut decompositions: BTreeMap<String, usize> = BTreeMap::new();
    plan.tensors.iter().filter_map(decomposition).for_each(|how| *decompositions.entry(how).or_default() += 1);
    if !decompositions.is_empty() {
        writeln!(out)?;
    }
    if let Some(c) = plan.coverage() {
        let all = (c.matrix_parameters + c.averaged_parameters).max(1) as f64;
        let share = 100.0 * c.averaged_parameters as f64 / all;
        writeln!(
            out,
            "matrices  {}, {} other tensors averaged: {share:.1} % of the parameters without tables and norms",
            c.matrices, c.averaged
        )?;
    }
    if let Some(advice) = doubts::advice(&plan.tensors) {
        writeln!(out, "note      {advice}")?;
    }
    for (how, count) in decompositions {
        writeln!(out, "{count} {} by {how}", if count == 1 { "matrix" } else { "matrices" })?;
    }
    let barriers = plan.graph.steps.iter().filter(|s| matches!(s.kind, Kind::Rank(_))).count();
    if barriers > 0 {
        writeln!(out, "\nLayers or tensors are ranked against each other: one pass over all models comes first.")?;
    }
    let m = plan.memory;
    writeln!(out)?;
    writeln!(
        out,
        "output    {} tensors, {} in {} file{}",
        plan.tensors.len(),
        format_bytes(plan.layout.file_bytes()),
        plan.layout.files().len(),
        if plan.layout.files().len() == 1 { "" } else { "s" },
    )?;
    if let Some(factors) = &plan.factors {
        let what = if factors.kind == OutputKind::Lora { "LoRA adapters" } else { "low-rank factors" };
        let dtypes: Vec<String> = factors.dtypes.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "stored    the centre, and {what} of {} matrices in {}{}, {} for {} task{}:",
            factors.matrices,
            dtypes.join(" and "),
            if factors.others > 0 { format!(" and {} other tensors", factors.others) } else { String::new() },
            format_bytes(factors.bytes),
            factors.header.tasks.len(),
            if factors.header.tasks.len() == 1 { "" } else { "s" },
        )?;
        for task in &factors.header.tasks {
            writeln!(out, "          {}  ({})", task.name, crate::checkpoint::escaped(&task.model))?;
        }
    }
    writeln!(out, "reads     {}", format_bytes(plan.read_bytes()))?;
    writeln!(
        out,
        "memory    {} of a budget of {}: {} threads × {}, {} buffers × {}, largest step {}",
        format_bytes(m.total),
        format_bytes(plan.options.memory_budget),
        m.threads,
        format_bytes(m.per_thread),
        m.buffers,
        format_bytes(m.buffer_bytes),
        format_bytes(m.largest_step),
    )?;
    plan.devices.as_ref().map_or(Ok(()), |on| write_devices(on, plan, out))
}
