//! A panic, which is a bug, ends as every other failure does: a message, a document with `--json`, and exit code 2.
//!
//! No input that panics is known, so the test runs this program again as one that does.

use std::process::{Command, Output};

const CHILD: &str = "MERGANSER_TEST_PANICS_IN";

/// What the child does; as a test of its own it does nothing.
#[test]
fn child() {
    let Ok(place) = std::env::var(CHILD) else { return };
    merganser::cli::install_panic_hook();
    let args = std::env::var("MERGANSER_TEST_ARGS").unwrap();
    merganser::cli::tell_failures_as(args.split(' ').map(Into::into));
    let code = merganser::cli::catching_panics(|| {
        if place == "main" {
            panic!("a bug in main");
        }
        // A thread that panics makes the scope panic too: one message is enough.
        std::thread::scope(|scope| {
            scope.spawn(|| panic!("a bug in {}", "a thread"));
        });
        0
    });
    std::process::exit(code.into());
}

fn panicking(place: &str, args: &str) -> (Output, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "panic::child", "--nocapture"])
        .env(CHILD, place)
        .env("MERGANSER_TEST_ARGS", args)
        .env_remove("RUST_BACKTRACE")
        .env_remove("RUST_LIB_BACKTRACE")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stderr)
}

#[test]
fn a_panic_says_that_it_is_a_bug_once_and_ends_with_2() {
    for (place, what) in [("main", "a bug in main"), ("thread", "a bug in a thread")] {
        let (output, stderr) = panicking(place, "merganser plan");
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        let start = format!("error: merganser failed unexpectedly: {what} (tests/cli/panic.rs:");
        assert!(stderr.starts_with(&start), "{stderr}");
        assert!(stderr.contains("\nhint: this is a bug in merganser"), "{stderr}");
        assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
    }
}

#[test]
fn a_panic_is_a_json_document_and_a_json_line_where_these_are_asked_for() {
    let (output, stderr) = panicking("thread", "merganser plan --json --log-format json");
    assert_eq!(output.status.code(), Some(2));
    let line: serde_json::Value = serde_json::from_str(stderr.trim()).unwrap();
    assert_eq!((&line["level"], &line["kind"]), (&"ERROR".into(), &"internal".into()));
    // The test harness writes before it.
    let stdout = String::from_utf8_lossy(&output.stdout);
    let document: serde_json::Value = serde_json::from_str(&stdout[stdout.find('{').unwrap()..]).unwrap();
    assert_eq!((&document["schema"], &document["error"]["exit_code"]), (&2.into(), &2.into()));
}
