//! Nothing is lost: merges that are killed, signalled, changed under their feet, and gone on with.
//!
//! When a kill lands is decided by a race. What is asserted here holds wherever it lands; tests that want it in a certain
//! place wait for the journal to show that place, and try again if the merge was faster.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use merganser::dtype::Dtype::{self, F32};
use rustix::process::Signal;

use crate::support::child::{self, Ended};
use crate::support::family::{Family, Rng};
use crate::support::recipes::Text;
use crate::support::{assert_whole, digests, journalled, partial, quick_folder};

/// How often a race is run before it is given up.
const ATTEMPTS: usize = 40;

/// Slow to merge in one thread: every tensor is searched for cuts twice before it is merged, 64 MB are read several times.
struct Slow {
    family: Family,
    recipe: PathBuf,
    out: PathBuf,
    expected: BTreeMap<String, String>,
    took: Duration,
}

const TENSORS: usize = 120;
const ONE_THREAD: &[&str] = &["--threads", "1", "--memory-budget", "64MiB"];

impl Slow {
    fn new() -> Self {
        let names: Vec<String> = (0..TENSORS).map(|i| format!("layers.{}.w{}.weight", i / 4, i % 4)).collect();
        let shape: &[u64] = &[256, 300];
        let specs: Vec<_> = names.iter().map(|n| (n.as_str(), Dtype::BF16, shape)).collect();
        let family = Family::new(tempfile::tempdir().unwrap(), &specs, 2, 11);
        let text = Text::plain("ties", 2).set("density", "0.3").lwptv("granularity: element, keep: 0.7");
        let recipe = family.recipe("slow", &text.yaml());
        let whole = family.path("whole");
        let began = Instant::now();
        child::run(&recipe, &whole, ONE_THREAD).expect(0, &[]);
        let took = began.elapsed();
        let expected = digests(&whole);
        fs::remove_dir_all(whole).unwrap();
        let out = family.path("out");
        Self { family, recipe, out, expected, took }
    }

