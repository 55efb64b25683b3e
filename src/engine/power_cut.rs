//! A world that stops anywhere: merges are recorded change by change (`output::disk`), and after every prefix of the record the
//! process is killed, or the power goes and takes any of what nobody waited for.
//!
//! What a power cut leaves: of each file, what was waited for and any of the other writes; of each folder, its entries up to
//! some change after the last that was waited for, each folder by itself. A kill leaves everything that was done.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{Done, Progress, Request, Stop, merge};
use crate::output::disk::{self, Op};
use crate::plan::{Options, Plan};
use crate::recipe::Recipe;
use crate::report::verify::verify;

/// A file's bytes, or a folder's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File(Vec<u8>),
    Folder(BTreeMap<String, Node>),
}

fn read(path: &Path) -> Node {
    if path.is_file() {
        return Node::File(fs::read(path).unwrap());
    }
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    Node::Folder(entries.map(|e| (e.file_name().into_string().unwrap(), read(&e.path()))).collect())
}

fn write(node: &Node, path: &Path) {
    match node {
        Node::File(bytes) => fs::write(path, bytes).unwrap(),
        Node::Folder(entries) => {
            fs::create_dir_all(path).unwrap();
            entries.iter().for_each(|(name, node)| write(node, &path.join(name)));
        }
    }
}

type Inode = usize;

/// A change of a file or of a folder's entries, and its place in the record.
#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Resize(u64),
    Put(String, Inode),
    Take(String),
    Move(String, String),
    Swap(String, String),
}

/// What happened to each file and folder; 0 is the root. Content from before the record is there for good.
#[derive(Debug, Default)]
struct World {
    is_folder: Vec<bool>,
    changes: Vec<Vec<(usize, Change)>>,
    /// Changes of each before this place in the record were waited for.
    waited: Vec<usize>,
}

impl World {
    fn new(start: &Node) -> Self {
        let mut world = Self::default();
        world.add(start);
        world
    }

    fn make(&mut self, is_folder: bool) -> Inode {
        self.is_folder.push(is_folder);
        self.changes.push(Vec::new());
        self.waited.push(1);
        self.is_folder.len() - 1
    }

    /// As of before the record, which begins at place 1.
    fn add(&mut self, node: &Node) -> Inode {
        let inode = self.make(matches!(node, Node::Folder(_)));
        match node {
            Node::File(bytes) => self.changes[inode].push((0, Change::Write(0, bytes.clone()))),
            Node::Folder(entries) => {
                for (name, node) in entries {
                    let child = self.add(node);
                    self.changes[inode].push((0, Change::Put(name.clone(), child)));
                }
            }
        }
        inode
    }

