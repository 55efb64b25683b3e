//! What a batch system grants this job, as its environment says: known also where no control group enforces it.

/// What a batch system grants, each with the variable that says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Grant {
    /// CPU threads.
    pub threads: Option<(usize, &'static str)>,
    /// Memory in bytes.
    pub memory: Option<(u64, &'static str)>,
}

/// Variables with a number of processors: SLURM's for a task and, without it, of the node; PBS's, LSF's, Grid Engine's.
const THREADS: [&str; 5] = [SLURM_CPUS_PER_TASK, SLURM_CPUS_ON_NODE, "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS"];
const SLURM_CPUS_PER_TASK: &str = "SLURM_CPUS_PER_TASK";
const SLURM_CPUS_ON_NODE: &str = "SLURM_CPUS_ON_NODE";
const SLURM_MEM_PER_NODE: &str = "SLURM_MEM_PER_NODE";
const SLURM_MEM_PER_CPU: &str = "SLURM_MEM_PER_CPU";
/// What SLURM counts memory in.
const MIB: u64 = 1 << 20;

impl Grant {
    /// That of this process.
    pub fn find() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    /// That of an environment. What is 0, empty or no number counts as not set.
    fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| variable(name)?.trim().parse::<u64>().ok().filter(|n| *n > 0);
        let of_task = number(SLURM_CPUS_PER_TASK);
        let threads = THREADS
            .into_iter()
            // A task's share says more than the node's sum.
            .filter(|name| *name != SLURM_CPUS_ON_NODE || of_task.is_none())
            .filter_map(|name| Some((usize::try_from(number(name)?).ok()?, name)))
            .min();
        let per_cpu = || {
            let cpus = of_task.or_else(|| number(SLURM_CPUS_ON_NODE))?;
            Some((number(SLURM_MEM_PER_CPU)?.checked_mul(cpus)?, SLURM_MEM_PER_CPU))
        };
        let per_node = number(SLURM_MEM_PER_NODE).map(|mib| (mib, SLURM_MEM_PER_NODE));
        let memory = per_node.into_iter().chain(per_cpu()).min();
        Self { threads, memory: memory.and_then(|(mib, name)| Some((mib.checked_mul(MIB)?, name))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(set: &[(&str, &str)]) -> (Option<usize>, Option<u64>) {
        let grant = Grant::of(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()));
        (grant.threads.map(|(n, _)| n), grant.memory.map(|(bytes, _)| bytes / MIB))
    }

    #[test]
    fn each_batch_system_says_how_many_processors_a_job_has() {
        assert_eq!(granted(&[("SLURM_CPUS_PER_TASK", "3"), ("SLURM_CPUS_ON_NODE", "12")]).0, Some(3));
        assert_eq!(granted(&[("SLURM_CPUS_ON_NODE", "12")]).0, Some(12));
        for name in ["NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS"] {
            assert_eq!(granted(&[(name, "5")]).0, Some(5), "{name}");
        }
        assert_eq!(granted(&[("NCPUS", "8"), ("NSLOTS", "2")]).0, Some(2));
    }

    #[test]
    fn slurms_memory_is_in_mib_of_the_node_or_of_each_processor() {
        assert_eq!(granted(&[("SLURM_MEM_PER_NODE", "2048")]).1, Some(2048));
        let per_cpu = ("SLURM_MEM_PER_CPU", "512");
        assert_eq!(granted(&[per_cpu, ("SLURM_CPUS_PER_TASK", "3"), ("SLURM_CPUS_ON_NODE", "12")]).1, Some(1536));
        assert_eq!(granted(&[per_cpu, ("SLURM_CPUS_ON_NODE", "4")]).1, Some(2048));
        assert_eq!(granted(&[per_cpu]).1, None);
        assert_eq!(granted(&[("SLURM_MEM_PER_NODE", "1024"), per_cpu, ("SLURM_CPUS_PER_TASK", "4")]).1, Some(1024));
    }

    #[test]
    fn what_is_no_number_above_zero_grants_nothing() {
        for value in ["", "0", "-1", "undefined", "2(x3)", "99999999999999999999"] {
            let set = [("SLURM_CPUS_PER_TASK", value), ("NSLOTS", value), ("SLURM_MEM_PER_NODE", value)];
            assert_eq!(granted(&set), (None, None), "{value:?}");
        }
        assert_eq!(granted(&[("SLURM_MEM_PER_NODE", "18446744073709551615")]).1, None);
    }
}
