//! The stand-in catches what it is for: each mistake in `examples/probe.rs` on some of 16 seeds, the program without it on none.

#![allow(clippy::unwrap_used)]

#[path = "../src/rules.rs"]
#[allow(dead_code)]
mod rules;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rules::{Answer, Rule};

/// Status of a process that misused the driver.
const MISUSED: i32 = 86;

/// What `scripts/cuda/standin build` made.
fn home() -> PathBuf {
    let home =
        std::env::var_os("MERGANSER_STANDIN_HOME").expect("run by scripts/cuda/standin test, which builds the kernels");
    PathBuf::from(home)
}

fn probe(program: &str, folder: &str, variables: &[(&str, &str)]) -> Output {
    let executable = std::env::current_exe().unwrap();
    let probe = executable.ancestors().nth(2).unwrap().join("examples").join("probe");
    let mut command = Command::new(probe);
    command.arg(program).env("LD_LIBRARY_PATH", home().join(folder)).envs(variables.iter().copied());
    command.output().unwrap()
}

/// Exit status under each of 16 seeds.
fn statuses(program: &str) -> Vec<Option<i32>> {
    (1..=16)
        .map(|seed: u32| probe(program, "lib-own", &[("MERGANSER_STANDIN_SEED", &seed.to_string())]).status.code())
        .collect()
}

#[track_caller]
fn caught(right: &str, wrong: &str) {
    assert_eq!(statuses(right), vec![Some(0); 16], "{right}");
    assert_eq!(probe(right, "lib-own", &[]).status.code(), Some(0), "{right} without a seed");
    let statuses = statuses(wrong);
    assert!(statuses.contains(&Some(1)), "{wrong}: {statuses:?}");
    // Nothing else went wrong than the result.
    assert!(statuses.iter().all(|status| matches!(status, Some(0 | 1))), "{wrong}: {statuses:?}");
}

#[test]
fn a_missing_wait_for_an_upload_is_caught() {
    caught("streams", "streams-no-wait-for-upload");
}

#[test]
fn a_missing_wait_for_a_kernel_is_caught() {
    caught("streams", "streams-no-wait-for-kernel");
}

#[test]
fn a_result_that_is_read_before_it_is_there_is_caught() {
    caught("streams", "streams-result-read-early");
}

#[test]
fn a_pinned_buffer_that_is_filled_again_too_early_is_caught() {
    caught("slot", "slot-reused-early");
}

#[test]
fn a_pinned_buffer_that_is_filled_after_its_copy_was_asked_for_is_caught() {
    caught("filled", "filled-late");
}

#[test]
fn a_read_of_unwritten_memory_is_caught() {
    caught("written", "unwritten");
    caught("written", "unwritten-again");
}

#[test]
fn a_missing_barrier_is_caught() {
    caught("barrier", "no-barrier");
}

#[test]
fn shuffles_of_a_warp_give_the_sums() {
    assert_eq!(statuses("warps"), vec![Some(0); 16]);
}

#[test]
fn a_barrier_that_some_threads_never_reach_is_an_error_and_no_hang() {
    let output = probe("divergent", "lib-own", &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(MISUSED), "{said}");
    assert!(said.contains("kernel divergent") && said.contains("32 stand at __syncthreads"), "{said}");
}

#[test]
fn a_write_past_the_dynamic_shared_memory_is_an_error() {
    assert_eq!(statuses("shared"), vec![Some(0); 16]);
    let output = probe("shared-overrun", "lib-own", &[]);
    assert_eq!(output.status.code(), Some(MISUSED));
    assert!(String::from_utf8_lossy(&output.stderr).contains("kernel reversed writes past its 1020 bytes"));
}

#[test]
fn shared_memory_that_is_asked_for_counts_together_with_what_the_kernel_declares() {
    let output = |program, capability| probe(program, "lib-own", &[("MERGANSER_STANDIN_CAPABILITY", capability)]);
    for capability in ["75", "80", "86", "89", "90", "100", "120"] {
        assert_eq!(output("opted-in", capability).status.code(), Some(0), "{capability}");
        let refused = output("opted-in-but-for-1024", capability);
        assert_eq!(refused.status.code(), Some(2), "{capability}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stdout).contains("CUDA_ERROR_INVALID_VALUE"), "{refused:?}");
    }
}

#[test]
fn a_misaligned_vector_ends_the_process() {
    assert_eq!(probe("aligned", "lib-own", &[]).status.code(), Some(0));
    let status = probe("misaligned", "lib-own", &[]).status;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(4), "{status}");
}

