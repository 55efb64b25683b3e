//! `merganser devices`.

use clap::Args;
use serde::Serialize;

use super::document::{Document, print_document};
use super::log::Log;
use super::print::print;
use super::scheduler::Grant;
use super::{JsonFlag, default_budget, setup};
use crate::backend::cpu::{features, ram};
use crate::backend::device::{self, Cuda, CudaDevice, Request};
use crate::error::Result;
use crate::instructions::Instructions;
use crate::selfcheck::{self, Checked, Operation};
use crate::units::format_bytes;

/// Show what this machine can compute on, and what is missing
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser devices
  merganser devices --json | jq .memory_budget
  merganser devices --check

--check merges a small family of checkpoints by every method, with every choice of its parameters, on each CUDA device and on the CPU, and \
compares: bit for bit where that is promised, within the bound of the method for matrices. Status 3 if anything differs. What passed is \
remembered by device, driver and build, and manifests of merges state it.")]
pub(super) struct Devices {
    /// Compare everything that each CUDA device computes with the CPU
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    json: JsonFlag,
}

impl Devices {
    pub fn run(self, log: &Log) -> Result<u8> {
        let checks = if self.check { Some(check(log)?) } else { None };
        let passed = checks.iter().flatten().all(|checked| checked.passed);
        if self.json.json {
            print_document(Vec::new(), DevicesDocument { checks, ..document() })?
        } else {
            print(&checks.as_deref().map_or_else(in_words, checks_in_words))?
        }
        Ok(if passed { 0 } else { DIFFERS })
    }
}

/// The exit code where a device computes something else than the CPU.
const DIFFERS: u8 = 3;

/// Checks every usable device, one after another.
fn check(log: &Log) -> Result<Vec<Checked>> {
    let stop = setup::signals()?;
    let device = device::choose(Request::Cuda(None))?;
    let mut all = Vec::with_capacity(device.cuda.len());
    for one in &device.cuda {
        let label = one.label();
        let mut tell = |operation: &Operation| {
            if !log.quiet {
                tracing::info!(
                    "{label}: {}: {}",
                    operation.name,
                    operation.problem.as_deref().unwrap_or("as on the CPU")
                );
            }
        };
        all.push(selfcheck::check(one, &device.missing, &stop, &mut tell)?);
    }
    Ok(all)
}

fn checks_in_words(checks: &[Checked]) -> String {
    let mut text = String::new();
    for checked in checks {
        let (count, seconds) = (checked.operations.len(), checked.seconds);
        let same: usize = checked.operations.iter().map(|o| o.same_bits).sum();
        let near: usize = checked.operations.iter().map(|o| o.within_bound).sum();
        let furthest = checked.operations.iter().map(|o| o.furthest).fold(0.0, f64::max);
        let verdict = if checked.passed { "computes what the CPU does" } else { "DOES NOT COMPUTE WHAT THE CPU DOES" };
        text += &format!("{}: {verdict}\n", checked.device);
        text += &format!(
            "  {count} merges in {seconds:.1} s: {same} tensors of the same bits, {near} matrices at most {furthest:.1e} apart\n"
        );
        for operation in &checked.operations {
            if let Some(problem) = &operation.problem {
                text += &format!("  {}: {problem}\n", operation.name);
            }
        }
        for what in &checked.left_out {
            text += &format!("  not checked: {what}\n");
        }
    }
    text
}

/// The document of this machine.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct DevicesDocument {
    cpu: Cpu,
    memory: Memory,
    /// Threads where no `--threads` is given.
    threads: usize,
    /// Bytes where no `--memory-budget` is given.
    memory_budget: u64,
    /// What a batch system grants this job.
    batch_system: BatchSystem,
    cuda: CudaFound,
    /// What `--check` found of each device; null without it.
    checks: Option<Vec<Checked>>,
}

