//! One merge by many processes: each does a part, into one output.
//!
//! `MERGANSER_PART_KILLS=100 cargo test --test merge parts_that_are_killed` kills a hundred times instead of a few.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, SystemTime};

use merganser::dtype::Dtype;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::child::{self, Ended};
use crate::support::family::{Family, Rng};
use crate::support::recipes::Text;
use crate::support::{assert_whole, partial};

const PARTS: usize = 8;
const OPTIONS: [&str; 6] = ["--threads", "1", "--memory-budget", "64MiB", "--shard-size", "1MB"];

/// Blocks of layers with matrices and vectors, an embedding larger than a shard, a count: so that parts meet within blocks of files.
fn family(seed: u64) -> Family {
    let mut specs: Vec<(String, Dtype, Vec<u64>)> = vec![("embed.weight".into(), Dtype::BF16, vec![700, 900])];
    for i in 0..14 {
        let at = |what: &str| format!("model.layers.{i}.{what}.weight");
        specs.push((at("self_attn.q_proj"), Dtype::BF16, vec![96, 200]));
        specs.push((at("mlp.up_proj"), Dtype::F32, vec![120, 96]));
        specs.push((at("input_layernorm"), Dtype::F32, vec![96]));
    }
    specs.push(("steps".into(), Dtype::I64, vec![3]));
    let specs: Vec<_> = specs.iter().map(|(n, d, s)| (n.as_str(), *d, &s[..])).collect();
    Family::new(tempfile::tempdir().unwrap(), &specs, 3, seed)
}

/// Every file of an output but its manifest, which says when it was made, with its bytes.
fn files(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut open = vec![out.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().unwrap() != "merganser.json" {
                let name = path.strip_prefix(out).unwrap().to_str().unwrap().to_owned();
                // The card has the folder's name.
                all.extend((name != "README.md").then(|| (name, fs::read(&path).unwrap())));
            }
        }
    }
    all
}

/// What a manifest says of tensors and sources, which does not depend on who made them.
fn stated(out: &Path) -> Value {
    let manifest: Value = serde_json::from_slice(&fs::read(out.join("merganser.json")).unwrap()).unwrap();
    ["fingerprint", "tensors", "sources", "totals", "seed", "recipe"].iter().map(|key| manifest[*key].clone()).collect()
}

struct Merge {
    family: Family,
    recipe: PathBuf,
    out: PathBuf,
    whole: PathBuf,
}

impl Merge {
    /// A recipe, and what one process makes of it.
    fn new(text: &Text) -> Self {
        let family = family(5);
        let recipe = family.recipe("recipe", &text.yaml());
        let whole = family.path("whole");
        child::run(&recipe, &whole, &OPTIONS).expect(0, &[]);
        let out = family.path("out");
        Self { family, recipe, out, whole }
    }

    fn start(&self, part: usize) -> Child {
        child::start(&self.recipe, &self.out, &[&OPTIONS[..], &["--part", &format!("{part}/{PARTS}")]].concat())
    }

    fn run(&self, part: usize) -> Ended {
        child::end(self.start(part))
    }

    /// Fails unless OUT is, byte by byte, what one process makes.
    fn assert_done(&self) {
        assert_whole(&self.out);
        assert_eq!(stated(&self.out), stated(&self.whole));
        let (found, expected) = (files(&self.out), files(&self.whole));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (name, bytes) in &expected {
            assert!(found[name] == *bytes, "{name} differs");
        }
        assert!(!partial(&self.out).exists());
    }

    fn state(&self) -> PathBuf {
        partial(&self.out).join("merganser.parts")
    }

    fn clear(&self) {
        for folder in [&self.out, &partial(&self.out)] {
            if folder.exists() {
                fs::remove_dir_all(folder).unwrap();
            }
        }
    }
}

fn ties() -> Text {
    Text::plain("ties", 3).set("density", "0.3")
}

