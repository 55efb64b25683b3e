//! What is known of one output tensor while it is made: statistics as they come in, digests, facts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use super::choose;
use super::lines::Weights;
use super::writer::Written;
use crate::dtype::{Dtype, DtypeExt};
use crate::error::{Error, Result};
use crate::ops::search::{Cut, Search, Totals};
use crate::ops::{
    Changes, Combine, Geometry, Gram, LineWeights, LowRankFacts, Mask, Measured, Program, Prune, RunFacts, Sparsify,
    StageState, Sums,
};
use crate::output::source_digest::to_hex;
use crate::output::{BlockDigests, JournalEntry, Nonfinite, PieceDigests, SourceTensorDigest};
use crate::plan::{Plan, TensorPlan};

/// One tensor's state, shared by the threads that work on it.
#[derive(Debug)]
pub(super) struct TensorRun(Mutex<State>);

#[derive(Debug)]
struct State {
    measured: Arc<Measured>,
    searches: Arc<Vec<Option<Search>>>,
    /// Cuts found by searches that have ended.
    cuts: Vec<Option<Cut>>,
    tally: Tally,
    /// Norms of the task vectors before and after the stage that is being measured, by model.
    norms: [Vec<Sums>; 2],
    /// Elements that each stage, or the trimming, kept, by model.
    kept: Vec<Vec<u64>>,
    trimmed: Vec<u64>,
    /// What a fit has to say ([`crate::ops::Fit::settle`]).
    remark: Option<&'static str>,
    output: Option<Output>,
    /// Where it is computed, of a merge on CUDA devices: `cuda:0`, or `cpu` and why.
    computed_on: Option<(String, Option<&'static str>)>,
    /// Matrices that a device decomposed together with this one, itself among them.
    batch: usize,
    /// Whether a search has gone over the sources, and goes over them again.
    has_been_read: bool,
}

/// Results of the units of a statistics step.
#[derive(Debug)]
enum Tally {
    None,
    /// By model.
    Counts(Vec<Totals>),
    /// Before and after the stage, by segment and model.
    Norms([Vec<Vec<Sums>>; 2]),
    /// By model and row or column.
    Scores(Vec<Vec<f64>>),
    /// By segment and model.
    Pairs(Vec<Vec<[f64; 2]>>),
    /// By segment, products in the order of [`Gram::pairs`].
    Products(Vec<Vec<f64>>),
    /// By model and line.
    Lines(Vec<Vec<f64>>),
    /// By model.
    Changes(Vec<Changes>),
    /// What a device's search found, by model.
    Cuts(Vec<Option<Cut>>),
}

/// The output as it is written.
#[derive(Debug)]
struct Output {
    digests: PieceDigests,
    /// Pieces to be written, and the end of the merging step.
    left: usize,
    sources: Vec<BlockDigests>,
    facts: RunFacts,
    low_rank: Option<LowRankFacts>,
}

impl TensorRun {
    pub fn new(tensor: &TensorPlan) -> Self {
        let models = tensor.models.len();
        let (sparsify, combine) = match &tensor.program {
            Program::Blend(blend) => (blend.sparsify.clone(), blend.combine.clone()),
            // Never looked at.
            Program::Copy | Program::LowRank(_) | Program::Factor { .. } => {
                (Sparsify::None, Combine::average(Vec::new(), 1.0))
            }
        };
        let measured = Measured {
            geometry: Geometry::of(&tensor.shape),
            stages: Vec::new(),
            sparsify,
            cuts: Vec::new(),
            tops: Vec::new(),
            factors: vec![1.0; models],
            lines: None,
            combine,
        };
        Self(Mutex::new(State {
            measured: Arc::new(measured),
            searches: Arc::default(),
            cuts: Vec::new(),
            tally: Tally::None,
            norms: [Vec::new(), Vec::new()],
            kept: Vec::new(),
            trimmed: Vec::new(),
            remark: None,
            output: None,
            computed_on: None,
            batch: 1,
            has_been_read: false,
        }))
    }

    /// Notes where the tensor is computed, of a merge on CUDA devices, and why there if that is not a device.
    pub fn computed_on(&self, device: &str, why: Option<&'static str>) {
        self.lock().computed_on = Some((device.into(), why));
    }

    /// Notes how many matrices a device decomposes together with this one, itself among them.
    pub fn computed_together(&self, matrices: usize) {
        self.lock().batch = matrices;
    }

    /// Whether the sources have passed by once: a later pass finds them in the page cache.
    pub fn has_been_read(&self) -> bool {
        self.lock().has_been_read
    }

