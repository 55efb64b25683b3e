//! Heat maps as tables, with the number in every cell.

use maud::{Markup, html};

use super::scale::{Kind, Scale};
use crate::checkpoint::escaped;

/// A table of numbers.
pub(super) struct Heat<'a> {
    /// What a screen reader says of it.
    pub caption: String,
    pub kind: Kind,
    /// What the rows are: a word for the corner.
    pub corner: &'a str,
    pub columns: &'a [Name],
    pub rows: Vec<Row>,
}

/// A name as it stands in a narrow place, and in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub short: String,
    pub full: String,
}

impl Name {
    /// The same for both; safe to read.
    pub fn of(name: &str) -> Self {
        Self { short: escaped(name), full: escaped(name) }
    }
}

/// A row of numbers.
pub(super) struct Row {
    pub name: Name,
    pub cells: Vec<Option<f64>>,
    /// The share of all elements that it is about.
    pub weight: f64,
    /// Whether it sums up the others: shown apart, and not part of the scale.
    pub is_total: bool,
}

impl Heat<'_> {
    /// The legend and the table.
    pub fn render(&self) -> Markup {
        let own = self.rows.iter().filter(|row| !row.is_total || self.kind == Kind::Part);
        let weighted = own.flat_map(|row| row.cells.iter().flatten().map(|value| (*value, row.weight)));
        let scale = Scale::of(self.kind, &weighted.collect::<Vec<_>>());
        html! {
            (legend(scale))
            div.scroll {
                table {
                    caption { (self.caption) }
                    thead { tr {
                        th scope="col" { (self.corner) }
                        @for column in self.columns { th scope="col" title=(column.full) { (column.short) } }
                    } }
                    tbody {
                        @for row in &self.rows {
                            tr class=[row.is_total.then_some("total")] {
                                th scope="row" title=[(row.name.full != row.name.short).then_some(&row.name.full)] {
                                    (row.name.short)
                                }
                                @for (cell, column) in row.cells.iter().zip(self.columns) {
                                    (self.cell(*cell, scale, row, column))
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn cell(&self, cell: Option<f64>, scale: Scale, row: &Row, column: &Name) -> Markup {
        let unit = if self.kind.is_percent() { " %" } else { "" };
        let what = |text: &str| format!("{}, {}: {text}", row.name.full, column.full);
        html! {
            @match cell {
                None if row.name == *column => td.none title=(what("the same")) { "–" },
                None => td.none title=(what("not defined")) { "–" },
                Some(value) if row.is_total && self.kind != Kind::Part => {
                    @let text = self.kind.text(value);
                    td title=(what(&format!("{text}{unit}"))) { (text) }
                },
                Some(value) => {
                    @let text = self.kind.text(value);
                    td class=(scale.class(value)) title=(what(&format!("{text}{unit}"))) { (text) }
                },
            }
        }
    }
}

fn legend(scale: Scale) -> Markup {
    let (low, high) = scale.ends();
    html! {
        div.legend {
            span { (low) }
            span.bar aria-hidden="true" { @for class in scale.legend() { i class=(class) {} } }
            span { (high) }
        }
    }
}
