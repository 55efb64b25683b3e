//! The devices of a merge, open: their memory taken, their lanes ready.

use std::sync::{Mutex, PoisonError};

use super::matrices::{EXPECTED, LEAST, SolverLimits, arrange};
use super::needs::range;
use crate::backend::cuda::cusolver::Eigen;
use crate::backend::cuda::gpu::{Gpu, takeable};
use crate::backend::cuda::lane::{Lane, LaneSizes};
use crate::backend::device::CudaDevice;
use crate::error::{Error, Result};
use crate::ops::Program;
use crate::plan::Plan;
use crate::units::format_bytes;

/// Open devices.
#[derive(Debug)]
pub struct Gpus {
    // Lanes go before the memory that their work touches.
    lanes: Vec<Mutex<Vec<Lane>>>,
    gpus: Vec<Gpu>,
}

/// Plans for devices that are not open: with what they can be expected to give.
///
/// # Errors
/// `Input` if the host's budget is too small.
pub fn expect(plan: &mut Plan, devices: &[CudaDevice], limit: Option<u64>) -> Result<()> {
    plan_by(plan, devices, limit, &EXPECTED)
}

/// Plans for devices that are not open and whose solver is taken to say so.
fn plan_by(plan: &mut Plan, devices: &[CudaDevice], limit: Option<u64>, says: &SolverLimits<'_>) -> Result<()> {
    let pools: Vec<u64> = devices
        .iter()
        .map(|d| takeable(d.free_bytes.unwrap_or(d.total_bytes)).min(limit.unwrap_or(u64::MAX)))
        .collect();
    let (fit, together) = arrange(plan, pools.iter().copied().min().unwrap_or_default(), says)?;
    plan.use_devices(devices.to_vec(), pools, &fit, together)?;
    let (wanted, _) = pool_request(plan);
    if let Some(on) = &mut plan.devices {
        on.pool_bytes.iter_mut().for_each(|pool| *pool = wanted.min(*pool));
    }
    Ok(())
}

/// What to take of each device's memory: room for every lane's largest step and for the next one's sources, but no more than
/// all tensors take together; and the least that does.
fn pool_request(plan: &Plan) -> (u64, u64) {
    let Some(on) = &plan.devices else { return (0, 0) };
    let mut kinds = vec![Vec::new(); plan.tensors.len()];
    plan.graph.steps.iter().for_each(|step| kinds[step.tensor].push(step.kind));
    let ranges = (0..plan.tensors.len()).filter(|t| on.has(*t)).map(|t| range(plan, t, &kinds[t]));
    let (mut largest, mut least, mut all) = (0, 0, 0);
    for [most, least_bytes] in ranges {
        (largest, least, all) = (most.max(largest), least_bytes.max(least), most + all);
    }
    ((largest * 2 * on.lanes as u64).min(all).max(least), least)
}

impl Gpus {
    /// Opens devices for a plan, and tells the plan what they can do and what that takes. Opens none for a plan that has
    /// nothing for them.
    ///
    /// # Errors
    /// `Environment` if a device cannot be opened or has too little memory, `Input` if the host's budget is too small.
    pub fn open(plan: &mut Plan, devices: &[CudaDevice], limit: Option<u64>) -> Result<Self> {
        // Whatever may fit is tried: what a solver asks for is known once it is there.
        plan_by(plan, devices, limit, &LEAST)?;
        let Some(on) = plan.devices.clone() else { return Err(Error::internal("a plan without its devices")) };
        if on.lanes == 0 {
            tracing::info!("no tensor of this merge is made on a device");
            return Ok(Self { gpus: Vec::new(), lanes: Vec::new() });
        }
        let solves = plan.tensors.iter().enumerate();
        let solves = solves.filter(|(t, _)| on.has(*t)).any(|(_, t)| matches!(t.program, Program::LowRank(_)));
        let sizes = LaneSizes { up_bytes: on.slot_bytes, down_bytes: on.fetch_bytes, solves };
        let (_, least) = pool_request(plan);
        let (mut gpus, mut lanes) = (Vec::new(), Vec::new());
        for (device, wanted) in devices.iter().zip(&on.pool_bytes) {
            let (gpu, opened) = Gpu::open(device, on.lanes, sizes, *wanted, least)?;
            gpus.push(gpu);
            lanes.push(opened);
        }
        let pools: Vec<u64> = gpus.iter().map(|gpu| gpu.pool().bytes()).collect();
        if solves {
            // What the libraries really ask for, and the memory that there really is. Devices may differ: a batch goes to any of
            // them, so what the greediest asks for counts.
            let mut firsts: Vec<&mut Lane> = lanes.iter_mut().filter_map(|of| of.first_mut()).collect();
            let mut solvers = Vec::with_capacity(firsts.len());
            for lane in &mut firsts {
                lane.bind()?;
                solvers.push(&lane.solver()?.eigen);
            }
            let most = |asks: &dyn Fn(&Eigen) -> Result<u64>| {
                solvers.iter().try_fold(0, |most, eigen| Ok(asks(eigen)?.max(most)))
            };
            let says = SolverLimits {
                workspace: &|r, count| most(&|eigen| eigen.workspace_bytes(r, count)),
                batch: &|r, wanted| solvers.iter().map(|eigen| eigen.batch(r, wanted)).min().unwrap_or(1),
                svd: &|rows, columns| most(&|eigen| eigen.svd_bytes(rows, columns)),
            };
            let (fit, together) = arrange(plan, pools.iter().copied().min().unwrap_or_default(), &says)?;
            plan.use_devices(devices.to_vec(), pools, &fit, together)?;
        } else if let Some(on) = &mut plan.devices {
            on.pool_bytes = pools;
        }
        let wanted = plan.devices.as_ref().map_or(0, |on| on.lanes);
        lanes.iter_mut().for_each(|of| of.truncate(wanted));
        for (gpu, of) in gpus.iter().zip(&lanes) {
            let taken = format_bytes(gpu.pool().bytes());
            tracing::info!("{}: {} at work, in {taken} of its memory", gpu.label, count_lanes(of.len()));
        }
        Ok(Self { gpus, lanes: lanes.into_iter().map(Mutex::new).collect() })
    }

    /// The devices.
    pub(in crate::engine) fn all(&self) -> &[Gpu] {
        &self.gpus
    }

    /// The lanes of a device, which their taker gives to threads.
    pub(in crate::engine) fn take_lanes(&self, device: usize) -> Vec<Lane> {
        let lanes = self.lanes.get(device).map(|lanes| lanes.lock().unwrap_or_else(PoisonError::into_inner));
        lanes.map(|mut lanes| std::mem::take(&mut *lanes)).unwrap_or_default()
    }

    /// Bytes of the smallest pool.
    pub(in crate::engine) fn smallest(&self) -> u64 {
        self.gpus.iter().map(|gpu| gpu.pool().bytes()).min().unwrap_or_default()
    }

    /// Wakes lanes that wait for memory: the run is being stopped.
    pub(in crate::engine) fn close(&self) {
        self.gpus.iter().for_each(|gpu| gpu.pool().close());
    }
}

fn count_lanes(lanes: usize) -> String {
    format!("{lanes} {}", if lanes == 1 { "lane" } else { "lanes" })
}
