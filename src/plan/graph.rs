//! The steps that make the output tensors, and what each must wait for.
//!
//! Most tensors take one step. Statistics are steps of their own before the last: cuts, scores of rows and columns, norms.
//! Steps of one tensor follow each other; ranking layers or tensors waits for the norms of all of them.

use crate::checkpoint::LayerMap;
use crate::ops::search::Totals;
use crate::ops::{Changes, Geometry, Granularity, Lines, Program, Prune, Rescale, SEGMENT};

use super::TensorPlan;

/// Index of a step in [`Graph::steps`].
pub type StepId = usize;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The search for the cut of a stage's scores or, where no stage is named, of the trimmed magnitudes. It is run again
    /// until the cut is found: a sample and one pass, as a rule. Stages go by their place in the recipe, here and below.
    Select {
        /// Whose cut.
        stage: Option<usize>,
    },
    /// Mean scores of rows, for a stage.
    Rows(usize),
    /// Mean scores of columns, for a stage.
    Columns(usize),
    /// Norms of the task vectors that enter a stage and, for `rescale`, of what its masks leave.
    Norms(usize),
    /// Ranks all layers or tensors for a stage (no tensor of its own).
    Rank(usize),
    /// Factors that restore a layer's norms after a stage (no tensor of its own).
    Restore {
        /// The stage.
        stage: usize,
        /// The layer.
        layer: usize,
    },
    /// Norms before and after trimming, to restore the L1 norm.
    TrimNorms,
    /// Products of the vectors that are combined ([`crate::ops::Fit`]).
    Gram,
    /// The same for each vector along a dimension ([`crate::ops::Along`]), and the weights that follow.
    Lines,
    /// Elements that task vectors change alone and together ([`crate::ops::Overlap`]).
    Overlap,
    /// The merge itself.
    Merge,
}

impl Kind {
    /// The stage that it is for, as its place among the recipe's.
    pub fn stage(self) -> Option<usize> {
        match self {
            Self::Select { stage } => stage,
            Self::Rows(stage) | Self::Columns(stage) | Self::Norms(stage) | Self::Rank(stage) => Some(stage),
            Self::Restore { stage, .. } => Some(stage),
            Self::TrimNorms | Self::Gram | Self::Lines | Self::Overlap | Self::Merge => None,
        }
    }

    /// What it does, in a few words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Select { stage: Some(_) } => "search for the cut of a stage's scores",
            Self::Select { stage: None } => "search for the cut of the magnitudes",
            Self::Rows(_) => "scores of rows",
            Self::Columns(_) => "scores of columns",
            Self::Norms(_) => "norms around a stage",
            Self::Rank(_) => "rank of layers or tensors",
            Self::Restore { .. } => "factors that restore a layer's norms",
            Self::TrimNorms => "norms before and after the trim",
            Self::Gram => "products of the vectors",
            Self::Lines => "products of the vectors, line by line",
            Self::Overlap => "changes alone and together",
            Self::Merge => "merge",
        }
    }
}

/// One step.
#[derive(Debug)]
pub struct Step {
    /// What it does.
    pub kind: Kind,
    /// The tensor that it works on; for [`Kind::Rank`] and [`Kind::Restore`] unused.
    pub tensor: usize,
    /// Parts that may run at the same time; 1 for steps without data.
    pub units: u64,
    /// Bytes that its results take while it runs.
    pub reserve: u64,
    /// Steps that must end before it starts.
    pub needs: Vec<StepId>,
}

/// All steps, in the order in which they should run.
#[derive(Debug, Default)]
pub struct Graph {
    /// The steps; what a step needs stands before it, but for merges that a device does together.
    pub steps: Vec<Step>,
    passes: Vec<u64>,
    first: Vec<StepId>,
}