    /// What has been measured so far.
    pub fn measured(&self) -> Arc<Measured> {
        Arc::clone(&self.lock().measured)
    }

    /// The searches of a step, begun if they are not.
    pub fn searches(&self, tensor: &TensorPlan, stage: Option<Prune>) -> Arc<Vec<Option<Search>>> {
        let mut state = self.lock();
        if state.searches.is_empty() {
            state.searches = Arc::new(match stage {
                Some(prune) => vec![choose::search(tensor, prune.keep, prune.keep_redundant); tensor.models.len()],
                None => choose::cut_searches(tensor),
            });
        }
        Arc::clone(&state.searches)
    }

    /// Adds a unit's counters, and clears them for the next.
    pub fn add_counts(&self, searches: &[Option<Search>], counts: &mut [Vec<u32>]) {
        let mut state = self.lock();
        if !matches!(state.tally, Tally::Counts(_)) {
            state.tally = Tally::Counts(vec![Totals::default(); counts.len()]);
        }
        let Tally::Counts(totals) = &mut state.tally else { return };
        choose::add_counts(totals, searches, counts);
    }

    /// The cuts that a device's search has found, by model.
    pub fn set_cuts(&self, cuts: Vec<Option<Cut>>) {
        self.lock().tally = Tally::Cuts(cuts);
    }

    pub fn set_norms(&self, segments: usize, first: usize, before: Vec<Vec<Sums>>, after: Vec<Vec<Sums>>) {
        let mut state = self.lock();
        if !matches!(state.tally, Tally::Norms(_)) {
            state.tally = Tally::Norms([vec![Vec::new(); segments], vec![Vec::new(); segments]]);
        }
        if let Tally::Norms([all_before, all_after]) = &mut state.tally {
            before.into_iter().enumerate().for_each(|(i, s)| all_before[first + i] = s);
            after.into_iter().enumerate().for_each(|(i, s)| all_after[first + i] = s);
        }
    }

    pub fn set_scores(&self, units: usize, first: usize, scores: &[Vec<f64>]) {
        let mut state = self.lock();
        if !matches!(state.tally, Tally::Scores(_)) {
            state.tally = Tally::Scores(vec![vec![0.0; units]; scores.len()]);
        }
        if let Tally::Scores(all) = &mut state.tally {
            all.iter_mut().zip(scores).for_each(|(all, s)| all[first..first + s.len()].copy_from_slice(s));
        }
    }

    pub fn set_pairs(&self, segments: usize, first: usize, pairs: Vec<Vec<[f64; 2]>>) {
        let mut state = self.lock();
        if !matches!(state.tally, Tally::Pairs(_)) {
            state.tally = Tally::Pairs(vec![Vec::new(); segments]);
        }
        if let Tally::Pairs(all) = &mut state.tally {
            pairs.into_iter().enumerate().for_each(|(i, p)| all[first + i] = p);
        }
    }

    pub fn set_products(&self, segments: usize, first: usize, products: Vec<Vec<f64>>) {
        let mut state = self.lock();
        if !matches!(state.tally, Tally::Products(_)) {
            state.tally = Tally::Products(vec![Vec::new(); segments]);
        }
        if let Tally::Products(all) = &mut state.tally {
            products.into_iter().enumerate().for_each(|(i, p)| all[first + i] = p);
        }
    }

    /// Adds what a unit counted, by model.
    pub fn add_changes(&self, changes: &[Changes]) {
        let mut state = self.lock();
        if !matches!(state.tally, Tally::Changes(_)) {
            state.tally = Tally::Changes(vec![Changes::default(); changes.len()]);
        }
        if let Tally::Changes(all) = &mut state.tally {
            all.iter_mut().zip(changes).for_each(|(all, c)| all.add(c));
        }
    }

    /// Notes the weights of lines from the `first` on.
    pub fn set_lines(&self, tensor: &TensorPlan, first: usize, found: Weights) {
        let mut state = self.lock();
        if !matches!(state.tally, Tally::Lines(_)) {
            state.tally = Tally::Lines(vec![vec![0.0; tensor.lines().count as usize]; found.by_model.len()]);
        }
        state.remark = state.remark.or(found.remark);
        if let Tally::Lines(all) = &mut state.tally {
            all.iter_mut().zip(&found.by_model).for_each(|(all, w)| all[first..first + w.len()].copy_from_slice(w));
        }
    }

