//! Opening checkpoints: a file, a folder, shards with an index; and what is said of everything else.

use std::path::Path;

use merganser::checkpoint::Checkpoint;
use merganser::dtype::Dtype;
use tempfile::tempdir;

use super::{bytes_file, file, index, put};

const INDEX: &str = "model.safetensors.index.json";

#[track_caller]
fn refused(path: &Path, fragments: &[&str]) {
    let error = Checkpoint::open(path).expect_err("opened");
    let (message, hints) = (error.to_string(), error.hints().join(" "));
    for fragment in fragments {
        assert!(message.contains(fragment) || hints.contains(fragment), "{fragment:?} is not in {message:?} {hints:?}");
    }
    assert_eq!(error.exit_code(), 1, "{message}");
    assert!(!hints.is_empty(), "no hint: {message}");
}

fn names(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect()
}

#[test]
fn one_file_is_a_checkpoint_under_any_name() {
    let dir = tempdir().unwrap();
    let header = r#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"s":{"dtype":"BF16","shape":[],"data_offsets":[16,18]}}"#;
    put(dir.path(), "cars.safetensors", file(header, 18));
    put(dir.path(), "0a1b2c", file(header, 18));
    for name in ["cars.safetensors", "0a1b2c"] {
        let path = dir.path().join(name);
        let open = Checkpoint::open(&path).unwrap();
        assert_eq!((open.path(), open.folder(), open.label()), (path.as_path(), None, name));
        assert_eq!(names(&open), ["w", "s"]);
        let w = open.get("w").unwrap();
        assert_eq!((w.dtype, &w.shape[..], w.elems, w.shard), (Dtype::F32, &[2, 2][..], 4, 0));
        assert_eq!(w.range(), 8 + header.len() as u64..8 + header.len() as u64 + 16);
        assert!(open.get("x").is_none());
        assert_eq!(open.tensor_bytes(), 18);
        let shard = open.shard_of(w);
        assert_eq!((shard.size(), shard.header_bytes()), (26 + header.len() as u64, 8 + header.len() as u64));
        assert_eq!(shard.metadata()["format"], "pt");
        let raw = std::fs::read(shard.path()).unwrap();
        assert_eq!(shard.header_digest(), twox_hash::XxHash3_128::oneshot(&raw[..8 + header.len()]));
    }
}

#[test]
fn a_folder_with_one_file_is_a_checkpoint() {
    let dir = tempdir().unwrap();
    put(dir.path(), "config.json", "{}");
    put(dir.path(), "._model.safetensors", "what a Mac leaves");
    put(dir.path(), "weights.safetensors", bytes_file(&[("only", 3)]));
    let open = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(open.folder(), Some(dir.path()));
    assert_eq!(open.label(), dir.path().file_name().unwrap().to_str().unwrap());
    assert_eq!(names(&open), ["only"]);
    put(dir.path(), "model.safetensors", bytes_file(&[("named", 3)]));
    assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["named"]);
    let dotted = dir.path().join(".");
    assert_eq!(Checkpoint::open(&dotted).unwrap().label(), open.label());
}

