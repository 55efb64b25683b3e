//! Which unit of which step a thread does next.
//!
//! Steps start in the plan's order as soon as what they need has ended and their memory is free. A step that waits for
//! memory is not overtaken by one that needs memory too, so that the largest is never starved.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::plan::graph::{Kind, StepId};
use crate::run::Stop;

/// Who takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taker {
    /// A thread of the CPU: units of steps.
    Host,
    /// A lane of this device (its place among the plan's): whole steps. The later steps of a tensor, and those of tensors that
    /// are decomposed with it, go to the device that had the first, where its sources may still lie.
    Device(usize),
}

/// What a thread is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// A unit of a step, or for a device the step as a whole.
    Unit(StepId, u64),
    /// To see whether another part of the merge has measured what a step would: then [`Schedule::end_unrun`], else
    /// [`Schedule::offer`].
    LookUp(StepId),
}

/// How the parts of a merge go about its steps.
#[derive(Debug)]
pub(super) struct Parted {
    /// The order of steps; of equal ones the plan's.
    pub rank: Vec<usize>,
    /// Steps whose results may be known from elsewhere.
    pub is_shared: Vec<bool>,
}

/// Shared by the computing threads.
#[derive(Debug)]
pub(super) struct Schedule<'a> {
    plan: &'a Plan,
    stop: &'a Stop,
    dependents: Vec<Vec<StepId>>,
    parted: Option<Parted>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Steps with units to give out, what they need having ended, by their order.
    ready: BTreeSet<(usize, StepId)>,
    steps: Vec<Progress>,
    /// The device that has begun with a tensor.
    homes: Vec<Option<usize>>,
    /// Memory of steps that have started and not ended.
    reserved: u64,
    /// Steps that have not ended.
    left: usize,
    error: Option<Error>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    needs_left: usize,
    /// Whether it has been looked up elsewhere.
    looked_up: bool,
    given: u64,
    done: u64,
}

impl<'a> Schedule<'a> {
    /// Leaves out what only tensors that are done already would need.
    pub fn new(plan: &'a Plan, is_done: &[bool], parted: Option<Parted>, stop: &'a Stop) -> Self {
        let steps = &plan.graph.steps;
        let mut wanted = vec![false; steps.len()];
        let merges = steps.iter().enumerate().filter(|(_, s)| s.kind == Kind::Merge && !is_done[s.tensor]);
        let mut open: Vec<StepId> = merges.map(|(id, _)| id).collect();
        while let Some(id) = open.pop() {
            if !std::mem::replace(&mut wanted[id], true) {
                open.extend(&steps[id].needs);
            }
        }
        let mut dependents = vec![Vec::new(); steps.len()];
        let mut progress = vec![Progress::default(); steps.len()];
        let mut free = Vec::new();
        for (i, step) in steps.iter().enumerate().filter(|(i, _)| wanted[*i]) {
            progress[i].needs_left = step.needs.len();
            step.needs.iter().for_each(|n| dependents[*n].push(i));
            if step.needs.is_empty() {
                free.push(i);
            }
        }
        let left = wanted.iter().filter(|w| **w).count();
        let homes = vec![None; plan.tensors.len()];
        let state = State { ready: BTreeSet::new(), steps: progress, homes, reserved: 0, left, error: None };
        let schedule = Self { plan, stop, dependents, parted, state: Mutex::new(state), changed: Condvar::new() };
        schedule.lock().ready.extend(free.into_iter().map(|id| schedule.ordered(id)));
        schedule
    }

    /// A step by its order among those that are ready.
    fn ordered(&self, id: StepId) -> (usize, StepId) {
        (self.parted.as_ref().map_or(0, |parted| parted.rank[id]), id)
    }

