//! What the command line says of itself: completions that a shell accepts, manual pages, facts of the build.

use std::process::Command;

use crate::place::Place;

#[test]
fn bash_accepts_its_completions_and_completes_a_method() {
    let place = Place::new();
    let ended = place.run(&["completions", "bash"]);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""));
    place.write("merganser.bash", &ended.stdout);
    let script = "source ./merganser.bash; COMP_WORDS=(merganser methods task_); COMP_CWORD=2; \
                  _merganser merganser task_ methods; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").arg("-c").arg(script).current_dir(place.path(".")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "task_arithmetic", "{output:?}");
    assert_eq!(place.run(&["completions", "tcsh"]).code, Some(1));
}

#[test]
fn manual_pages_are_written_one_for_each_command() {
    let place = Place::new();
    let ended = place.run(&["man", "-o", "pages"]);
    assert_eq!((ended.code, &*ended.stdout), (Some(0), ""), "{}", ended.stderr);
    let mut names: Vec<String> = std::fs::read_dir(place.path("pages"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() > 10 && names.contains(&"merganser-merge.1".into()), "{names:?}");
    let first = std::fs::read_to_string(place.path("pages/merganser.1")).unwrap();
    assert_eq!(place.run(&["man"]).stdout, first);
}

#[test]
fn the_long_version_states_what_was_built() {
    let place = Place::new();
    let (short, long) = (place.run(&["-V"]).stdout, place.run(&["--version"]).stdout);
    assert_eq!(short, format!("merganser {}\n", env!("CARGO_PKG_VERSION")));
    let lines: Vec<&str> = long.lines().collect();
    assert_eq!(lines[0], short.trim_end());
    assert!(lines[1].starts_with("target    ") && lines[1].contains(std::env::consts::ARCH), "{long}");
    assert!(lines[2].starts_with("compiler  rustc 1."), "{long}");
    assert_eq!(lines.len(), 5, "{long}");
}
