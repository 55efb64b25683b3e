//! Disks that are full or read-only, limits on file size and memory: exit 3 and a merge that can be gone on with, or no
//! error at all where the plan promised that there would be none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use merganser::dtype::Dtype;
use rustix::process::Signal;

use crate::support::child;
use crate::support::family::Family;
use crate::support::mount::Mount;
use crate::support::recipes::Text;
use crate::support::{MIB, assert_whole, digests, journalled, partial, quick_folder};

/// 64 tensors, 12 MiB a checkpoint.
fn family() -> (Family, PathBuf, BTreeMap<String, String>) {
    let names: Vec<String> = (0..64).map(|i| format!("layers.{}.w{}.weight", i / 4, i % 4)).collect();
    let shape: &[u64] = &[256, 384];
    let specs: Vec<_> = names.iter().map(|n| (n.as_str(), Dtype::BF16, shape)).collect();
    let family = Family::new(quick_folder(), &specs, 2, 21);
    let text = Text::plain("ties", 2).set("density", "0.3").lwptv("granularity: element, keep: 0.7");
    let merged = family.merged("whole", &text.yaml());
    let expected = digests(&merged.out);
    let recipe = family.path("whole.yaml");
    (family, recipe, expected)
}

fn free_bytes(path: &Path) -> u64 {
    let space = rustix::fs::statvfs(path).unwrap();
    space.f_bavail * space.f_frsize
}

#[test]
fn a_disk_too_small_is_told_with_numbers_before_any_work_and_a_larger_one_ends_the_merge() {
    let Some(mount) = Mount::new("size=6m") else { return };
    let (_family, recipe, expected) = family();
    let out = mount.path().join("out");
    let free = free_bytes(mount.path());
    let ended = child::run(&recipe, &out, &[]).expect(3, &["not enough space", "12591104", "`--resume`"]);
    // The work folder's own few pages are taken by then.
    let told = ended.stderr.split_once("more bytes, ").unwrap().1.split_once(" are free").unwrap().0;
    let told: u64 = told.parse().unwrap();
    assert!(told <= free && free - told < 100_000, "{told} of {free}");
    assert!(!out.exists());
    assert!(free_bytes(mount.path()) + 100_000 > free, "the space is given back");
    mount.remount("size=40m");
    child::run(&recipe, &out, &["--resume"]).expect(0, &[]);
    assert_whole(&out);
    assert_eq!(digests(&out), expected);
}

#[test]
fn a_disk_that_is_full_when_a_merge_goes_on_keeps_what_was_finished() {
    let Some(mount) = Mount::new("size=40m") else { return };
    let (_family, recipe, expected) = family();
    let out = mount.path().join("out");
    let args = ["--threads", "1", "--memory-budget", "64MiB"];
    let is_interrupted = (0..40).any(|_| {
        let _ = fs::remove_dir_all(&out);
        let _ = fs::remove_dir_all(partial(&out));
        let mut merge = child::start(&recipe, &out, &args);
        if child::wait_until(&mut merge, || journalled(&out) >= 2) {
            child::signal(&merge, Signal::TERM);
        }
        child::end(merge).code() == Some(143)
    });
    assert!(is_interrupted, "the merge was always faster");
    let finished = journalled(&out);
    // The data files have their places; what finds none is the journal, line by line, and then the manifest.
    let filler = mount.path().join("filler");
    fill(&filler);
    let mut tries = 0;
    loop {
        let ended = child::run(&recipe, &out, &["--resume", "--threads", "1", "--memory-budget", "64MiB"]);
        ended.expect(3, &["No space left", "--resume"]);
        assert!(!out.exists());
        assert!(journalled(&out) >= finished);
        tries += 1;
        // A page for the journal's next lines, then some for the small files, and at last for all.
        let size = fs::metadata(&filler).unwrap().len();
        if tries == 3 {
            fs::remove_file(&filler).unwrap();
            break;
        }
        fs::File::options().write(true).open(&filler).unwrap().set_len(size - tries * 4096).unwrap();
    }
    let last = child::run(&recipe, &out, &["--resume"]).expect(0, &[]);
    assert!(last.json()["resumed_tensors"].as_u64().unwrap() as usize >= finished);
    assert_whole(&out);
    assert_eq!(digests(&out), expected);
}

/// Takes all space that is left.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

#[test]
fn a_limit_on_file_sizes_is_the_environments_and_can_be_lifted() {
    let (family, recipe, expected) = family();
    let out = family.path("out");
    // In blocks of 512 bytes: 2 MiB. Past it the kernel sends SIGXFSZ, which ends a process that does not expect it.
    child::run_limited(&recipe, &out, &[], "-f 4096").expect(3, &["File too large", "ulimit -f", "--resume"]);
    assert!(!out.exists());
    child::run(&recipe, &out, &["--resume"]).expect(0, &[]);
    assert_whole(&out);
    assert_eq!(digests(&out), expected);
    // In files below the limit the merge is none the wiser.
    let shards = family.path("shards");
    child::run_limited(&recipe, &shards, &["--shard-size", "1MB"], "-f 4096").expect(0, &[]);
    assert_eq!(digests(&shards), expected);
}

