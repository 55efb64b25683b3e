//! The command line: arguments, help, and one file a command. No arithmetic.

mod before;
mod bench;
mod compare;
mod completions;
mod devices;
mod document;
mod explain;
mod extract;
mod failure;
mod inspect;
mod log;
mod man;
mod merge;
mod mergekit;
mod methods;
mod part;
mod plan;
mod print;
mod progress;
mod saliency;
mod scheduler;
#[cfg(test)]
mod schema;
mod setup;
mod verify;
mod version;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::backend::device;
use crate::engine::Stop;
use crate::error::Result;
use crate::hub::{Extent, Fetcher};
use crate::instructions::Instructions;
use crate::recipe::{ExpertLayout, Recipe};
pub use failure::{catching_panics, install_panic_hook, tell_failures_as};
use log::Log;
use setup::default_budget;

/// Merge model checkpoints: streamed, exact, bounded in memory.
#[derive(Debug, Parser)]
#[command(
    name = "merganser",
    version,
    long_version = version::LONG,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  merganser methods cart                    what a method computes and takes
  merganser plan recipe.yaml                what the merge would do
  merganser merge recipe.yaml -o merged     merge
  merganser verify merged                   check what came out

Exit codes: 0 done; 1 the input is at fault; 2 usage error or a bug; 3 the environment failed and --resume can go on; \
75 another merganser is at work on the output, try again later; 129, 130, 138, 140, 143 interrupted by SIGHUP, SIGINT, \
SIGUSR1, SIGUSR2, SIGTERM, and --resume can go on.

Environment: MERGANSER_CPU=portable, avx2 or avx512 has the CPU compute with these instructions, not with the widest."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: Log,
}

#[derive(Debug, Subcommand)]
enum Command {
    Merge(merge::Merge),
    Extract(extract::Extract),
    Plan(plan::Plan),
    Explain(explain::Explain),
    Saliency(saliency::Saliency),
    Inspect(inspect::Inspect),
    Compare(compare::Compare),
    Verify(verify::Verify),
    Methods(methods::Methods),
    Devices(devices::Devices),
    Bench(bench::Bench),
    Completions(completions::Completions),
    #[command(name = "man")]
    Man(man::ManPages),
}

/// Runs the command line: parses, runs the command, tells what went wrong, and gives the process's exit code.
///
/// Data goes to stdout, all else to stderr. With `--json` stdout gets exactly one JSON document, also on failure.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    tell_failures_as(args.iter().cloned());
    catching_panics(|| match Cli::try_parse_from(args) {
        Ok(cli) => cli.run().unwrap_or_else(|error| failure::tell(&error)),
        Err(error) => failure::tell_usage(&error),
    })
}

/// The command that raw arguments name: the first of them that is no option, nor an option's value.
fn command_in(args: &[OsString]) -> Option<&'static str> {
    const NAMES: [&str; 13] = [
        "merge",
        "extract",
        "plan",
        "explain",
        "saliency",
        "inspect",
        "compare",
        "verify",
        "methods",
        "devices",
        "bench",
        "completions",
        "man",
    ];
    // Of the options that may stand before a command, `--log-format` alone has a value, which is no command's name.
    args.iter().skip(1).find_map(|arg| NAMES.into_iter().find(|name| arg == *name))
}

impl Cli {
    fn run(self) -> Result<u8> {
        self.log.start();
        Instructions::from_environment()?;
        match self.command {
            Command::Merge(args) => args.run(&self.log),
            Command::Extract(args) => args.run(&self.log),
            Command::Plan(args) => args.run(),
            Command::Explain(args) => args.run(),
            Command::Saliency(args) => args.run(&self.log),
            Command::Inspect(args) => args.run(),
            Command::Compare(args) => args.run(&self.log),
            Command::Verify(args) => args.run(&self.log),
            Command::Methods(args) => args.run(),
            Command::Devices(args) => args.run(),
            Command::Bench(args) => args.run(&self.log),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}

/// `--json`.
#[derive(Debug, Args)]
struct JsonFlag {
    /// Print one JSON document on stdout ("schema": 2), also on failure
    #[arg(long)]
    json: bool,
}

impl JsonFlag {
    /// Tells how a command ended, as a document or in words; its exit code.
    fn tell<T: document::Document>(&self, log: &Log, warnings: Vec<String>, document: T, words: &str) -> Result<u8> {
        if self.json {
            document::print_document(warnings, document)?;
        } else if !log.quiet {
            print::print(words)?;
        }
        Ok(0)
    }
}

/// `--threads`.
#[derive(Debug, Args)]
struct Threads {
    /// CPU threads [default: all cores that the affinity mask, the control group and the batch system leave this job]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

impl Threads {
    fn get(&self) -> usize {
        self.threads.map_or_else(setup::cores, usize::from)
    }
}

/// `--device` and `--device-memory`.
#[derive(Debug, Args)]
struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N. `cuda` never falls back to the CPU
    #[arg(long, default_value = "auto", value_name = "DEVICE", value_parser = clap::value_parser!(device::Request))]
    device: device::Request,
    /// Bound on the memory taken of each CUDA device, such as 8GiB [default: what the plan has use for, of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    device_memory: Option<u64>,
}

impl DeviceArgs {
    fn choose(&self) -> Result<device::Device> {
        device::choose(self.device)
    }
}

/// The recipe, and what a merge of it may use.
#[derive(Debug, Args)]
struct PlanArgs {
    /// The recipe: a YAML file, or - for standard input, whose relative paths start at the current folder
    recipe: PathBuf,
    #[command(flatten)]
    threads: Threads,
    /// Bound on the memory that merganser allocates itself, such as 512MiB [default: a quarter of RAM, or of the limit of
    /// this job's control group]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    memory_budget: Option<u64>,
    /// Seed of every random mask
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Split the output above this size
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size, allow_negative_numbers = true)]
    shard_size: u64,
    /// Take remarks on the recipe, such as of a key without effect, for errors
    #[arg(long)]
    strict: bool,
    /// Fetch models of the Hugging Face Hub that are not in its cache; `plan` fetches headers and small files alone. Also by
    /// MERGANSER_DOWNLOAD=1
    #[arg(long)]
    download: bool,
    /// How a mixture of experts is stored: packed, as Transformers 5 has it, or old, a tensor for each expert's projection
    #[arg(long, value_name = "LAYOUT", default_value = "packed", value_parser = moe_layout)]
    moe_layout: ExpertLayout,
}

