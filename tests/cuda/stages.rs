//! Every option of the stage `lwptv` chooses on a CUDA device what it chooses on the CPU. Skipped where no device is there.

use merganser::dtype::Dtype::{self, *};

use crate::both::{Both, Way, devices};
use crate::support::family::Family;
use crate::support::quick_folder;
use crate::support::recipes::{Text, staged_methods};

const SPECS: &[(&str, Dtype, &[u64])] = &[
    ("model.layers.0.self_attn.q_proj.weight", F32, &[17, 33]),
    ("model.layers.0.mlp.up_proj.weight", BF16, &[24, 10]),
    ("model.layers.0.norm.weight", F16, &[33]),
    ("model.layers.1.self_attn.q_proj.weight", F64, &[9, 12]),
    ("model.layers.1.conv.weight", F32, &[6, 5, 3]),
    ("model.layers.1.scalar", F32, &[]),
    ("model.layers.1.empty", F32, &[0, 3]),
    ("head.weight", BF16, &[65, 7]),
];

#[test]
fn every_score_and_granularity() {
    let Some(device) = devices("every score and granularity") else { return };
    let family = Family::new(quick_folder(), SPECS, 3, 2);
    for granularity in ["layer", "tensor", "row", "column", "element"] {
        for score in ["magnitude", "relative", "deviation", "agreement", "tall"] {
            let text = Text::plain("task_arithmetic", 3)
                .lwptv(&format!("keep: 0.4, score: {score}, granularity: {granularity}"));
            Both::of(&family, &device, Way::default(), &format!("{granularity}-{score}"), &text).agree(&family, 0.0);
        }
    }
}

#[test]
fn every_order_and_norm_that_is_restored_and_stages_behind_each_other() {
    let Some(device) = devices("orders, norms, several stages") else { return };
    let family = Family::new(quick_folder(), SPECS, 2, 4);
    for granularity in ["layer", "row", "element"] {
        for (order, rescale) in [("keep_salient", "l1"), ("keep_redundant", "l2"), ("keep_redundant", "none")] {
            let stage = format!("keep: 0.6, order: {order}, rescale: {rescale}, granularity: {granularity}");
            let text = Text::plain("ties", 2).set("density", "0.5").lwptv(&stage);
            Both::of(&family, &device, Way::default(), &format!("{granularity}-{order}-{rescale}"), &text)
                .agree(&family, 0.0);
        }
    }
    let text = Text::plain("task_arithmetic", 2)
        .lwptv("keep: 0.7, granularity: column, rescale: l2")
        .lwptv("keep: 0.5, granularity: element, score: relative")
        .lwptv("keep: 0.5, granularity: tensor");
    Both::of(&family, &device, Way::default(), "three", &text).agree(&family, 0.0);
}

#[test]
fn a_stage_before_every_method_that_takes_one() {
    let Some(device) = devices("a stage before every method") else { return };
    let family = Family::new(quick_folder(), SPECS, 3, 8);
    for method in staged_methods() {
        for granularity in ["row", "element"] {
            let text = Text::of(method).lwptv(&format!("keep: 0.5, granularity: {granularity}, rescale: l1"));
            let both = Both::of(&family, &device, Way::default(), &format!("{}-{granularity}", method.name), &text);
            both.agree(&family, 5e-3);
        }
    }
}
