//! CART as users run it: a family of checkpoints in files, merged by the engine on the chosen device, output and all.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::data::{self, ELEM_BYTES, MODELS};
use super::{Bench, Row, Settings, Unit, rounds};
use crate::backend::cpu::{low_rank, ram};
use crate::backend::device::Device;
use crate::engine::{self, Progress, Stop};
use crate::error::{Error, Result};
use crate::ops::Program;
use crate::plan::{Options, Plan};
use crate::recipe::Recipe;
use crate::units::format_bytes;

/// The share of singular triples that is kept, as in the authors' experiments.
const RANK_RATIO: f64 = 0.08;
/// Elements of a file that are made at a time.
const PIECE_ELEMS: usize = 1 << 20;
/// Longest side of the small family's square matrices.
const LONGEST: usize = 1024;

/// Models whose matrices are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shapes {
    /// Blocks of a vision transformer, as many and as wide as fit into the data's size: three fine-tunes.
    Small,
    /// The 24 blocks of a ViT-L/14: eight fine-tunes.
    VitL14,
    /// Three layers of an 8 B parameter Llama: three fine-tunes.
    Llama8b,
}

impl FromStr for Shapes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "small" => Ok(Self::Small),
            "vit-l-14" => Ok(Self::VitL14),
            "llama-8b" => Ok(Self::Llama8b),
            _ => Err("expected `small`, `vit-l-14` or `llama-8b`".into()),
        }
    }
}

/// Matrices of a block by name, and how many blocks and fine-tunes.
struct Family {
    name: &'static str,
    block: Vec<(&'static str, [usize; 2])>,
    blocks: usize,
    models: usize,
}

impl Family {
    fn of(shapes: Shapes, size_bytes: u64) -> Self {
        let transformer = |width: usize| {
            let square = ["q_proj", "k_proj", "v_proj", "out_proj"].map(|name| (name, [width; 2]));
            let mut block = square.to_vec();
            block.extend([("fc1", [4 * width, width]), ("fc2", [width, 4 * width])]);
            block
        };
        match shapes {
            Shapes::Small => {
                // Twelve squares a block, of the base and each fine-tune.
                let elems = size_bytes as usize / ((MODELS + 1) * ELEM_BYTES);
                let width = super::matrices::side(elems / 12, LONGEST);
                let blocks = (elems / (12 * width * width)).max(1);
                Self { name: "small", block: transformer(width), blocks, models: MODELS }
            }
            Shapes::VitL14 => Self { name: "8 × ViT-L/14", block: transformer(1024), blocks: 24, models: 8 },
            Shapes::Llama8b => {
                let block = vec![
                    ("q_proj", [4096, 4096]),
                    ("k_proj", [1024, 4096]),
                    ("v_proj", [1024, 4096]),
                    ("o_proj", [4096, 4096]),
                    ("gate_proj", [14336, 4096]),
                    ("up_proj", [14336, 4096]),
                    ("down_proj", [4096, 14336]),
                ];
                Self { name: "3 × 3 layers of 8 B", block, blocks: 3, models: 3 }
            }
        }
    }

    /// Elements of a model.
    fn elems(&self) -> usize {
        self.blocks * self.block.iter().map(|(_, [m, n])| m * n).sum::<usize>()
    }

