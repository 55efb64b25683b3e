//! The table of a sweep, for spreadsheets.

use std::fs;
use std::path::Path;

use super::super::settings::{Point, Setting};
use super::evaluate::Scores;
use crate::error::{Error, Result};

/// The table's name in DIR.
pub(super) const CSV: &str = "sweep.csv";
/// Where scores are kept.
pub(super) const SCORES: &str = "sweep.json";
/// Names of files of a sweep in DIR.
pub(super) const NAMES: [&str; 6] = [CSV, SCORES, super::plot::SVG, "sweep.csv.new", "sweep.json.new", "sweep.svg.new"];

/// Writes a line for every combination: its folder, its values, its score.
pub(super) fn write(folder: &Path, settings: &[Setting], points: &[Point], scores: &Scores) -> Result<()> {
    let keys = settings.iter().map(|setting| cell(&setting.key));
    let mut text = ["out".into()].into_iter().chain(keys).chain(["score".into()]).collect::<Vec<_>>().join(",") + "\n";
    for point in points {
        let score = scores.of(&point.name).map(|score| score.to_string()).unwrap_or_default();
        let values = point.values.iter().map(|value| cell(value));
        let cells: Vec<String> = [cell(&point.name)].into_iter().chain(values).chain([score]).collect();
        text += &(cells.join(",") + "\n");
    }
    write_file(folder, CSV, &text)
}

/// Writes a file of a sweep; it is there whole, or as it was.
pub(super) fn write_file(folder: &Path, name: &str, text: &str) -> Result<()> {
    let (path, draft) = (folder.join(name), folder.join(format!("{name}.new")));
    fs::write(&draft, text)
        .and_then(|()| fs::rename(&draft, &path))
        .map_err(|e| Error::io(format_args!("write `{}`", path.display()), &e))
}

/// A cell, in quotes where it needs them.
fn cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}
