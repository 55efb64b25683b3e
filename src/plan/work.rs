//! What a plan has devices do, counted from shapes alone: bytes by way and operations by kind ([`crate::cost`]).

use super::devices::OnDevices;
use super::graph::Kind;
use super::{Plan, TensorPlan};
use crate::backend::cpu::low_rank;
use crate::cost::cards::{self, Card};
use crate::cost::{Eigen, Host, Prediction, Work};
use crate::ops::{LowRank, MatrixRule, Program};

impl Plan {
    /// What its merge is predicted to take on its devices; `None` without devices, or where their card is not in the table.
    pub fn prediction(&self) -> Option<Prediction> {
        let on = self.devices.as_ref()?;
        let card: &'static Card = cards::of_device(&on.devices.first()?.name)?;
        Some(self.work()?.on(card, Host { lanes: on.lanes, devices: on.devices.len() }))
    }

    /// What its devices do; `None` without any.
    pub fn work(&self) -> Option<Work> {
        let on = self.devices.as_ref()?;
        let mut all = Work::default();
        for index in 0..self.tensors.len() {
            let bytes = self.layout.placement(index).bytes;
            all.add(Work { read_bytes: self.pass_bytes(index), written_bytes: bytes, ..Work::default() });
            if on.has(index) {
                all.add(self.on_device(on, index));
            }
        }
        Some(all)
    }

    fn on_device(&self, on: &OnDevices, index: usize) -> Work {
        let tensor = &self.tensors[index];
        let (once, out) = (self.pass_bytes(index), tensor.elems * tensor.elem_bytes);
        let has_data = |kind: Kind| !matches!(kind, Kind::Merge | Kind::Rank(_) | Kind::Restore { .. });
        let steps = self.graph.steps.iter().filter(|step| step.tensor == index && has_data(step.kind)).count() as u64;
        // A batch passes its sources through buffers after whatever measured them; what does not fit is sent for every pass.
        let fits = on.pool_bytes.iter().all(|pool| once + out <= *pool);
        let sent = match on.batch(index) {
            Some(_) if steps > 0 => 2,
            _ if fits => 1,
            _ => steps + 1,
        };
        let mut work = Work {
            to_device_bytes: once * sent,
            from_device_bytes: out,
            element_bytes: once * (steps + 1) + out,
            ..Work::default()
        };
        if let Program::LowRank(low_rank) = &tensor.program {
            // A batch is decomposed in one call, which its first tensor counts.
            let is_first = on.batch(index).is_none_or(|batch| batch.tensors.first() == Some(&index));
            work.add(matrix(low_rank, tensor, u64::from(is_first)));
        }
        for factor in tensor.factors.iter().flatten() {
            work.from_device_bytes += 8 * self.tensors[*factor].elems;
        }
        work
    }
}

/// What decomposing and summing the task vectors of a matrix takes in f64; `calls`: those that decompose its tasks.
fn matrix(work: &LowRank, tensor: &TensorPlan, calls: u64) -> Work {
    let ((m, n), tasks) = (tensor.matrix(), tensor.models.len());
    let (r, long, elems) = (m.min(n) as f64, m.max(n) as f64, (m * n) as f64);
    let (t, side) = (tasks as f64, m.min(n));
    let (common, each) = low_rank::subspaces(work.rule, (m, n), tasks);
    let (common, each, columns) = (common as f64, each as f64, (common + each * tasks) as f64);
    let gram = 2.0 * r * r * long;
    // V S Vᵀ of the Gram matrix of so many columns of both factors, and its product with them.
    let polar = |k: f64| 2.0 * (2.0 * (m + n) as f64 * k * k + 2.0 * k.powi(3));
    let of_tasks = Eigen { side, matrices: tasks as u64, calls };
    let alone = |side: u64, matrices: u64| Eigen { side, matrices, calls: matrices };
    // Task vectors are written, and read for their squares; each one's low-rank part is added to the sum.
    let vectors = 16.0 * elems * t;
    let (products, added, eigen) = match work.rule {
        MatrixRule::Truncate(rank) => {
            let k = rank.most(m, n) as f64;
            let products = t * (gram + 2.0 * long * k * r + 2.0 * elems * k);
            (products, 32.0 * elems * t, vec![of_tasks])
        }
        MatrixRule::Isotropic => (gram + 2.0 * r.powi(3) + 2.0 * elems * r, 24.0 * elems, vec![alone(side, 1)]),
        MatrixRule::TaskSingular => {
            let products = t * (gram + 2.0 * long * each * r) + polar(columns) + 2.0 * elems * columns;
            (products, 24.0 * elems, vec![of_tasks, alone(columns as u64, 2)])
        }
        MatrixRule::CommonAndSpecific { .. } => {
            let outside = 4.0 * elems * common;
            let specific = t * (gram + 2.0 * long * each * r + outside);
            let products = gram + 2.0 * long * common * r + specific + polar(columns) + 2.0 * elems * columns;
            (products, 24.0 * elems, vec![of_tasks, alone(side, 1), alone(columns as u64, 2)])
        }
    };
    Work {
        product_operations: products,
        element_bytes: (8.0 * elems + vectors + added + 8.0 * elems) as u64,
        eigen: eigen.into_iter().filter(|e| e.side > 0 && e.matrices > 0).collect(),
        ..Work::default()
    }
}
