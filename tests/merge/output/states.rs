//! Every state that OUT and its work folder can be in, under every combination of `--resume` and `--overwrite`.

use std::fs;
use std::path::Path;

use merganser::output::Opened;

use super::*;

/// What opening gave, in one word.
fn outcome(out: &Path, resume: bool, overwrite: bool) -> String {
    match open(out, 1, resume, overwrite) {
        Ok(Opened::AlreadyDone(_)) => "done".into(),
        Ok(Opened::PartDone(_)) => "part done".into(),
        Ok(Opened::Work(work)) if work.finished().is_empty() => "fresh".into(),
        Ok(Opened::Work(work)) => format!("goes on with {}", work.finished().len()),
        Err(error) => {
            assert_eq!(error.exit_code(), 1, "{error}");
            assert!(!error.hints().is_empty(), "{error}");
            format!("error: {error}")
        }
    }
}

const FILLED: &str = "exists and is not empty";
const OTHER_DONE: &str = "holds the output of another merge";
const THIS_DONE: &str = "holds the finished output of this very merge";
const WAITING: &str = "an interrupted merge into";
const DIFFERS: &str = "is not this one: `seed` was 2, is now 1";
const DAMAGED: &str = "is damaged";
const NO_MANIFEST: &str = "nothing tells that merganser wrote";
const STRANGER: &str = "was not written by merganser";

/// A state: its name, how it is made, and what comes of it without options, with `--resume`, with `--overwrite`,
/// with both.
type Row = (&'static str, fn(&Path), [&'static str; 4]);

const TABLE: &[Row] = &[
    ("nothing", |_| {}, ["fresh", "fresh", "fresh", "fresh"]),
    ("an empty OUT", |out| fs::create_dir(out).unwrap(), ["fresh", "fresh", "fresh", "fresh"]),
    ("a foreign OUT", foreign, [FILLED, FILLED, NO_MANIFEST, NO_MANIFEST]),
    ("OUT done by another plan, a photo put in it", photo_in_output, [OTHER_DONE, OTHER_DONE, STRANGER, STRANGER]),
    ("OUT done by this plan, a photo put in it", |out| add_photo(out, 1), [THIS_DONE, "done", STRANGER, "done"]),
    (
        "a photo where a replaced output is set aside",
        |out| {
            finished_output(out, 2);
            fs::create_dir(old(out)).unwrap();
            fs::write(old(out).join("photo.jpg"), "kept").unwrap();
        },
        [OTHER_DONE, OTHER_DONE, NO_MANIFEST, NO_MANIFEST],
    ),
    ("OUT is a file", |out| fs::write(out, "").unwrap(), ["is a file", "is a file", "is a file", "is a file"]),
    ("OUT done by this plan", |out| finished_output(out, 1), [THIS_DONE, "done", "fresh", "done"]),
    ("OUT done by another plan", |out| finished_output(out, 2), [OTHER_DONE, OTHER_DONE, "fresh", "fresh"]),
    ("OUT done by this plan, then cut", cut_output, ["is not whole", "is not whole", "fresh", "fresh"]),
    ("OUT with a damaged manifest", damaged_output, [OTHER_DONE, OTHER_DONE, NO_MANIFEST, NO_MANIFEST]),
    ("interrupted", |out| interrupted(out, 1, false), [WAITING, "goes on with 2", "fresh", "goes on with 2"]),
    ("another interrupted", |out| interrupted(out, 2, false), [WAITING, DIFFERS, "fresh", "fresh"]),
    (
        "a foreign OUT, interrupted before it was filled",
        |out| {
            interrupted(out, 1, true);
            foreign(out);
        },
        [FILLED, FILLED, NO_MANIFEST, NO_MANIFEST],
    ),
    (
        "OUT done by this plan, another interrupted over it",
        |out| {
            finished_output(out, 1);
            interrupted(out, 2, true);
        },
        [THIS_DONE, "done", "fresh", "done"],
    ),
    (
        "OUT done by another plan, this one interrupted over it",
        |out| {
            finished_output(out, 2);
            interrupted(out, 1, true);
        },
        [OTHER_DONE, OTHER_DONE, "fresh", "goes on with 2"],
    ),
    (
        "OUT done by this plan, the same interrupted over it",
        |out| {
            finished_output(out, 1);
            interrupted(out, 1, true);
        },
        [THIS_DONE, "done", "fresh", "goes on with 2"],
    ),
    ("an empty work folder", |out| fs::create_dir(partial(out)).unwrap(), ["fresh", "fresh", "fresh", "fresh"]),
    ("killed before the plan was noted", killed_early, ["fresh", "fresh", "fresh", "fresh"]),
    ("a work folder of unknown things", unknown_partial, [STRANGER, STRANGER, STRANGER, STRANGER]),
    (
        "interrupted, a photo put into the work folder",
        |out| {
            interrupted(out, 1, false);
            fs::write(partial(out).join("photo.jpg"), "kept").unwrap();
        },
        [STRANGER, STRANGER, STRANGER, STRANGER],
    ),
    (
        "complete but for the rename, a photo put into the work folder",
        |out| {
            complete_partial(out, 1);
            fs::write(partial(out).join("photo.jpg"), "kept").unwrap();
        },
        [STRANGER, STRANGER, STRANGER, STRANGER],
    ),
    ("a damaged plan", damaged_plan, [WAITING, DAMAGED, "fresh", "fresh"]),
    (
        "the work folder is a file",
        |out| fs::write(partial(out), "").unwrap(),
        ["is not a folder", "is not a folder", "is not a folder", "is not a folder"],
    ),
    ("complete but for the rename", |out| complete_partial(out, 1), [WAITING, "done", "fresh", "done"]),
    ("another complete but for the rename", |out| complete_partial(out, 2), [WAITING, OTHER_DONE, "fresh", "fresh"]),
    (
        "killed between the two steps of a replacement",
        |out| {
            finished_output(out, 2);
            fs::rename(out, out.with_file_name("out.merganser-old")).unwrap();
            complete_partial(out, 1);
        },
        [WAITING, "done", "fresh", "done"],
    ),
];