#[test]
fn eight_parts_at_once_make_what_one_process_makes() {
    let texts = [
        ties(),
        Text::plain("dare_linear", 3).set("density", "0.5"),
        Text::plain("cart", 3),
        Text::plain("cart", 3).more("output: factors"),
        Text::plain("task_arithmetic", 3).lwptv("granularity: tensor, keep: 0.4"),
        Text::plain("task_arithmetic", 3).lwptv("granularity: row, keep: 0.5, rescale: l1"),
        Text::plain("slerp", 1).set("t", "0.3"),
    ];
    for text in texts {
        let merge = Merge::new(&text);
        let all: Vec<Child> = (1..=PARTS).map(|part| merge.start(part)).collect();
        let ended: Vec<Value> = all.into_iter().map(|child| child::end(child).expect(0, &[]).json()).collect();
        merge.assert_done();
        let finished: Vec<_> = ended.iter().filter(|document| document["manifest"].is_string()).collect();
        assert_eq!(finished.len(), 1, "one of them finishes: {ended:?}");
        let tensors: u64 = ended.iter().filter_map(|d| d["part"].as_u64().and(d["totals"]["tensors"].as_u64())).sum();
        assert!(tensors < finished[0]["totals"]["tensors"].as_u64().unwrap());
    }
}

#[test]
fn parts_that_are_killed_at_any_moment_are_done_by_whoever_takes_them_over() {
    let kills: usize = std::env::var("MERGANSER_PART_KILLS").map_or(6, |text| text.parse().unwrap());
    let merge = Merge::new(&Text::plain("ties", 3).set("density", "0.3").lwptv("granularity: tensor, keep: 0.6"));
    let mut rng = Rng(kills as u64);
    let mut killed = 0;
    while killed < kills {
        merge.clear();
        let mut running: Vec<(usize, Child)> = (1..=PARTS).map(|part| (part, merge.start(part))).collect();
        while !running.is_empty() {
            std::thread::sleep(Duration::from_micros(rng.bits() % 60_000));
            if killed < kills {
                let at = (rng.bits() % running.len() as u64) as usize;
                let (part, child) = &mut running[at];
                if child.try_wait().unwrap().is_none() {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    killed += 1;
                    assert!(!merge.out.exists() || files(&merge.out) == files(&merge.whole));
                    *child = merge.start(*part);
                }
            }
            running.retain_mut(|(part, child)| {
                let Some(status) = child.try_wait().unwrap() else { return true };
                match status.code() {
                    Some(0) => false,
                    code => panic!("part {part} ended with {code:?}"),
                }
            });
        }
        // Where the one that was to finish was killed as the last, its part was done: it is run again as a scheduler would.
        if !merge.out.exists() {
            merge.run(1).expect(0, &[]);
        }
        merge.assert_done();
    }
}

#[test]
fn nothing_is_at_out_until_all_parts_are_done_and_a_part_that_is_done_says_so() {
    let merge = Merge::new(&ties());
    for part in 1..PARTS {
        let document = merge.run(part).expect(0, &[]).json();
        let open: Vec<u64> = (part as u64 + 1..=PARTS as u64).collect();
        assert_eq!(document["open_parts"], serde_json::json!(open));
        assert_eq!((&document["part"], &document["of"]), (&part.into(), &PARTS.into()));
        assert_eq!(document["already_done"], false);
        assert!(!merge.out.exists());
    }
    let again = merge.run(3).expect(0, &[]).json();
    assert_eq!((&again["already_done"], &again["totals"]["bytes_written"]), (&true.into(), &0.into()));
    let last = merge.run(PARTS).expect(0, &[]).json();
    assert_eq!(last["already_done"], false);
    merge.assert_done();
    // The manifest of the whole says what all of them have read and written.
    let totals = |out: &Path| {
        let manifest: Value = serde_json::from_slice(&fs::read(out.join("merganser.json")).unwrap()).unwrap();
        [manifest["timings"]["bytes_read"].clone(), manifest["timings"]["bytes_written"].clone()]
    };
    assert_eq!(totals(&merge.out), totals(&merge.whole));
    let after = merge.run(5).expect(0, &[]).json();
    assert_eq!(after["already_done"], true);
    assert!(!partial(&merge.out).exists());
}

