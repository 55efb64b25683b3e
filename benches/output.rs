//! What a merge does to bytes besides arithmetic, on one thread: digests of what is read and written, in cache, and writing
//! pieces into the work folder, in the folder for temporary files.
//!
//! Bytes: those hashed, and those written.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use merganser::bench::{ELEM_BYTES, Family};
use merganser::dtype::Dtype;
use merganser::output::source_digest::{BLOCK_ELEMS, block};
use merganser::output::{
    Fingerprint, JournalEntry, Layout, Nonfinite, OpenOptions, Opened, PieceDigests, TensorSpec, WorkDir,
};

/// Bytes of a piece of output, and pieces that are written.
const PIECE_BYTES: u64 = 2 << 20;
const PIECES: u64 = 64;

fn digests(criterion: &mut Criterion) {
    let family = Family::new((PIECE_BYTES as usize) / ELEM_BYTES);
    let bytes = family.with(|sources| sources.models[0].bytes.to_vec());
    let mut group = criterion.benchmark_group("digest");
    let source = BLOCK_ELEMS as usize * ELEM_BYTES;
    group.throughput(Throughput::Bytes(source as u64));
    group.bench_function("source, xxh3", |bench| bench.iter(|| block(black_box(&bytes[..source]))));
    group.throughput(Throughput::Bytes(PIECE_BYTES));
    group.bench_function("output, blake3", |bench| {
        bench.iter(|| PieceDigests::hash_piece(PIECES * PIECE_BYTES, PIECE_BYTES, 1, black_box(&bytes)).is_ok());
    });
    group.finish();
}

fn writes(criterion: &mut Criterion) {
    let family = Family::new((PIECES * PIECE_BYTES) as usize / ELEM_BYTES);
    let bytes = family.with(|sources| sources.models[0].bytes.to_vec());
    let spec = TensorSpec {
        name: "weight".into(),
        dtype: Dtype::BF16,
        shape: vec![PIECES * PIECE_BYTES / ELEM_BYTES as u64],
        bytes: PIECES * PIECE_BYTES,
        folder: None,
    };
    let mut group = criterion.benchmark_group("write");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(PIECES * PIECE_BYTES));
    for (name, syncs) in [("pieces", false), ("pieces, then sync", true)] {
        group.bench_function(name, |bench| {
            bench.iter_batched(
                || work_folder(&spec),
                |(folder, work)| {
                    let place = work.placement("weight").map(|p| (p.file, p.offset));
                    let Ok((file, offset)) = place else { panic!("the layout has no such tensor") };
                    for (piece, bytes) in (0..).zip(bytes.chunks(PIECE_BYTES as usize)) {
                        assert!(work.write_at(file, offset + piece * PIECE_BYTES, bytes).is_ok());
                    }
                    // Only an output whose tensors are all noted as written is brought to the disk.
                    assert!(!syncs || work.record(written()).and_then(|()| work.sync()).is_ok());
                    (folder, work) // dropped outside the timing
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn work_folder(spec: &TensorSpec) -> (tempfile::TempDir, WorkDir) {
    let opened = tempfile::tempdir().map_err(merganser_error).and_then(|folder| {
        let layout = Layout::new(std::slice::from_ref(spec), u64::MAX)?;
        let options = OpenOptions {
            out: folder.path().join("out"),
            resume: false,
            overwrite: false,
            fingerprint: Fingerprint::new(serde_json::Map::new()),
            sources: Vec::new(),
            part: None,
        };
        Ok((folder, WorkDir::open(options, &layout)?))
    });
    match opened {
        Ok((folder, Opened::Work(work))) => (folder, *work),
        other => panic!("no work folder: {other:?}"),
    }
}

/// What the journal says of the tensor.
fn written() -> JournalEntry {
    JournalEntry {
        tensor: "weight".into(),
        digest: String::new(),
        nonfinite: Nonfinite { output: 0, introduced: 0 },
        facts: serde_json::Value::Null,
        sources: Vec::new(),
        boot: String::new(),
    }
}

fn merganser_error(error: std::io::Error) -> merganser::Error {
    merganser::Error::io("make a folder", &error)
}

criterion_group!(benches, digests, writes);
criterion_main!(benches);
