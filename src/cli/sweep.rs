//! `merganser sweep`.

mod evaluate;
mod plot;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::document::{Document, absolute};
use super::log::Log;
use super::print::count;
use super::progress::{ProgressArgs, State};
use super::settings::{Point, Setting, points};
use super::{DeviceArgs, JsonFlag, PlanArgs, setup};
use crate::backend::device::Device;
use crate::engine::{self, Candidate, Done, Progress, Stop};
use crate::error::{Cause, Error, Result};
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::units::format_bytes;
use evaluate::Scores;

/// The most outputs that are made from one reading.
const MOST_TOGETHER: usize = 32;

/// Merge a recipe with many settings, from one reading of the sources
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser sweep recipe.yaml --set parameters.lambda=0.2:1.0:0.1 -o models
  merganser sweep recipe.yaml --set parameters.lambda=0.2:1.0:0.2 --set models.0.parameters.weight=1,2 -o models
  merganser sweep recipe.yaml --set parameters.lambda=0.2:1.0:0.1 -o models --eval ./score.sh

Every combination becomes an output of its own, DIR/lambda=0.2 and so on, with the bytes that `merge` gives. Combinations that differ \
in lambda or in weights that only the last step uses share one reading and one decomposition.")]
pub(super) struct Sweep {
    #[command(flatten)]
    plan: PlanArgs,
    /// Values for a place in the recipe: FROM:TO:STEP with TO included, or VALUE,VALUE,…. Lists count from 0:
    /// models.0.parameters.weight. Several make every combination
    #[arg(long = "set", value_name = "KEY=VALUES", required = true)]
    settings: Vec<String>,
    /// The folder of the outputs; must not exist or be empty unless --overwrite or --resume
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// A command, run by sh with an output's folder as its last argument; the last number that it prints is the output's score. The best
    /// output is kept, the others are deleted; sweep.csv and sweep.svg show all
    #[arg(long, value_name = "COMMAND")]
    eval: Option<String>,
    /// The smallest score is the best
    #[arg(long, requires = "eval")]
    minimize: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Go on with an interrupted sweep into DIR; start where there is none
    #[arg(long)]
    resume: bool,
    /// Replace outputs of an earlier sweep in DIR, each once its new one is complete
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    json: JsonFlag,
}

impl Sweep {
    pub fn run(self, log: &Log) -> Result<u8> {
        let (settings, points) = points(&self.settings)?;
        let stop = setup::signals()?;
        crate::checkpoint::install_bus_handler()?;
        let device = self.device.choose()?;
        let text = self.text()?;
        let mut warnings = Vec::new();
        // Every mistake of any combination is found before anything is written.
        let mut candidates = self.candidates(&text, &settings, &points, &mut warnings)?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let device = device.suited_to(candidates.iter().any(|c| c.plan.decomposes_on_devices()))?;
        self.check_folder(&points)?;
        fs::create_dir_all(&self.out)
            .map_err(|e| Error::io(format_args!("make the folder `{}`", self.out.display()), &e))?;
        let mut scores = Scores::read(&self.out, self.eval.as_deref(), self.minimize, self.resume, &candidates);
        let progress = Progress::default();
        let total: u64 = candidates.iter().map(|c| c.plan.read_bytes() + c.plan.layout.data_bytes()).sum();
        let groups = groups(&mut candidates, &device);
        let shared: u64 =
            groups.iter().map(|group| group.iter().skip(1).map(|c| c.plan.read_bytes()).sum::<u64>()).sum();
        let readings = groups.len();
        let note = |progress: &Progress| format!("{} tensors of {} outputs", progress.tensors(), points.len());
        let state = || State {
            bytes: progress.read_bytes() + progress.written_bytes(),
            of: (total - shared).saturating_sub(progress.skipped_bytes()),
            note: if stop.signal().is_some() { "stopping (^C: at once)".into() } else { note(&progress) },
        };
        let merge = || self.merge(groups, &device, &scores, &progress, &stop);
        let done = self.progress.during(log, state, merge)?;
        for notes in done.iter().flatten().map(|done| &done.notes) {
            for note in notes.iter().filter(|note| !warnings.contains(note)).collect::<Vec<_>>() {
                tracing::warn!("{note}");
            }
        }
        warnings.extend(notes_of(&done, &warnings));
        let bytes_read = progress.read_bytes();
        if let Some(command) = &self.eval {
            scores.evaluate(command, &self.out, &points, &stop)?;
        }
        table::write(&self.out, &settings, &points, &scores)?;
        if self.eval.is_some() {
            plot::write(&self.out, &settings, &points, &scores)?;
        }
        let document = self.document(&settings, &points, &scores, readings, bytes_read, progress.written_bytes());
        let words = in_words(&document);
        if self.eval.is_some() && document.best.is_none() {
            let error = Error::input(format!("`--eval` gave no score for any of {} outputs", points.len()));
            return Err(error.because(Cause::Usage).hint("the command's own messages are above; the outputs are kept"));
        }
        self.json.tell(log, warnings, document, &words)
    }