#[test]
fn what_is_measured_of_the_whole_model_is_measured_once() {
    let merge = Merge::new(&Text::plain("task_arithmetic", 3).lwptv("granularity: tensor, keep: 0.4"));
    let whole: Value = serde_json::from_slice(&fs::read(merge.whole.join("merganser.json")).unwrap()).unwrap();
    let mut read = Vec::new();
    for part in 1..=PARTS {
        read.push(merge.run(part).expect(0, &[]).json()["totals"]["bytes_read"].as_u64().unwrap());
    }
    merge.assert_done();
    // The last one's document is of the whole, all parts together.
    assert_eq!(read[PARTS - 1], whole["timings"]["bytes_read"].as_u64().unwrap());
    assert!(read[0] > 3 * read[1], "the first has measured for all: {read:?}");
}

#[test]
fn a_part_that_is_at_work_is_not_done_twice_at_once_and_a_whole_merge_keeps_away_too() {
    let merge = Merge::new(&ties());
    let mut first = merge.start(2);
    let claims = || merge.state().join("part-2.claim-1").exists();
    assert!(child::wait_until(&mut first, claims), "it was too quick");
    child::signal(&first, Signal::STOP);
    let second = merge.run(2).expect(75, &["another merganser (process ", "is writing part 2 of"]);
    assert_eq!(second.json()["error"]["kind"], "busy");
    child::run(&merge.recipe, &merge.out, &[&OPTIONS[..], &["--resume"]].concat()).expect(75, &["writing part 2"]);
    child::run(&merge.recipe, &merge.out, &[&OPTIONS[..], &["--overwrite"]].concat()).expect(75, &["writing part 2"]);
    merge.run(3).expect(0, &[]);
    child::signal(&first, Signal::CONT);
    child::end(first).expect(0, &[]);
    // A whole merge at work keeps parts away.
    merge.clear();
    let mut whole = child::start(&merge.recipe, &merge.out, &OPTIONS);
    assert!(child::wait_until(&mut whole, || partial(&merge.out).join("merganser.plan.json").exists()));
    child::signal(&whole, Signal::STOP);
    merge.run(1).expect(75, &["another merganser"]);
    child::signal(&whole, Signal::CONT);
    child::end(whole).expect(0, &[]);
    merge.run(1).expect(0, &[]);
}

#[test]
fn a_part_that_another_machine_has_is_taken_over_once_it_was_silent_for_a_minute() {
    let merge = Merge::new(&ties());
    merge.run(1).expect(0, &[]);
    let claim = merge.state().join("part-2.claim-1");
    let holder = r#"{"host":"node-7","boot":"other","namespace":"pid:[1]","pid":4711,"started":1,"ended":false}"#;
    fs::write(&claim, holder).unwrap();
    merge.run(2).expect(75, &["process 4711 on node-7", "writing part 2 of", "followed after a minute"]);
    let file = fs::File::options().write(true).open(&claim).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(61)).unwrap();
    for part in 2..=PARTS {
        merge.run(part).expect(0, &[]);
    }
    merge.assert_done();
}

