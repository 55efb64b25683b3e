//! The bytes of tensors: mapped or read, given back, and what happens when the file changes underneath.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output};

use merganser::checkpoint::{Checkpoint, Shard, install_bus_handler};
use proptest::prelude::*;
use tempfile::tempdir;

use super::{bytes_file, put};

const MIB: usize = 1 << 20;

/// Runs one test of this file in a process of its own, with the path of a file to work on.
fn child(test: &str, path: &Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("checkpoint::bytes::{test}"), "--ignored", "--nocapture"])
        .env("CHECKPOINT_TEST_FILE", path)
        .output()
        .unwrap()
}

/// The file to work on; `None` outside a child process.
fn child_file() -> Option<std::path::PathBuf> {
    std::env::var_os("CHECKPOINT_TEST_FILE").map(Into::into)
}

/// Kilobytes of a file's maps that are resident in this process.
fn resident_kib(path: &Path) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut sum = 0;
    for line in smaps.lines() {
        if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
            ours = line.ends_with(path.to_str().unwrap());
        } else if let (true, Some(rss)) = (ours, line.strip_prefix("Rss:")) {
            sum += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    sum
}

#[test]
fn mapped_and_read_bytes_are_those_of_the_file() {
    let dir = tempdir().unwrap();
    let raw = bytes_file(&[("a", 3), ("empty", 0), ("b", 5000), ("c", 70_000)]);
    put(dir.path(), "x.safetensors", &raw);
    let path = dir.path().join("x.safetensors");
    let (mapped, unmapped) = (Checkpoint::open(&path).unwrap(), Checkpoint::open_unmapped(&path).unwrap());
    assert!(mapped.shards()[0].is_mapped() && !unmapped.shards()[0].is_mapped());
    let mut scratch = Vec::new();
    for tensor in mapped.tensors() {
        let expected = &raw[tensor.begin as usize..][..tensor.bytes as usize];
        assert_eq!(mapped.shard_of(tensor).bytes(tensor.range(), &mut scratch).unwrap(), expected);
        assert!(scratch.is_empty(), "a mapped file needs no scratch");
    }
    for tensor in unmapped.tensors() {
        let expected = &raw[tensor.begin as usize..][..tensor.bytes as usize];
        assert_eq!(unmapped.shard_of(tensor).bytes(tensor.range(), &mut scratch).unwrap(), expected);
    }
    assert_eq!(scratch.len(), 70_000);
    let kept = scratch.as_ptr();
    unmapped.shards()[0].bytes(10..20, &mut scratch).unwrap();
    assert_eq!((scratch.len(), scratch.as_ptr()), (10, kept), "the scratch is used again");
}

