//! Scores of a sweep as a picture: over the values of one key, a line for each combination of the others.

use std::collections::BTreeMap;
use std::path::Path;

use maud::{PreEscaped, html};

use super::super::settings::{Point, Setting};
use super::evaluate::Scores;
use crate::error::Result;

/// The picture's name in DIR.
pub(super) const SVG: &str = "sweep.svg";
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
/// Left, right, top, bottom of the field of points.
const MARGINS: [f64; 4] = [70.0, 170.0, 30.0, 60.0];
/// Colours of lines, told apart by most eyes (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
const TICKS: usize = 5;

/// Draws the scores over the first key that has more than one value.
pub(super) fn write(folder: &Path, settings: &[Setting], points: &[Point], scores: &Scores) -> Result<()> {
    super::table::write_file(folder, SVG, &svg(settings, points, scores))
}

fn svg(settings: &[Setting], points: &[Point], scores: &Scores) -> String {
    let over = settings.iter().position(|setting| setting.values.len() > 1).unwrap_or_default();
    let values = &settings[over].values;
    let numbers: Option<Vec<f64>> = values.iter().map(|v| v.parse().ok().filter(|n: &f64| n.is_finite())).collect();
    // Words stand side by side.
    let places = numbers.unwrap_or_else(|| (0..values.len()).map(|i| i as f64).collect());
    let at = |point: &Point| values.iter().position(|v| *v == point.values[over]).map_or(0.0, |i| places[i]);
    let mut lines: BTreeMap<Vec<&str>, Vec<(f64, f64)>> = BTreeMap::new();
    for point in points {
        let Some(score) = scores.of(&point.name) else { continue };
        let others = (0..settings.len()).filter(|i| *i != over).map(|i| point.values[i].as_str());
        lines.entry(others.collect()).or_default().push((at(point), score));
    }
    let all = || lines.values().flatten();
    let x = Axis::of(places.iter().copied(), MARGINS[0], WIDTH - MARGINS[1]);
    let y = Axis::of(all().map(|(_, score)| *score), HEIGHT - MARGINS[3], MARGINS[2]);
    let best = scores.best(points).and_then(|i| Some((at(&points[i]), scores.of(&points[i].name)?)));
    let other_keys: Vec<&str> = settings
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != over)
        .map(|(_, s)| s.key.rsplit('.').next().unwrap_or(&s.key))
        .collect();
    let picture = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) font-family="sans-serif" font-size="12" {
            rect width="100%" height="100%" fill="#ffffff" {}
            @for score in y.ticks() {
                line x1=(MARGINS[0]) x2=(WIDTH - MARGINS[1]) y1=(y.to(score)) y2=(y.to(score)) stroke="#dddddd" {}
                text x=(MARGINS[0] - 8.0) y=(y.to(score) + 4.0) text-anchor="end" { (short(score)) }
            }
            @for (value, place) in marked(values, &places) {
                text x=(x.to(place)) y=(HEIGHT - MARGINS[3] + 18.0) text-anchor="middle" { (value) }
            }
            text x=((MARGINS[0] + WIDTH - MARGINS[1]) / 2.0) y=(HEIGHT - 14.0) text-anchor="middle" { (settings[over].key) }
            text x="14" y="18" { "score" }
            @for (i, (others, line)) in lines.iter().enumerate() {
                @let colour = COLOURS[i % COLOURS.len()];
                polyline fill="none" stroke=(colour) stroke-width="2" points=(path(line, &x, &y)) {}
                @for (at, score) in line {
                    circle cx=(x.to(*at)) cy=(y.to(*score)) r="3.5" fill=(colour) {}
                }
                @if !others.is_empty() {
                    text x=(WIDTH - MARGINS[1] + 14.0) y=(MARGINS[2] + 16.0 * (i as f64 + 1.0)) fill=(colour) {
                        (other_keys.iter().zip(others).map(|(k, v)| format!("{k} = {v}")).collect::<Vec<_>>().join(", "))
                    }
                }
            }
            @if let Some((at, score)) = best {
                circle cx=(x.to(at)) cy=(y.to(score)) r="7" fill="none" stroke="#000000" stroke-width="1.5" {}
                text x=(x.to(at)) y=(y.to(score) - 12.0) text-anchor="middle" font-weight="bold" { (short(score)) }
            }
        }
    };
    let PreEscaped(text) = picture;
    text + "\n"
}

fn path(line: &[(f64, f64)], x: &Axis, y: &Axis) -> String {
    line.iter().map(|(at, score)| format!("{:.2},{:.2}", x.to(*at), y.to(*score))).collect::<Vec<_>>().join(" ")
}

/// As many values as there is room for, with their places.
fn marked<'v>(values: &'v [String], places: &[f64]) -> Vec<(&'v str, f64)> {
    let every = values.len().div_ceil(12).max(1);
    values.iter().zip(places).step_by(every).map(|(value, place)| (value.as_str(), *place)).collect()
}

/// Four digits that tell.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    if value != 0.0 && (value.abs() < 1e-3 || value.abs() >= 1e6) { format!("{value:.3e}") } else { text }
}

/// Numbers to places on the picture.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let (least, most) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), v| (least.min(v), most.max(v)));
        // One value, or none, stands in the middle.
        let (least, most) = match () {
            () if least > most => (0.0, 1.0),
            () if least == most => (least - 0.5, most + 0.5),
            () => (least, most),
        };
        Self { least, most, from, to }
    }

    fn to(&self, value: f64) -> f64 {
        let share = (value - self.least) / (self.most - self.least);
        ((self.from + share * (self.to - self.from)) * 100.0).round() / 100.0
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + '_ {
        (0..TICKS).map(|i| self.least + (self.most - self.least) * i as f64 / (TICKS - 1) as f64)
    }
}