#[test]
fn what_was_finished_under_another_boot_is_read_back_and_what_is_not_there_is_done_again() {
    let merge = Merge::new(&ties());
    (2..=PARTS).for_each(|part| drop(merge.run(part).expect(0, &[])));
    let mut first = merge.start(1);
    let journal = merge.state().join("part-1.journal-1");
    let lines = || fs::read(&journal).unwrap_or_default().iter().filter(|b| **b == b'\n').count();
    if child::wait_until(&mut first, || lines() >= 3) {
        first.kill().unwrap();
        first.wait().unwrap();
        // As if the machine had been restarted, and had lost all but the first tensors.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let text = fs::read_to_string(&journal).unwrap();
        let sealed: Vec<String> = text.lines().map(|line| resealed(&line.replace(boot.trim(), "other"))).collect();
        fs::write(&journal, sealed.concat()).unwrap();
        fs::write(merge.state().join("part-1.edges"), vec![0; 1 << 20]).unwrap();
    }
    merge.run(1).expect(0, &[]);
    merge.assert_done();
}

/// A journal's line with the check that fits it.
fn resealed(line: &str) -> String {
    let body = &line[..line.rfind(",\"check\"").unwrap()];
    let check = twox_hash::XxHash3_64::oneshot(format!("{body}}}").as_bytes());
    format!("{body},\"check\":\"{check:016x}\"}}\n")
}

#[test]
fn parts_of_something_else_are_refused_and_what_is_done_is_kept() {
    let merge = Merge::new(&ties());
    merge.run(1).expect(0, &[]);
    let run = |more: &[&str]| child::run(&merge.recipe, &merge.out, &[&OPTIONS[..], more].concat());
    run(&["--part", "2/4"]).expect(1, &["`parts` was 8, is now 4"]);
    run(&["--part", "2/8", "--seed", "9"]).expect(1, &["`seed` was 0, is now 9"]);
    run(&["--resume"]).expect(1, &["`parts` was 8, is now absent"]);
    let options = ["--threads", "1", "--memory-budget", "64MiB", "--shard-size", "2MB", "--part", "2/8"];
    child::run(&merge.recipe, &merge.out, &options).expect(1, &["`layout`"]);
    let other = merge.family.recipe("other", &Text::plain("ties", 3).set("density", "0.4").yaml());
    child::run(&other, &merge.out, &[&OPTIONS[..], &["--part", "2/8"]].concat()).expect(1, &["density"]);
    // Threads and memory are each process's own.
    let options = ["--threads", "2", "--memory-budget", "256MiB", "--shard-size", "1MB", "--part", "2/8"];
    child::run(&merge.recipe, &merge.out, &options).expect(0, &[]);
    (3..=PARTS).for_each(|part| drop(merge.run(part).expect(0, &[])));
    merge.assert_done();
    child::run(&other, &merge.out, &[&OPTIONS[..], &["--part", "2/8"]].concat())
        .expect(1, &["holds the output of another merge"]);
}

#[test]
fn sources_that_change_between_parts_are_noticed() {
    let merge = Merge::new(&ties());
    merge.run(1).expect(0, &[]);
    let source = merge.family.path("model-1/model.safetensors");
    let file = fs::File::options().write(true).open(source).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(1000)).unwrap();
    merge.run(2).expect(1, &["sources[1].files[0].modified"]);
}

#[test]
fn a_data_file_that_is_lost_between_parts_is_not_filled_with_zeros() {
    let merge = Merge::new(&ties());
    merge.run(1).expect(0, &[]);
    let name = files(&merge.whole).into_keys().find(|name| name.ends_with(".safetensors")).unwrap();
    fs::remove_file(partial(&merge.out).join(&name)).unwrap();
    for _ in 0..2 {
        merge.run(2).expect(1, &[&name, "what parts of this merge wrote there is lost", "run all parts again"]);
    }
}

#[test]
fn with_overwrite_the_part_that_finishes_replaces_what_was_there() {
    let merge = Merge::new(&ties());
    let other = merge.family.recipe("other", &Text::plain("linear", 3).yaml());
    child::run(&other, &merge.out, &OPTIONS).expect(0, &[]);
    merge.run(1).expect(1, &["holds the output of another merge"]);
    let before = files(&merge.out);
    for part in 1..=PARTS {
        assert_eq!(files(&merge.out), before);
        let part = format!("{part}/{PARTS}");
        child::run(&merge.recipe, &merge.out, &[&OPTIONS[..], &["--part", &part, "--overwrite"]].concat())
            .expect(0, &[]);
    }
    merge.assert_done();
}