    /// A folder's entries after some of its changes.
    fn entries<'a>(changes: impl IntoIterator<Item = &'a (usize, Change)>) -> BTreeMap<String, Inode> {
        let mut entries = BTreeMap::new();
        for (_, change) in changes {
            match change {
                Change::Put(name, inode) => drop(entries.insert(name.clone(), *inode)),
                Change::Take(name) => drop(entries.remove(name)),
                Change::Move(from, to) => {
                    let inode = entries.remove(from).unwrap();
                    entries.insert(to.clone(), inode);
                }
                Change::Swap(a, b) => {
                    let (x, y) = (entries[a], entries[b]);
                    entries.extend([(a.clone(), y), (b.clone(), x)]);
                }
                Change::Write(..) | Change::Resize(_) => unreachable!("a folder is not written to"),
            }
        }
        entries
    }

    fn find(&self, path: &Path) -> Option<Inode> {
        path.iter()
            .try_fold(0, |folder, name| Self::entries(&self.changes[folder]).get(name.to_str().unwrap()).copied())
    }

    /// The folder of a path, and the name in it.
    fn place(&self, path: &Path) -> (Inode, String) {
        (self.find(path.parent().unwrap()).unwrap(), path.file_name().unwrap().to_str().unwrap().into())
    }

    /// Goes through one recorded change, at its place in the record (from 1 on).
    fn apply(&mut self, at: usize, op: &Op, root: &Path) {
        let inside = |path: &Path| path.strip_prefix(root).unwrap().to_path_buf();
        match op {
            Op::Make { path, is_folder } => {
                let path = inside(path);
                if self.find(&path).is_none() {
                    let (folder, name) = self.place(&path);
                    let made = self.make(*is_folder);
                    self.changes[folder].push((at, Change::Put(name, made)));
                }
            }
            Op::Resize { path, bytes } => {
                let file = self.find(&inside(path)).unwrap();
                self.changes[file].push((at, Change::Resize(*bytes)));
            }
            Op::Write { path, offset, bytes } => {
                let file = self.find(&inside(path)).unwrap();
                self.changes[file].push((at, Change::Write(*offset, bytes.clone())));
            }
            Op::Sync { path, covers } => {
                let of = self.find(&inside(path)).unwrap();
                self.waited[of] = self.waited[of].max(covers + 1);
            }
            Op::Rename { from, to } => {
                let ((folder, from), (other, to)) = (self.place(&inside(from)), self.place(&inside(to)));
                assert_eq!(folder, other, "renamed into another folder");
                self.changes[folder].push((at, Change::Move(from, to)));
            }
            Op::Link { from, to } => {
                let file = self.find(&inside(from)).unwrap();
                let (folder, name) = self.place(&inside(to));
                self.changes[folder].push((at, Change::Put(name, file)));
            }
            Op::Exchange { a, b } => {
                let ((folder, a), (other, b)) = (self.place(&inside(a)), self.place(&inside(b)));
                assert_eq!(folder, other, "exchanged with another folder");
                self.changes[folder].push((at, Change::Swap(a, b)));
            }
            Op::Remove { path } => {
                let (folder, name) = self.place(&inside(path));
                self.changes[folder].push((at, Change::Take(name)));
            }
        }
    }

    /// What is on the disk, if `survives` says of each change that nobody waited for whether it got there.
    fn left(&self, inode: Inode, survives: &mut dyn FnMut() -> bool) -> Node {
        let (changes, waited) = (&self.changes[inode], self.waited[inode]);
        if self.is_folder[inode] {
            // In order: the first that is lost takes the later ones with it.
            let kept = changes.iter().take_while(|(at, _)| *at < waited || survives()).collect::<Vec<_>>();
            let entries = Self::entries(kept);
            return Node::Folder(entries.into_iter().map(|(name, node)| (name, self.left(node, survives))).collect());
        }
        let mut bytes = Vec::new();
        for (_, change) in changes.iter().filter(|(at, _)| *at < waited || survives()) {
            match change {
                Change::Resize(len) => bytes.resize(*len as usize, 0),
                Change::Write(offset, part) => {
                    let (from, to) = (*offset as usize, *offset as usize + part.len());
                    bytes.resize(bytes.len().max(to), 0);
                    bytes[from..to].copy_from_slice(part);
                }
                _ => unreachable!("a file has no entries"),
            }
        }
        Node::File(bytes)
    }
}

