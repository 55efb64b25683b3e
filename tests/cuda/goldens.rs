//! The committed goldens, merged on a CUDA device. Skipped, with the reason, where no device is there.

use crate::both::{Way, devices};
use crate::support::goldens::{self, Golden};
use crate::support::quick_folder;

/// Parts into which goldens fall by the stand-in's seeds, so that its 16 schedules together take each once.
const PARTS: usize = 16;

/// All goldens; where the stand-in runs by a schedule, that schedule's share.
fn chosen(device: &str) -> Vec<Golden> {
    let seed: usize = std::env::var("MERGANSER_STANDIN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let is_all = seed == 0 || !device.contains("stand-in");
    let goldens = goldens::all();
    assert!(goldens.len() >= 72, "{} goldens", goldens.len());
    let is_chosen = |i: usize| is_all || i % PARTS == seed % PARTS;
    goldens.into_iter().enumerate().filter(|(i, _)| is_chosen(*i)).map(|(_, golden)| golden).collect()
}

#[test]
fn goldens_are_reproduced_on_a_device() {
    let Some(device) = devices("goldens") else { return };
    goldens::assert_all(&chosen(&device.name), |golden| {
        let scratch = quick_folder();
        let (out, way) = (scratch.path().join("out"), Way { run: golden.run(), ..Way::default() });
        let merged = way.merge(&device, &golden.path(), &out);
        let plan = golden.run().plan(&golden.path());
        match merged.and(plan) {
            Err(error) => vec![error.to_string()],
            Ok(plan) => golden.wrong(&plan, &out),
        }
    });
}