#[test]
fn a_recipe_of_several_documents_and_a_part_that_there_is_not_are_refused() {
    let family = family(5);
    let text = "name: first\nmerge_method: linear\nmodels: [{model: base}, {model: model-1}]\n---\n\
                merge_method: linear\nmodels: [{model: first}, {model: model-2}]\n";
    let recipe = family.recipe("several", text);
    let out = family.path("out");
    let run = |part: &str| child::run(&recipe, &out, &[&OPTIONS[..], &["--part", part]].concat());
    run("1/2").expect(1, &["has `first` merged first"]);
    run("3/2").expect(1, &["1 ≤ I ≤ N"]);
    let mut command = child::command(&recipe, &out, &["--part", "auto/2"], None);
    for name in ["SLURM_ARRAY_TASK_ID", "PBS_ARRAY_INDEX", "LSB_JOBINDEX", "SGE_TASK_ID", "JOB_COMPLETION_INDEX"] {
        command.env_remove(name);
    }
    child::end(command.spawn().unwrap()).expect(1, &["needs the index of an array's task"]);
    assert!(!out.exists() && !partial(&out).exists());
}

#[test]
fn indices_of_an_array_say_which_part_each_task_does() {
    let merge = Merge::new(&ties());
    for index in 0..3 {
        let mut command = child::command(&merge.recipe, &merge.out, &["--shard-size", "1MB", "--part", "auto/3"], None);
        command.env("SLURM_ARRAY_TASK_ID", index.to_string());
        child::end(command.spawn().unwrap()).expect(0, &[]);
    }
    merge.assert_done();
}

#[test]
fn a_file_system_without_locks_exchanges_preallocation_direct_io_and_links_holds_parts_and_whole_merges() {
    let merge = Merge::new(&ties());
    let refuse = refusing(merge.family.folder.path());
    let run = |mode: &str, more: &[&str]| {
        let command = child::command(&merge.recipe, &merge.out, &[&OPTIONS[..], more].concat(), None);
        let mut refused = std::process::Command::new(&refuse);
        refused.arg(mode).arg(command.get_program()).args(command.get_args());
        refused.stdin(std::process::Stdio::null());
        refused.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        refused.spawn().unwrap()
    };
    for mode in ["plain", "linkless"] {
        let all: Vec<Child> = (1..=PARTS).map(|part| run(mode, &["--part", &format!("{part}/{PARTS}")])).collect();
        all.into_iter().for_each(|child| drop(child::end(child).expect(0, &[])));
        merge.assert_done();
        merge.clear();
    }
    // A whole merge makes a file where it cannot lock: a second one keeps away, and one after a kill does not.
    let mut first = run("plain", &[]);
    let claimed =
        || merge.state().join("whole.claim-1").exists() && partial(&merge.out).join("merganser.plan.json").exists();
    assert!(child::wait_until(&mut first, claimed), "{:?}", child::end(first));
    child::signal(&first, Signal::STOP);
    child::end(run("plain", &["--resume"])).expect(75, &["another merganser (process "]);
    child::end(run("plain", &["--part", "1/8"])).expect(75, &["another merganser (process "]);
    first.kill().unwrap();
    first.wait().unwrap();
    child::end(run("plain", &["--resume"])).expect(0, &[]);
    merge.assert_done();
}

/// A program that runs another under a filter of system calls: what some network file systems do not have fails there.
fn refusing(folder: &Path) -> PathBuf {
    let (source, program) = (folder.join("refuse.c"), folder.join("refuse"));
    fs::write(&source, include_str!("parts/refuse.c")).unwrap();
    let built = std::process::Command::new("cc").arg("-o").arg(&program).arg(&source).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}
