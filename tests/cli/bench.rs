//! `merganser bench`, run tiny: what it prints and that it leaves nothing behind. No time is asserted.

use serde_json::Value;

use crate::place::Place;

const TINY: [&str; 9] = ["bench", "--size", "1MiB", "--runs", "2", "--threads", "3", "--dir", "disk"];

fn place() -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("disk")).unwrap();
    place
}

fn left_behind(place: &Place) -> usize {
    std::fs::read_dir(place.path("disk")).unwrap().count()
}

#[test]
fn the_document_has_every_limit_and_holds_every_path_against_one_of_them() {
    let place = place();
    let ended = place.run(&[&TINY[..], &["--json"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(left_behind(&place), 0);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(
        (&document["schema"], &document["threads"], &document["size_bytes"]),
        (&2.into(), &3.into(), &(1 << 20).into())
    );
    assert_eq!(document["device"]["backend"], "cpu");
    let rows = document["rows"].as_array().unwrap();
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let seconds: Vec<f64> = row["seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        assert_eq!(seconds.len(), 2, "{row}");
        let median = (seconds[0] + seconds[1]) / 2.0;
        assert!((number("rate") * median / number("work") - 1.0).abs() < 1e-9, "{row}");
        let Some(limit) = row["limit"].as_str() else {
            assert!(row["of_limit"].is_null(), "{row}");
            continue;
        };
        let limit = rows.iter().find(|r| r["name"] == limit && r["threads"] == row["threads"]).unwrap();
        assert_eq!(limit["unit"], row["unit"]);
        let share = number("rate") / limit["rate"].as_f64().unwrap();
        assert!((number("of_limit") / share - 1.0).abs() < 1e-9, "{row}");
    }
    let of = |limit: bool| rows.iter().filter(move |row| row["limit"].is_null() == limit);
    let copies: Vec<_> =
        of(true).filter(|r| r["name"] == "memory copy").map(|r| r["threads"].as_u64().unwrap()).collect();
    assert_eq!(copies, [1, 2, 3]);
    for name in
        ["page cache read", "file write", "file write, on the disk", "matrix product, f32", "matrix product, f64"]
    {
        assert!(of(true).any(|row| row["name"] == name), "{name}");
    }
    for name in ["linear", "task_arithmetic", "ties", "dare_ties", "slerp", "digest", "cart"] {
        assert!(of(false).any(|row| row["name"].as_str().unwrap().starts_with(name)), "{name}");
    }
}

#[test]
fn the_table_has_a_line_for_each_row_of_the_document() {
    let ended = place().run(&[&TINY[..], &["-q"]].concat());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert!(ended.stdout.contains("3 threads, 1.05 MB of data, files in disk"), "{}", ended.stdout);
    let paths = ended.stdout.lines().filter(|line| line.contains(" %  ")).count();
    assert!(paths >= 8 && ended.stdout.matches("GFLOP/s").count() == 3, "{}", ended.stdout);
}

#[test]
fn a_signal_ends_it_with_nothing_left_behind() {
    let place = place();
    let long = ["bench", "--size", "64MiB", "--runs", "1000", "--dir", "disk", "--json"];
    let mut child =
        place.command(&long).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // 1000 rounds of anything take long enough.
    assert!(crate::place::until_it_catches(&mut child, libc::SIGINT), "it ended early");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let code = child.wait().unwrap().code();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(code, Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    let document: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(document["schema"], 2);
    assert_eq!(left_behind(&place), 0);
}