    /// A safetensors header in front of all matrices.
    fn header(&self) -> Vec<u8> {
        let (mut json, mut at) = (String::from("{"), 0);
        for block in 0..self.blocks {
            for (name, [m, n]) in &self.block {
                let end = at + m * n * ELEM_BYTES;
                let comma = if at == 0 { "" } else { "," };
                let _ = write!(
                    json,
                    r#"{comma}"model.layers.{block}.{name}.weight":{{"dtype":"BF16","shape":[{m},{n}],"data_offsets":[{at},{end}]}}"#
                );
                at = end;
            }
        }
        json.push('}');
        json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
        [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
    }

    /// Writes base and fine-tunes, and the recipe that merges them.
    fn write(&self, dir: &Path, threads: usize, stop: &Stop) -> Result<PathBuf> {
        let header = self.header();
        let failed = |e: &std::io::Error| {
            Error::io(format_args!("write checkpoints into `{}`", dir.display()), e)
                .hint("name a folder on another disk with --dir")
        };
        let name = |i: usize| if i == 0 { "base.safetensors".into() } else { format!("task-{i}.safetensors") };
        let create = |i| {
            let file = File::create_new(dir.join(name(i)))?;
            file.write_all_at(&header, 0)?;
            Ok(file)
        };
        let files: Vec<File> = (0..=self.models).map(create).collect::<Result<_, _>>().map_err(|e| failed(&e))?;
        let starts = Mutex::new((0..self.elems()).step_by(PIECE_ELEMS));
        rounds::in_parallel(vec![(); threads], |()| {
            let mut pieces = vec![vec![0u8; PIECE_ELEMS * ELEM_BYTES]; files.len()];
            loop {
                rounds::check(stop)?;
                let next = starts.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(start) = next else { return Ok(()) };
                let bytes = PIECE_ELEMS.min(self.elems() - start) * ELEM_BYTES;
                let mut parts: Vec<&mut [u8]> = pieces.iter_mut().map(|piece| &mut piece[..bytes]).collect();
                data::fill(&mut parts, start as u64);
                for (file, part) in files.iter().zip(parts) {
                    file.write_all_at(part, (header.len() + start * ELEM_BYTES) as u64).map_err(|e| failed(&e))?;
                }
            }
        })?;
        let models: String = (1..=self.models).map(|i| format!("- model: {}\n", name(i))).collect();
        let recipe = format!(
            "merge_method: cart\nbase_model: {}\nmodels:\n{models}parameters:\n  rank_ratio: {RANK_RATIO}\n",
            name(0)
        );
        let path = dir.join("recipe.yaml");
        std::fs::write(&path, recipe).map_err(|e| failed(&e))?;
        Ok(path)
    }
}

/// A folder that is gone once it is no longer used.
struct Folder(PathBuf);

impl Folder {
    fn new(dir: &Path) -> Result<Self> {
        let path = dir.join(format!(".merganser-bench-{}-merge", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|e| Error::io(format_args!("create `{}`", path.display()), &e).hint("name another --dir"))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// CART, from files to files: from opening them and the device to the output's last byte on the disk. Operations are those that
/// `merganser plan` counts, whatever the device does.
pub(super) fn cart(bench: &mut Bench<'_>) -> Result<()> {
    let Settings { size_bytes, threads, ref dir, ref device, .. } = *bench.settings;
    let shapes = bench.settings.cart.unwrap_or(Shapes::Small);
    let family = Family::of(shapes, size_bytes);
    let limit = if device.cuda.is_empty() { super::matrices::F32 } else { super::PRODUCT_ON_DEVICE };
    check_room(dir, ((family.models + 2) * family.elems() * ELEM_BYTES) as u64)?;
    let folder = Folder::new(dir)?;
    let recipe = family.write(&folder.0, threads, bench.stop)?;
    let plan = || {
        let memory_budget = ram::usable_bytes() / 4;
        Plan::new(Recipe::load(&recipe)?, Options { threads, memory_budget, seed: 0, shard_bytes: u64::MAX })
    };
    let operations = |plan: &Plan| -> f64 {
        let of = |t: &crate::plan::TensorPlan| match &t.program {
            Program::LowRank(work) => low_rank::operations(work, t.matrix(), t.wide),
            _ => 0.0,
        };
        plan.tensors.iter().map(of).sum()
    };
    let name = format!("cart, {}, rank ratio {RANK_RATIO}, files to files", family.name);
    let mut row = Row::new(name, threads, Unit::Operations, operations(&plan()?), Some(limit));
    if !device.cuda.is_empty() {
        let mut expected = plan()?;
        engine::plan_for_devices(&mut expected, device, None)?;
        row.predicted = expected.prediction().map(|prediction| row.work / prediction.seconds);
    }
    let out = folder.0.join("out");
    bench.measure_long(row, |stop| {
        let started = Instant::now();
        merge(&mut plan()?, device, &out, stop)?;
        let seconds = started.elapsed().as_secs_f64();
        let removed = std::fs::remove_dir_all(&out);
        removed.map_err(|e| Error::io(format_args!("remove `{}`", out.display()), &e))?;
        Ok(seconds)
    })
}

fn merge(plan: &mut Plan, device: &Device, out: &Path, stop: &Stop) -> Result<()> {
    let progress = Progress::default();
    if device.cuda.is_empty() {
        let request = engine::Request { plan, out, resume: false, overwrite: false };
        return engine::merge(&request, &progress, stop).map(drop);
    }
    let target = engine::Target { out, resume: false, overwrite: false, device_memory: None };
    engine::merge_on_devices(plan, device, target, &progress, stop).map(drop)
}

/// Refuses what the disk has no room for, before anything is written.
fn check_room(dir: &Path, bytes: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir)
        .map_err(|e| Error::io(format_args!("look at `{}`", dir.display()), &e.into()).hint("name another --dir"))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if bytes <= free {
        return Ok(());
    }
    let (free, bytes) = (format_bytes(free), format_bytes(bytes));
    Err(Error::environment(format!(
        "`{}` has {free} left, and checkpoints and their merge take {bytes}",
        dir.display()
    ))
    .hint("name a folder on another disk with --dir, or give a smaller --size"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn a_family_is_checkpoints_of_the_shapes_that_it_names_and_goes_with_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let family = Family::of(Shapes::Small, 1 << 20);
        let folder = Folder::new(dir.path()).unwrap();
        let recipe = family.write(&folder.0, 2, &Stop::default()).unwrap();
        let base = Checkpoint::open(&folder.0.join("base.safetensors")).unwrap();
        assert_eq!(base.tensors().len(), family.blocks * 6);
        assert_eq!(base.tensors().iter().map(|t| t.shape.iter().product::<u64>()).sum::<u64>(), family.elems() as u64);
        assert!(family.elems() * 2 * 4 <= 1 << 20 && Recipe::load(&recipe).is_ok());
        drop(folder);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn large_families_have_the_parameters_of_their_models() {
        assert_eq!(Family::of(Shapes::VitL14, 0).elems(), 24 * 12 * 1024 * 1024);
        assert_eq!(Family::of(Shapes::Llama8b, 0).elems() / 3, 218_103_808);
    }

    #[test]
    fn a_disk_without_room_is_the_environments() {
        let error = check_room(&std::env::temp_dir(), u64::MAX).unwrap_err();
        assert_eq!((error.exit_code(), error.hints().len()), (3, 1));
    }
}