    /// Ends one pass of a search. Whether the masks or cuts are known; if not, the step must run again.
    pub fn settle_select(&self, tensor: &TensorPlan, stage: Option<Prune>) -> bool {
        let mut state = self.lock();
        let counts = match std::mem::replace(&mut state.tally, Tally::None) {
            Tally::Counts(counts) => counts,
            Tally::Cuts(cuts) => {
                settle_cuts(&mut state, tensor, stage, &cuts);
                return true;
            }
            _ => {
                // There was nothing to search for.
                settle_cuts(&mut state, tensor, stage, &vec![None; tensor.models.len()]);
                return true;
            }
        };
        let State { searches, cuts, .. } = &mut *state;
        cuts.resize(counts.len(), None);
        for ((search, counts), cut) in Arc::make_mut(searches).iter_mut().zip(&counts).zip(cuts) {
            // A search that has ended waits for the others.
            if let Some(searching) = search {
                *cut = searching.advance(counts);
                if cut.is_some() {
                    *search = None;
                }
            }
        }
        if state.searches.iter().any(Option::is_some) {
            state.has_been_read = true;
            return false;
        }
        let cuts = std::mem::take(&mut state.cuts);
        settle_cuts(&mut state, tensor, stage, &cuts);
        true
    }

    /// Ranks rows or columns, and keeps the best.
    pub fn settle_scores(&self, tensor: &TensorPlan, prune: Prune) {
        let mut state = self.lock();
        let scores = match std::mem::replace(&mut state.tally, Tally::None) {
            Tally::Scores(scores) => scores,
            _ => vec![Vec::new(); tensor.models.len()],
        };
        let geometry = state.measured.geometry;
        let (masks, kept) = choose::unit_masks(&scores, prune, geometry, tensor.elems);
        push_stage(&mut state, prune, masks, kept);
    }

    /// Adds up the norms of all segments, in order.
    pub fn settle_norms(&self, tensor: &TensorPlan) {
        let mut state = self.lock();
        let models = tensor.models.len();
        let total = |segments: Vec<Vec<Sums>>| {
            let mut totals = vec![Sums::default(); models];
            segments.iter().for_each(|s| totals.iter_mut().zip(s).for_each(|(t, s)| t.add(s)));
            totals
        };
        state.norms = match std::mem::replace(&mut state.tally, Tally::None) {
            Tally::Norms(norms) => norms.map(total),
            _ => [total(Vec::new()), total(Vec::new())],
        };
    }

    pub fn settle_trim_norms(&self, tensor: &TensorPlan) {
        /// Norms below this are left alone, as mergekit does.
        const TINY: f64 = 1e-7;
        let mut state = self.lock();
        let Tally::Pairs(segments) = std::mem::replace(&mut state.tally, Tally::None) else { return };
        let factors = (0..tensor.models.len()).map(|t| {
            let [before, after] = segments.iter().fold([0.0; 2], |sum, s| [sum[0] + s[t][0], sum[1] + s[t][1]]);
            if before < TINY || after < TINY { 1.0 } else { before / after }
        });
        Arc::make_mut(&mut state.measured).factors = factors.collect();
    }

    /// Adds up the products of all segments, in order, and sets the rule's numbers.
    pub fn settle_fit(&self, tensor: &TensorPlan) {
        let mut state = self.lock();
        let segments = match std::mem::replace(&mut state.tally, Tally::None) {
            Tally::Products(segments) => segments,
            // A tensor without elements.
            _ => Vec::new(),
        };
        let vectors = tensor.fitted_vectors();
        let mut totals = vec![0.0; Gram::len(vectors)];
        segments.iter().for_each(|s| totals.iter_mut().zip(s).for_each(|(total, p)| *total += p));
        let State { measured, remark, .. } = &mut *state;
        let combine = &mut Arc::make_mut(measured).combine;
        if let Some(fit) = combine.fit.clone() {
            *remark = (fit.settle)(&Gram::new(vectors, totals), &fit.parameters, combine);
        }
    }

    /// Weighs each line by itself; the rule then takes what is weighed already.
    pub fn settle_lines(&self, tensor: &TensorPlan) {
        let mut state = self.lock();
        let models = tensor.models.len();
        let weights = match std::mem::replace(&mut state.tally, Tally::None) {
            Tally::Lines(weights) => weights,
            // A tensor without elements.
            _ => vec![Vec::new(); models],
        };
        let measured = Arc::make_mut(&mut state.measured);
        measured.lines = Some(LineWeights { lines: tensor.lines(), weights });
        measured.combine.weights = vec![1.0; models];
    }

