//! `--eval`: a command's number for every output, and which outputs are kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::super::settings::Point;
use super::table::SCORES;
use crate::engine::{Candidate, Stop};
use crate::error::{Error, Result};

/// Scores of outputs by the names of their folders; `None` where the command failed. Kept in DIR, so that a sweep that goes on knows them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Scores {
    /// The command.
    command: String,
    /// Of what each output is made, by its plan's fingerprint.
    plans: BTreeMap<String, String>,
    minimize: bool,
    scores: BTreeMap<String, Option<f64>>,
}

impl Scores {
    /// Those of an earlier run of the same sweep in this folder, where it is to be gone on with; or none.
    pub fn read(folder: &Path, command: Option<&str>, minimize: bool, goes_on: bool, candidates: &[Candidate]) -> Self {
        let Some(command) = command else { return Self::default() };
        let name = |c: &Candidate| c.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let plans: BTreeMap<String, String> =
            candidates.iter().map(|c| (name(c), c.plan.fingerprint().digest().to_owned())).collect();
        let found: Option<Self> =
            fs::read(folder.join(SCORES)).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let is_this =
            |found: &Self| (found.command.as_str(), found.minimize, &found.plans) == (command, minimize, &plans);
        let none = || Self { command: command.into(), plans: plans.clone(), minimize, scores: BTreeMap::new() };
        found.filter(|found| goes_on && is_this(found)).unwrap_or_else(none)
    }

    /// Whether an output need not be made: it was judged, and may have been deleted since.
    pub fn has(&self, out: &Path) -> bool {
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.scores.get(&name).is_some_and(Option::is_some) || (self.scores.contains_key(&name) && !out.exists())
    }

    /// The score of an output.
    pub fn of(&self, name: &str) -> Option<f64> {
        self.scores.get(name).copied().flatten()
    }

    /// The best point; of equal ones the first.
    pub fn best(&self, points: &[Point]) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (i, point) in points.iter().enumerate() {
            let Some(score) = self.of(&point.name) else { continue };
            if best.is_none_or(|(_, so_far)| if self.minimize { score < so_far } else { score > so_far }) {
                best = Some((i, score));
            }
        }
        best.map(|(i, _)| i)
    }

    /// Asks the command for every output that has no score yet. An output goes as soon as another is known to be better.
    pub fn evaluate(&mut self, command: &str, folder: &Path, points: &[Point], stop: &Stop) -> Result<()> {
        for point in points {
            if let Some(error) = stop.error() {
                return Err(error);
            }
            if self.of(&point.name).is_none() {
                let score = score(command, &folder.join(&point.name))?;
                if let Some(error) = stop.error() {
                    return Err(error);
                }
                self.scores.insert(point.name.clone(), score);
                self.write(folder)?;
            }
            self.tidy(folder, points)?;
        }
        Ok(())
    }

    /// Deletes outputs that have a score and are not the best.
    fn tidy(&self, folder: &Path, points: &[Point]) -> Result<()> {
        let best = self.best(points);
        for (i, point) in points.iter().enumerate() {
            let out = folder.join(&point.name);
            if self.of(&point.name).is_some() && best != Some(i) && out.exists() {
                crate::output::remove_output(&out)?;
            }
        }
        Ok(())
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::internal(format!("scores: {e}")))?;
        super::table::write_file(folder, SCORES, &(text + "\n"))
    }
}

/// What a command says of an output: the last number on its stdout. A command that fails, or says none, is told and gives none.
fn score(command: &str, out: &Path) -> Result<Option<f64>> {
    // The folder is an argument of its own, whatever its name.
    let shell = format!("{command} \"$1\"");
    let mut asked = Command::new("sh");
    asked.arg("-c").arg(&shell).arg("sh").arg(out).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = asked.output().map_err(|e| Error::io("run `sh` for --eval", &e))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let out = out.display();
    if !output.status.success() {
        tracing::warn!("--eval of `{out}` ended with {}: it has no score", output.status);
        return Ok(None);
    }
    let number = |word: &str| word.parse::<f64>().ok().filter(|n| n.is_finite());
    let last = said.split(|c: char| c.is_whitespace() || ",;=()[]".contains(c)).rev().find_map(number);
    if last.is_none() {
        tracing::warn!("--eval of `{out}` printed no number: it has no score");
    }
    Ok(last)
}
