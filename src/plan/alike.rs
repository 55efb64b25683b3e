//! Plans that can be carried out together: from one reading of the sources, with one decomposition of each matrix.

use super::memory::{self, Lanes, Memory};
use super::{Plan, TensorPlan};
use crate::error::Result;
use crate::ops::{Combine, LowRank, Program};
use crate::plan::graph::{Graph, Kind};

impl Plan {
    /// Whether another plan's outputs come about along with this one's: the same tensors of the same sources, measured alike, that
    /// differ in numbers of the last step alone (weights, λ).
    pub fn is_made_with(&self, other: &Self) -> bool {
        let same = |(a, b): (&TensorPlan, &TensorPlan)| {
            (&a.name, a.dtype, a.elems, a.base, &a.models, a.wide)
                == (&b.name, b.dtype, b.elems, b.base, &b.models, b.wide)
                && is_alike(&a.program, &b.program)
        };
        // Rows of embeddings are made by the tokenizer's rule before a plan sees them.
        let made = |plan: &Self| plan.recipe.to_json().get("tokenizer").cloned();
        self.devices.is_none()
            && other.devices.is_none()
            && self.factors.is_none()
            && other.factors.is_none()
            && made(self) == made(other)
            && self.layout.digest() == other.layout.digest()
            && self.fingerprint().components().get("sources") == other.fingerprint().components().get("sources")
            && self.tensors.len() == other.tensors.len()
            && self.tensors.iter().zip(&other.tensors).all(same)
    }

    /// Fits the plan and those that are made with it into the memory budget, and lets them share its sources. Any of them can lead
    /// then.
    ///
    /// # Errors
    /// `Input` if the budget does not hold it.
    pub fn lead(&mut self, others: &mut [&mut Self]) -> Result<()> {
        let outputs = others.len() + 1;
        let memory = Memory::fit_outputs(&self.tensors, self.options, Lanes::default(), outputs)?;
        for other in others.iter_mut() {
            other.sources.clone_from(&self.sources);
            other.fit_beside(memory, outputs);
        }
        self.fit_beside(memory, outputs);
        Ok(())
    }

    fn fit_beside(&mut self, memory: Memory, outputs: usize) {
        self.memory = memory;
        self.graph = Graph::new(&self.tensors, &self.layers, memory.chunk_elems);
        for step in self.graph.steps.iter_mut().filter(|step| step.kind == Kind::Merge && outputs > 1) {
            step.reserve += memory::more_bytes(&self.tensors[step.tensor]);
        }
    }
}

fn is_alike(a: &Program, b: &Program) -> bool {
    match (a, b) {
        (Program::Copy, Program::Copy) => true,
        (Program::Blend(a), Program::Blend(b)) => {
            a.stages == b.stages && a.sparsify == b.sparsify && combines_alike(&a.combine, &b.combine)
        }
        (Program::LowRank(a), Program::LowRank(b)) => LowRank { lambda: a.lambda, ..b.clone() } == *a,
        _ => false,
    }
}

fn combines_alike(a: &Combine, b: &Combine) -> bool {
    let fits = |c: &Combine| c.fit.as_ref().map(|fit| (fit.name, fit.of));
    a.rule == b.rule && a.weights.len() == b.weights.len() && fits(a) == fits(b) && a.overlap == b.overlap
}
