//! Which numbers of a task have a heat map of layers × tasks.

use super::Page;
use super::scale::Kind;
use crate::saliency::report::TaskReport;

/// The number of a task that a cell shows.
type Cell = dyn Fn(&TaskReport) -> Option<f64>;

/// One number of a task in a place.
pub(super) struct Measure {
    pub title: String,
    pub note: String,
    pub kind: Kind,
    pub of: Box<Cell>,
}

impl Page<'_> {
    /// Everything that has a heat map of layers × tasks.
    pub fn measures(&self) -> Vec<Measure> {
        let measure = |title: &str, note: &str, kind, of: fn(&TaskReport) -> Option<f64>| Measure {
            title: title.into(),
            note: note.into(),
            kind,
            of: Box::new(of),
        };
        let mut all = vec![measure(
            "Share of the task vector's energy",
            "‖τ‖² of the layer over ‖τ‖² of the model, in percent: where a task has changed the base.",
            Kind::Share,
            |task| task.energy_share,
        )];
        for i in 0..self.report.choices.len() {
            let name = self.choice_name(i);
            all.push(Measure {
                title: format!("Pruned elements: {name}"),
                note: "Share of the elements that the stage drops, in percent.".into(),
                kind: Kind::Part,
                of: Box::new(move |task| task.pruned[i].share),
            });
            all.push(Measure {
                title: format!("Pruned energy: {name}"),
                note: "Share of ‖τ‖² that goes with them, in percent.".into(),
                kind: Kind::Part,
                of: Box::new(move |task| task.pruned[i].energy_share),
            });
        }
        let size = "Score `magnitude`";
        all.push(measure(size, "The root mean square of τ.", Kind::Size, |task| task.scores.magnitude));
        all.push(measure("Score `relative`", "‖τ‖ / ‖θ₀‖.", Kind::Size, |task| task.scores.relative));
        if self.tasks.len() < 2 {
            return all;
        }
        all.push(measure(
            "Score `deviation`",
            "‖τ − mean τ‖ / ‖θ₀‖: what is the task's own.",
            Kind::Size,
            |task| task.scores.deviation,
        ));
        all.push(measure("Score `agreement`", "(1 + cosine with R) / 2.", Kind::Agreement, |task| {
            task.scores.agreement
        }));
        all.push(measure("Score `tall`", "‖τ‖ / (‖τ‖ + ‖R‖).", Kind::Size, |task| task.scores.tall));
        all.push(measure("Cosine with the other tasks", "Between τ and R.", Kind::Signed, |task| {
            task.cosine_with_others
        }));
        all.push(measure(
            "Signs as the other tasks",
            "Share of the elements, of those where neither τ nor R is 0, whose signs are equal, in percent.",
            Kind::Agreement,
            |task| task.sign_agreement_with_others,
        ));
        all
    }
}