#[test]
fn ranges_outside_the_file_are_refused() {
    let dir = tempdir().unwrap();
    put(dir.path(), "x.safetensors", bytes_file(&[("a", 100)]));
    let path = dir.path().join("x.safetensors");
    for open in [Checkpoint::open(&path).unwrap(), Checkpoint::open_unmapped(&path).unwrap()] {
        let shard = &open.shards()[0];
        let size = shard.size();
        #[allow(clippy::reversed_empty_ranges)]
        for range in [0..size + 1, size..size + 1, 5..4, u64::MAX - 1..u64::MAX, 0..u64::MAX] {
            let mut scratch = Vec::new();
            let error = shard.bytes(range.clone(), &mut scratch).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert_eq!(scratch.capacity(), 0);
            // Advice outside the file is no error, only without effect.
            shard.will_need(range.clone());
            shard.release(range);
        }
        assert_eq!(shard.bytes(size..size, &mut Vec::new()).unwrap(), b"");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_range_reads_the_same_whatever_is_released_or_asked_for_between(
        ranges in prop::collection::vec((0_u64..40_000, 0_u64..40_000, 0_u8..3), 1..20),
    ) {
        let dir = tempdir().unwrap();
        let raw = bytes_file(&[("a", 39_000), ("b", 1_000)]);
        put(dir.path(), "x.safetensors", &raw);
        let path = dir.path().join("x.safetensors");
        let opens = [Checkpoint::open(&path).unwrap(), Checkpoint::open_unmapped(&path).unwrap()];
        for (a, b, between) in ranges {
            let range = a.min(b)..a.max(b);
            for open in &opens {
                let shard: &Shard = &open.shards()[0];
                let mut scratch = Vec::new();
                let bytes = shard.bytes(range.clone(), &mut scratch).unwrap();
                match between {
                    0 => shard.release(range.clone()),
                    1 => shard.will_need(range.clone()),
                    _ => {}
                }
                prop_assert_eq!(bytes, &raw[range.start as usize..range.end as usize]);
            }
        }
    }
}

#[test]
fn released_bytes_leave_resident_memory_and_come_back() {
    let dir = tempdir().unwrap();
    put(dir.path(), "released.safetensors", bytes_file(&[("a", 16 * MIB), ("b", 16 * MIB)]));
    let path = dir.path().join("released.safetensors");
    let open = Checkpoint::open(&path).unwrap();
    let shard = &open.shards()[0];
    let (a, b) = (open.get("a").unwrap().range(), open.get("b").unwrap().range());
    let sum = |range: &std::ops::Range<u64>| -> u64 {
        shard.bytes(range.clone(), &mut Vec::new()).unwrap().iter().map(|b| u64::from(*b)).sum()
    };
    let (first, _) = (sum(&a), sum(&b));
    assert!(resident_kib(&path) >= 32 * 1024, "{} kB", resident_kib(&path));
    shard.release(a.clone());
    let left = resident_kib(&path);
    // The neighbour may lose what shares a huge page (2 MiB) with the end of `a`, and gets it back when it is read.
    assert!((13 * 1024..=16 * 1024 + 64).contains(&left), "{left} kB");
    shard.release(b);
    assert!(resident_kib(&path) <= 64, "{} kB", resident_kib(&path));
    assert_eq!(sum(&a), first);
}

#[test]
fn what_will_be_needed_is_read_ahead_whole() {
    let dir = tempdir().unwrap();
    put(dir.path(), "ahead.safetensors", bytes_file(&[("a", 64 * MIB)]));
    let path = dir.path().join("ahead.safetensors");
    let file = std::fs::File::open(&path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    // SAFETY: the file is this test's own, and nobody writes to it.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    let cached = || {
        let mut pages = vec![0_u8; map.len().div_ceil(4096)];
        // SAFETY: the map is live and `pages` has a byte for each of its pages, of 4096 bytes or more.
        assert_eq!(unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 == 1).count() * 4096
    };
    let open = Checkpoint::open(&path).unwrap();
    open.shards()[0].will_need(open.get("a").unwrap().range());
    let start = std::time::Instant::now();
    while cached() < 63 * MIB {
        assert!(start.elapsed().as_secs() < 60, "only {} bytes were read ahead", cached());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_file_that_changes_size_or_time_is_noticed() {
    let dir = tempdir().unwrap();
    put(dir.path(), "x.safetensors", bytes_file(&[("a", 100)]));
    let path = dir.path().join("x.safetensors");
    let open = Checkpoint::open(&path).unwrap();
    open.check_unchanged().unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.set_modified(before + std::time::Duration::from_nanos(1)).unwrap();
    let error = open.check_unchanged().unwrap_err();
    assert!(error.to_string().contains("x.safetensors` changed while it was in use: it was modified at"), "{error}");
    file.set_modified(before).unwrap();
    open.check_unchanged().unwrap();
    let size = open.shards()[0].size();
    file.set_len(size + 1).unwrap();
    file.set_modified(before).unwrap();
    let error = open.check_unchanged().unwrap_err();
    assert!(error.to_string().contains(&format!("it had {size} bytes, now it has {}", size + 1)), "{error}");
    assert_eq!((error.exit_code(), error.hints().len()), (1, 1));
}

#[test]
fn reading_a_file_that_shrank_is_an_error_not_a_crash() {
    let dir = tempdir().unwrap();
    put(dir.path(), "x.safetensors", bytes_file(&[("a", 100_000)]));
    let path = dir.path().join("x.safetensors");
    let open = Checkpoint::open_unmapped(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let error = open.shards()[0].bytes(open.get("a").unwrap().range(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("it shrank"), "{error}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn a_mapped_file_that_shrinks_ends_the_process_with_its_name_and_exit_code_3() {
    let dir = tempdir().unwrap();
    put(dir.path(), "shrinks.safetensors", bytes_file(&[("a", MIB)]));
    put(dir.path(), "other.safetensors", bytes_file(&[("a", MIB)]));
    let out = child("child_reads_a_mapped_file_that_shrinks", &dir.path().join("shrinks.safetensors"));
    let message = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(3), "{message}");
    assert!(message.contains("shrinks.safetensors` shrank or could not be read"), "{message}");
    assert!(message.contains("\nhint: ") && message.contains("--resume"), "{message}");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_reads_a_mapped_file_that_shrinks() {
    let Some(path) = child_file() else { return };
    install_bus_handler().unwrap();
    install_bus_handler().unwrap();
    // Maps before and after, one of them gone again: the handler must tell them apart.
    let other = Checkpoint::open(&path.with_file_name("other.safetensors")).unwrap();
    drop(Checkpoint::open(&path).inspect(|open| assert!(open.shards()[0].is_mapped())).unwrap());
    let open = Checkpoint::open(&path).unwrap();
    assert!(open.shards()[0].is_mapped() && other.shards()[0].is_mapped());
    let later = Checkpoint::open(&path.with_file_name("other.safetensors")).unwrap();
    assert!(later.shards()[0].is_mapped());
    OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let mut scratch = Vec::new();
    let bytes = open.shards()[0].bytes(open.get("a").unwrap().range(), &mut scratch).unwrap();
    // Several threads fail at once: one message, one exit.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| std::hint::black_box(bytes.iter().map(|b| u64::from(*b)).sum::<u64>()));
        }
    });
    unreachable!("the file has shrunk");
}

#[test]
fn without_address_space_for_a_map_files_are_read() {
    let dir = tempdir().unwrap();
    let size = 1_u64 << 36;
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{size}],"data_offsets":[0,{size}]}}}}"#);
    put(dir.path(), "sparse.safetensors", super::file(&header, 0));
    let path = dir.path().join("sparse.safetensors");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(8 + header.len() as u64 + size).unwrap();
    let out = child("child_reads_with_little_address_space", &path);
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "run by another test, in a process of its own"]
fn child_reads_with_little_address_space() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let Some(path) = child_file() else { return };
    setrlimit(Resource::As, Rlimit { current: Some(4 << 30), maximum: Some(4 << 30) }).unwrap();
    let open = Checkpoint::open(&path).unwrap();
    let shard = &open.shards()[0];
    assert!(!shard.is_mapped());
    let mut scratch = Vec::new();
    assert_eq!(shard.bytes(shard.size() - 4096..shard.size(), &mut scratch).unwrap(), vec![0; 4096]);
    // More than there is: refused, not aborted.
    let error = shard.bytes(0..shard.size(), &mut scratch).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(error.to_string().contains("no memory for"), "{error}");
}

#[test]
fn checkpoints_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Checkpoint>();
}