    /// Sets the weights that follow from what the task vectors change.
    pub fn settle_overlap(&self, tensor: &TensorPlan) {
        let mut state = self.lock();
        let changes = match std::mem::replace(&mut state.tally, Tally::None) {
            Tally::Changes(changes) => changes,
            // A tensor without elements.
            _ => vec![Changes::default(); tensor.models.len()],
        };
        let combine = &mut Arc::make_mut(&mut state.measured).combine;
        if let Some(overlap) = combine.overlap {
            overlap.settle(&changes, combine);
        }
    }

    /// Takes norms that another process has measured, as [`Self::norms_around`] gave them there.
    pub fn set_norms_around(&self, norms: [Vec<Sums>; 2]) {
        self.lock().norms = norms;
    }

    /// Norms before the stage that is being measured, by model.
    pub fn norms(&self) -> Vec<Sums> {
        self.lock().norms[0].clone()
    }

    /// Keeps or drops the whole tensor for a stage, by model.
    pub fn keep_whole(&self, prune: Prune, elems: u64, keep: &[bool]) {
        let mut state = self.lock();
        let masks = keep.iter().map(|k| if *k { Mask::All } else { Mask::None }).collect();
        let kept = keep.iter().map(|k| if *k { elems } else { 0 }).collect();
        push_stage(&mut state, prune, masks, kept);
        // What a whole tensor's mask leaves needs no pass to be known.
        let [before, after] = &mut state.norms;
        *after = before.iter().zip(keep).map(|(b, k)| if *k { *b } else { Sums::default() }).collect();
    }

    /// Norms before and after the stage that has just been measured, by model.
    pub fn norms_around(&self) -> [Vec<Sums>; 2] {
        self.lock().norms.clone()
    }

    /// Sets the factors of the stage that has just been measured.
    pub fn set_factors(&self, stage: usize, factors: &[f64]) {
        let mut state = self.lock();
        Arc::make_mut(&mut state.measured).stages[stage].1.factors = factors.to_vec();
    }

    /// Digests of source blocks and facts of a run of elements that has been merged.
    pub fn merged(
        &self,
        plan: &Plan,
        tensor: &TensorPlan,
        blocks: Vec<(usize, usize, u128)>,
        facts: &RunFacts,
    ) -> Result<()> {
        let mut state = self.lock();
        let output = state.output(plan, tensor)?;
        for (source, block, digest) in blocks {
            output.sources[source].set(block, digest)?;
        }
        output.facts.kept.resize(facts.kept.len(), 0);
        output.facts.kept.iter_mut().zip(&facts.kept).for_each(|(a, b)| *a += b);
        output.facts.nonfinite += facts.nonfinite;
        output.facts.introduced += facts.introduced;
        Ok(())
    }

    pub fn set_low_rank(&self, plan: &Plan, tensor: &TensorPlan, facts: LowRankFacts) -> Result<()> {
        self.lock().output(plan, tensor)?.low_rank = Some(facts);
        Ok(())
    }

    /// Notes that a piece is in its place; the journal's entry if that was all.
    pub fn piece_written(&self, plan: &Plan, piece: &Written) -> Result<Option<JournalEntry>> {
        let tensor = &plan.tensors[piece.tensor];
        let mut state = self.lock();
        let output = state.output(plan, tensor)?;
        output.digests.set(piece.piece, piece.digest)?;
        output.left -= 1;
        state.entry(plan, tensor)
    }