impl Graph {
    pub(super) fn new(tensors: &[TensorPlan], layers: &LayerMap, chunk_elems: u64) -> Self {
        let mut builder = Builder {
            graph: Graph { steps: Vec::new(), passes: vec![0; tensors.len()], first: vec![0; tensors.len()] },
            chunk_elems,
        };
        let groups_all = |t: &TensorPlan| t.stages().iter().copied().any(ranks_groups);
        let groups_layer = |t: &TensorPlan| t.stages().iter().any(|p| p.rescale != Rescale::None);
        if tensors.iter().any(groups_all) {
            builder.together(tensors, &(0..tensors.len()).collect::<Vec<_>>());
        } else if tensors.iter().any(groups_layer) {
            for layer in 0..layers.groups().len() {
                let members: Vec<_> = (0..tensors.len()).filter(|t| tensors[*t].layer == layer).collect();
                builder.together(tensors, &members);
            }
        } else {
            (0..tensors.len()).for_each(|t| builder.together(tensors, &[t]));
        }
        builder.graph
    }

    /// The first step that reads a tensor's sources.
    pub fn first(&self, tensor: usize) -> StepId {
        self.first[tensor]
    }

    /// The steps that a tensor's merge waits for, of whatever tensor, in the order in which they should run. Merges that a
    /// device does together are not among them.
    pub fn before_merge(&self, tensor: usize) -> Vec<StepId> {
        let merge = |step: &Step| step.tensor == tensor && step.kind == Kind::Merge;
        let mut open: Vec<StepId> = self.steps.iter().position(merge).into_iter().collect();
        let mut found = vec![false; self.steps.len()];
        while let Some(id) = open.pop() {
            for need in self.steps[id].needs.iter().filter(|need| self.steps[**need].kind != Kind::Merge) {
                if !std::mem::replace(&mut found[*need], true) {
                    open.push(*need);
                }
            }
        }
        (0..self.steps.len()).filter(|id| found[*id]).collect()
    }

    /// Lets merges be done in the first of these steps, once what any of them needs is there; the others come after it.
    pub(super) fn join(&mut self, steps: &[StepId]) {
        let Some((lead, others)) = steps.split_first() else { return };
        for other in others {
            let needs = std::mem::replace(&mut self.steps[*other].needs, vec![*lead]);
            self.steps[*lead].needs.extend(needs);
        }
        let needs = &mut self.steps[*lead].needs;
        needs.sort_unstable();
        needs.dedup();
    }

    /// How often the sources of a tensor are read.
    pub fn passes(&self, tensor: usize) -> u64 {
        self.passes[tensor]
    }
}

struct Builder {
    graph: Graph,
    chunk_elems: u64,
}

impl Builder {
    /// Steps of tensors whose stages may have to wait for each other.
    fn together(&mut self, tensors: &[TensorPlan], members: &[usize]) {
        // What the next step of each member must wait for.
        let mut waits: Vec<Vec<StepId>> = vec![Vec::new(); members.len()];
        let mut stages: Vec<usize> = members.iter().flat_map(|t| tensors[*t].stages()).map(|p| p.stage).collect();
        stages.sort_unstable();
        stages.dedup();
        for stage in stages {
            let prune = |t: usize| tensors[t].stage(stage).map(|(_, prune)| prune);
            for (t, wait) in members.iter().zip(&mut waits) {
                self.scores(&tensors[*t], *t, stage, wait);
            }
            let ranks = members.iter().filter_map(|t| prune(*t)).any(ranks_groups);
            if ranks {
                let needs = waits.iter().flatten().copied().collect();
                let rank = self.push(Kind::Rank(stage), members[0], 1, 0, needs);
                waits.iter_mut().for_each(|w| *w = vec![rank]);
            }
            let rescales = |t: usize| prune(t).is_some_and(|p| p.rescale != Rescale::None);
            let mut layers: Vec<_> = members.iter().filter(|t| rescales(**t)).map(|t| tensors[*t].layer).collect();
            layers.sort_unstable();
            layers.dedup();
            for layer in layers {
                let here = |t: usize| tensors[t].layer == layer && prune(t).is_some();
                let mut needs = Vec::new();
                for (_, wait) in members.iter().zip(&waits).filter(|(t, _)| here(**t)) {
                    needs.extend(wait.iter().filter(|id| !needs.contains(*id)).copied().collect::<Vec<_>>());
                }
                let restore = self.push(Kind::Restore { stage, layer }, members[0], 1, 0, needs);
                members.iter().zip(&mut waits).filter(|(t, _)| here(**t)).for_each(|(_, w)| *w = vec![restore]);
            }
        }
        for (t, wait) in members.iter().zip(waits) {
            // Factors come about in the step of their matrix.
            if !matches!(tensors[*t].program, Program::Factor { .. }) {
                self.merge(&tensors[*t], *t, wait);
            }
        }
    }

