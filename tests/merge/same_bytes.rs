//! The same recipe, sources and seed give the same bytes: on any thread count, memory budget and shard size, mapped or not.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use merganser::dtype::Dtype::*;
use merganser::methods::find;
use merganser::ops::ParamKind;

use crate::support::family::Family;
use crate::support::recipes::{Text, methods, staged_methods};
use crate::support::tensor::{Tensor, write_folder};
use crate::support::{MIB, Run, assert_whole, child, digests, quick_folder};

/// Every dtype and the shapes where counting goes wrong: 0-d, empty, one row, one column, one more than a segment, one
/// more than some blocks, more than a buffer.
///
/// Shared by the tests that run at the same time, and removed with the last of them.
fn family() -> Arc<Family> {
    static SHARED: Mutex<Weak<Family>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let specs: &[(&str, merganser::dtype::Dtype, &[u64])] = &[
            ("model.embed.weight", BF16, &[23, 136_771]),
            ("model.layers.0.self_attn.q_proj.weight", F32, &[33, 65]),
            ("model.layers.0.mlp.up_proj.weight", BF16, &[96, 160]),
            ("model.layers.0.mlp.down_proj.weight", F16, &[160, 96]),
            ("model.layers.0.norm.weight", F32, &[33]),
            ("model.layers.1.self_attn.q_proj.weight", F64, &[40, 24]),
            ("model.layers.1.mlp.row.weight", F32, &[1, 500]),
            ("model.layers.1.mlp.column.weight", BF16, &[500, 1]),
            ("model.layers.1.conv.weight", F32, &[8, 4, 3, 3]),
            ("model.layers.1.bias", F16, &[65_537]),
            ("model.layers.2.scalar", F32, &[]),
            ("model.layers.2.empty", BF16, &[0, 7]),
            ("model.layers.2.no_columns", F32, &[7, 0]),
            ("model.layers.2.codes", F8_E4M3, &[65, 33]),
            ("model.layers.2.short_codes", F8_E5M2, &[129]),
            ("model.layers.2.wide", F64, &[3, 21_846]),
            ("model.steps", I64, &[3]),
            ("model.flags", BOOL, &[7]),
            ("model.nibbles", F4, &[6]),
            ("head.weight", BF16, &[2049, 33]),
        ];
        let family = Arc::new(Family::new(quick_folder(), specs, 3, 7));
        *shared = Arc::downgrade(&family);
        family
    })
}

/// The least budget that does, from what the refusal of a smaller one says.
fn least_budget(family: &Family, recipe: &Path) -> u64 {
    let error = Run { budget: 1, ..Run::default() }.plan(recipe).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let text = error.to_string();
    assert!(family.members[0].iter().any(|t| text.contains(&format!("`{}`", t.name))), "no tensor is named: {text}");
    let hint = error.hints().join(" ");
    let mib = hint.split_once("--memory-budget ").and_then(|(_, rest)| rest.split_once("MiB")).unwrap().0;
    mib.parse::<u64>().unwrap() * MIB
}

