//! Small merges, each of one step's work after another: the calls of the driver come in the same order every time, so that the
//! n-th can be told from outside.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use merganser::dtype::Dtype::{self, *};
use serde_json::Value;

use crate::both::stand_in;
use crate::support::child;
use crate::support::family::Family;
use crate::support::quick_folder;
use crate::support::recipes::Text;

/// What a merge takes at most before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// A recipe and what it merges.
pub struct Recipe {
    pub name: &'static str,
    dtype: Dtype,
    shape: &'static [u64],
    /// Tensors of that shape: of matrices that are decomposed together, more than one.
    layers: usize,
    text: fn() -> Text,
    args: &'static [&'static str],
    /// Whether cuSOLVER has `XsyevBatched`.
    has_batched: bool,
    /// Whether a merge that went on on the CPU has other bytes.
    pub is_low_rank: bool,
}

const fn recipe(name: &'static str, dtype: Dtype, shape: &'static [u64], text: fn() -> Text) -> Recipe {
    Recipe { name, dtype, shape, layers: 1, text, args: &[], has_batched: true, is_low_rank: false }
}

const fn low_rank(name: &'static str, shape: &'static [u64], text: fn() -> Text) -> Recipe {
    Recipe { is_low_rank: true, ..recipe(name, F32, shape, text) }
}

/// Between them these use every kind of step. What is streamed comes in seven chunks, through buffers and slots used again.
pub const RECIPES: &[Recipe] = &[
    recipe("task_arithmetic", BF16, &[20, 33], || Text::plain("task_arithmetic", 2)),
    Recipe {
        args: &["--device-memory", "2500KiB"],
        ..recipe("streamed", BF16, &[458_753], || Text::plain("task_arithmetic", 2))
    },
    recipe("ties", BF16, &[45, 67], || Text::plain("ties", 2).set("density", "0.3")),
    recipe("dare_ties", BF16, &[45, 67], || Text::plain("dare_ties", 2).set("density", "0.4")),
    recipe("dare_linear", F32, &[45, 67], || Text::plain("dare_linear", 2).set("density", "0.4")),
    recipe("ramplus_tl", BF16, &[45, 67], || Text::plain("ramplus_tl", 2)),
    recipe("slerp", F32, &[70_001], || Text::plain("slerp", 1).set("t", "0.3")),
    recipe("rows", F32, &[37, 150], || {
        Text::plain("task_arithmetic", 2).lwptv("keep: 0.5, granularity: row, rescale: l1")
    }),
    recipe("columns", F32, &[37, 150], || Text::plain("task_arithmetic", 2).lwptv("keep: 0.5, granularity: column")),
    recipe("elements", F32, &[45, 67], || {
        Text::plain("task_arithmetic", 3).lwptv("keep: 0.5, granularity: element, score: agreement, rescale: l2")
    }),
    low_rank("cart", &[70, 93], || Text::plain("cart", 3).set("rank", "3")),
    Recipe { layers: 3, ..low_rank("cart_of_layers", &[19, 26], || Text::plain("cart", 2).set("rank", "3")) },
    Recipe { has_batched: false, ..low_rank("cart_singly", &[26, 19], || Text::plain("cart", 3).set("rank", "3")) },
    low_rank("tsv_m", &[16, 23], || Text::plain("tsv_m", 2)),
    low_rank("iso_cts", &[23, 16], || Text::plain("iso_cts", 2).set("common_space_fraction", "0.6")),
    // Rows without a change: singular values of which a Gram matrix holds too few digits.
    low_rank("tsv_m_of_few", &[16, 23], || Text::plain("tsv_m", 2).lwptv("keep: 0.5, granularity: row")),
    low_rank("iso_c_of_few", &[23, 16], || Text::plain("iso_c", 2).lwptv("keep: 0.5, granularity: row")),
];

/// A merge and what is right about it.
pub struct Case {
    pub name: &'static str,
    pub of: &'static Recipe,
    family: Family,
    recipe: PathBuf,
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
        let of = RECIPES.iter().find(|recipe| recipe.name == name).unwrap();
        let text = (of.text)();
        let names: Vec<String> = (0..of.layers).map(|layer| format!("model.layers.{layer}.mlp.w")).collect();
        let specs: Vec<_> = names.iter().map(|name| (name.as_str(), of.dtype, of.shape)).collect();
        let family = Family::new(quick_folder(), &specs, text.models.len(), 7);
        let recipe = family.recipe("case", &text.yaml());
        let mut case = Self { name: of.name, of, family, recipe, right: Value::Null, report: Value::Null };
        let ended = case.run("right", &[("SEED", "0")], &[]);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        (case.right, case.report) = (ended.tensors, ended.report);
        Some(case)
    }

    /// Merges into the folder `out`, with these variables of the stand-in's and these arguments besides. Nothing is audited: what
    /// is wrong is to be seen in the output.
    pub fn run(&self, out: &str, variables: &[(&str, &str)], args: &[&str]) -> Ended {
        self.run_audited(out, variables, &[args, &["--audit", "none"]].concat())
    }

    /// The same, audited as by default.
    pub fn run_audited(&self, out: &str, variables: &[(&str, &str)], args: &[&str]) -> Ended {
        let folder = self.family.path(out);
        let report = self.family.path(&format!("{out}.json"));
        let mut command =
            child::command(&self.recipe, &folder, &[&["--device", "cuda"], self.of.args, args].concat(), None);
        for name in ["SEED", "FAIL", "SABOTAGE"] {
            command.env_remove(format!("MERGANSER_STANDIN_{name}"));
        }
        command.env("MERGANSER_STANDIN_REPORT", &report);
        if !self.of.has_batched {
            command.env("LD_LIBRARY_PATH", super::without_batched());
        }
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
        let _ = std::fs::remove_dir_all(crate::support::partial(&folder));
        let _ = std::fs::remove_dir_all(folder);
    }

    /// How many calls of a kind the right merge made.
    pub fn count(&self, kind: &str) -> u64 {
        self.report[kind].as_u64().unwrap_or_else(|| panic!("no {kind} in {}", self.report))
    }
}
