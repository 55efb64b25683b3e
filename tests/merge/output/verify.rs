//! Verification finds every kind of damage to a finished output, and names it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use merganser::dtype::Dtype;
use merganser::output::{JournalEntry, Layout, Nonfinite, OpenOptions, Opened, TensorSpec, WorkDir};
use merganser::report::manifest::Manifest;
use merganser::report::verify::{VerifyReport, verify};

use super::*;

fn check(out: &Path) -> VerifyReport {
    verify(out, 3, &|_| {}).unwrap()
}

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    finished_output(&out, 1);
    (dir, out)
}

fn edit_manifest(out: &Path, edit: impl FnOnce(&mut Manifest)) {
    let mut manifest = Manifest::read(out).unwrap();
    edit(&mut manifest);
    fs::write(out.join("merganser.json"), manifest.to_text().unwrap()).unwrap();
}

fn data_file(out: &Path, i: usize) -> PathBuf {
    out.join(&layout().files()[i].name)
}

#[test]
fn a_sound_output_passes_on_any_number_of_threads() {
    let (_dir, out) = fresh();
    for threads in [0, 1, 7] {
        let read = AtomicU64::new(0);
        let report = verify(&out, threads, &|n| {
            read.fetch_add(n, Ordering::Relaxed);
        })
        .unwrap();
        assert!(report.ok && report.problems.is_empty());
        assert_eq!(report.tensors, tensors().len());
        assert_eq!(report.bytes, layout().data_bytes());
        assert_eq!(read.into_inner(), layout().data_bytes());
        assert_eq!(report.files, layout().files().len() + 2, "the index and the card too");
    }
}