    /// The recipe's text.
    fn text(&self) -> Result<String> {
        let path = &self.plan.recipe;
        if path == Path::new("-") {
            return Recipe::read_text(std::io::stdin().lock(), &self.recipe_path());
        }
        let file = fs::File::open(path)
            .map_err(|e| Error::io(format_args!("read the recipe `{}`", path.display()), &e).input_is(Cause::Recipe))?;
        Recipe::read_text(file, path)
    }

    fn recipe_path(&self) -> PathBuf {
        if self.plan.recipe == Path::new("-") { "<stdin>".into() } else { self.plan.recipe.clone() }
    }

    /// A plan for every combination. Warnings are told once.
    fn candidates(
        &self,
        text: &str,
        settings: &[Setting],
        points: &[Point],
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Candidate>> {
        let mut candidates: Vec<Candidate> = Vec::with_capacity(points.len());
        let path = self.recipe_path();
        for point in points {
            let values: Vec<(&str, &str)> =
                settings.iter().map(|s| s.key.as_str()).zip(point.values.iter().map(String::as_str)).collect();
            let said = |error: Error| error.within(&format!("with {}", point.name));
            let recipe = Recipe::parse_with(text, &path, &values).map_err(said)?;
            let of_recipe = recipe.warnings.clone();
            if self.plan.strict && !of_recipe.is_empty() {
                return Err(Error::input(of_recipe.join("\n"))
                    .because(Cause::Recipe)
                    .hint("without --strict these are warnings"));
            }
            if let Some(warning) = of_recipe.iter().find(|warning| settings.iter().any(|s| is_idle(s, warning))) {
                return Err(
                    said(Error::input(warning.clone()).because(Cause::Recipe)).hint("a sweep sets what matters")
                );
            }
            let mut plan = Plan::new(recipe, self.plan.options()).map_err(said)?;
            let same = |other: &Candidate| other.plan.fingerprint().digest() == plan.fingerprint().digest();
            if let Some(at) = candidates.iter().position(same) {
                let message = format!("--set: {} and {} are the same merge", points[at].name, point.name);
                return Err(Error::input(message).because(Cause::Usage).hint("give values that differ"));
            }
            for warning in of_recipe.into_iter().chain(plan.warnings.clone()) {
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
            if let Some(first) = candidates.first()
                && first.plan.is_made_with(&plan)
            {
                // The same files, opened once.
                plan.sources.clone_from(&first.plan.sources);
            }
            candidates.push(Candidate { plan, out: self.out.join(&point.name) });
        }
        Ok(candidates)
    }

    /// Refuses a folder with anything in it that is not of this sweep, or with anything at all without an option that allows it.
    fn check_folder(&self, points: &[Point]) -> Result<()> {
        let shown = self.out.display();
        let entries = match fs::read_dir(&self.out) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(format_args!("look into `{shown}`"), &e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(format_args!("look into `{shown}`"), &e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let of_point = |point: &Point| {
                let rest = name.strip_prefix(&point.name);
                rest.is_some_and(|rest| matches!(rest, "" | ".merganser-partial" | ".merganser-old"))
            };
            let is_ours = table::NAMES.contains(&name.as_str()) || points.iter().any(of_point);
            if !is_ours || !(self.resume || self.overwrite) {
                let message = format!("`{shown}` is not empty: it holds `{name}`");
                let hint = if is_ours {
                    "`--resume` goes on with the sweep in it, `--overwrite` replaces its outputs"
                } else {
                    "give a folder of its own to `-o`"
                };
                return Err(Error::input(message).because(Cause::Usage).hint(hint));
            }
        }
        Ok(())
    }

    /// Makes all outputs that are still needed.
    fn merge(
        &self,
        groups: Vec<Vec<Candidate>>,
        device: &Device,
        scores: &Scores,
        progress: &Progress,
        stop: &Stop,
    ) -> Result<Vec<Option<Done>>> {
        let mut all = Vec::new();
        for mut group in groups {
            group.retain(|candidate| !scores.has(&candidate.out));
            if device.cuda.is_empty() {
                let done = engine::merge_together(&mut group, self.resume, self.overwrite, progress, stop)?;
                all.extend(done.into_iter().map(Some));
                continue;
            }
            for Candidate { plan, out } in &mut group {
                let (resume, overwrite, device_memory) = (self.resume, self.overwrite, self.device.device_memory);
                let target = engine::Target { out, resume, overwrite, device_memory };
                all.push(Some(engine::merge_on_devices(plan, device, target, progress, stop)?));
            }
        }
        Ok(all)
    }

    fn document(
        &self,
        settings: &[Setting],
        points: &[Point],
        scores: &Scores,
        readings: usize,
        bytes_read: u64,
        bytes_written: u64,
    ) -> SweepDocument {
        let best = scores.best(points);
        let point = |(i, point): (usize, &Point)| SweepPoint {
            values: settings.iter().zip(&point.values).map(|(s, v)| (s.key.clone(), v.clone())).collect(),
            out: absolute(&self.out.join(&point.name)),
            score: scores.of(&point.name),
            kept: self.eval.is_none() || best.is_none() || best == Some(i),
        };
        SweepDocument {
            out: absolute(&self.out),
            best: best.map(|i| absolute(&self.out.join(&points[i].name))),
            points: points.iter().enumerate().map(point).collect(),
            table: absolute(&self.out.join(table::CSV)),
            plot: self.eval.as_ref().map(|_| absolute(&self.out.join(plot::SVG))),
            totals: SweepTotals { outputs: points.len(), readings, bytes_read, bytes_written },
        }
    }
}

/// Whether a warning says that a key that is set has no effect.
fn is_idle(setting: &Setting, warning: &str) -> bool {
    let key = setting.key.rsplit('.').next().unwrap_or(&setting.key);
    warning.contains(&format!("`{key}`")) && warning.contains("has no effect")
}

/// Candidates that are made together, in the order of their first.
fn groups(candidates: &mut Vec<Candidate>, device: &Device) -> Vec<Vec<Candidate>> {
    let mut groups: Vec<Vec<Candidate>> = Vec::new();
    for candidate in candidates.drain(..) {
        let fits = |group: &&mut Vec<Candidate>| {
            let first = group.first();
            group.len() < MOST_TOGETHER
                && device.cuda.is_empty()
                && first.is_some_and(|first| first.plan.is_made_with(&candidate.plan))
        };
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(candidate),
            None => groups.push(vec![candidate]),
        }
    }
    groups
}

/// What merges had to say that was not told before.
fn notes_of(done: &[Option<Done>], told: &[String]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for note in done.iter().flatten().flat_map(|done| &done.notes) {
        if !told.contains(note) && !notes.contains(note) {
            notes.push(note.clone());
        }
    }
    notes
}

/// The document of a sweep.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct SweepDocument {
    /// The folder of the outputs, absolute.
    out: String,
    /// The best output's folder, absolute; null without --eval.
    best: Option<String>,
    /// Every combination.
    points: Vec<SweepPoint>,
    /// The table of all combinations, absolute.
    table: String,
    /// The plot of their scores, absolute; null without --eval.
    plot: Option<String>,
    totals: SweepTotals,
}

/// One combination of a sweep.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct SweepPoint {
    /// What stands at each key, as YAML.
    values: std::collections::BTreeMap<String, String>,
    /// The output's folder, absolute.
    out: String,
    /// What --eval's command said of it; null without one, and where it failed.
    score: Option<f64>,
    /// Whether the output is there: with --eval only the best one is.
    kept: bool,
}

/// Sums over a sweep.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct SweepTotals {
    outputs: usize,
    /// How often the sources were read: once for all outputs that could share it.
    readings: usize,
    /// Bytes read of the sources, by this run.
    bytes_read: u64,
    /// Bytes written of tensors, by this run.
    bytes_written: u64,
}

impl Document for SweepDocument {
    const COMMAND: &'static str = "sweep";
}

fn in_words(document: &SweepDocument) -> String {
    let SweepTotals { outputs, readings, bytes_read, bytes_written } = document.totals;
    let mut text = format!(
        "{} in {}, from {}: {} read, {} written\n",
        count(outputs as u64, "output"),
        document.out,
        count(readings as u64, "reading"),
        format_bytes(bytes_read),
        format_bytes(bytes_written),
    );
    if let Some(best) = &document.best {
        let score = document.points.iter().find(|point| point.out == *best).and_then(|point| point.score);
        text += &format!("best: {best} ({})\n", score.unwrap_or(f64::NAN));
    }
    text
}
