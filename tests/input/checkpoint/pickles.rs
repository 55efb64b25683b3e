//! PyTorch's files, made by `scripts/make-pickles`: tensors where they lie, and nothing that runs.

use std::path::{Path, PathBuf};

use merganser::checkpoint::{Checkpoint, read_archive};
use merganser::dtype::Dtype;

use crate::files::root;

fn file(name: &str) -> PathBuf {
    root().join("tests/pickles").join(name)
}

fn floats(open: &Checkpoint, name: &str) -> Vec<f32> {
    let tensor = open.get(name).unwrap();
    let mut scratch = Vec::new();
    let bytes = open.shard_of(tensor).bytes(tensor.range(), &mut scratch).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn refused(path: &Path, said: &str) {
    let error = Checkpoint::open(path).unwrap_err();
    assert!(error.to_string().contains(said), "{error}");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn a_state_dict_is_read_in_place_and_strided_tensors_are_gathered() {
    for open in [Checkpoint::open(&file("state.bin")).unwrap(), Checkpoint::open_unmapped(&file("state.bin")).unwrap()]
    {
        let shape = |name: &str| open.get(name).unwrap().shape.clone();
        assert_eq!(floats(&open, "plain"), (0..12).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(floats(&open, "transposed"), [0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0]);
        assert_eq!(floats(&open, "part"), [5.0, 6.0, 9.0, 10.0]);
        assert_eq!(floats(&open, "parameter"), [3.0, 4.0]);
        assert_eq!(floats(&open, "scalar"), [2.5]);
        assert_eq!(
            (shape("transposed"), shape("part"), shape("scalar"), shape("empty")),
            (vec![4, 3], vec![2, 2], vec![], vec![0, 3])
        );
        for (name, dtype, bytes) in [
            ("brain", Dtype::BF16, &[0xc0, 0x3f, 0x00, 0xc0][..]),
            ("half", Dtype::F16, &[0x00, 0x38]),
            ("flag", Dtype::BOOL, &[1, 0]),
        ] {
            let tensor = open.get(name).unwrap();
            assert_eq!(tensor.dtype, dtype);
            assert_eq!(open.shard_of(tensor).bytes(tensor.range(), &mut Vec::new()).unwrap(), bytes, "{name}");
        }
        assert_eq!(open.get("long").unwrap().dtype, Dtype::I64);
        assert_eq!(open.tensors().len(), 10);
    }
}

#[test]
fn a_state_dict_within_and_a_whole_module_are_found() {
    let nested = Checkpoint::open(&file("nested.pt")).unwrap();
    assert_eq!(floats(&nested, "a"), [1.0, 1.0]);
    assert_eq!(nested.tensors().len(), 1);
    let module = Checkpoint::open(&file("module.pth")).unwrap();
    assert_eq!(floats(&module, "inner.weight"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(floats(&module, "inner.bias"), [0.5, -0.5]);
    assert_eq!(module.get("steps").unwrap().dtype, Dtype::I64);
}

#[test]
fn a_folder_may_hold_such_a_file_and_safetensors_win() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(file("state.bin"), dir.path().join("pytorch_model.bin")).unwrap();
    std::fs::copy(file("nested.pt"), dir.path().join("training_args.bin")).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors().len(), 10);
    std::fs::copy(file("nested.pt"), dir.path().join("pytorch_model-2.bin")).unwrap();
    let index = r#"{"weight_map": {"plain": "pytorch_model.bin", "transposed": "pytorch_model.bin", "a": "pytorch_model-2.bin"}}"#;
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().tensors().len(), 11);
}

#[test]
fn what_would_run_is_refused_by_name_and_what_is_no_checkpoint_by_what_it_is() {
    refused(&file("evil.bin"), "its pickle calls `posix.system`, which is not done");
    refused(&file("legacy.bin"), "PyTorch's format before 1.6");
    refused(&file("no-tensors.bin"), "it holds no tensors");
}

#[test]
fn files_that_are_cut_or_changed_anywhere_never_panic() {
    let whole = std::fs::read(file("state.bin")).unwrap();
    assert_eq!(read_archive(&whole).unwrap(), 10);
    for length in (0..whole.len()).step_by(7) {
        assert!(read_archive(&whole[..length]).is_err(), "cut at {length}");
    }
    let mut seed = 5_u64;
    for name in ["state.bin", "module.pth", "evil.bin"] {
        let whole = std::fs::read(file(name)).unwrap();
        for _ in 0..4000 {
            let mut changed = whole.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (seed >> 33) as usize % changed.len();
                changed[at] = (seed >> 20) as u8;
            }
            let _ = read_archive(&changed);
        }
    }
}