/// Sources and recipes in `from`, outputs in `place`.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(&from).unwrap();
        // One of several pieces, matrices, an empty one; in several files of the output.
        let shapes: [(&str, &[usize]); 5] = [
            ("embed.weight", &[210, 1000]),
            ("layers.0.mlp.weight", &[12, 20]),
            ("layers.0.norm.weight", &[20]),
            ("layers.1.mlp.weight", &[20, 12]),
            ("empty", &[0, 3]),
        ];
        for (model, name) in ["base", "a", "b"].iter().enumerate() {
            let bytes: Vec<Vec<u8>> = (shapes.iter())
                .map(|(_, shape)| {
                    let value = |i: usize| ((i * 2_654_435_761 + model * 40_503) % 65_537) as f32 / 65_537.0;
                    (0..shape.iter().product()).flat_map(|i| value(i).to_le_bytes()).collect()
                })
                .collect();
            let views = shapes
                .iter()
                .zip(&bytes)
                .map(|((name, shape), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
            fs::write(from.join(format!("{name}.safetensors")), safetensors::serialize(views, None).unwrap()).unwrap();
        }
        let models = "base_model: base.safetensors\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\n";
        for (name, method) in [("new", "cart\nparameters: {rank: 3}"), ("old", "task_arithmetic")] {
            fs::write(from.join(format!("{name}.yaml")), format!("{models}merge_method: {method}\n")).unwrap();
        }
        Self { dir }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("place")
    }

    /// Puts the world into this state.
    fn set(&self, place: &Node) {
        let _ = fs::remove_dir_all(self.place());
        write(place, &self.place());
    }

    fn merge(&self, recipe: &str, resume: bool, overwrite: bool) -> crate::Result<Done> {
        let recipe = Recipe::load(&self.dir.path().join(format!("from/{recipe}.yaml")))?;
        // Buffers so small that the largest tensor takes several.
        let options = Options { threads: 1, memory_budget: 12 << 20, seed: 0, shard_bytes: 100_000 };
        let plan = Plan::new(recipe, options)?;
        let request = Request { plan: &plan, out: &self.place().join("out"), resume, overwrite };
        merge(&request, &Progress::default(), &Stop::default())
    }

    /// Every tensor of OUT, if OUT is complete; fails if it is something else than that or what was there before.
    fn tensors(&self) -> Option<BTreeMap<String, Vec<u8>>> {
        let out = self.place().join("out");
        if !out.exists() || fs::read_dir(&out).unwrap().next().is_none() {
            return None;
        }
        let report = verify(&out, 1, &|_| {}).unwrap();
        assert!(report.ok, "OUT is there and not whole: {:?}", report.problems);
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&out).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let bytes = fs::read(path).unwrap();
                let file = SafeTensors::deserialize(&bytes).unwrap();
                all.extend(file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())));
            }
        }
        Some(all)
    }

    /// Merges from `start` on, as the options say, and stops the world everywhere. `expected` is what the end must be.
    fn stop_everywhere(&self, start: &Node, resume: bool, overwrite: bool, expected: &BTreeMap<String, Vec<u8>>) {
        self.set(start);
        let before = self.tensors();
        let record = disk::begin(&self.place());
        let result = self.merge("new", resume, overwrite);
        let ops = record.end();
        result.unwrap();
        assert_eq!(self.tensors().as_ref(), Some(expected));
        assert!(ops.len() > 20, "{ops:?}");
        let mut world = World::new(start);
        let mut random = 0x1234_5678_9ABC_DEF0_u64;
        let (mut lost, mut went_on) = (0, BTreeSet::new());
        for at in 0..=ops.len() {
            if at > 0 {
                world.apply(at, &ops[at - 1], &self.place());
            }
            let mut half = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                random >> 63 == 1
            };
            let states = [
                ("killed", world.left(0, &mut || true)),
                ("the power went, and only what was waited for stays", world.left(0, &mut || false)),
                ("the power went, and some of the rest stays", world.left(0, &mut half)),
                ("the power went, and some of the rest stays", world.left(0, &mut half)),
            ];
            lost += usize::from(states[0].1 != states[1].1);
            for (i, (what, state)) in states.iter().enumerate() {
                let told = format!(
                    "{what} after {at} of {} changes, the last of them {:?}",
                    ops.len(),
                    at.checked_sub(1).map(|i| shown(&ops[i]))
                );
                self.set(state);
                let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.tensors()));
                let found = found.unwrap_or_else(|_| panic!("{told}"));
                assert!(found == before || found.as_ref() == Some(expected), "OUT is neither old nor new: {told}");
                disk::set_boot((i > 0).then_some("the boot after the cut"));
                let done = self.merge("new", true, overwrite);
                disk::set_boot(None);
                let done = done.unwrap_or_else(|e| panic!("{told}: {e} {:?}", e.hints()));
                went_on.insert(done.resumed);
                assert!(self.tensors().as_ref() == Some(expected), "other bytes: {told}");
                let partial = self.place().join("out.merganser-partial");
                // Stopped right behind the exchange, the old output lies there, whole.
                let is_old = |found: Node| matches!(start, Node::Folder(all) if all.get("out") == Some(&found));
                assert!(!partial.exists() || is_old(read(&partial)), "{told}");
            }
        }
        assert!(lost > 5 && went_on.len() > 3, "{lost} cuts lost something; {went_on:?} tensors were gone on from");
    }
}

/// A change without its bytes.
fn shown(op: &Op) -> String {
    match op {
        Op::Write { path, offset, bytes } => format!("{} bytes at {offset} of {}", bytes.len(), path.display()),
        other => format!("{other:?}"),
    }
}

#[test]
fn wherever_the_world_stops_nothing_is_believed_that_was_not_kept_and_resume_ends_in_the_same_bytes() {
    let bench = Bench::new();
    let empty = Node::Folder(BTreeMap::new());
    bench.set(&empty);
    bench.merge("new", false, false).unwrap();
    let expected = bench.tensors().unwrap();
    bench.stop_everywhere(&empty, false, false, &expected);
    // Over an old output.
    bench.set(&empty);
    bench.merge("old", false, false).unwrap();
    let old = read(&bench.place());
    assert!(bench.tensors().unwrap() != expected);
    bench.stop_everywhere(&old, false, true, &expected);
}