    fn args<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        [ONE_THREAD, more].concat()
    }

    fn run(&self, more: &[&str]) -> Ended {
        child::run(&self.recipe, &self.out, &self.args(more))
    }

    /// Runs until the journal notes `tensors` more than it did, then does `act` to the process; whether it still ran.
    fn interrupt(&self, more: &[&str], tensors: usize, act: impl FnOnce(&mut std::process::Child)) -> Option<Ended> {
        let mut merge = child::start(&self.recipe, &self.out, &self.args(more));
        let before = if more.contains(&"--resume") { journalled(&self.out) } else { 0 };
        let runs = child::wait_until(&mut merge, || journalled(&self.out) >= before + tensors);
        if runs {
            act(&mut merge);
        }
        let ended = child::end(merge);
        runs.then_some(ended)
    }

    fn assert_done(&self) {
        assert_whole(&self.out);
        assert_eq!(digests(&self.out), self.expected);
    }

    fn clear(&self) {
        for folder in [&self.out, &partial(&self.out)] {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Every file of a folder with its bytes and times.
fn state(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        files.insert(path.clone(), (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap()));
    }
    files
}

fn resumed(ended: &Ended) -> u64 {
    ended.json()["resumed_tensors"].as_u64().unwrap()
}

#[test]
fn twenty_kills_at_random_moments_lose_nothing() {
    let slow = Slow::new();
    let mut rng = Rng(3);
    let (mut kills, mut in_the_middle, mut went_on) = (0, 0, 0);
    for _ in 0..10 * ATTEMPTS {
        if kills >= 20 && in_the_middle >= 5 && went_on >= 1 {
            break;
        }
        // With `--resume` from the start: where there is nothing, it begins.
        let mut merge = child::start(&slow.recipe, &slow.out, &slow.args(&["--resume"]));
        std::thread::sleep(slow.took.mul_f64(0.6 * rng.unit()));
        merge.kill().unwrap();
        let ended = child::end(merge);
        if ended.code() == Some(0) || slow.out.exists() {
            // It was faster, or the kill came after the rename that ends it.
            slow.assert_done();
            went_on += usize::from(ended.code() == Some(0) && resumed(&ended) > 0);
            slow.clear();
            continue;
        }
        assert_eq!(ended.code(), None, "{}", ended.stderr);
        kills += 1;
        in_the_middle += usize::from((1..TENSORS).contains(&journalled(&slow.out)));
    }
    assert!(kills >= 20, "{kills} kills");
    assert!(in_the_middle >= 5, "{in_the_middle} of {kills} kills came in the middle");
    let last = slow.run(&["--resume"]).expect(0, &[]);
    went_on += usize::from(resumed(&last) > 0);
    assert!(went_on >= 1, "no run found anything to go on from");
    slow.assert_done();
    assert!(!partial(&slow.out).exists());
}

#[test]
fn kills_between_two_tensors_keep_the_first() {
    let slow = Slow::new();
    let mut done = 0;
    for _ in 0..ATTEMPTS {
        if slow.interrupt(&["--resume"], 7, |merge| merge.kill().unwrap()).is_none() {
            break;
        }
        assert!(!slow.out.exists());
        let now = journalled(&slow.out);
        assert!(now >= done + 7, "{now} after {done}");
        done = now;
    }
    assert!(done > 7, "only {done} tensors were ever finished by killed runs");
    // The last run may use the machine as it likes.
    let last = child::run(&slow.recipe, &slow.out, &["--resume", "--threads", "2"]).expect(0, &[]);
    assert!(last.json()["already_done"] == true || resumed(&last) as usize >= done);
    slow.assert_done();
}

#[test]
fn a_stage_that_ranks_layers_gives_the_same_after_an_interruption() {
    let mut slow = Slow::new();
    for (i, stage) in ["granularity: layer, keep: 0.5, rescale: l2", "granularity: row, keep: 0.5, rescale: l1"]
        .into_iter()
        .enumerate()
    {
        let text = Text::plain("ties", 2).set("density", "0.5").lwptv(stage);
        slow.recipe = slow.family.recipe(&format!("ranked-{i}"), &text.yaml());
        slow.clear();
        slow.run(&[]).expect(0, &[]);
        slow.expected = digests(&slow.out);
        let is_interrupted = (0..ATTEMPTS).any(|_| {
            slow.clear();
            let killed = slow.interrupt(&[], 3, |merge| merge.kill().unwrap()).is_some();
            killed && partial(&slow.out).exists()
        });
        assert!(is_interrupted, "the merge was always faster");
        let last = slow.run(&["--resume"]).expect(0, &[]);
        assert!(resumed(&last) >= 3);
        slow.assert_done();
    }
}

#[test]
fn killed_while_it_replaces_an_output_the_old_one_stays() {
    let slow = Slow::new();
    let old = slow.family.recipe("old", &Text::plain("task_arithmetic", 2).set("lambda", "0.5").yaml());
    let mut rng = Rng(5);
    let mut in_the_middle = 0;
    for attempt in 0..ATTEMPTS {
        if attempt >= 6 && in_the_middle >= 3 {
            break;
        }
        slow.clear();
        child::run(&old, &slow.out, &[]).expect(0, &[]);
        let before = state(&slow.out);
        let mut merge = child::start(&slow.recipe, &slow.out, &slow.args(&["--overwrite"]));
        std::thread::sleep(slow.took.mul_f64(rng.unit()));
        merge.kill().unwrap();
        let ended = child::end(merge);
        if digests(&slow.out) == slow.expected {
            slow.assert_done();
            continue;
        }
        assert_eq!(ended.code(), None, "{}", ended.stderr);
        assert!(state(&slow.out) == before, "the old output changed");
        if journalled(&slow.out) == 0 {
            continue;
        }
        in_the_middle += 1;
        let plain = slow.run(&["--resume"]);
        plain.expect(1, &["holds the output of another merge", "`--resume --overwrite` goes on"]);
        assert!(state(&slow.out) == before, "the old output changed");
        let last = slow.run(&["--resume", "--overwrite"]).expect(0, &[]);
        assert!(resumed(&last) > 0);
        slow.assert_done();
    }
    assert!(in_the_middle >= 1, "no kill came in the middle");
}

#[test]
fn sigint_and_sigterm_end_with_their_codes_and_keep_what_is_finished() {
    let slow = Slow::new();
    for (signal, code, name) in [(Signal::INT, 130, "SIGINT"), (Signal::TERM, 143, "SIGTERM")] {
        let ended = (0..ATTEMPTS).find_map(|_| {
            slow.clear();
            let ended = slow.interrupt(&[], 2, |merge| child::signal(merge, signal))?;
            // A signal in the last moment comes too late to stop anything.
            (ended.code() != Some(0)).then_some(ended)
        });
        let ended = ended.expect("the merge was always faster");
        let ended = ended.expect(code, &[&format!("stopped by {name}"), "go on with `--resume`"]);
        assert!(ended.stdout.contains(&format!("\"exit_code\": {code}")), "{}", ended.stdout);
        assert!(!slow.out.exists());
        let kept = journalled(&slow.out) as u64;
        assert!(kept >= 2);
        let last = slow.run(&["--resume"]).expect(0, &[]);
        assert_eq!(resumed(&last), kept);
        slow.assert_done();
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let slow = Slow::new();
    // Both signals wait while the process is stopped, so that the second finds the first still unheeded. Two threads may
    // take one each at the same instant: then both were the first.
    let at_once = (0..ATTEMPTS).any(|_| {
        slow.clear();
        let ended = slow.interrupt(&[], 2, |merge| {
            for signal in [Signal::STOP, Signal::INT, Signal::TERM, Signal::CONT] {
                child::signal(merge, signal);
            }
        });
        let Some(ended) = ended.filter(|e| e.code() != Some(0)) else { return false };
        assert!(matches!(ended.code(), Some(130 | 143)), "{:?}", ended.status);
        let is_at_once = !ended.stderr.contains("stopped by");
        slow.run(&["--resume"]).expect(0, &[]);
        slow.assert_done();
        is_at_once
    });
    assert!(at_once, "two signals never ended a merge at once");
}

#[test]
fn resuming_what_is_finished_changes_nothing() {
    let slow = Slow::new();
    let begun = slow.run(&["--resume"]).expect(0, &[]);
    assert_eq!((begun.json()["already_done"].clone(), resumed(&begun)), (false.into(), 0));
    slow.assert_done();
    let before = (state(&slow.out), fs::metadata(&slow.out).unwrap().modified().unwrap());
    let again = slow.run(&["--resume"]).expect(0, &[]);
    assert_eq!(again.json()["already_done"], true);
    let words = Text::plain("ties", 2); // Another recipe: never taken for the finished one.
    let other = slow.family.recipe("other", &words.yaml());
    child::run(&other, &slow.out, &["--resume"]).expect(1, &["holds the output of another merge", "--overwrite"]);
    slow.run(&[]).expect(1, &["finished output of this very merge"]);
    let after = (state(&slow.out), fs::metadata(&slow.out).unwrap().modified().unwrap());
    assert!(before == after, "a finished output was touched");
    assert!(!partial(&slow.out).exists());
}

#[test]
fn what_differs_from_the_interrupted_merge_is_named() {
    let slow = Slow::new();
    let is_interrupted = (0..ATTEMPTS).any(|_| {
        slow.clear();
        slow.interrupt(&[], 2, |merge| merge.kill().unwrap()).is_some() && partial(&slow.out).exists()
    });
    assert!(is_interrupted, "the merge was always faster");
    slow.run(&[]).expect(1, &["an interrupted merge into", "`--resume` goes on with it"]);
    let refused = "the interrupted merge in";
    slow.run(&["--resume", "--seed", "9"]).expect(1, &[refused, "`seed` was 0, is now 9"]);
    slow.run(&["--resume", "--shard-size", "1MB"]).expect(1, &[refused, "`layout`"]);
    let text = Text::plain("ties", 2).set("density", "0.25").lwptv("granularity: element, keep: 0.7");
    let other = slow.family.recipe("other", &text.yaml());
    let args = slow.args(&["--resume"]);
    child::run(&other, &slow.out, &args).expect(1, &[refused, "`recipe.parameters.density` was 0.3, is now 0.25"]);
    // A source with one changed byte, of the same size.
    let source = slow.family.path("model-1/model.safetensors");
    let (bytes, modified) = (fs::read(&source).unwrap(), fs::metadata(&source).unwrap().modified().unwrap());
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&source, &changed).unwrap();
    slow.run(&["--resume"]).expect(1, &[refused, "`sources[1].files[0].modified` was"]);
    // Everything as it was: nothing has been lost meanwhile, and threads and memory may differ.
    fs::write(&source, &bytes).unwrap();
    File::options().write(true).open(&source).unwrap().set_modified(modified).unwrap();
    let last = child::run(&slow.recipe, &slow.out, &["--resume", "--threads", "2", "--memory-budget", "1GiB"]);
    assert!(resumed(&last.expect(0, &[])) >= 2);
    slow.assert_done();
}

#[test]
fn a_source_written_to_during_the_merge_is_noticed_and_nothing_of_it_is_kept() {
    let slow = Slow::new();
    let source = slow.family.path("model-2/model-00002-of-00002.safetensors");
    let (bytes, modified) = (fs::read(&source).unwrap(), fs::metadata(&source).unwrap().modified().unwrap());
    let changed: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| if i > 100_000 { b ^ 1 } else { *b }).collect();
    let restore = || {
        write_over(&source, &bytes);
        File::options().write(true).open(&source).unwrap().set_modified(modified).unwrap();
    };
    let noticed = (0..ATTEMPTS).any(|_| {
        slow.clear();
        restore();
        let ended = slow.interrupt(&[], 2, |_| write_over(&source, &changed));
        // Changed after the last look at it, the source may be as it likes.
        let Some(ended) = ended.filter(|e| e.code() != Some(0)) else { return false };
        ended.expect(1, &["model-00002-of-00002.safetensors", "changed while it was in use"]);
        true
    });
    assert!(noticed, "the merge was always faster");
    assert!(!slow.out.exists());
    restore();
    let last = slow.run(&["--resume"]).expect(0, &[]);
    assert!(resumed(&last) >= 2);
    slow.assert_done();
}

