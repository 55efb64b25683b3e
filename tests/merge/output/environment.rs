//! Disks that are full, folders that cannot be written, places that cannot be renamed. Root ignores permission bits,
//! so these tests mount small file systems; where mounting is not allowed they say so and end.

use std::fs;
use std::path::Path;

use merganser::dtype::Dtype;
use merganser::output::{Layout, Opened, TensorSpec, WorkDir};

use super::*;
use crate::support::mount::Mount;

/// Two files of one MiB each.
fn large() -> Layout {
    let one = |name: &str| TensorSpec {
        name: name.into(),
        folder: None,
        dtype: Dtype::U8,
        shape: vec![1 << 20],
        bytes: 1 << 20,
    };
    Layout::new(&[one("a"), one("b")], 1 << 20).unwrap()
}

fn used_bytes(path: &Path) -> u64 {
    let space = rustix::fs::statvfs(path).unwrap();
    (space.f_blocks - space.f_bfree) * space.f_frsize
}

#[test]
fn a_full_disk_is_told_before_any_work_and_resume_goes_on_after_space_is_made() {
    let Some(mount) = Mount::new("size=1600k") else { return };
    let out = mount.path().join("out");
    let error = WorkDir::open(options(&out, 1, false, false), &large()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    let needed: u64 = large().files().iter().map(|f| f.bytes).sum();
    assert!(text.contains("not enough space") && text.contains(&needed.to_string()), "{text}");
    assert!(error.hints()[0].contains("`--resume`"), "{:?}", error.hints());
    assert!(used_bytes(mount.path()) < 100_000, "the space is given back");
    assert!(!out.exists());
    mount.remount("size=4m");
    let Opened::Work(work) = WorkDir::open(options(&out, 1, true, false), &large()).unwrap() else { panic!() };
    work.write_at(0, 4096, &vec![1; 1 << 20]).unwrap();
}

#[test]
fn what_is_finished_survives_a_disk_that_fills_up_before_a_resume() {
    let Some(mount) = Mount::new("size=4m") else { return };
    let out = mount.path().join("out");
    let Opened::Work(work) = WorkDir::open(options(&out, 1, false, false), &large()).unwrap() else { panic!() };
    let bytes = vec![1; 1 << 20];
    work.write_at(0, 4096, &bytes).unwrap();
    let digest = blake3::hash(&bytes).to_hex().to_string();
    let done = merganser::output::JournalEntry { tensor: "a".into(), digest, ..entry(0) };
    work.record(done).unwrap();
    drop(work);
    fs::remove_file(partial(&out).join(&large().files()[1].name)).unwrap();
    fs::write(mount.path().join("filler"), vec![1; 2_200_000]).unwrap();
    let error = WorkDir::open(options(&out, 1, true, false), &large()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    fs::remove_file(mount.path().join("filler")).unwrap();
    let Opened::Work(work) = WorkDir::open(options(&out, 1, true, false), &large()).unwrap() else { panic!() };
    assert_eq!(work.finished().into_keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_disk_that_fills_up_under_the_journal_loses_no_line() {
    let Some(mount) = Mount::new("size=1m") else { return };
    let out = mount.path().join("out");
    let first = work(open(&out, 1, false, false).unwrap());
    write_tensor(&first, 0);
    let mut filler = fs::File::create(mount.path().join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    let mut recorded = 0;
    let error = loop {
        let facts = serde_json::json!({"note": "x".repeat(900)});
        match first.record(merganser::output::JournalEntry { facts, ..entry(0) }) {
            Ok(()) => recorded += 1,
            Err(error) => break error,
        }
        assert!(recorded < 1000, "the disk is full");
    };
    assert_eq!(error.exit_code(), 3);
    assert!(error.hints()[0].contains("--resume"));
    drop((first, filler));
    fs::remove_file(mount.path().join("filler")).unwrap();
    let again = work(open(&out, 1, true, false).unwrap());
    assert_eq!(again.finished().len(), 1);
    complete(again).unwrap();
    assert_eq!(stored(&out), expected());
}

#[test]
fn a_read_only_folder_is_the_environments_fault() {
    let Some(mount) = Mount::new("size=1m") else { return };
    mount.remount("ro");
    for out in ["out", "new/out"] {
        let error = open(&mount.path().join(out), 1, false, false).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains("Read-only"), "{error}");
    }
}

#[test]
fn a_disk_that_turns_read_only_leaves_a_merge_that_can_be_gone_on_with() {
    let Some(mount) = Mount::new("size=4m") else { return };
    let out = mount.path().join("out");
    interrupted(&out, 1, false);
    mount.remount("ro");
    let error = open(&out, 1, true, false).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    mount.remount("rw");
    let again = work(open(&out, 1, true, false).unwrap());
    assert_eq!(again.finished().len(), 2);
    complete(again).unwrap();
    assert_eq!(stored(&out), expected());
}

#[test]
fn a_mount_point_is_refused_before_any_work() {
    let Some(mount) = Mount::new("size=1m") else { return };
    for overwrite in [false, true] {
        let error = open(mount.path(), 1, false, overwrite).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("mount point"), "{error}");
        assert!(!partial(mount.path()).exists());
    }
}

#[test]
fn a_path_below_a_file_is_the_users_mistake() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for out in ["file/out", "file/deep/out"] {
        let error = open(&dir.path().join(out), 1, false, false).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
    }
}

#[test]
fn a_name_too_long_for_the_work_folder_is_the_users_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let error = open(&dir.path().join("x".repeat(250)), 1, false, false).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn a_resume_counts_the_pages_that_kept_files_lack() {
    let Some(mount) = Mount::new("size=4m") else { return };
    let out = mount.path().join("out");
    let Opened::Work(work) = WorkDir::open(options(&out, 1, false, false), &large()).unwrap() else { panic!() };
    let bytes = vec![1; 1 << 20];
    work.write_at(0, 4096, &bytes).unwrap();
    let digest = blake3::hash(&bytes).to_hex().to_string();
    work.record(merganser::output::JournalEntry { tensor: "a".into(), digest, ..entry(0) }).unwrap();
    drop(work);
    // Both files have their size; the second has no content, and there is room for half of it.
    fs::write(mount.path().join("filler"), vec![1; 2_500_000]).unwrap();
    let error = WorkDir::open(options(&out, 1, true, false), &large()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(error.to_string().contains("not enough space"), "{error}");
    fs::remove_file(mount.path().join("filler")).unwrap();
    let Opened::Work(work) = WorkDir::open(options(&out, 1, true, false), &large()).unwrap() else { panic!() };
    assert_eq!(work.finished().into_keys().collect::<Vec<_>>(), ["a"]);
    work.write_at(1, 4096, &bytes).unwrap();
}
