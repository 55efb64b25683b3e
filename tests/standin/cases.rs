//! Small merges of one tensor each, on one lane: the calls of the driver come in the same order every time, so that the n-th
//! can be told from outside.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use merganser::dtype::Dtype::{self, *};
use serde_json::Value;

use crate::cuda_support::stand_in;
use crate::merge_support::child;
use crate::merge_support::family::Family;
use crate::merge_support::quick_folder;
use crate::merge_support::recipes::Text;

/// What a merge takes at most before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// A recipe, the shape of its one tensor, and more arguments.
pub type Recipe = (&'static str, Dtype, &'static [u64], fn() -> Text, &'static [&'static str]);

/// Between them these use every kind of step. What is streamed comes in seven chunks, through buffers and slots used again.
pub const RECIPES: &[Recipe] = &[
    ("task_arithmetic", BF16, &[20, 33], || Text::plain("task_arithmetic", 2), &[]),
    ("streamed", BF16, &[458_753], || Text::plain("task_arithmetic", 2), &["--device-memory", "2500KiB"]),
    ("ties", BF16, &[45, 67], || Text::plain("ties", 2).set("density", "0.3"), &[]),
    ("dare_ties", BF16, &[45, 67], || Text::plain("dare_ties", 2).set("density", "0.4"), &[]),
    ("dare_linear", F32, &[45, 67], || Text::plain("dare_linear", 2).set("density", "0.4"), &[]),
    ("slerp", F32, &[70_001], || Text::plain("slerp", 1).set("t", "0.3"), &[]),
    (
        "rows",
        F32,
        &[37, 150],
        || Text::plain("task_arithmetic", 2).lwptv("keep: 0.5, granularity: row, rescale: l1"),
        &[],
    ),
    ("columns", F32, &[37, 150], || Text::plain("task_arithmetic", 2).lwptv("keep: 0.5, granularity: column"), &[]),
    (
        "elements",
        F32,
        &[45, 67],
        || Text::plain("task_arithmetic", 3).lwptv("keep: 0.5, granularity: element, score: agreement, rescale: l2"),
        &[],
    ),
    ("cart", F32, &[70, 93], || Text::plain("cart", 3).set("rank", "3"), &[]),
];

/// A merge and what is right about it.
pub struct Case {
    pub name: &'static str,
    family: Family,
    recipe: PathBuf,
    args: Vec<&'static str>,
    /// What the manifest says of the tensors after a merge in which nothing is wrong.
    pub right: Value,
    /// What that merge asked of the driver.
    pub report: Value,
}

/// How a merge ended.
pub struct Ended {
    /// `None` if it hung, or was killed.
    pub code: Option<i32>,
    pub stderr: String,
    /// What the manifest says of the tensors: digests, facts, counts of what is not finite. Null without an output.
    pub tensors: Value,
    /// The stand-in's report.
    pub report: Value,
}

impl Case {
    /// The case of that name; `None`, with the reason said, without the stand-in.
    pub fn of(name: &str) -> Option<Self> {
        stand_in(name)?;
        let (name, dtype, shape, text, args) = RECIPES.iter().find(|recipe| recipe.0 == name).unwrap();
        let family = Family::new(quick_folder(), &[("model.layers.0.mlp.w", *dtype, shape)], text().models.len(), 7);
        let recipe = family.recipe("case", &text().yaml());
        let mut case = Self { name, family, recipe, args: args.to_vec(), right: Value::Null, report: Value::Null };
        let ended = case.run("right", &[("SEED", "0")], &[]);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        (case.right, case.report) = (ended.tensors, ended.report);
        Some(case)
    }

    /// Merges into the folder `out`, with these variables of the stand-in's and these arguments besides.
    pub fn run(&self, out: &str, variables: &[(&str, &str)], args: &[&str]) -> Ended {
        let folder = self.family.path(out);
        let report = self.family.path(&format!("{out}.json"));
        let mut command =
            child::command(&self.recipe, &folder, &[&["--device", "cuda"], &self.args[..], args].concat(), None);
        for name in ["SEED", "FAIL", "SABOTAGE"] {
            command.env_remove(format!("MERGANSER_STANDIN_{name}"));
        }
        command.env("MERGANSER_STANDIN_REPORT", &report);
        command.envs(variables.iter().map(|(name, value)| (format!("MERGANSER_STANDIN_{name}"), *value)));
        let mut running = command.spawn().unwrap();
        let started = Instant::now();
        if child::wait_until(&mut running, || started.elapsed() > PATIENCE) {
            running.kill().unwrap();
        }
        let ended = child::end(running);
        let json = |path: PathBuf| {
            let text = std::fs::read_to_string(path).ok();
            text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
        };
        let mut tensors = json(folder.join("merganser.json"))["tensors"].take();
        // A merge that went on with less memory may have gone on on the CPU.
        for tensor in tensors.as_array_mut().into_iter().flatten() {
            if let Some(facts) = tensor["facts"].as_object_mut() {
                facts.retain(|name, _| name != "computed_on" && name != "why_there");
            }
        }
        Ended { code: ended.code(), stderr: ended.stderr, tensors, report: json(report) }
    }

    /// Removes what a merge into `out` left.
    pub fn remove(&self, out: &str) {
        let folder = self.family.path(out);
        let _ = std::fs::remove_dir_all(crate::merge_support::partial(&folder));
        let _ = std::fs::remove_dir_all(folder);
    }

    /// How many calls of a kind the right merge made.
    pub fn count(&self, kind: &str) -> u64 {
        self.report[kind].as_u64().unwrap_or_else(|| panic!("no {kind} in {}", self.report))
    }
}
