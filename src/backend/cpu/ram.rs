//! How much memory this process may use: what the machine has, and what control groups leave of it.
//!
//! Containers and batch systems (SLURM, Kubernetes) bound a job by the memory controller of its control group or of one
//! above it, and kill what goes beyond; the machine's own size says nothing there.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Physical memory of the machine, in bytes.
pub fn total_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

/// The least bound that this process's control groups set, in bytes; `None` if none is below the machine's memory.
pub fn limit_bytes() -> Option<u64> {
    limit_under(Path::new("/")).filter(|limit| *limit < total_bytes())
}

/// What this process may use, in bytes.
pub fn usable_bytes() -> u64 {
    limit_bytes().unwrap_or_else(total_bytes)
}

/// A mounted hierarchy of control groups that may bound memory.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The group that is seen at `at`.
    group: PathBuf,
    at: PathBuf,
    is_v2: bool,
}

/// The least bound, with everything looked up below `root` (`/`, or a folder in tests).
fn limit_under(root: &Path) -> Option<u64> {
    let mounts = mounts(&fs::read_to_string(root.join("proc/self/mountinfo")).ok()?);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = mounts.iter().filter_map(|mount| {
        let group = own_group(&groups, mount.is_v2)?;
        let file = if mount.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let at = root.join(mount.at.strip_prefix("/").ok()?);
        let below = below(group, &mount.group);
        // The group itself, then each one above it as far as it is mounted.
        below.ancestors().filter_map(|group| read_bytes(&at.join(group).join(file))).min()
    });
    limits.min()
}

/// The mounts of v2, and of v1's memory controller, that `/proc/self/mountinfo` lists.
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (group, at) = (unescaped(before.next()?), unescaped(before.next()?));
        let mut after = after.split(' ');
        let is_v2 = match after.next()? {
            "cgroup2" => true,
            "cgroup" if after.nth(1)?.split(',').any(|option| option == "memory") => false,
            _ => return None,
        };
        Some(Mount { group, at, is_v2 })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The kernel writes blanks in paths as octal escapes.
fn unescaped(path: &str) -> PathBuf {
    path.replace("\\040", " ").replace("\\011", "\t").into()
}

/// This process's group, as `/proc/self/cgroup` gives it: `0::/path` for v2, `4:cpu,memory:/path` for v1.
fn own_group(cgroup: &str, is_v2: bool) -> Option<&Path> {
    cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = if is_v2 { id == "0" } else { controllers.split(',').any(|name| name == "memory") };
        fits.then_some(Path::new(path))
    })
}

/// The group's path below the mount that shows `mounted`. Where it is not below it, as in a container that sees its own
/// group alone but under the host's name, the mount itself is what is known.
fn below<'a>(group: &'a Path, mounted: &Path) -> &'a Path {
    let is_plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    group.strip_prefix(mounted).ok().filter(|path| is_plain(path)).unwrap_or(Path::new(""))
}

/// A bound in bytes; `None` for `max` and where there is no such file.
fn read_bytes(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A machine of files.
    fn machine(mountinfo: &str, cgroup: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let all = [("proc/self/mountinfo", mountinfo), ("proc/self/cgroup", cgroup)];
        for (path, text) in all.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const V2: &str = "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
        35 30 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        36 30 0:33 / /sys/fs/cgroup/memory rw shared:18 - cgroup cgroup rw,memory\n";

    #[test]
    fn the_least_bound_of_a_batch_job_and_the_groups_above_it_counts() {
        let job = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7";
        let files = [
            (&*format!("{job}/step_0/memory.max"), "max\n"),
            (&*format!("{job}/memory.max"), "8589934592\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "17179869184\n"),
        ];
        let root = machine(V2, "0::/system.slice/slurmstepd.scope/job_7/step_0\n", &files);
        assert_eq!(limit_under(root.path()), Some(8 << 30));
    }

    #[test]
    fn version_1_is_read_from_the_memory_controller_alone() {
        let files = [
            ("sys/fs/cgroup/memory/slurm/uid_1/memory.limit_in_bytes", "4294967296\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/cpu/slurm/uid_1/memory.limit_in_bytes", "1\n"),
        ];
        let root = machine(V1, "5:cpu,cpuacct:/elsewhere\n4:memory:/slurm/uid_1\n0::/init.scope\n", &files);
        assert_eq!(limit_under(root.path()), Some(4 << 30));
    }

    #[test]
    fn a_container_finds_its_own_group_whatever_it_is_called_outside() {
        let v2 = [("sys/fs/cgroup/memory.max", "1073741824\n")];
        for group in ["0::/\n", "0::/../../docker/abc\n"] {
            assert_eq!(limit_under(machine(V2, group, &v2).path()), Some(1 << 30), "{group}");
        }
        let mounted = V1.replace("0:33 / ", "0:33 /docker/abc ");
        let v1 = [("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n")];
        for group in ["4:memory:/docker/abc\n", "4:memory:/other\n"] {
            assert_eq!(limit_under(machine(&mounted, group, &v1).path()), Some(2 << 30), "{group}");
        }
    }

    #[test]
    fn without_a_bound_there_is_none() {
        assert_eq!(limit_under(machine(V2, "0::/a\n", &[("sys/fs/cgroup/a/memory.max", "max\n")]).path()), None);
        assert_eq!(limit_under(machine("", "", &[]).path()), None);
        assert_eq!(limit_under(Path::new("/nowhere")), None);
    }

    #[test]
    fn what_may_be_used_is_no_more_than_the_machine_has() {
        assert!(usable_bytes() > 0 && usable_bytes() <= total_bytes());
    }
}
