//! What a device merged, computed again on the CPU: see `engine::audit`.

use faer::traits::RealField;

use crate::backend::cpu::blend::blend;
use crate::backend::cpu::low_rank::{self, ReadRuns};
use crate::backend::cpu::prune::{Scratch, Sources};
use crate::backend::cpu::stored::{Stored, Widen};
use crate::engine::Engine;
use crate::engine::audit::{MATRIX_BOUND, differs};
use crate::engine::sources::with_sources;
use crate::error::{Error, Result};
use crate::ops::{LowRank, Program, SEGMENT};
use crate::plan::{Plan, TensorPlan};

/// Compares the chosen segments of a piece of a tensor, which begins at element `start`, with what the CPU makes of them.
///
/// # Errors
/// Names device, tensor and element where they differ.
pub(super) fn segments(engine: &Engine<'_>, device: &str, index: usize, start: u64, piece: &[u8]) -> Result<()> {
    let (plan, tensor) = (engine.plan, &engine.plan.tensors[index]);
    let Some(chosen) = engine.audit.of(index) else { return Ok(()) };
    let (unit, size) = (SEGMENT as u64, tensor.elem_bytes);
    let end = start + piece.len() as u64 / size;
    for segment in chosen.range(start / unit..end.div_ceil(unit)) {
        let (from, to) = (segment * unit, ((segment + 1) * unit).min(tensor.elems));
        let found = &piece[((from - start) * size) as usize..((to - start) * size) as usize];
        let expected = if tensor.wide {
            again::<f64>(plan, engine, index, from, to)?
        } else {
            again::<f32>(plan, engine, index, from, to)?
        };
        if let Some((at, [found, expected])) = first_difference(tensor, found, &expected) {
            return Err(differs(device, &tensor.name, from + at as u64, found, expected));
        }
        engine.audit.passed(to - from);
    }
    Ok(())
}

fn again<C: Widen>(plan: &Plan, engine: &Engine<'_>, index: usize, from: u64, to: u64) -> Result<Vec<u8>> {
    let (tensor, measured) = (&plan.tensors[index], engine.tensors[index].measured());
    let mut raw = vec![Vec::new(); tensor.models.len() + 1];
    let mut out = vec![0; ((to - from) * tensor.elem_bytes) as usize];
    let mut scratch = Scratch::<C>::new(tensor.models.len());
    with_sources(plan, tensor, from, to, &mut raw, |sources| {
        blend(&measured, sources, tensor.dtype, &mut out, &mut scratch);
    })?;
    Ok(out)
}

/// The first element whose bits differ and that is not NaN in both, with both values.
fn first_difference(tensor: &TensorPlan, found: &[u8], expected: &[u8]) -> Option<(usize, [f64; 2])> {
    if found == expected {
        return None;
    }
    let size = tensor.elem_bytes as usize;
    let value = |bytes: &[u8]| {
        let mut value = [0f64];
        Stored { dtype: tensor.dtype, bytes }.widen(0, &mut value);
        value[0]
    };
    found.chunks_exact(size).zip(expected.chunks_exact(size)).enumerate().find_map(|(at, (a, b))| {
        let values = [value(a), value(b)];
        let is_same = a == b || values.iter().all(|v| v.is_nan());
        (!is_same).then_some((at, values))
    })
}

/// Sources that are read without being counted or hashed once more.
struct Again<'a, 'p> {
    engine: &'a Engine<'p>,
    tensor: &'a TensorPlan,
    raw: Vec<Vec<u8>>,
}

impl ReadRuns for Again<'_, '_> {
    fn run(&mut self, start: u64, len: usize, take: &mut dyn FnMut(&Sources<'_>)) -> Result<()> {
        if self.engine.schedule.is_over() {
            return Err(Error::internal("the merge is being stopped"));
        }
        with_sources(self.engine.plan, self.tensor, start, start + len as u64, &mut self.raw, take)
    }
}

/// Compares a matrix as a device sent it with what the CPU makes of it.
///
/// # Errors
/// Names device, tensor and the element that is furthest where they are further apart than two decompositions may be.
pub(super) fn matrix(engine: &Engine<'_>, device: &str, index: usize, sent: &[u8]) -> Result<()> {
    let tensor = &engine.plan.tensors[index];
    let Program::LowRank(work) = &tensor.program else { return Ok(()) };
    let _alone = engine.audit.one_matrix();
    let apart = if tensor.wide {
        compared::<f64>(engine, index, work, sent)?
    } else {
        compared::<f32>(engine, index, work, sent)?
    };
    let [difference, changed] = [apart.difference.sqrt(), apart.changed.sqrt()];
    // A NaN passes no comparison.
    let is_near = difference <= MATRIX_BOUND * changed;
    if !is_near {
        let (element, [found, expected]) = apart.worst;
        return Err(differs(device, &tensor.name, element, found, expected)
            .hint(format!("the matrix is {difference:e} from the CPU's, which changes its base by {changed:e}")));
    }
    engine.audit.passed_matrix();
    Ok(())
}

/// Squares of how far two merges are apart, and of what the CPU's changes; the element that is furthest, with both values.
#[derive(Default)]
struct Apart {
    difference: f64,
    changed: f64,
    most: f64,
    worst: (u64, [f64; 2]),
}

/// What rounding to the stored type does to the CPU's own values does not count: two values that hardly differ may be rounded apart.
fn compared<C: Widen + RealField>(engine: &Engine<'_>, index: usize, work: &LowRank, sent: &[u8]) -> Result<Apart> {
    let (plan, tensor) = (engine.plan, &engine.plan.tensors[index]);
    let (measured, models) = (engine.tensors[index].measured(), tensor.models.len());
    let reader = || Again { engine, tensor, raw: vec![Vec::new(); models + 1] };
    let (mut runs, mut origin) = (reader(), reader());
    let (mut narrow, mut wide) = (Scratch::<C>::new(models), Scratch::<f64>::new(models));
    let (mut apart, mut at) = (Apart::default(), 0u64);
    let (mut theirs, mut rounded, mut before, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    low_rank::merge(work, tensor.matrix(), &measured.stages, &mut runs, &mut narrow, &mut wide, &mut |ours| {
        let size = tensor.elem_bytes as usize;
        for of in [&mut theirs, &mut rounded, &mut before] {
            of.resize(ours.len(), 0f64);
        }
        bytes.resize(ours.len() * size, 0);
        f64::narrow(ours, tensor.dtype, &mut bytes);
        Stored { dtype: tensor.dtype, bytes: &bytes }.widen(0, &mut rounded);
        Stored { dtype: tensor.dtype, bytes: sent }.widen(at as usize, &mut theirs);
        // What is changed is the base, or without one the first model.
        with_sources(plan, tensor, at, at + ours.len() as u64, &mut origin.raw, |sources| {
            if let Some(from) = sources.base.as_ref().or(sources.models.first()) {
                from.widen(0, &mut before);
            }
        })?;
        for (i, ours) in ours.iter().enumerate() {
            let far = (theirs[i] - ours).abs() - (rounded[i] - ours).abs();
            // The first that is no number is the worst there can be.
            if far > apart.most || (far.is_nan() && !apart.most.is_nan()) {
                apart.most = far;
                apart.worst = (at + i as u64, [theirs[i], *ours]);
            }
            apart.difference += if far < 0.0 { 0.0 } else { far * far };
            apart.changed += (ours - before[i]).powi(2);
        }
        at += ours.len() as u64;
        Ok(())
    })?;
    crate::backend::cpu::allocator::trim();
    Ok(apart)
}