impl Document for DevicesDocument {
    const COMMAND: &'static str = "devices";
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Cpu {
    name: String,
    architecture: &'static str,
    /// Threads that this process may use.
    threads: usize,
    /// What the compiler's loops run on.
    vector_loops: &'static str,
    /// What the loops run on that are written out for it: `portable`, `avx2` or `avx512`.
    instructions: &'static str,
    /// What MERGANSER_CPU can name here.
    possible_instructions: Vec<&'static str>,
    instruction_sets: Vec<InstructionSet>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct InstructionSet {
    name: &'static str,
    present: bool,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Memory {
    ram_bytes: u64,
    control_group_limit_bytes: Option<u64>,
}

/// Each with the variable of the environment that says so; null where none does.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct BatchSystem {
    threads: Option<usize>,
    threads_by: Option<&'static str>,
    memory_bytes: Option<u64>,
    memory_by: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct CudaFound {
    usable: bool,
    /// Why not.
    reason: Option<String>,
    /// What to do about it.
    remedy: Option<String>,
    /// The kernel's driver.
    driver: Option<String>,
    /// The newest CUDA that it supports.
    driver_supports: Option<String>,
    libraries: Vec<Library>,
    devices: Vec<Found>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Library {
    name: String,
    present: bool,
    version: Option<String>,
    /// Where it was found.
    path: Option<String>,
    problem: Option<String>,
    needed_for: String,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Found {
    ordinal: u32,
    name: String,
    compute_capability: String,
    memory_bytes: u64,
    free_bytes: Option<u64>,
    multiprocessors: u32,
    usable: bool,
    problem: Option<String>,
}

fn document() -> DevicesDocument {
    let sets = features::instruction_sets();
    let grant = Grant::find();
    DevicesDocument {
        cpu: Cpu {
            name: features::name(),
            architecture: std::env::consts::ARCH,
            threads: setup::cores(),
            vector_loops: features::vector_loops(),
            instructions: Instructions::chosen().word(),
            possible_instructions: Instructions::here().map(Instructions::word).collect(),
            instruction_sets: sets.iter().map(|(name, present)| InstructionSet { name, present: *present }).collect(),
        },
        memory: Memory { ram_bytes: ram::total_bytes(), control_group_limit_bytes: ram::limit_bytes() },
        threads: setup::cores(),
        memory_budget: default_budget(),
        batch_system: BatchSystem {
            threads: grant.threads.map(|(n, _)| n),
            threads_by: grant.threads.map(|(_, name)| name),
            memory_bytes: grant.memory.map(|(bytes, _)| bytes),
            memory_by: grant.memory.map(|(_, name)| name),
        },
        cuda: cuda(&Cuda::find().measured()),
        checks: None,
    }
}

fn in_words() -> String {
    let sets = features::instruction_sets();
    let those = |wanted: bool| {
        let names: Vec<&str> = sets.iter().filter(|(_, is)| *is == wanted).map(|(name, _)| *name).collect();
        names.join(", ")
    };
    let mut text = format!(
        "CPU      {} ({})\nthreads  {}\nloops    {}, {} of {} by MERGANSER_CPU\n",
        features::name(),
        std::env::consts::ARCH,
        setup::cores(),
        features::vector_loops(),
        Instructions::chosen(),
        Instructions::here().map(Instructions::word).collect::<Vec<_>>().join(", "),
    );
    for (label, present) in [("has", true), ("lacks", false)] {
        let names = those(present);
        if !names.is_empty() {
            text += &format!("{label:<9}{names}\n");
        }
    }
    text += &format!("RAM      {}\n", format_bytes(ram::total_bytes()));
    if let Some(limit) = ram::limit_bytes() {
        text += &format!("limit    {} for this process's control group\n", format_bytes(limit));
    }
    let grant = Grant::find();
    if let Some((threads, name)) = grant.threads {
        text += &format!("granted  {threads} threads by {name}\n");
    }
    if let Some((bytes, name)) = grant.memory {
        text += &format!("granted  {} by {name}\n", format_bytes(bytes));
    }
    text += &format!("budget   {} where no --memory-budget is given\n", format_bytes(default_budget()));
    text += &cuda_in_words(&Cuda::find().measured());
    text + &match device::nvidia_driver() {
        Some(driver) => format!("driver   {driver}\n"),
        None => "driver   no NVIDIA driver is loaded\n".into(),
    }
}

fn cuda(found: &Cuda) -> CudaFound {
    let is_usable = found.usable().next().is_some();
    let device = |d: &CudaDevice| Found {
        ordinal: d.ordinal,
        name: d.name.clone(),
        compute_capability: d.capability.to_string(),
        memory_bytes: d.total_bytes,
        free_bytes: d.free_bytes,
        multiprocessors: d.multiprocessors,
        usable: d.problem.is_none() && found.problem.is_none(),
        problem: d.problem.clone(),
    };
    let libraries = found.libraries.iter().map(|l| Library {
        name: l.name.to_owned(),
        present: l.problem.is_none(),
        version: l.version.clone(),
        path: l.path.as_ref().map(|path| path.display().to_string()),
        problem: l.problem.clone(),
        needed_for: l.purpose.to_owned(),
    });
    CudaFound {
        usable: is_usable,
        reason: (!is_usable).then(|| found.why_none()),
        remedy: found.remedy.clone(),
        driver: device::nvidia_driver(),
        driver_supports: found.driver.map(|v| v.to_string()),
        libraries: libraries.collect(),
        devices: found.devices.iter().map(device).collect(),
    }
}

fn cuda_in_words(found: &Cuda) -> String {
    let mut text = String::from("\n");
    for d in &found.devices {
        let (of, total) = (d.free_bytes.map(format_bytes), format_bytes(d.total_bytes));
        let memory = of.map_or_else(|| total.clone(), |free| format!("{free} of {total} free"));
        text += &format!("cuda:{:<3} {}, capability {}, {memory}", d.ordinal, d.name, d.capability);
        text += &d.problem.as_ref().map(|problem| format!("; unusable: {problem}")).unwrap_or_default();
        text.push('\n');
    }
    if found.usable().next().is_none() {
        text += &format!("CUDA     none: {}\n", found.why_none());
        text += &found.remedy.as_ref().map(|remedy| format!("         {remedy}\n")).unwrap_or_default();
    }
    if let Some(version) = found.driver {
        text += &format!("CUDA     {version} is the newest that the driver supports\n");
    }
    for l in &found.libraries {
        let state = match (&l.version, &l.problem) {
            (Some(version), _) => version.as_str(),
            (None, None) => "found",
            (None, Some(_)) => "missing",
        };
        text += &format!("{:<9}{state}: for {}\n", l.name, l.purpose);
        text += &match (&l.path, &l.problem) {
            (Some(path), _) if path.is_absolute() => format!("         {}\n", path.display()),
            (_, Some(problem)) => format!("         {problem}\n"),
            _ => String::new(),
        };
    }
    text
}