#[test]
fn a_source_that_shrinks_during_the_merge_ends_it_cleanly() {
    let slow = Slow::new();
    let source = slow.family.path("model-1/model.safetensors");
    let (bytes, modified) = (fs::read(&source).unwrap(), fs::metadata(&source).unwrap().modified().unwrap());
    let restore = || {
        write_over(&source, &bytes);
        File::options().write(true).open(&source).unwrap().set_modified(modified).unwrap();
    };
    let mut codes = Vec::new();
    let by_signal = (0..ATTEMPTS).any(|attempt| {
        slow.clear();
        restore();
        // In the middle of a page, near the start or far on: what follows on that page reads as zeros, and only the next
        // page raises a signal.
        let cut = [12_345, bytes.len() as u64 / 2 + 1234][(attempt + 1) % 2];
        // Lines of JSON, too, tell it as one of theirs.
        let log = [&[][..], &["--log-format", "json"]][attempt / 2 % 2];
        let ended =
            slow.interrupt(log, 2, |_| File::options().write(true).open(&source).unwrap().set_len(cut).unwrap());
        let Some(ended) = ended.filter(|e| e.code() != Some(0)) else { return false };
        codes.push(ended.code());
        assert!(ended.stderr.contains("model-1/model.safetensors"), "{}", ended.stderr);
        assert!(!slow.out.exists());
        match ended.code() {
            // The page was touched: SIGBUS.
            Some(3) => {
                let ended = ended.expect(3, &["shrank or could not be read", "--resume"]);
                let document = ended.json();
                assert!(document["error"]["message"].as_str().unwrap().contains("shrank"), "{document}");
                assert!(document["error"]["hints"][0].as_str().unwrap().contains("--resume"), "{document}");
                ended
            }
            // The size was looked at first.
            _ => ended.expect(1, &["changed while it was in use"]),
        };
        restore();
        let last = slow.run(&["--resume"]).expect(0, &[]);
        assert!(resumed(&last) >= 2);
        slow.assert_done();
        codes.last() == Some(&Some(3))
    });
    assert!(!codes.is_empty(), "the merge was always faster");
    assert!(by_signal, "no read ever met the end of the file: {codes:?}");
}