/// Merges in many ways, or in `few`, and fails where a digest differs.
fn check(family: &Family, name: &str, text: &Text, few: bool) {
    let recipe = family.recipe(name, &text.yaml());
    let folder = quick_folder();
    let reference = folder.path().join("reference");
    let merged = Run::default().merge(&recipe, &reference);
    merged.unwrap_or_else(|e| panic!("{name}: {e} {:?}\n{}", e.hints(), text.yaml()));
    assert_whole(&reference);
    let expected = digests(&reference);
    assert_eq!(expected.len(), family.members[0].len());
    let least = least_budget(family, &recipe);
    assert!(Run { budget: least - MIB, ..Run::default() }.plan(&recipe).is_err(), "{name}: less than the least does");
    let middle = (64 * MIB).max(least + MIB);
    let (tiny, large, much) = (1, 5_000_000_000, 2048 * MIB);
    let ways = [
        (5, least, tiny, true),
        (1, middle, large, false),
        (2, middle, 100_000, true),
        (5, middle, tiny, false),
        (1, much, tiny, false),
        (2, much, tiny, false),
        (5, much, large, true),
        (1, least, large, false),
    ];
    for (i, (threads, budget, shard_bytes, unmapped)) in ways.into_iter().enumerate().take(if few { 2 } else { 8 }) {
        let out = folder.path().join(format!("out-{i}"));
        let run = Run { threads, budget, shard_bytes, unmapped, ..Run::default() };
        run.merge(&recipe, &out).unwrap_or_else(|e| panic!("{name} with {run:?}: {e}"));
        for (tensor, digest) in &digests(&out) {
            assert_eq!(digest, &expected[tensor], "{name}: `{tensor}` with {run:?}");
        }
        assert_eq!(digests(&out).len(), expected.len());
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn every_method_gives_the_same_bytes_in_every_way() {
    let family = family();
    for method in methods() {
        check(&family, method.name, &Text::of(method), false);
    }
}

#[test]
fn every_granularity_gives_the_same_bytes_in_every_way() {
    let family = family();
    let stage = find("lwptv").unwrap();
    let words = |name: &str| {
        let kind = stage.parameters.iter().find(|p| p.name == name).unwrap().kind;
        let ParamKind::Choice(words) = kind else { panic!("{name} is a choice") };
        words
    };
    let behind: Vec<_> = staged_methods().collect();
    let (scores, rescales) = (words("score"), words("rescale"));
    let mut count = 0;
    for granularity in words("granularity") {
        for rescale in [rescales[0], rescales[1 + count % (rescales.len() - 1)]] {
            // Methods and scores take turns, so that each stands with several of the others.
            let (method, score) = (behind[count % behind.len()], scores[(count * 2 + 1) % scores.len()]);
            let stage = format!("granularity: {granularity}, score: {score}, keep: 0.5, rescale: {rescale}");
            check(&family, &format!("lwptv-{count}"), &Text::of(method).lwptv(&stage), rescale != rescales[0]);
            count += 1;
        }
    }
}

#[test]
fn two_stages_give_the_same_bytes_in_every_way() {
    let stages = Text::plain("ties", 3)
        .set("density", "0.5")
        .lwptv("granularity: tensor, keep: 0.7, rescale: l1, score: agreement")
        .lwptv("granularity: element, keep: 0.6, score: relative, rescale: l2")
        .lwptv("granularity: column, keep: 0.8, order: keep_redundant");
    check(&family(), "stages", &stages, false);
}

#[test]
fn every_output_dtype_gives_the_same_bytes_in_every_way() {
    let family = family();
    for (name, _) in merganser::dtype::RECIPE_DTYPES {
        let text = Text::plain("ties", 2).set("density", "0.3").more(&format!("out_dtype: {name}"));
        check(&family, &format!("as-{name}"), &text, true);
    }
}

#[test]
fn a_process_whose_address_space_cannot_hold_the_sources_gives_the_same_bytes() {
    let (family, folder) = (family(), quick_folder());
    // Each model drags 4 GiB of nothing along, which no address space of 1.5 GiB can map.
    let ballast = Tensor { name: "ballast".into(), dtype: U8, shape: vec![4 << 30], bytes: Vec::new() };
    for (i, tensors) in family.members.iter().take(3).enumerate() {
        let name = crate::support::family::name(i);
        let extra = (i > 0).then_some(&ballast);
        write_folder(&folder.path().join(name), &tensors.iter().chain(extra).cloned().collect::<Vec<_>>(), 1);
    }
    for method in ["ties", "cart"] {
        let spec = find(method).unwrap();
        let text = Text::of(spec).models(&[1, 2]).more("copy: [ballast]");
        let recipe = folder.path().join(format!("{method}.yaml"));
        std::fs::write(&recipe, text.yaml()).unwrap();
        let (free, tight) = (folder.path().join("free"), folder.path().join("tight"));
        child::run(&recipe, &free, &["--threads", "2", "--overwrite"]).expect(0, &[]);
        let args = ["--threads", "2", "--memory-budget", "64MiB", "--overwrite", "-v"];
        child::run_limited(&recipe, &tight, &args, "-v 1500000").expect(0, &["cannot map, reading instead"]);
        assert_eq!(digests(&free), digests(&tight), "{method}");
    }
}

#[test]
fn the_seed_matters_to_random_masks_and_to_nothing_else() {
    let (family, folder) = (family(), quick_folder());
    for (method, is_random) in [("dare_linear", true), ("ties", false)] {
        let recipe = family.recipe(&format!("seed-{method}"), &Text::of(find(method).unwrap()).yaml());
        let of = |seed: u64| {
            let out = folder.path().join(format!("{method}-{seed}"));
            Run { seed, ..Run::default() }.merge(&recipe, &out).unwrap();
            digests(&out)
        };
        assert_eq!(of(0) != of(1), is_random, "{method}");
    }
}