#[test]
fn shards_come_sorted_by_name_and_tensors_in_the_order_of_their_data() {
    let dir = tempdir().unwrap();
    put(dir.path(), "b.safetensors", bytes_file(&[("z", 1), ("m", 2)]));
    put(dir.path(), "a.safetensors", bytes_file(&[("y", 3), ("a", 0), ("c", 4)]));
    let map = [
        ("z", "b.safetensors"),
        ("m", "b.safetensors"),
        ("y", "a.safetensors"),
        ("a", "a.safetensors"),
        ("c", "a.safetensors"),
    ];
    put(dir.path(), INDEX, index(&map));
    let open = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(names(&open), ["y", "a", "c", "z", "m"]);
    assert_eq!(open.tensors().iter().map(|t| t.shard).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
    assert_eq!(open.shards().len(), 2);
    for (name, shard) in map {
        let tensor = open.get(name).unwrap();
        assert_eq!((tensor.name.as_str(), open.shard_of(tensor).path()), (name, dir.path().join(shard).as_path()));
    }
}

#[test]
fn shards_may_be_links_out_of_the_folder_as_in_the_hub_cache() {
    let (dir, blobs) = (tempdir().unwrap(), tempdir().unwrap());
    put(blobs.path(), "blob", bytes_file(&[("a", 1)]));
    std::os::unix::fs::symlink(blobs.path().join("blob"), dir.path().join("model-1.safetensors")).unwrap();
    put(dir.path(), INDEX, index(&[("a", "model-1.safetensors")]));
    assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["a"]);
    std::fs::remove_file(blobs.path().join("blob")).unwrap();
    refused(dir.path(), &["model-1.safetensors", "link to a file that is not there"]);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let dir = tempdir().unwrap();
    put(dir.path(), "a.safetensors", bytes_file(&[("x", 1)]));
    put(dir.path(), "b.safetensors", bytes_file(&[("y", 1)]));
    let wrong = |text: String, fragments: &[&str]| {
        put(dir.path(), INDEX, text);
        refused(dir.path(), fragments);
    };
    wrong(
        index(&[("x", "a.safetensors"), ("w", "b.safetensors")]),
        &[INDEX, "tensor `w` should be in", "no shard holds it"],
    );
    wrong(index(&[("x", "a.safetensors"), ("y", "a.safetensors")]), &["tensor `y`", "no shard holds it"]);
    wrong(
        index(&[("x", "b.safetensors"), ("y", "a.safetensors")]),
        &["tensor `x` should be in", "b.safetensors", "it is in"],
    );
    wrong(index(&[("x", "gone.safetensors")]), &["cannot open", "gone.safetensors", "incomplete download"]);
    wrong(index(&[("x", "a.safetensors"), ("x", "b.safetensors")]), &["tensor `x` stands twice in weight_map"]);
    wrong(index(&[]), &["weight_map is empty"]);
    wrong("{}".into(), &["no weight_map"]);
    wrong("".into(), &["EOF while parsing"]);
    wrong("[".repeat(200_000), &["invalid type: sequence"]);
    wrong(format!(r#"{{"metadata":{}"#, "[".repeat(200_000)), &["EOF while parsing"]);
    wrong(r#"{"weight_map":{"x":7}}"#.into(), &["invalid type: integer"]);
    wrong(r#"{"weight_map":{},"weight_map":{}}"#.into(), &["weight_map stands twice"]);
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    let dir = tempdir().unwrap();
    put(dir.path(), "a.safetensors", bytes_file(&[("x", 1)]));
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    for (shard, reason) in [
        ("../a.safetensors", "which is a path"),
        ("/etc/passwd", "which is a path"),
        ("sub/a.safetensors", "which is a path"),
        ("..\\\\a.safetensors", "which is a path"),
        ("..", "which is no file name"),
        (".", "which is no file name"),
        ("", "which is no file name"),
        ("a\\u0000.safetensors", "control characters"),
        ("pytorch_model-00001.ckpt", "a pickle"),
    ] {
        put(dir.path(), INDEX, index(&[("x", shard)]));
        refused(dir.path(), &["weight_map names", reason]);
    }
    put(dir.path(), INDEX, index(&[("x", "sub")]));
    refused(dir.path(), &["is a directory, expected a file"]);
}

#[test]
fn one_tensor_in_two_shards_is_refused_with_both() {
    let dir = tempdir().unwrap();
    put(dir.path(), "a.safetensors", bytes_file(&[("x", 1), ("dup", 1)]));
    put(dir.path(), "b.safetensors", bytes_file(&[("y", 1), ("dup", 1)]));
    put(dir.path(), INDEX, index(&[("x", "a.safetensors"), ("y", "b.safetensors")]));
    refused(dir.path(), &["tensor `dup` stands twice", "a.safetensors", "b.safetensors"]);
}

#[test]
fn tensors_that_the_index_leaves_out_are_taken_with_a_warning() {
    let dir = tempdir().unwrap();
    put(dir.path(), "a.safetensors", bytes_file(&[("x", 1), ("extra", 1), ("more", 1)]));
    put(dir.path(), INDEX, index(&[("x", "a.safetensors")]));
    let open = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(names(&open), ["x", "extra", "more"]);
    let [told] = open.warnings() else { panic!("{:?}", open.warnings()) };
    assert!(told.contains("2 tensors") && told.contains("the first is `extra`"), "{told}");
}

#[test]
fn what_is_no_checkpoint_is_refused_with_what_was_found() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    refused(&at("org/name"), &["cannot open the checkpoint", "downloaded first"]);
    refused(dir.path(), &["an empty folder", "model.safetensors"]);
    put(dir.path(), "config.json", "{}");
    refused(dir.path(), &["holds no checkpoint: found `config.json`"]);
    put(dir.path(), "pytorch_model.bin", "");
    refused(dir.path(), &["pytorch_model.bin` cannot be read as a checkpoint of PyTorch's: it has no directory"]);
    refused(&at("pytorch_model.bin"), &["cannot be read as a checkpoint of PyTorch's"]);
    std::fs::remove_file(at("pytorch_model.bin")).unwrap();
    put(dir.path(), "model.ckpt", "");
    refused(dir.path(), &["only pickles: found `model.ckpt`", "never loaded"]);
    refused(&at("model.ckpt"), &["is a pickle", "never loaded"]);
    put(dir.path(), "one.safetensors", bytes_file(&[("a", 1)]));
    put(dir.path(), "two.safetensors", bytes_file(&[("b", 1)]));
    refused(dir.path(), &["holds 2 .safetensors files", "found `one.safetensors`, `two.safetensors`"]);
    put(dir.path(), INDEX, index(&[("a", "one.safetensors")]));
    refused(&at(INDEX), &["is an index", "give the folder"]);
    put(dir.path(), "model.safetensors", bytes_file(&[("c", 1)]));
    refused(dir.path(), &["holds both", "remove the one that is stale"]);
    put(dir.path(), INDEX, index(&[("c", "model.safetensors")]));
    assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["c"]);
    let many = tempdir().unwrap();
    for i in 0..1000 {
        put(many.path(), &format!("{i}.txt"), "");
    }
    refused(many.path(), &["and 988 more".trim_start_matches("and ")]);
}

#[test]
fn an_adapter_is_told_from_a_model() {
    let dir = tempdir().unwrap();
    put(dir.path(), "adapter_config.json", "{}");
    put(dir.path(), "adapter_model.safetensors", bytes_file(&[("a", 1)]));
    refused(dir.path(), &["is an adapter (LoRA)"]);
}

#[test]
fn pipes_devices_and_folders_with_a_checkpoints_name_are_refused_at_once() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    refused(&path, &["is a pipe, socket or device"]);
    refused(dir.path(), &["is a pipe, socket or device"]);
    refused(Path::new("/dev/zero"), &["is a pipe, socket or device"]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused(dir.path(), &["model.safetensors` is a directory"]);
    let link = dir.path().join("loop");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    assert!(Checkpoint::open(&link).is_err());
}

#[test]
fn a_truncated_shard_is_named() {
    let dir = tempdir().unwrap();
    let whole = bytes_file(&[("x", 100), ("y", 100)]);
    put(dir.path(), "a.safetensors", &whole[..whole.len() - 50]);
    put(dir.path(), INDEX, index(&[("x", "a.safetensors"), ("y", "a.safetensors")]));
    let (found, expected) = (whole.len() - 50, whole.len());
    let counts = format!("found {found} bytes, expected {expected}");
    refused(dir.path(), &["a.safetensors` is truncated", &counts, "cut off is `y`"]);
    put(dir.path(), "a.safetensors", "");
    refused(dir.path(), &["has 0 bytes", "the file is empty"]);
}

/// Bytes that this thread has read from files.
fn read_by_this_thread() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// A 70 B model as it lies on disk: 30 shards, 723 tensors, 141 GB; the files are sparse.
#[test]
fn a_70b_checkpoint_opens_by_its_headers_alone() {
    let dir = tempdir().unwrap();
    let (hidden, inner) = (8192_u64, 28672_u64);
    let shapes = [
        ("input_layernorm", vec![hidden]),
        ("mlp.down_proj", vec![hidden, inner]),
        ("mlp.gate_proj", vec![inner, hidden]),
        ("mlp.up_proj", vec![inner, hidden]),
        ("post_attention_layernorm", vec![hidden]),
        ("self_attn.k_proj", vec![1024, hidden]),
        ("self_attn.o_proj", vec![hidden, hidden]),
        ("self_attn.q_proj", vec![hidden, hidden]),
        ("self_attn.v_proj", vec![1024, hidden]),
    ];
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![128_256, hidden])];
    for layer in 0..80 {
        tensors
            .extend(shapes.iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape.clone())));
    }
    tensors
        .extend([("lm_head.weight".to_owned(), vec![128_256, hidden]), ("model.norm.weight".to_owned(), vec![hidden])]);
    assert_eq!(tensors.len(), 723);
    let (mut map, mut total, mut headers) = (Vec::new(), 0, 0);
    for (i, shard) in tensors.chunks(25).enumerate() {
        let name = format!("model-{:05}-of-00030.safetensors", i + 1);
        let (mut at, mut entries) = (0_u64, Vec::new());
        for (tensor, shape) in shard {
            let end = at + 2 * shape.iter().product::<u64>();
            entries.push(format!(r#""{tensor}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{at},{end}]}}"#));
            at = end;
            map.push((tensor.clone(), name.clone()));
        }
        let bytes = file(&format!("{{{}}}", entries.join(",")), 0);
        headers += bytes.len() as u64;
        put(dir.path(), &name, &bytes);
        let sparse = std::fs::OpenOptions::new().write(true).open(dir.path().join(&name)).unwrap();
        sparse.set_len(bytes.len() as u64 + at).unwrap();
        total += at;
    }
    let map: Vec<(&str, &str)> = map.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    put(dir.path(), INDEX, index(&map));
    headers += index(&map).len() as u64;
    let before = read_by_this_thread();
    let open = Checkpoint::open(dir.path()).unwrap();
    let read = read_by_this_thread() - before;
    assert_eq!((open.tensors().len(), open.tensor_bytes()), (723, total));
    assert!(
        (headers..=headers + (64 << 10)).contains(&read),
        "{read} bytes were read of {headers} in headers and index"
    );
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(dir.path().to_str().unwrap()), "opening mapped a file");
}
