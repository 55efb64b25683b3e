//! The n-th call of every kind fails, for every n of a small merge: each merge ends with exit code 3 and a message, or goes on to
//! the right bytes; none panics or hangs; and what it left is gone on from to the right bytes.

use super::cases::{Case, RECIPES};
use super::sweeps_all;

/// Kinds of failure, as `standin/src/failures.rs` names them.
const KINDS: [&str; 14] = [
    "alloc",
    "pinned",
    "stream",
    "copy",
    "launch",
    "fault",
    "module",
    "blas",
    "solver",
    "launch-memory",
    "blas-memory",
    "solver-memory",
    "converge",
    "lost",
];
/// Calls of a kind in a sample.
const FEW: u64 = 4;

/// Which of `count` calls fail, one a merge.
fn chosen(count: u64) -> Vec<u64> {
    if sweeps_all() || count <= FEW {
        return (1..=count).collect();
    }
    let mut all: Vec<u64> = (0..FEW).map(|i| 1 + i * (count - 1) / (FEW - 1)).collect();
    all.dedup();
    all
}

/// Whether the output is right: of decompositions that went on on the CPU, that it is there.
fn is_right(case: &Case, ended: &super::cases::Ended) -> bool {
    ended.tensors == case.right || case.of.is_low_rank && ended.tensors.is_array()
}

fn fails_cleanly(name: &str) {
    let Some(case) = Case::of(name) else { return };
    let mut faults = Vec::new();
    for kind in KINDS {
        let count = case.count(kind);
        let (mut stopped, mut went_on) = (0, 0);
        for nth in chosen(count) {
            let fail = format!("{kind}:{nth}");
            let seed = (nth % 16 + 1).to_string();
            let ended = case.run("out", &[("SEED", &seed), ("FAIL", &fail)], &[]);
            let mut expect = |holds: bool, what: &str| {
                if !holds {
                    faults.push(format!("{fail}, seed {seed}: {what}: {:?} {}", ended.code, ended.stderr));
                }
            };
            expect(!ended.stderr.contains("panicked"), "a panic");
            match ended.code {
                Some(0) => {
                    went_on += 1;
                    expect(is_right(&case, &ended), "other bytes");
                }
                Some(3) => {
                    stopped += 1;
                    expect(ended.stderr.contains("error: "), "no message");
                    expect(ended.tensors.is_null(), "an output");
                    let resumed = case.run("out", &[("SEED", &seed)], &["--resume"]);
                    expect(
                        resumed.code == Some(0) && is_right(&case, &resumed),
                        &format!("no resuming: {}", resumed.stderr),
                    );
                }
                _ => expect(false, "neither an error of the environment nor success"),
            }
            case.remove("out");
        }
        eprintln!("{name}: {kind}: {count} calls; {stopped} failures ended the merge, {went_on} did not");
    }
    assert!(faults.is_empty(), "{name}:\n{}", faults.join("\n"));
}

#[test]
fn ties_ends_cleanly_whichever_call_fails() {
    fails_cleanly("ties");
}

#[test]
fn a_streamed_merge_ends_cleanly_whichever_call_fails() {
    fails_cleanly("streamed");
}

#[test]
fn cart_ends_cleanly_whichever_call_fails() {
    fails_cleanly("cart");
}

#[test]
fn the_other_methods_end_cleanly_whichever_call_fails() {
    for recipe in RECIPES {
        let is_tested = ["ties", "streamed", "cart"].contains(&recipe.name);
        if !is_tested && (sweeps_all() || ["slerp", "elements"].contains(&recipe.name)) {
            fails_cleanly(recipe.name);
        }
    }
}