fn foreign(out: &Path) {
    fs::create_dir(out).unwrap();
    fs::write(out.join("precious"), "kept").unwrap();
}

fn photo_in_output(out: &Path) {
    add_photo(out, 2);
}

fn add_photo(out: &Path, seed: u64) {
    finished_output(out, seed);
    fs::write(out.join("photo.jpg"), "kept").unwrap();
}

fn old(out: &Path) -> std::path::PathBuf {
    out.with_file_name("out.merganser-old")
}

fn cut_output(out: &Path) {
    finished_output(out, 1);
    let file = out.join(&layout().files()[0].name);
    fs::File::options().write(true).open(file).unwrap().set_len(100).unwrap();
}

fn damaged_output(out: &Path) {
    finished_output(out, 1);
    fs::write(out.join("merganser.json"), "{").unwrap();
}

fn killed_early(out: &Path) {
    fs::create_dir(partial(out)).unwrap();
    for name in ["merganser.lock", "merganser.plan.json.new"] {
        fs::write(partial(out).join(name), "{").unwrap();
    }
}

fn unknown_partial(out: &Path) {
    fs::create_dir_all(partial(out).join("sub")).unwrap();
    fs::write(partial(out).join("sub/x"), "x").unwrap();
}

fn damaged_plan(out: &Path) {
    interrupted(out, 1, false);
    fs::write(partial(out).join("merganser.plan.json"), "").unwrap();
}

/// As a kill just before the rename leaves it.
fn complete_partial(out: &Path, seed: u64) {
    finished_output(out, seed);
    fs::rename(out, partial(out)).unwrap();
    for name in ["merganser.lock", "merganser.journal.jsonl"] {
        fs::write(partial(out).join(name), "").unwrap();
    }
}