#[test]
fn any_changed_byte_of_a_data_file_is_found() {
    let (_dir, out) = fresh();
    for (i, file) in layout().files().iter().enumerate() {
        let handle = fs::File::options().read(true).write(true).open(data_file(&out, i)).unwrap();
        // Not the padding behind the JSON: readers skip it.
        let json = 8 + file.header[8..].iter().rposition(|&b| b != b' ').unwrap() as u64 + 1;
        for at in (0..json).step_by(11).chain((file.header.len() as u64..file.bytes).step_by(37)) {
            let mut byte = [0];
            handle.read_exact_at(&mut byte, at).unwrap();
            handle.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            let report = check(&out);
            // A changed name of `__metadata__`'s content alone harms nothing.
            let text = &file.header[8..];
            let metadata = text.windows(15).position(|w| w == br#"{"format":"pt"}"#).unwrap() as u64 + 8;
            if !(metadata..metadata + 15).contains(&at) {
                assert!(!report.ok, "file {i}, byte {at}");
                assert!(report.problems.iter().any(|p| p.file.as_ref() == Some(&file.name)), "{:?}", report.problems);
            }
            handle.write_all_at(&byte, at).unwrap();
        }
    }
    assert!(check(&out).ok);
}

/// Damage, and what the report must say of it.
type Case = (&'static str, fn(&Path), &'static str);

#[test]
fn each_kind_of_damage_is_named() {
    let cases: &[Case] = &[
        ("a file is gone", |out| fs::remove_file(data_file(out, 0)).unwrap(), "is missing"),
        (
            "a file is cut",
            |out| {
                let file = fs::File::options().write(true).open(data_file(out, 0)).unwrap();
                file.set_len(layout().files()[0].bytes - 1).unwrap();
            },
            "its header describes",
        ),
        (
            "a header was never written",
            |out| {
                let file = fs::File::options().write(true).open(data_file(out, 0)).unwrap();
                file.write_all_at(&[0; 8], 0).unwrap();
            },
            "was never completed",
        ),
        (
            "an extra file",
            |out| fs::write(out.join("x.safetensors"), "").unwrap(),
            "`x.safetensors` is not in the manifest",
        ),
        (
            "the index is gone",
            |out| fs::remove_file(out.join("model.safetensors.index.json")).unwrap(),
            "index.json` is missing",
        ),
        (
            "the index is another",
            |out| fs::write(out.join("model.safetensors.index.json"), r#"{"weight_map":{}}"#).unwrap(),
            "does not lead to tensor",
        ),
        ("a tensor is not listed", |out| edit_manifest(out, |m| drop(m.tensors.remove(0))), "tensor `embed` in"),
        (
            "a listed tensor is not there",
            |out| {
                edit_manifest(out, |m| {
                    let mut more = m.tensors[0].clone();
                    more.name = "more".into();
                    m.tensors.push(more);
                })
            },
            "tensor `more` is missing",
        ),
        ("a tensor is listed twice", |out| edit_manifest(out, |m| m.tensors.push(m.tensors[0].clone())), "twice"),
        ("another shape", |out| edit_manifest(out, |m| m.tensors[0].shape = vec![400]), "the manifest says BF16 [400]"),
        ("another type", |out| edit_manifest(out, |m| m.tensors[0].dtype = Dtype::F16), "the manifest says F16"),
        ("another digest", |out| edit_manifest(out, |m| m.tensors[0].digest = "0".repeat(64)), "digest differs"),
        (
            "a count of NaN that is not so",
            |out| edit_manifest(out, |m| m.tensors[0].nonfinite.output = 1),
            "has 0 NaN or infinite elements, the manifest says 1",
        ),
        (
            "a merge that made NaN",
            |out| {
                edit_manifest(out, |m| {
                    m.tensors[0].nonfinite.introduced = 2;
                    m.totals.nonfinite.introduced = 2;
                })
            },
            "the merge made 2 elements of tensor `embed` NaN",
        ),
        (
            "sums that do not add up",
            |out| edit_manifest(out, |m| m.totals.nonfinite.introduced = 2),
            "sum of introduced",
        ),
        (
            "a file outside the folder",
            |out| {
                fs::copy(data_file(out, 0), out.join("../model.safetensors")).unwrap();
                edit_manifest(out, |m| m.tensors[0].file = "../model.safetensors".into());
            },
            "leads out of the folder",
        ),
    ];
    for (damage, make, expected) in cases {
        let (_dir, out) = fresh();
        make(&out);
        let report = check(&out);
        assert!(!report.ok, "{damage}");
        let all: Vec<&str> = report.problems.iter().map(|p| p.message.as_str()).collect();
        assert!(all.iter().any(|m| m.contains(expected)), "{damage}: {all:?}");
    }
}

#[test]
fn a_folder_without_a_manifest_is_an_input_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(verify(dir.path(), 1, &|_| {}).unwrap_err().exit_code(), 1);
    assert_eq!(verify(&dir.path().join("none"), 1, &|_| {}).unwrap_err().exit_code(), 1);
}

#[test]
fn large_tensors_are_read_in_pieces_and_nan_in_any_piece_is_counted() {
    let elems = 1_500_000_u64; // six MB: several pieces
    let tensors: Vec<TensorSpec> = (0..2)
        .map(|i| TensorSpec {
            name: format!("t{i}"),
            folder: None,
            dtype: Dtype::F32,
            shape: vec![elems],
            bytes: elems * 4,
        })
        .collect();
    let layout = Layout::new(&tensors, 1 << 30).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let options = OpenOptions {
        out: out.clone(),
        resume: false,
        overwrite: false,
        fingerprint: fingerprint(1),
        sources: vec![],
        part: None,
    };
    let Opened::Work(work) = WorkDir::open(options, &layout).unwrap() else { panic!() };
    for (t, tensor) in tensors.iter().enumerate() {
        let mut values: Vec<f32> = (0..elems).map(|i| i as f32 + t as f32).collect();
        for at in [0, 262_143, 262_144, elems as usize - 1].into_iter().take(t * 4) {
            values[at] = f32::NAN;
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let place = layout.placement(t);
        work.write_at(place.file, place.offset, &bytes).unwrap();
        let digest = blake3::hash(&bytes).to_hex().to_string();
        let nonfinite = Nonfinite { output: t as u64 * 4, introduced: 0 };
        work.record(JournalEntry { tensor: tensor.name.clone(), digest, nonfinite, ..entry(0) }).unwrap();
    }
    let made = manifest(&work);
    work.finish(made, "", &[]).unwrap();
    let report = check(&out);
    assert!(report.ok, "{:?}", report.problems);
    assert_eq!(report.nonfinite, Nonfinite { output: 4, introduced: 0 });
    assert_eq!(report.bytes, elems * 8);
    assert!(!out.join("model.safetensors.index.json").exists());
}