#[test]
fn an_access_past_a_block_is_reported_with_its_line_under_the_address_sanitizer() {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let library = Command::new(compiler).arg("-print-file-name=libasan.so").output().unwrap().stdout;
    let library = String::from_utf8(library).unwrap();
    let variables = [("LD_PRELOAD", library.trim()), ("ASAN_OPTIONS", "detect_leaks=0")];
    for program in ["in-bounds", "barrier", "shared", "streams"] {
        let output = probe(program, "lib-own-asan", &variables);
        assert_eq!(output.status.code(), Some(0), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = probe("out-of-bounds", "lib-own-asan", &variables);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("heap-buffer-overflow") && said.contains("probe.cu:14"), "{said}");
}

#[test]
fn every_misuse_is_said_and_fails_the_process() {
    for (program, text) in [
        ("copy-past-end", "upload of 4096 bytes: 4096 bytes at offset 4"),
        ("memset-past-end", "memset of 4097 bytes"),
        ("copy-past-pinned", "upload of 4100 bytes: 4100 bytes at offset 0 of a block of 4096 bytes"),
        ("free-twice", "which is no block of a device"),
        ("free-inside", "which is no block of a device"),
        ("pinned-freed-early", "pinned memory is freed while a copy still needs it"),
        ("event-destroyed", "use of an event that does not exist or was destroyed"),
        ("too-many-threads", "512 threads, 256 are allowed"),
        ("too-much-shared", "49153 bytes of shared memory, 49152 are allowed"),
        ("static-and-dynamic", "48128 bytes of shared memory, 47104 are allowed"),
        ("too-many-registers", "512 threads, its registers allow 256"),
        ("stream-of-other-device", "a copy in a stream of another device"),
    ] {
        let output = probe(program, "lib-own", &[("MERGANSER_STANDIN_SEED", "1"), ("MERGANSER_STANDIN_DEVICES", "2")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(MISUSED), "{program}: {said}");
        assert!(said.contains("standin: misuse: ") && said.contains(text), "{program}: {said}");
    }
}

#[test]
fn every_rule_that_is_broken_answers_as_the_manual_says_or_ends_the_process() {
    for Rule { name, answer, .. } in rules::ALL {
        let variables = [("MERGANSER_STANDIN_SEED", "1"), ("MERGANSER_STANDIN_DEVICES", "2")];
        let output = probe(&format!("rule:{name}"), "lib-own", &variables);
        let [out, said] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        if *name == "kernel-alignment" {
            // The kernel's own instructions trap.
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(4), "{output:?}");
            continue;
        }
        assert!(said.contains(&format!("({name}: ")), "{name}: {output:?}");
        let answered = |code: i32| out.contains(&format!("answer {code}\n")) || out.contains("DriverError");
        match answer {
            Answer::Tried(code) => {
                assert!(answered(*code) && output.status.code() == Some(1), "{name}: {output:?}");
            }
            Answer::Code(code) => {
                assert!(answered(*code) && output.status.code() == Some(MISUSED), "{name}: {output:?}");
            }
            Answer::Stop => {
                assert!(out.is_empty() && said.contains("undefined"), "{name}: {output:?}");
                assert_eq!(output.status.code(), Some(MISUSED), "{name}: {output:?}");
            }
        }
    }
}

#[test]
fn every_rule_is_in_the_table_of_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cuda-rules.md");
    let row = |rule: &Rule| {
        let answer = match rule.answer {
            Answer::Code(code) => format!("{code}, and the process fails"),
            Answer::Tried(code) => code.to_string(),
            Answer::Stop => "undefined: the process ends".to_owned(),
        };
        format!("| `{}` | {} | {} | {answer} |", rule.name, rule.text, rule.source)
    };
    let rows: Vec<String> = rules::ALL.iter().map(row).collect();
    let text = std::fs::read_to_string(&path).unwrap();
    if std::env::var("SNAPSHOTS").is_ok_and(|value| value == "overwrite") {
        let kept = |line: &&str| !line.starts_with("| `");
        let mut lines: Vec<String> = text.lines().filter(kept).map(str::to_owned).collect();
        let at = lines.iter().position(|line| line.starts_with("|---|---|---|---|")).unwrap() + 1;
        lines.splice(at..at, rows);
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        return;
    }
    let there: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(there, rows, "SNAPSHOTS=overwrite writes the table anew");
}

#[test]
fn products_and_decompositions_are_right_whatever_the_seed() {
    assert_eq!(statuses("libraries"), vec![Some(0); 16]);
    let output = probe("libraries", "lib-own", &[("MERGANSER_STANDIN_FAIL", "converge:1")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("info 1"));
}

#[test]
fn devices_have_the_memory_that_was_asked_for() {
    let variables = [("MERGANSER_STANDIN_DEVICES", "2"), ("MERGANSER_STANDIN_MEMORY", "2MiB,1MiB")];
    assert_eq!(probe("memory", "lib-own", &variables).status.code(), Some(0));
    let none = probe("streams", "lib-own", &[("MERGANSER_STANDIN_DEVICES", "0")]);
    assert!(String::from_utf8_lossy(&none.stdout).contains("CUDA_ERROR_NO_DEVICE"), "{none:?}");
}

#[test]
fn injected_failures_reach_the_program_as_errors_and_not_as_misuses() {
    for (rule, error) in [
        ("alloc:2", "CUDA_ERROR_OUT_OF_MEMORY"),
        ("alloc>4000", "CUDA_ERROR_OUT_OF_MEMORY"),
        ("pinned:1", "CUDA_ERROR_OUT_OF_MEMORY"),
        ("copy:3", "CUDA_ERROR_UNKNOWN"),
        ("launch:2", "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
        ("fault:2", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("lost:40", "CUDA_ERROR_UNKNOWN"),
    ] {
        for seed in ["1", "4"] {
            let output =
                probe("streams", "lib-own", &[("MERGANSER_STANDIN_FAIL", rule), ("MERGANSER_STANDIN_SEED", seed)]);
            assert_eq!(output.status.code(), Some(2), "{rule}: {output:?}");
            assert!(String::from_utf8_lossy(&output.stdout).contains(error), "{rule}: {output:?}");
        }
    }
}

#[test]
fn calls_and_bytes_are_counted() {
    let folder = std::env::temp_dir().join(format!("merganser-standin-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let report = folder.join("report.json");
    assert!(probe("streams", "lib-own", &[("MERGANSER_STANDIN_REPORT", path(&report))]).status.success());
    let text = std::fs::read_to_string(&report).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    for part in [
        "\"alloc\": 2,",
        "\"pinned\": 2,",
        "\"copy\": 6,",
        "\"launch\": 3,",
        "\"host_to_device_bytes\": 12288,",
        "\"left_bytes\": [8192]",
        "\"misuses\": 0",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