#[test]
fn every_state_meets_every_combination_of_options_as_the_table_says() {
    for (state, make, outcomes) in TABLE {
        let flags = [(false, false), (true, false), (false, true), (true, true)];
        for ((resume, overwrite), wanted) in flags.into_iter().zip(outcomes) {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            make(&out);
            let before = out.is_dir().then(|| names(&out));
            let beside = everything(dir.path());
            let found = outcome(&out, resume, overwrite);
            let is_right = if found.starts_with("error") { found.contains(wanted) } else { found == *wanted };
            assert!(is_right, "{state}, resume {resume}, overwrite {overwrite}: {found}, wanted {wanted}");
            if found != "done" {
                assert_eq!(out.is_dir().then(|| names(&out)), before, "{state}: opening left OUT alone");
            }
            if wanted == &NO_MANIFEST || wanted == &STRANGER {
                assert_eq!(everything(dir.path()), beside, "{state}: a refusal changes nothing");
            }
        }
    }
}

#[test]
fn whatever_goes_on_ends_with_the_same_output_and_nothing_beside_it() {
    for (state, make, outcomes) in TABLE {
        for (flags, wanted) in [(false, false), (true, false), (false, true), (true, true)].into_iter().zip(outcomes) {
            if !(*wanted == "fresh" || *wanted == "done" || wanted.starts_with("goes on")) {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            make(&out);
            if let Opened::Work(work) = open(&out, 1, flags.0, flags.1).unwrap() {
                complete(work).unwrap();
            }
            if state.contains("photo") {
                assert_eq!(fs::read_to_string(out.join("photo.jpg")).unwrap(), "kept", "{state}");
                continue;
            }
            assert_eq!(stored(&out), expected(), "{state} {flags:?}");
            let report = merganser::report::verify::verify(&out, 2, &|_| {}).unwrap();
            assert!(report.ok, "{state} {flags:?}: {:?}", report.problems);
            let mut wanted: Vec<String> = layout().files().iter().map(|f| f.name.clone()).collect();
            wanted.extend(["README.md", "merganser.json", "model.safetensors.index.json"].map(Into::into));
            wanted.sort();
            assert_eq!(names(&out), wanted, "{state} {flags:?}");
            if !state.ends_with("interrupted over it") {
                assert_eq!(names(dir.path()), ["out"], "{state} {flags:?}");
            }
        }
    }
}

#[test]
fn the_old_output_is_whole_until_the_new_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    finished_output(&out, 2);
    let old = everything(&out);
    let work = work(open(&out, 1, false, true).unwrap());
    for i in 0..tensors().len() {
        assert_eq!(everything(&out), old);
        write_tensor(&work, i);
    }
    work.sync().unwrap();
    assert_eq!(everything(&out), old);
    complete(work).unwrap();
    assert_ne!(everything(&out), old);
}

#[test]
fn an_out_that_fills_meanwhile_is_not_replaced_unless_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let first = work(open(&out, 1, false, false).unwrap());
    foreign(&out);
    let error = complete(first).unwrap_err();
    assert!(error.to_string().contains("filled by someone else"), "{error}");
    assert_eq!(names(&out), ["precious"]);
    let error = open(&out, 1, true, true).unwrap_err();
    assert!(error.to_string().contains("precious"), "{error}");
    fs::remove_file(out.join("precious")).unwrap();
    assert!(matches!(open(&out, 1, true, true).unwrap(), Opened::AlreadyDone(_)));
    assert_eq!(stored(&out), expected());
}

#[test]
fn what_is_put_into_out_or_the_work_folder_while_a_merge_runs_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    finished_output(&out, 2);
    for place in [out.clone(), partial(&out)] {
        let work = work(open(&out, 1, true, true).unwrap());
        let photo = place.join("photo.jpg");
        fs::write(&photo, "kept").unwrap();
        let error = complete(work).unwrap_err();
        assert!(error.to_string().contains("photo.jpg` was not written by merganser"), "{error}");
        assert_eq!(fs::read_to_string(&photo).unwrap(), "kept");
        fs::remove_file(&photo).unwrap();
        match open(&out, 1, true, true).unwrap() {
            Opened::AlreadyDone(_) => {}
            Opened::PartDone(_) => panic!("this is no part"),
            Opened::Work(work) => drop(complete(work).unwrap()),
        }
        assert_eq!(stored(&out), expected());
        finished_output(&out, 2);
    }
}

