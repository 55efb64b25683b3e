//! A merge cut into parts that take about the same time, for as many processes.
//!
//! Which tensor is in which part follows from the plan alone, not from threads, memory or devices: so every process knows all
//! parts, whatever machine it is on.

use super::{Plan, TensorPlan, show};
use crate::ops::Program;
use crate::output::Share;

/// Bytes read or written in a second, and floating-point operations: of one thread, roughly. Only their ratio counts.
const BYTES_PER_S: f64 = 2e9;
const OPERATIONS_PER_S: f64 = 2e10;
/// A part is about so many runs of tensors that follow each other in a file: few, as parts that meet within a block of a file
/// have more to do; enough for parts of the same size.
const RUNS_A_PART: u64 = 32;

impl Plan {
    /// Makes this the plan of one of `of` parts (`part` from 0). `devices` names what computes, which must be the same for all.
    pub fn take_part(&mut self, part: usize, of: usize, devices: Vec<String>) {
        let owners = self.parts(of);
        self.part = Some(Share { part, of, owners, devices });
    }

    /// The part, from 0, of each tensor in a merge of `of` parts.
    fn parts(&self, of: usize) -> Vec<usize> {
        let costs: Vec<u64> = (0..self.tensors.len()).map(|t| self.cost(t)).collect();
        let mut in_order: Vec<usize> = (0..self.tensors.len()).collect();
        in_order.sort_by_key(|t| (self.layout.placement(*t).file, self.layout.placement(*t).offset, *t));
        let owners = cut(&in_order, &costs, of.max(1));
        // Factors come about with their matrix.
        let of_matrix = |t: &TensorPlan| if let Program::Factor { of, .. } = t.program { Some(of) } else { None };
        (0..owners.len()).map(|t| owners[of_matrix(&self.tensors[t]).unwrap_or(t)]).collect()
    }

    /// About how long a tensor takes, in nanoseconds, its factors' bytes included.
    fn cost(&self, t: usize) -> u64 {
        let tensor = &self.tensors[t];
        if matches!(tensor.program, Program::Factor { .. }) {
            return 0;
        }
        let factors = tensor.factors.iter().flatten().map(|t| self.layout.placement(*t).bytes);
        let written = self.layout.placement(t).bytes + factors.sum::<u64>();
        let bytes = self.pass_bytes(t) * self.graph.passes(t) + written;
        // Whole numbers from here on, so that no machine rounds otherwise.
        (1e9 * (bytes as f64 / BYTES_PER_S + show::operations(tensor) / OPERATIONS_PER_S)) as u64 + 1
    }
}

/// Gives each of the items, which stand in this order, to a part: runs of neighbours, the costliest first, each to the part that
/// has least so far.
fn cut(in_order: &[usize], costs: &[u64], parts: usize) -> Vec<usize> {
    let total: u64 = costs.iter().sum();
    let most = total / (RUNS_A_PART * parts as u64).max(1);
    let mut runs: Vec<(u64, &[usize])> = Vec::new();
    let mut start = 0;
    let mut cost = 0;
    for (i, &item) in in_order.iter().enumerate() {
        if i > start && cost + costs[item] > most {
            runs.push((cost, &in_order[start..i]));
            (start, cost) = (i, 0);
        }
        cost += costs[item];
    }
    runs.push((cost, &in_order[start..]));
    // Of equal ones the earlier comes first.
    runs.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
    let mut loads = vec![0; parts];
    let mut owners = vec![0; costs.len()];
    for (cost, run) in runs {
        let least = (0..parts).min_by_key(|part| loads[*part]).unwrap_or_default();
        loads[least] += cost;
        run.iter().for_each(|item| owners[*item] = least);
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// No part has more than the mean and one item, or one run, above it.
        #[test]
        fn parts_cost_about_the_same(costs in prop::collection::vec(1_u64..1_000_000, 1..300), parts in 1_usize..20) {
            let in_order: Vec<usize> = (0..costs.len()).rev().collect();
            let owners = cut(&in_order, &costs, parts);
            prop_assert!(owners.iter().all(|owner| *owner < parts));
            let total: u64 = costs.iter().sum();
            let largest = *costs.iter().max().unwrap_or(&0);
            for part in 0..parts {
                let load: u64 = (0..costs.len()).filter(|i| owners[*i] == part).map(|i| costs[i]).sum();
                prop_assert!(load <= total / parts as u64 + 1 + largest.max(total / (RUNS_A_PART * parts as u64)));
            }
        }
    }

    #[test]
    fn many_small_items_stay_with_their_neighbours_and_large_ones_are_spread() {
        // Twelve blocks of one large item and ten small ones.
        let costs: Vec<u64> = (0..132).map(|i| if i % 11 == 0 { 1000 } else { 1 }).collect();
        let in_order: Vec<usize> = (0..costs.len()).collect();
        let owners = cut(&in_order, &costs, 4);
        let changes = owners.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= 24, "{changes}");
        for part in 0..4 {
            let load: u64 = (0..costs.len()).filter(|i| owners[*i] == part).map(|i| costs[i]).sum();
            assert!((3000..=3100).contains(&load), "{load}");
        }
    }
}
