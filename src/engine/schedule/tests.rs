//! The schedule in virtual time: threads that take, finish and come back in the order that a seed chooses.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use super::*;
use crate::plan::Options;
use crate::recipe::Recipe;

/// A base and three models with matrices of several sizes and vectors.
fn family(folder: &Path) {
    let shapes = [(24, 40), (64, 64), (300, 20), (64, 300), (8, 8), (40, 24)];
    for name in ["base", "a", "b", "c"] {
        let file: Vec<(String, Vec<usize>)> = (shapes.iter().enumerate())
            .flat_map(|(layer, (m, n))| {
                let name = |what: &str| format!("layers.{layer}.{what}.weight");
                [(name("mlp"), vec![*m, *n]), (name("norm"), vec![*n]), (name("attn"), vec![*n, *m])]
            })
            .collect();
        let bytes: Vec<Vec<u8>> = file.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
        let views = file
            .iter()
            .zip(&bytes)
            .map(|((name, shape), bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        std::fs::write(folder.join(format!("{name}.safetensors")), safetensors::serialize(views, None).unwrap())
            .unwrap();
    }
}

const MODELS: &str =
    "base_model: base.safetensors\nmodels: [{model: a.safetensors}, {model: b.safetensors}, {model: c.safetensors}]\n";

/// Matrices, behind searches, scores of rows, norms of layers and ranks; a method that trims; products of vectors.
const RECIPES: [&str; 4] = [
    "merge_method: cart\nparameters: {rank: 2}\ntask_vector_stages: [{stage: lwptv, parameters: {granularity: element, keep: 0.5}}]\n",
    "merge_method: low_rank\nparameters: {rank: 4}\ntask_vector_stages: [{stage: lwptv, parameters: {granularity: row, keep: 0.5, rescale: l2}}]\n",
    "merge_method: tsv_m\ntask_vector_stages: [{stage: lwptv, parameters: {granularity: layer, keep: 0.5, rescale: l1}}]\n",
    "merge_method: ties\nparameters: {density: 0.3}\ntask_vector_stages: [{stage: lwptv, parameters: {granularity: element, keep: 0.5}}, \
     {stage: lwptv, parameters: {granularity: column, keep: 0.5}}]\n",
];

fn plan(folder: &Path, recipe: &str, threads: usize, memory_budget: u64) -> Plan {
    let path = folder.join("recipe.yaml");
    std::fs::write(&path, format!("{MODELS}{recipe}")).unwrap();
    let options = Options { threads, memory_budget, seed: 0, shard_bytes: 1 << 30 };
    Plan::new(Recipe::load(&path).unwrap(), options).unwrap()
}

/// splitmix64
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What the threads see, kept apart from what the schedule keeps.
struct World<'a> {
    plan: &'a Plan,
    /// Steps that have started and not ended.
    at_work: BTreeSet<StepId>,
    ended: BTreeSet<StepId>,
    /// Units in hand: when they will be done, and what they are.
    in_hand: BTreeSet<(u64, StepId, u64)>,
    /// The most memory that was lent at once.
    most: u64,
    /// Whether a step ever had to wait for memory.
    waited: bool,
}

impl World<'_> {
    fn reserve(&self, id: StepId) -> u64 {
        self.plan.graph.steps[id].reserve
    }

    fn lent(&self) -> u64 {
        self.at_work.iter().map(|id| self.reserve(*id)).sum()
    }

    /// Steps that could start but for memory.
    fn waiting(&self) -> impl Iterator<Item = StepId> + '_ {
        let is_ready = |id: &StepId| self.plan.graph.steps[*id].needs.iter().all(|n| self.ended.contains(n));
        let is_new = |id: &StepId| !self.ended.contains(id) && !self.at_work.contains(id);
        (0..self.plan.graph.steps.len()).filter(is_new).filter(is_ready)
    }

    fn take(&mut self, (id, unit): (StepId, u64), done_at: u64) {
        let step = &self.plan.graph.steps[id];
        assert!(unit < step.units && !self.ended.contains(&id), "unit {unit} of step {id}");
        assert!(
            step.needs.iter().all(|need| self.ended.contains(need)),
            "step {id} starts before what it needs has ended"
        );
        if !self.at_work.contains(&id) {
            assert_eq!(unit, 0, "step {id} starts in the middle");
            if step.reserve > 0 {
                let overtaken = self.waiting().find(|other| *other < id && self.reserve(*other) > 0);
                assert_eq!(overtaken, None, "step {id} takes the memory that another waits for");
            }
            self.at_work.insert(id);
            self.most = self.most.max(self.lent());
            let lenders = self.at_work.iter().filter(|id| self.reserve(**id) > 0).count();
            let most = self.plan.memory.for_steps;
            assert!(lenders <= 1 || self.lent() <= most, "{} lent of {most}: {:?}", self.lent(), self.at_work);
        }
        assert!(self.in_hand.insert((done_at, id, unit)));
    }

    /// A thread that gets nothing: there is nothing but what waits for memory that is not there.
    fn idle(&mut self) {
        let first = self.waiting().find(|id| self.reserve(*id) > 0);
        assert!(self.waiting().all(|id| self.reserve(id) > 0), "a step that needs no memory is not given out");
        if let Some(id) = first {
            let fits = self.lent() == 0 || self.lent() + self.reserve(id) <= self.plan.memory.for_steps;
            assert!(!fits, "step {id} fits and is not given out");
            self.waited = true;
        }
    }
}