/// Writes into a file that stays the same file.
fn write_over(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    let mut file = File::options().write(true).open(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    file.write_all(bytes).unwrap();
}

#[test]
fn a_signal_ends_a_merge_within_two_seconds_whatever_it_computes() {
    // One decomposition in float64 of this takes far longer.
    let specs = [("model.layers.0.mlp.up_proj.weight", F32, &[2600, 2600][..])];
    let family = Family::new(quick_folder(), &specs, 2, 7);
    for (method, signal, code) in [("cart", Signal::INT, 130), ("iso_c", Signal::TERM, 143)] {
        let mut text = Text::plain(method, 2);
        if method == "cart" {
            text = text.set("energy", "0.9");
        }
        let recipe = family.recipe(method, &text.yaml());
        // How long it takes until the Gram matrix is being made or reduced is the machine's affair: later, if threads were still between units.
        let met = [1.5, 3.0, 6.0, 12.0].iter().any(|seconds| {
            let out = family.path(&format!("{method}-{seconds}"));
            let child = child::start(&recipe, &out, &[]);
            std::thread::sleep(std::time::Duration::from_secs_f64(*seconds));
            let asked = std::time::Instant::now();
            child::signal(&child, signal);
            let ended = child::end(child).expect(code, &["go on with `--resume`"]);
            let took = asked.elapsed().as_secs_f64();
            // Two, and what a busy machine adds.
            assert!(took < 6.0, "{method}: {took} s");
            assert_eq!(ended.json()["error"]["kind"], "interrupted", "{}", ended.json());
            assert!(!out.exists());
            ended.stderr.contains("what was in hand is given up")
        });
        assert!(met, "{method}: no signal ever met a decomposition");
    }
}
