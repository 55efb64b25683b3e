//! A test that cannot run here says so and why: `scripts/test` counts it as skipped, not as passed.

use std::fs::OpenOptions;
use std::io::Write;

/// Notes that the test of this thread is skipped: in the file that `MERGANSER_TEST_SKIPS` names, or on stderr.
pub fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("?");
    let program = std::env::current_exe().unwrap().file_stem().unwrap().to_string_lossy().into_owned();
    let program = program.rsplit_once('-').map_or(program.as_str(), |(name, _)| name);
    let line = format!("{program}\t{test}\t{}\n", why.split_whitespace().collect::<Vec<_>>().join(" "));
    match std::env::var_os("MERGANSER_TEST_SKIPS") {
        // One write: lines of tests that run at once do not mix.
        Some(file) => {
            OpenOptions::new().create(true).append(true).open(file).unwrap().write_all(line.as_bytes()).unwrap();
        }
        None => eprint!("skipped: {line}"),
    }
}