    /// Statistics of one tensor for one of its stages.
    fn scores(&mut self, tensor: &TensorPlan, t: usize, stage: usize, wait: &mut Vec<StepId>) {
        let Some((_, prune)) = tensor.stage(stage) else { return };
        let models = tensor.models.len() as u64;
        let geometry = Geometry::of(&tensor.shape);
        match prune.granularity {
            Granularity::Element => self.select(tensor, t, Some(stage), wait),
            Granularity::Row => {
                let units = geometry.rows.div_ceil(self.unit_rows(geometry));
                self.pass(Kind::Rows(stage), t, units, models * geometry.rows * 8, wait);
            }
            Granularity::Column => {
                let units = geometry.columns.div_ceil(unit_columns(geometry));
                self.pass(Kind::Columns(stage), t, units, models * geometry.columns * 8, wait);
            }
            Granularity::Layer | Granularity::Tensor => self.norms(Kind::Norms(stage), tensor, t, wait),
        }
        if prune.rescale != Rescale::None && !ranks_groups(prune) {
            self.norms(Kind::Norms(stage), tensor, t, wait);
        }
    }

    /// What the method itself needs, and the merge.
    fn merge(&mut self, tensor: &TensorPlan, t: usize, mut wait: Vec<StepId>) {
        let units = match &tensor.program {
            Program::Copy => self.chunks(tensor.elems),
            Program::LowRank(_) | Program::Factor { .. } => 1,
            Program::Blend(blend) => {
                if blend.sparsify.cuts() > 0 {
                    self.select(tensor, t, None, &mut wait);
                    if blend.sparsify.restores_norm() {
                        self.norms(Kind::TrimNorms, tensor, t, &mut wait);
                    }
                }
                if tensor.weighs_lines() {
                    let units = tensor.lines().count.div_ceil(unit_lines(tensor.lines(), self.chunk_elems));
                    self.pass(Kind::Lines, t, units, line_bytes(tensor), &mut wait);
                } else if blend.combine.fit.is_some() {
                    self.pass(Kind::Gram, t, self.chunks(tensor.elems), gram_bytes(tensor), &mut wait);
                }
                if blend.combine.overlap.is_some() {
                    let reserve = (tensor.models.len() * size_of::<Changes>()) as u64;
                    self.pass(Kind::Overlap, t, self.chunks(tensor.elems), reserve, &mut wait);
                }
                self.chunks(tensor.elems)
            }
        };
        self.pass(Kind::Merge, t, units, super::memory::low_rank_bytes(tensor), &mut wait);
        if let Program::LowRank(work) = &tensor.program {
            let passes = crate::backend::cpu::low_rank::passes(work, tensor.matrix(), tensor.wide);
            self.graph.passes[t] += passes - 1;
        }
    }

    fn select(&mut self, tensor: &TensorPlan, t: usize, stage: Option<usize>, wait: &mut Vec<StepId>) {
        let reserve = select_bytes(searches(tensor));
        self.pass(Kind::Select { stage }, t, self.chunks(tensor.elems), reserve, wait);
    }

    fn norms(&mut self, kind: Kind, tensor: &TensorPlan, t: usize, wait: &mut Vec<StepId>) {
        let reserve = norms_bytes(tensor.elems, tensor.models.len() as u64);
        self.pass(kind, t, self.chunks(tensor.elems), reserve, wait);
    }