/// Runs all steps on so many threads; whether memory was waited for, and the most that was lent.
fn simulate(plan: &Plan, threads: usize, seed: u64) -> (bool, u64) {
    let (stop, done) = (Stop::default(), vec![false; plan.tensors.len()]);
    let schedule = Schedule::new(plan, &done, None, &stop);
    let (mut random, mut now) = (seed, 0);
    let [at_work, ended] = [BTreeSet::new(), BTreeSet::new()];
    let mut world = World { plan, at_work, ended, in_hand: BTreeSet::new(), most: 0, waited: false };
    loop {
        while world.in_hand.len() < threads {
            let task = schedule.next(&mut schedule.lock(), Taker::Host);
            let Some(Task::Unit(id, unit)) = task else {
                assert_eq!(task, None, "a merge that is whole looks nothing up");
                world.idle();
                break;
            };
            world.take((id, unit), now + 1 + next(&mut random) % 100);
        }
        let Some((at, id, _)) = world.in_hand.pop_first() else { break };
        now = at;
        if schedule.done(id) {
            world.at_work.remove(&id);
            assert!(
                world.in_hand.iter().all(|(_, other, _)| *other != id),
                "step {id} ends while a unit of it is in hand"
            );
            // Searches are run again until they have found their cut.
            if matches!(plan.graph.steps[id].kind, Kind::Select { .. }) && next(&mut random).is_multiple_of(3) {
                schedule.again(id);
            } else {
                schedule.end(id);
                world.ended.insert(id);
            }
        }
    }
    assert_eq!(world.ended.len(), plan.graph.steps.len(), "steps starve: {:?}", world.waiting().collect::<Vec<_>>());
    schedule.result().unwrap();
    (world.waited, world.most)
}

#[test]
fn needs_are_respected_memory_is_never_lent_twice_and_no_step_starves() {
    let dir = tempfile::tempdir().unwrap();
    family(dir.path());
    for recipe in RECIPES {
        let (mut waited, mut shared) = (false, false);
        for threads in [1, 2, 3, 8] {
            let roomy = plan(dir.path(), recipe, threads, 1 << 34).memory;
            // From the least that such buffers allow on.
            for more in [0, roomy.largest_step / 2, 3 * roomy.largest_step] {
                let plan = plan(dir.path(), recipe, threads, roomy.total + more);
                for seed in 0..20 {
                    let (had_to_wait, most) = simulate(&plan, plan.memory.threads, seed);
                    waited |= had_to_wait;
                    shared |= most > plan.memory.largest_step;
                }
            }
        }
        assert!(waited && shared, "waited for memory: {waited}; shared it: {shared}; {recipe}");
    }
}

#[test]
fn what_is_lent_to_steps_is_what_everything_else_leaves_of_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    family(dir.path());
    for recipe in RECIPES {
        for (threads, budget) in [(1, 1 << 34), (4, 1 << 34), (2, 64 << 20)] {
            let m = plan(dir.path(), recipe, threads, budget).memory;
            let buffers = m.buffers as u64 * (m.buffer_bytes + crate::output::direct_alignment());
            let rest = m.tables + m.threads as u64 * m.per_thread + buffers + m.lanes;
            assert_eq!(rest + m.for_steps, budget, "{m:?}");
            assert!(m.for_steps >= m.largest_step && rest + m.largest_step == m.total, "{m:?}");
        }
    }
}