#[test]
fn a_folder_that_cannot_be_written_is_the_environments_fault() {
    let Some(mount) = Mount::new("size=40m") else { return };
    let (_family, recipe, expected) = family();
    mount.remount("ro");
    let out = mount.path().join("out");
    child::run(&recipe, &out, &[]).expect(3, &["Read-only file system", "hint: "]);
    mount.remount("rw");
    child::run(&recipe, &out, &[]).expect(0, &[]);
    assert_eq!(digests(&out), expected);
}

#[test]
fn an_output_that_is_or_holds_a_source_is_refused_and_no_source_is_touched() {
    let (family, recipe, expected) = family();
    let content = |member: &str| fs::read(family.path(member).join("model.safetensors")).unwrap();
    let before = (content("base"), content("model-1"));
    let folder = family.folder.path().to_owned();
    for out in [family.path("base"), family.path("model-1"), family.path("base/model.safetensors"), folder] {
        for option in ["--overwrite", "--resume", "--quiet"] {
            let ended = child::run(&recipe, &out, &[option]);
            assert_eq!(ended.code(), Some(1), "{}: {}", out.display(), ended.stderr);
            assert!(ended.stderr.contains("hint: "), "{}", ended.stderr);
            assert!(!partial(&out).exists(), "{}", out.display());
        }
    }
    // A new folder inside a source harms nothing.
    let inside = family.path("base/merged");
    child::run(&recipe, &inside, &[]).expect(0, &[]);
    assert_eq!(digests(&inside), expected);
    assert!(before == (content("base"), content("model-1")), "a source changed");
}

/// What a process under a limit on its data may take beside the budget. The limit counts what is set aside, touched or not:
/// a stack of 2 MiB a thread, and what the allocator keeps of freed memory or, for matrix products, reserves.
fn set_aside(threads: u64, method: &str) -> u64 {
    (2 * threads + if method == "cart" { 8 } else { 2 }) * MIB
}

/// A family of more than ten budgets merges within one, however its method works.
#[test]
fn a_family_ten_times_the_budget_merges_within_the_budget() {
    const BUDGET_MIB: u64 = 26;
    let mut specs = Vec::new();
    let names: Vec<String> = (0..6)
        .flat_map(|i| ["self_attn.q_proj", "mlp.up_proj"].map(|n| format!("model.layers.{i}.{n}.weight")))
        .collect();
    let (small, large): (&[u64], &[u64]) = (&[192, 192], &[192, 768]);
    for (i, name) in names.iter().enumerate() {
        specs.push((name.as_str(), Dtype::BF16, if i % 2 == 0 { small } else { large }));
    }
    // One tensor larger than the budget, one of a third of it, as embeddings are.
    specs.push(("model.embed_tokens.weight", Dtype::BF16, &[32_003, 1024]));
    specs.push(("lm_head.weight", Dtype::F32, &[5000, 768]));
    let family = Family::new(tempfile::tempdir().unwrap(), &specs, 3, 31);
    let sizes: u64 = family.members.iter().flatten().map(|t| t.stored_bytes()).sum();
    assert!(sizes > 10 * BUDGET_MIB * MIB, "{sizes}");
    let (folder, members) = (family.folder, family.members.len());
    drop(family.members);
    assert_eq!(members, 4);
    let cases = [
        Text::plain("task_arithmetic", 3),
        Text::plain("ties", 3).set("density", "0.2").set("rescale", "true"),
        Text::plain("cart", 3).set("rank_ratio", "0.1"),
        Text::plain("dare_ties", 3).set("density", "0.3").lwptv("granularity: column, keep: 0.6, rescale: l2"),
        Text::plain("magmax", 3).lwptv("granularity: element, keep: 0.6, score: agreement"),
    ];
    let budget = format!("{BUDGET_MIB}MiB");
    for (i, text) in cases.iter().enumerate() {
        let (recipe, out) = (folder.path().join(format!("{i}.yaml")), folder.path().join("out"));
        fs::write(&recipe, text.yaml()).unwrap();
        let args = ["--threads", "2", "--memory-budget", &budget];
        // Two computing threads, one that writes, one that reads ahead.
        let limit = BUDGET_MIB * MIB + set_aside(4, &text.method);
        let mut merge = child::command(&recipe, &out, &args, Some(&format!("-d {}", limit >> 10))).spawn().unwrap();
        let mut peak = 0;
        let status = format!("/proc/{}/status", merge.id());
        child::wait_until(&mut merge, || {
            peak = peak.max(resident_bytes(&status));
            false
        });
        child::end(merge).expect(0, &[]);
        assert_whole(&out);
        fs::remove_dir_all(&out).unwrap();
        let name = &text.method;
        eprintln!("{name}: {:.1} MiB resident at most", peak as f64 / MIB as f64);
        assert!(peak <= BUDGET_MIB * MIB, "{name}: {peak} bytes were resident");
    }
    // The limit is one: a merge that may plan with more does not get through.
    let recipe = folder.path().join("1.yaml");
    let args = ["--threads", "2", "--memory-budget", "1GiB"];
    let ended = child::run_limited(&recipe, &folder.path().join("out"), &args, &format!("-d {}", 20 * 1024));
    assert_ne!(ended.code(), Some(0));
}

/// Memory of the process's own that is resident now; 0 where the system does not say.
fn resident_bytes(status: &str) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}