#[test]
fn a_linked_out_is_replaced_where_it_leads() {
    let dir = tempfile::tempdir().unwrap();
    let (real, out) = (dir.path().join("real"), dir.path().join("out"));
    foreign(&real);
    std::os::unix::fs::symlink(&real, &out).unwrap();
    assert!(open(&out, 1, false, true).unwrap_err().to_string().contains("precious"));
    fs::remove_dir_all(&real).unwrap();
    finished_output(&real, 2);
    complete(work(open(&out, 1, false, true).unwrap())).unwrap();
    assert!(out.is_symlink() && !real.is_symlink());
    assert_eq!(stored(&real), expected());
}

#[test]
fn two_processes_cannot_work_on_one_output() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let first = work(open(&out, 1, false, false).unwrap());
    for (resume, overwrite) in [(false, false), (true, false), (false, true), (true, true)] {
        let error = open(&out, 1, resume, overwrite).unwrap_err();
        assert_eq!((error.exit_code(), error.cause()), (75, merganser::Cause::Busy));
        assert!(error.to_string().contains("another merganser is writing"), "{error}");
    }
    write_tensor(&first, 0);
    drop(first);
    assert_eq!(work(open(&out, 1, true, false).unwrap()).finished().len(), 1);
}

#[test]
fn a_source_inside_out_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    foreign(&out);
    let mut options = options(&out, 1, false, true);
    options.sources = vec![out.join("precious")];
    let error = merganser::output::WorkDir::open(options, &layout()).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(names(dir.path()), ["out"], "not even a work folder is made");
}

#[test]
fn small_files_are_copied_listed_and_digested() {
    use merganser::output::{SmallFile, copy::Content};
    let dir = tempfile::tempdir().unwrap();
    let (out, source) = (dir.path().join("out"), dir.path().join("tokenizer.json"));
    fs::write(&source, "t".repeat(200_000)).unwrap();
    let work = work(open(&out, 1, false, false).unwrap());
    (0..tensors().len()).for_each(|i| write_tensor(&work, i));
    let files = [
        SmallFile { name: "tokenizer.json".into(), content: Content::Copy(source.clone()) },
        SmallFile { name: "config.json".into(), content: Content::Bytes(b"{}".to_vec()) },
    ];
    let made = manifest(&work);
    let finished = work.finish(made, "# card\n", &files).unwrap();
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), fs::read(&source).unwrap());
    assert_eq!(fs::read_to_string(out.join("README.md")).unwrap(), "# card\n");
    let listed = finished.manifest.files.iter().find(|f| f.name == "tokenizer.json").unwrap();
    assert_eq!(listed.bytes, 200_000);
    assert_eq!(listed.digest.as_deref(), Some(blake3::hash(&fs::read(&source).unwrap()).to_hex().as_str()));
    assert_eq!(merganser::report::manifest::Manifest::read(&out).unwrap(), finished.manifest);
}

#[test]
fn a_small_file_with_a_path_or_a_taken_name_is_refused() {
    use merganser::output::{SmallFile, copy::Content};
    for name in [
        "../x",
        "a/b/c",
        "README.md/x",
        "../a/b",
        "/x",
        "..",
        "",
        "merganser.json",
        "README.md",
        "model-00001-of-00003.safetensors",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let work = work(open(&dir.path().join("out"), 1, false, false).unwrap());
        (0..tensors().len()).for_each(|i| write_tensor(&work, i));
        let files = [SmallFile { name: name.into(), content: Content::Bytes(vec![]) }];
        let made = manifest(&work);
        assert!(work.finish(made, "", &files).is_err(), "{name}");
    }
}

#[test]
fn an_output_that_lacks_a_tensor_is_never_finished() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let all = work(open(&out, 1, false, false).unwrap());
    (0..tensors().len()).for_each(|i| write_tensor(&all, i));
    let made = manifest(&all);
    drop(all);
    interrupted(&out, 1, true);
    let error = work(open(&out, 1, true, false).unwrap()).finish(made, "", &[]).unwrap_err();
    assert!(error.to_string().contains("never written"), "{error}");
    assert!(!out.exists());
}
