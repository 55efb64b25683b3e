//! What a person at a terminal sees: a bar that comes and goes without a trace, and colours unless they object.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

use crate::place::{FIXED, Place};

/// Runs the binary with its stderr at a terminal of 100 columns; everything that it wrote there, and its exit code.
fn at_terminal(place: &Place, args: &[&str], env: &[(&str, &str)]) -> (String, Option<i32>) {
    let (mut ours, mut theirs) = (0, 0);
    let size = libc::winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: (1) both integers live through the call, which writes a descriptor to each; (2) a null name and null settings
    // are allowed; (3) `size` is only read.
    let failed =
        unsafe { libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &raw const size) };
    assert_eq!(failed, 0, "no pseudo-terminal: {}", std::io::Error::last_os_error());
    // SAFETY: both descriptors were opened just now and belong to nothing else.
    let (mut ours, theirs) = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) };
    let mut command = place.command(args);
    command.env_remove("NO_COLOR").env("TERM", "xterm").envs(env.iter().copied()).stderr(theirs);
    let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    // It holds the other side of the terminal.
    drop(command);
    let mut seen = Vec::new();
    // The kernel ends a terminal that nobody holds with EIO.
    let _ = ours.read_to_end(&mut seen);
    (String::from_utf8_lossy(&seen).into_owned(), child.wait().unwrap().code())
}

/// The lines that a terminal shows in the end, for output that only moves within its last line.
fn screen(seen: &str) -> Vec<String> {
    let seen = seen.replace("\x1b[2K", "\r\u{0}");
    let line = |line: &str| line.rsplit('\u{0}').next().unwrap().trim_matches('\r').trim_end().to_owned();
    seen.split('\n').map(line).filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_merge_shows_a_bar_and_leaves_none_of_it() {
    let place = Place::new();
    let merge = [&["merge", "cart.yaml", "-o", "out"][..], &FIXED].concat();
    let (seen, code) = at_terminal(&place, &merge, &[("NO_COLOR", "1")]);
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains(" of 19 tensors") && seen.contains(" left"), "no bar: {seen:?}");
    let shown = screen(&seen);
    // What computes and what is warned of stays; of the bar nothing does.
    let (said, others): (Vec<&String>, Vec<&String>) =
        shown.iter().partition(|line| line.starts_with("info: computing on"));
    assert_eq!(said.len(), 1, "{shown:?}");
    assert!(others.iter().all(|line| line.starts_with("warning: ")), "{shown:?}");
    for (args, code) in [(&["verify", "out"][..], 0), (&["compare", "family/a", "family/b"], 0)] {
        let (seen, found) = at_terminal(&place, args, &[]);
        assert_eq!(found, Some(code));
        assert!(seen.contains(" left"), "{args:?}: no bar: {seen:?}");
        assert_eq!(screen(&seen), [""; 0], "{args:?}");
    }
}

#[test]
fn there_is_no_bar_where_it_would_disturb() {
    let place = Place::new();
    for (name, more) in [("quiet", "-q"), ("json", "--log-format=json")] {
        let args = [&["merge", "cart.yaml", "-o", name, more][..], &FIXED].concat();
        let (seen, code) = at_terminal(&place, &args, &[]);
        assert!(code == Some(0) && !seen.contains('\x1b') && !seen.contains(" left"), "{more}: {seen:?}");
    }
    // And at no terminal: stderr of the other tests is a pipe.
    let ended = place.run(&["merge", "cart.yaml", "-o", "pipe"]);
    assert!(!ended.stderr.contains('\x1b') && !ended.stderr.contains(" left"), "{}", ended.stderr);
}

#[test]
fn colours_are_for_terminals_and_for_those_who_want_them() {
    let place = Place::new();
    for (args, code) in [(&["inspect", "nowhere"][..], 1), (&["plan", "--no-such"], 2)] {
        let (seen, found) = at_terminal(&place, args, &[]);
        assert!(found == Some(code) && seen.contains("\x1b["), "{seen:?}");
        let (seen, _) = at_terminal(&place, args, &[("NO_COLOR", "1")]);
        assert!(!seen.contains('\x1b'), "{seen:?}");
        let (seen, _) = at_terminal(&place, args, &[("TERM", "dumb")]);
        assert!(!seen.contains('\x1b'), "{seen:?}");
    }
}
