//! Going on with an interrupted output: what is believed, what is checked, and what is done again.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use twox_hash::XxHash3_64;

use super::*;

fn finished(out: &Path) -> Vec<String> {
    let mut names: Vec<String> = work(open(out, 1, true, false).unwrap()).finished().into_keys().collect();
    names.sort();
    names
}

fn journal(out: &Path) -> std::path::PathBuf {
    partial(out).join("merganser.journal.jsonl")
}

/// Rewrites the journal as if another boot of the machine had written it.
fn as_of_another_boot(out: &Path) {
    let mut text = String::new();
    for line in fs::read_to_string(journal(out)).unwrap().lines() {
        if !line.starts_with("{\"done\"") {
            text += &format!("{line}\n");
            continue;
        }
        let (body, _) = line.rsplit_once(",\"check\"").unwrap();
        let (head, tail) = body.rsplit_once("\"boot\":\"").unwrap();
        let body = format!("{head}\"boot\":\"another-{tail}}}");
        let check = XxHash3_64::oneshot(body.as_bytes());
        text.push_str(&format!("{},\"check\":\"{check:016x}\"}}\n", &body[..body.len() - 1]));
    }
    fs::write(journal(out), text).unwrap();
}

#[test]
fn entries_carry_what_was_noted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    interrupted(&out, 1, false);
    let work = work(open(&out, 1, true, false).unwrap());
    let noted = &work.finished()["layers.0.w"];
    assert_eq!((&noted.digest, &noted.facts), (&entry(1).digest, &entry(1).facts));
    assert!(!noted.boot.is_empty());
}

#[test]
fn a_journal_torn_at_any_byte_still_ends_with_the_right_output() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let first = work(open(&out, 1, false, false).unwrap());
    (0..4).for_each(|i| write_tensor(&first, i));
    drop(first);
    let whole = fs::read(journal(&out)).unwrap();
    let mut counts = std::collections::BTreeSet::new();
    for cut in 0..=whole.len() {
        fs::write(journal(&out), &whole[..cut]).unwrap();
        let work = work(open(&out, 1, true, false).unwrap());
        // The first line lists the files.
        let lines = whole[..cut].iter().filter(|&&b| b == b'\n').count().saturating_sub(1);
        assert_eq!(work.finished().len(), lines, "cut at {cut}");
        counts.insert(lines);
        if cut % 97 == 0 {
            // Go on a little, so that lines are appended behind every kind of tear.
            write_tensor(&work, 5);
            assert_eq!(work.finished().len(), lines + 1);
            drop(work);
            assert!(finished(&out).contains(&"step".to_owned()));
        }
    }
    assert_eq!(counts.len(), 5);
    complete(work(open(&out, 1, true, false).unwrap())).unwrap();
    assert_eq!(stored(&out), expected());
}

#[test]
fn a_lost_or_cut_data_file_is_done_again_even_after_a_second_interruption() {
    for cut in [None, Some(4100), Some(1 << 20)] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let first = work(open(&out, 1, false, false).unwrap());
        (0..tensors().len()).for_each(|i| write_tensor(&first, i));
        let place = first.placement("embed").unwrap();
        let lost = layout().files()[place.file].clone();
        drop(first);
        let path = partial(&out).join(&lost.name);
        match cut {
            None => fs::remove_file(&path).unwrap(),
            Some(len) => fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap(),
        }
        let kept: Vec<String> = {
            let gone: Vec<_> = lost.tensors.iter().map(|&t| tensors()[t].name.clone()).collect();
            let mut kept: Vec<_> = tensors().into_iter().map(|t| t.name).filter(|n| !gone.contains(n)).collect();
            kept.sort();
            kept
        };
        assert_eq!(finished(&out), kept);
        assert_eq!(finished(&out), kept, "the file has its full size again, and is still not believed");
        complete(work(open(&out, 1, true, false).unwrap())).unwrap();
        assert_eq!(stored(&out), expected());
    }
}

#[test]
fn what_another_boot_wrote_is_believed_only_after_it_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let first = work(open(&out, 1, false, false).unwrap());
    (0..5).for_each(|i| write_tensor(&first, i));
    // As a power cut leaves a file whose size reached the disk and whose data did not.
    let place = first.placement("layers.1.w").unwrap();
    first.write_at(place.file, place.offset + 400, &[0; 100]).unwrap();
    drop(first);
    as_of_another_boot(&out);
    let second = work(open(&out, 1, true, false).unwrap());
    assert!(second.finished().is_empty());
    assert_eq!(second.unverified(), ["embed", "empty", "layers.0.flags", "layers.0.w", "layers.1.w"]);
    assert!(second.confirm("embed").unwrap());
    assert!(second.confirm("empty").unwrap());
    assert!(!second.confirm("layers.1.w").unwrap());
    assert!(second.confirm("layers.1.w").is_err(), "it is given up");
    assert!(second.confirm("step").is_err(), "it was never done");
    let facts = second.finished()["embed"].facts.clone();
    assert_eq!(facts, entry(0).facts);
    drop(second);
    let third = work(open(&out, 1, true, false).unwrap());
    assert_eq!(third.finished().len(), 2, "what was confirmed is believed from now on");
    assert_eq!(third.unverified(), ["layers.0.flags", "layers.0.w", "layers.1.w"]);
    complete(third).unwrap();
    assert_eq!(stored(&out), expected());
}

#[test]
fn an_unfinished_file_is_not_a_safetensors_file() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    interrupted(&out, 1, false);
    for file in layout().files() {
        let bytes = fs::read(partial(&out).join(&file.name)).unwrap();
        assert_eq!(bytes.len() as u64, file.bytes);
        assert!(safetensors::SafeTensors::deserialize(&bytes).is_err());
    }
    assert!(!out.exists());
}

#[test]
fn threads_write_and_record_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let work = work(open(&out, 1, false, false).unwrap());
    std::thread::scope(|scope| {
        for i in 0..tensors().len() {
            let work = &work;
            scope.spawn(move || write_tensor(work, i));
        }
    });
    complete(work).unwrap();
    assert_eq!(stored(&out), expected());
}

#[test]
fn recording_what_the_output_does_not_have_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let work = work(open(&dir.path().join("out"), 1, false, false).unwrap());
    let unknown = merganser::output::JournalEntry { tensor: "other".into(), ..entry(0) };
    assert_eq!(work.record(unknown).unwrap_err().exit_code(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_number_of_interruptions_ends_with_the_same_bytes(stops in prop::collection::vec((0_usize..6, any::<bool>()), 0..6)) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        for (tensor, reboot) in stops {
            let work = work(open(&out, 1, true, false).unwrap());
            for name in work.unverified() {
                prop_assert!(work.confirm(&name).unwrap());
            }
            write_tensor(&work, tensor);
            drop(work);
            if reboot {
                as_of_another_boot(&out);
            }
        }
        let work = work(open(&out, 1, true, false).unwrap());
        complete(work).unwrap();
        prop_assert_eq!(stored(&out), expected());
        let report = merganser::report::verify::verify(&out, 1, &|_| {}).unwrap();
        prop_assert!(report.ok, "{:?}", report.problems);
    }
}