    /// A step that reads the tensor's sources once, and that whatever comes next must wait for.
    fn pass(&mut self, kind: Kind, t: usize, units: u64, reserve: u64, wait: &mut Vec<StepId>) {
        let step = self.push(kind, t, units, reserve, std::mem::take(wait));
        if self.graph.passes[t] == 0 {
            self.graph.first[t] = step;
        }
        self.graph.passes[t] += 1;
        *wait = vec![step];
    }

    fn push(&mut self, kind: Kind, tensor: usize, units: u64, reserve: u64, needs: Vec<StepId>) -> StepId {
        self.graph.steps.push(Step { kind, tensor, units: units.max(1), reserve, needs });
        self.graph.steps.len() - 1
    }

    fn chunks(&self, elems: u64) -> u64 {
        elems.div_ceil(self.chunk_elems)
    }

    fn unit_rows(&self, geometry: Geometry) -> u64 {
        unit_rows(geometry, self.chunk_elems)
    }
}

/// Whether a stage keeps or drops whole layers or tensors, which it must rank against each other.
pub(super) fn ranks_groups(prune: Prune) -> bool {
    matches!(prune.granularity, Granularity::Layer | Granularity::Tensor)
}

/// Searches that a tensor's steps make at once, at most: one a model, or as many as the method cuts of it.
pub(super) fn searches(tensor: &TensorPlan) -> u64 {
    let cuts = match &tensor.program {
        Program::Blend(blend) => blend.sparsify.cuts(),
        _ => 0,
    };
    let ranks_elements = tensor.stages().iter().any(|p| p.granularity == Granularity::Element);
    tensor.models.len() as u64 * (cuts as u64).max(u64::from(ranks_elements))
}

/// Counters of so many searches.
pub(super) fn select_bytes(searches: u64) -> u64 {
    searches * Totals::BYTES as u64
}

/// Partial sums of norms, before and after pruning.
pub(super) fn norms_bytes(elems: u64, models: u64) -> u64 {
    2 * elems.div_ceil(SEGMENT as u64) * models * size_of::<crate::ops::Sums>() as u64
}

/// Partial sums of products.
pub(super) fn gram_bytes(tensor: &TensorPlan) -> u64 {
    let products = crate::ops::Gram::len(tensor.fitted_vectors()) as u64;
    tensor.elems.div_ceil(SEGMENT as u64) * (size_of::<Vec<f64>>() as u64 + 8 * products)
}

/// Lines whose products a thread holds at once.
pub const LINES_AT_ONCE: u64 = 1024;

/// Lines that one unit of [`Kind::Lines`] finds weights for.
pub fn unit_lines(lines: Lines, chunk_elems: u64) -> u64 {
    if lines.is_contiguous() { (chunk_elems / lines.len.max(1)).max(1) } else { LINES_AT_ONCE }
}

/// Weights of lines, by model.
pub(super) fn line_bytes(tensor: &TensorPlan) -> u64 {
    if tensor.weighs_lines() { tensor.models.len() as u64 * tensor.lines().count * 8 } else { 0 }
}

/// Products of lines that a thread works on.
pub(super) fn line_products_bytes(tensor: &TensorPlan) -> u64 {
    let products = crate::ops::Gram::len(tensor.fitted_vectors()) as u64;
    if tensor.weighs_lines() { tensor.lines().count.min(LINES_AT_ONCE) * products * 8 } else { 0 }
}

/// Rows that one unit of [`Kind::Rows`] scores.
pub fn unit_rows(geometry: Geometry, chunk_elems: u64) -> u64 {
    (chunk_elems / geometry.row_elems.max(1)).max(1)
}

/// Columns that one unit of [`Kind::Columns`] scores, over all rows: so few that the totals of some models stay in the core's
/// nearest cache from row to row.
pub fn unit_columns(geometry: Geometry) -> u64 {
    (1024 / geometry.inner.max(1)).max(1)
}