    /// The merging step has ended; the journal's entry if everything is written too.
    pub fn end(&self, plan: &Plan, tensor: &TensorPlan) -> Result<Option<JournalEntry>> {
        let mut state = self.lock();
        state.output(plan, tensor)?.left -= 1;
        // The masks have served.
        state.measured = Arc::new(Measured { stages: Vec::new(), lines: None, ..(*state.measured).clone() });
        state.entry(plan, tensor)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn output(&mut self, plan: &Plan, tensor: &TensorPlan) -> Result<&mut Output> {
        if self.output.is_none() {
            let digests =
                PieceDigests::new(tensor.elems * tensor.elem_bytes, plan.memory.chunk_elems * tensor.elem_bytes)?;
            let sources = tensor.reads().map(|at| {
                let stored = plan.stored(at).0;
                BlockDigests::new(stored.bytes, hashed_as(stored.dtype))
            });
            self.output = Some(Output {
                left: digests.count() + 1,
                digests,
                sources: sources.collect::<Result<_>>()?,
                facts: RunFacts::default(),
                low_rank: None,
            });
        }
        self.output.as_mut().ok_or_else(|| Error::internal("unreachable"))
    }

    fn entry(&mut self, plan: &Plan, tensor: &TensorPlan) -> Result<Option<JournalEntry>> {
        if self.output.as_ref().is_none_or(|o| o.left > 0) {
            return Ok(None);
        }
        let Some(output) = self.output.take() else { return Ok(None) };
        let sources = tensor.reads().zip(&output.sources).map(|(at, digests)| {
            let tensor = plan.stored(at).0.name.clone();
            Ok(SourceTensorDigest { source: at.source, tensor, digest: to_hex(digests.finish()?) })
        });
        Ok(Some(JournalEntry {
            tensor: tensor.name.clone(),
            digest: output.digests.finish()?.to_hex().to_string(),
            nonfinite: Nonfinite { output: output.facts.nonfinite, introduced: output.facts.introduced },
            facts: self.facts(plan, tensor, &output),
            sources: sources.collect::<Result<_>>()?,
            boot: String::new(),
        }))
    }

    /// What the manifest states of the tensor beside its digests.
    fn facts(&self, plan: &Plan, tensor: &TensorPlan, output: &Output) -> Value {
        let share = |kept: &[u64]| -> Value {
            kept.iter().map(|k| if tensor.elems == 0 { 1.0 } else { *k as f64 / tensor.elems as f64 }).collect()
        };
        let mut facts = Map::new();
        if let Some((device, why)) = &self.computed_on {
            facts.insert("computed_on".into(), device.clone().into());
            if let Some(why) = why {
                facts.insert("why_there".into(), (*why).into());
            }
        }
        if self.batch > 1 {
            facts.insert("batch".into(), self.batch.into());
        }
        if tensor.program == Program::Copy {
            facts.insert("copied".into(), true.into());
        }
        if let Program::Factor { of, task, side } = tensor.program {
            facts.insert("factor".into(), side.word().into());
            facts.insert("of".into(), plan.tensors[of].name.clone().into());
            facts.insert("task".into(), plan.factors.as_ref().map(|f| f.header.tasks[task].name.clone()).into());
        }
        if !self.kept.is_empty() {
            let stages = self.kept.iter().map(|kept| json!({ "kept": kept, "share_kept": share(kept) }));
            facts.insert("stages".into(), stages.collect());
        }
        if let Program::Blend(blend) = &tensor.program {
            let kept = match blend.sparsify {
                Sparsify::None => None,
                Sparsify::TopK { .. } | Sparsify::Band { .. } => Some(&self.trimmed),
                Sparsify::Random { .. } => Some(&output.facts.kept),
            };
            if let Some(kept) = kept {
                facts.insert("kept".into(), json!(kept));
                facts.insert("share_kept".into(), share(kept));
            }
        }
        if let Some(remark) = self.remark {
            facts.insert("remark".into(), remark.into());
        }
        if let Some(low_rank) = &output.low_rank {
            let LowRankFacts { rank, energy, residual, precision, singular_value } = low_rank;
            let by_model = [
                ("rank", json!(rank)),
                ("energy", json!(energy)),
                ("residual", json!(residual)),
                ("precision", json!(precision)),
            ];
            // What a rule does not have, it leaves empty.
            let has = |value: &Value| value.as_array().is_some_and(|values| !values.is_empty());
            facts
                .extend(by_model.into_iter().filter(|(_, value)| has(value)).map(|(name, value)| (name.into(), value)));
            if let Some(value) = singular_value {
                facts.insert("singular_value".into(), json!(value));
            }
        }
        Value::Object(facts)
    }
}

/// Elements smaller than a byte are hashed as the bytes that they are copied as.
pub(super) fn hashed_as(dtype: Dtype) -> Dtype {
    if dtype.size_bytes().is_some() { dtype } else { Dtype::U8 }
}

/// Makes masks or cuts of what a search found; a model without a search keeps all or nothing.
fn settle_cuts(state: &mut State, tensor: &TensorPlan, stage: Option<Prune>, cuts: &[Option<Cut>]) {
    state.searches = Arc::default();
    if let Some(prune) = stage {
        let (masks, kept) = choose::cut_masks(cuts, prune, tensor.elems);
        push_stage(state, prune, masks, kept);
        return;
    }
    let choose::Kept { cuts, tops, elems } = choose::cut_elements(tensor, cuts);
    let measured = Arc::make_mut(&mut state.measured);
    (measured.cuts, measured.tops) = (cuts, tops);
    state.trimmed = elems;
}

fn push_stage(state: &mut State, prune: Prune, masks: Vec<Mask>, kept: Vec<u64>) {
    let factors = vec![1.0; masks.len()];
    Arc::make_mut(&mut state.measured).stages.push((prune, StageState { masks, factors }));
    state.kept.push(kept);
}