    /// The next unit, or for a device the next step as a whole; `None` when there is nothing left, or the run is being stopped.
    pub fn take(&self, taker: Taker) -> Option<Task> {
        let mut state = self.lock();
        loop {
            self.heed_signal(&mut state);
            if state.error.is_some() || state.left == 0 {
                return None;
            }
            if let Some(task) = self.next(&mut state, taker) {
                return Some(task);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether a step is one for this taker.
    fn suits(&self, state: &State, id: StepId, taker: Taker) -> bool {
        let step = &self.plan.graph.steps[id];
        let on_device = step.kind.has_data() && self.plan.devices.as_ref().is_some_and(|d| d.has(step.tensor));
        match taker {
            Taker::Host => !on_device,
            Taker::Device(device) => on_device && state.homes[step.tensor].is_none_or(|home| home == device),
        }
    }

    /// Whether a step is to be looked up first.
    fn asks(&self, state: &State, id: StepId) -> bool {
        !state.steps[id].looked_up && self.parted.as_ref().is_some_and(|parted| parted.is_shared[id])
    }

    fn next(&self, state: &mut State, taker: Taker) -> Option<Task> {
        let mut waiting_for_memory = false;
        let mut found = None;
        for (_, id) in state.ready.iter().filter(|(_, id)| self.suits(state, *id, taker)) {
            if self.asks(state, *id) {
                found = Some(*id);
                break;
            }
            let step = &self.plan.graph.steps[*id];
            let starts = state.steps[*id].given == 0;
            if !starts || step.reserve == 0 {
                found = Some(*id);
                break;
            }
            // A lone step may always run: the plan made sure that it fits.
            let fits = state.reserved == 0 || state.reserved + step.reserve <= self.plan.memory.for_steps;
            if fits && !waiting_for_memory {
                found = Some(*id);
                break;
            }
            waiting_for_memory = true;
        }
        let id = found?;
        if self.asks(state, id) {
            state.steps[id].looked_up = true;
            state.ready.remove(&self.ordered(id));
            return Some(Task::LookUp(id));
        }
        let step = &self.plan.graph.steps[id];
        let progress = &mut state.steps[id];
        let unit = progress.given;
        progress.given += 1;
        if let Taker::Device(device) = taker {
            (progress.given, progress.done) = (step.units, step.units - 1);
            let batch = self.plan.devices.as_ref().and_then(|on| on.batch(step.tensor));
            for tensor in batch.map_or(std::slice::from_ref(&step.tensor), |batch| &batch.tensors) {
                state.homes[*tensor] = Some(device);
            }
        }
        if unit == 0 {
            state.reserved += step.reserve;
        }
        if state.steps[id].given == step.units {
            state.ready.remove(&self.ordered(id));
        }
        Some(Task::Unit(id, unit))
    }

    /// A unit is done. Whether it was the step's last: the caller then settles the step and calls [`Self::end`].
    pub fn done(&self, id: StepId) -> bool {
        let mut state = self.lock();
        state.steps[id].done += 1;
        state.steps[id].done == self.plan.graph.steps[id].units
    }

    /// A step must run again, from its first unit on.
    pub fn again(&self, id: StepId) {
        let mut state = self.lock();
        state.reserved -= self.plan.graph.steps[id].reserve;
        (state.steps[id].given, state.steps[id].done) = (0, 0);
        state.ready.insert(self.ordered(id));
        drop(state);
        self.changed.notify_all();
    }

    /// A step that was looked up in vain is to run.
    pub fn offer(&self, id: StepId) {
        self.lock().ready.insert(self.ordered(id));
        self.changed.notify_all();
    }

    /// A step need not run: its result is known.
    pub fn end_unrun(&self, id: StepId) {
        self.lock().reserved += self.plan.graph.steps[id].reserve;
        self.end(id);
    }

    /// A step has ended: its memory is free, and what waits for it may start.
    pub fn end(&self, id: StepId) {
        let mut state = self.lock();
        state.reserved -= self.plan.graph.steps[id].reserve;
        state.left -= 1;
        for dependent in &self.dependents[id] {
            state.steps[*dependent].needs_left -= 1;
            if state.steps[*dependent].needs_left == 0 {
                state.ready.insert(self.ordered(*dependent));
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the run with its first error.
    pub fn fail(&self, error: Error) {
        self.lock().error.get_or_insert(error);
        self.changed.notify_all();
    }

    /// A signal ends the run as an error does.
    fn heed_signal(&self, state: &mut State) {
        if state.error.is_none()
            && let Some(error) = self.stop.error()
        {
            state.error = Some(error);
            self.changed.notify_all();
        }
    }

    /// Whether threads should end.
    pub fn is_over(&self) -> bool {
        let mut state = self.lock();
        self.heed_signal(&mut state);
        state.error.is_some() || state.left == 0
    }

    /// How the run went; takes the error.
    pub fn result(&self) -> Result<()> {
        let mut state = self.lock();
        match state.error.take() {
            Some(error) => Err(error),
            None if state.left > 0 => Err(Error::internal(format!("{} steps were left undone", state.left))),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the run if it is dropped, which only a panic makes happen.
pub(super) struct StopOnPanic<'a, 'b>(pub &'a Schedule<'b>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        self.0.fail(Error::internal("a thread panicked"));
    }
}