impl PlanArgs {
    /// The plan of the recipe, of whose models headers alone are fetched.
    fn plan(&self) -> Result<crate::plan::Plan> {
        let fetcher = self.fetcher(Extent::Headers, &Stop::default())?;
        let recipe = load_recipe(&self.recipe, fetcher.as_ref())?;
        self.plan_of(self.told(recipe)?)
    }

    /// What may be downloaded.
    fn fetcher(&self, extent: Extent, stop: &Stop) -> Result<Option<Fetcher>> {
        let is_allowed = self.download || std::env::var("MERGANSER_DOWNLOAD").is_ok_and(|value| value == "1");
        is_allowed.then(|| Fetcher::new(extent, stop.clone())).transpose()
    }

    /// The recipe, whose models are on this machine. Of those that must be downloaded headers come first, so that every mistake
    /// is found before the rest does.
    fn recipe(&self, stop: &Stop) -> Result<Recipe> {
        let headers = self.fetcher(Extent::Headers, stop)?;
        let mut recipe = load_recipe(&self.recipe, headers.as_ref())?;
        if headers.as_ref().is_some_and(|headers| headers.fetched() > 0) {
            let mut draft = recipe.clone();
            self.lay_out(&mut draft);
            crate::plan::Plan::new(draft, self.options())?;
            let whole = self.fetcher(Extent::Whole, stop)?;
            recipe = Recipe::read_fetching(recipe.text.as_bytes(), &recipe.path, whole.as_ref())?;
        }
        self.told(recipe)
    }

    /// The recipe as the options have it, whose remarks are told.
    fn told(&self, mut recipe: Recipe) -> Result<Recipe> {
        self.lay_out(&mut recipe);
        if self.strict && !recipe.warnings.is_empty() {
            return Err(crate::error::Error::input(recipe.warnings.join("\n"))
                .because(crate::error::Cause::Recipe)
                .hint("without --strict these are warnings"));
        }
        for warning in &recipe.warnings {
            tracing::warn!("{warning}");
        }
        Ok(recipe)
    }

    fn lay_out(&self, recipe: &mut Recipe) {
        let documents = recipe.before.iter_mut().map(|(_, document)| &mut document.experts);
        let experts = documents.chain([&mut recipe.experts]).flatten();
        experts.for_each(|experts| experts.layout = self.moe_layout);
    }

    fn options(&self) -> crate::plan::Options {
        crate::plan::Options {
            threads: self.threads.get(),
            memory_budget: self.memory_budget.unwrap_or_else(default_budget),
            seed: self.seed,
            shard_bytes: self.shard_size,
        }
    }

    fn plan_of(&self, recipe: crate::recipe::Recipe) -> Result<crate::plan::Plan> {
        let plan = crate::plan::Plan::new(recipe, self.options())?;
        for warning in &plan.warnings {
            tracing::warn!("{warning}");
        }
        Ok(plan)
    }
}

/// Reads a recipe's file, or standard input where its name is `-`.
fn load_recipe(path: &Path, fetcher: Option<&Fetcher>) -> Result<Recipe> {
    if path == Path::new("-") {
        return Recipe::read_fetching(std::io::stdin().lock(), Path::new("<stdin>"), fetcher);
    }
    Recipe::load_fetching(path, fetcher)
}

fn moe_layout(text: &str) -> Result<ExpertLayout, String> {
    match text {
        "packed" => Ok(ExpertLayout::Packed),
        "old" => Ok(ExpertLayout::Old),
        _ => Err("expected packed or old".into()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    match crate::units::parse_bytes(text) {
        Ok(0) => Err("expected more than 0 bytes".into()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err([&[error.to_string()], error.hints()].concat().join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_command_has_an_example() {
        use clap::CommandFactory;
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        for command in cli.get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = format!("merganser {}", command.get_name());
            assert!(help.contains(&example), "{} has no example", command.get_name());
            let args = [&"merganser".to_owned().into(), &command.get_name().to_owned().into()].map(OsString::clone);
            assert_eq!(command_in(&args), Some(command.get_name()));
            assert!(command.get_about().is_some(), "{} says nothing of itself", command.get_name());
        }
    }
}
