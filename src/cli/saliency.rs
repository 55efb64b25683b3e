//! `merganser saliency`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::document::{Document, absolute, print_document};
use super::log::Log;
use super::print::{Align, Table, count, print};
use super::progress::{ProgressArgs, State};
use super::{JsonFlag, Threads, default_budget, load_recipe, setup, size};
use crate::error::Result;
use crate::saliency::{Choice, Format, Group, LayerReport, Options, Report, Survey, Target};
use crate::units::format_bytes;

/// Show where task vectors are salient, how they agree, and what pruning would drop
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser saliency recipe.yaml -o saliency.html
  merganser saliency recipe.yaml -o saliency.html --keep 0.8,0.6,0.4 --overwrite
  merganser saliency recipe.yaml -o saliency.json && jq '.layers[] | {name, cosine}' saliency.json

For every task, layer and tensor: the share of the task vector's energy, the scores of the stage `lwptv`, the cosine and the \
agreement of signs with every other task and with their sum, and what the recipe's stages would prune, exactly as a merge \
would. With --keep also what the last stage would prune at other shares; `lwptv` with its defaults where the recipe has no \
stage. Nothing of it depends on the recipe's method.

FILE is one page without scripts (.html), or a document (.json, \"schema\": 2); it appears once it is complete.")]
pub(super) struct Saliency {
    /// The recipe: a YAML file, or - for standard input, whose relative paths start at the current folder
    recipe: PathBuf,
    /// The report: a name that ends in .html or .json; must not exist unless --overwrite
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Shares kept, in [0, 1], to ask the last stage about; several with commas, or the option several times
    #[arg(long, value_name = "SHARE", value_delimiter = ',', value_parser = share, allow_negative_numbers = true)]
    keep: Vec<f64>,
    /// Replace FILE, once the new report is complete
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    threads: Threads,
    /// Bound on the memory that merganser allocates itself, such as 512MiB [default: a quarter of RAM, or of the limit of
    /// this job's control group]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    memory_budget: Option<u64>,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    json: JsonFlag,
}

/// The document of a survey: its whole report, and how it was made.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct SaliencyDocument {
    /// The report's file, absolute.
    out: String,
    /// `html` or `json`.
    format: &'static str,
    threads: usize,
    memory_budget: u64,
    bytes_read: u64,
    seconds: f64,
    recipe: String,
    /// The recipe's, which nothing here depends on.
    method: &'static str,
    base: String,
    /// Every list and matrix below is in their order.
    tasks: Vec<String>,
    /// Tensors with task vectors.
    compared_tensors: usize,
    /// Tensors that have none.
    copied_tensors: usize,
    /// What stages were asked; every `pruned` below answers in this order.
    choices: Vec<Choice>,
    /// Over all tensors.
    totals: Group,
    layers: Vec<LayerReport>,
}

impl Document for SaliencyDocument {
    const COMMAND: &'static str = "saliency";
}

fn share(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a share in [0, 1], such as 0.6".into()),
    }
}

impl Saliency {
    pub fn run(self, log: &Log) -> Result<u8> {
        let started = Instant::now();
        let stop = setup::signals()?;
        crate::checkpoint::install_bus_handler()?;
        // What can be said of FILE without the recipe is said first.
        Target::new(&self.out, self.overwrite, &[])?;
        let options = Options {
            threads: self.threads.get(),
            memory_budget: self.memory_budget.unwrap_or_else(default_budget),
            keep: self.keep.clone(),
        };
        let survey = Survey::new(load_recipe(&self.recipe, None)?, &options)?;
        for warning in survey.warnings() {
            tracing::warn!("{warning}");
        }
        let target = Target::new(&self.out, self.overwrite, &survey.reads())?;
        tracing::info!(
            "computing on the CPU with {}, in at most {} of a budget of {}",
            count(survey.threads() as u64, "thread"),
            format_bytes(survey.memory_bytes()),
            format_bytes(options.memory_budget),
        );
        let read = AtomicU64::new(0);
        let of = survey.bytes_to_read();
        let state = || State {
            bytes: read.load(Ordering::Relaxed),
            of,
            note: if stop.signal().is_some() { "stopping (^C: at once)".into() } else { String::new() },
        };
        let progress = |bytes| {
            read.fetch_add(bytes, Ordering::Relaxed);
        };
        let report = self.progress.during(log, state, || survey.run(&progress, &stop))?;
        target.write(&report)?;
        let seconds = started.elapsed().as_secs_f64();
        if self.json.json {
            let measured = (read.into_inner(), seconds);
            let document = Self::document(report, &survey, &target, options.memory_budget, measured);
            print_document(survey.warnings().cloned().collect(), document)?;
        } else if !log.quiet {
            print(&self.in_words(&report, seconds))?;
        }
        Ok(0)
    }

    fn document(
        report: Report,
        survey: &Survey,
        target: &Target,
        memory_budget: u64,
        (bytes_read, seconds): (u64, f64),
    ) -> SaliencyDocument {
        SaliencyDocument {
            out: absolute(target.path()),
            format: if target.format() == Format::Html { "html" } else { "json" },
            threads: survey.threads(),
            memory_budget,
            bytes_read,
            seconds,
            recipe: report.recipe,
            method: report.method,
            base: report.base,
            tasks: report.tasks,
            compared_tensors: report.tensors,
            copied_tensors: report.copied_tensors,
            choices: report.choices,
            totals: report.total,
            layers: report.layers,
        }
    }

    fn in_words(&self, report: &Report, seconds: f64) -> String {
        let mut header = vec![
            ("task", Align::Left),
            ("|t|/|base|", Align::Right),
            ("cosine", Align::Right),
            ("signs", Align::Right),
        ];
        let pruned: Vec<String> = report
            .choices
            .iter()
            .map(|choice| match (choice.of_recipe, choice.rule.keep) {
                (true, _) => format!("{} prunes", choice.name),
                (false, keep) => format!("keep {}", keep.unwrap_or_default()),
            })
            .collect();
        header.extend(pruned.iter().map(|name| (name.as_str(), Align::Right)));
        let mut table = Table::new(&header);
        let number = |value: Option<f64>| value.map_or("-".into(), |v| format!("{v:.3}"));
        let percent = |value: Option<f64>| value.map_or("-".into(), |v| format!("{:.1} %", 100.0 * v));
        for (name, task) in report.tasks.iter().zip(&report.total.tasks) {
            let mut row = vec![
                name.clone(),
                number(task.scores.relative),
                number(task.cosine_with_others),
                percent(task.sign_agreement_with_others),
            ];
            row.extend(task.pruned.iter().map(|pruned| percent(pruned.share)));
            table.row(row);
        }
        format!(
            "{}\nwrote {}: {} in {} and {} in {seconds:.2} s\n",
            table.render(""),
            self.out.display(),
            count(report.tasks.len() as u64, "task"),
            count(report.layers.len() as u64, "layer"),
            count(report.tensors as u64, "tensor"),
        )
    }
}
