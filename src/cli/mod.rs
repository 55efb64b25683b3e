//! The command line: arguments, help, and one file a command. No arithmetic.

mod merge;
mod plan;
mod progress;
mod setup;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::error::Result;

/// Merge model checkpoints: streamed, exact, bounded in memory.
#[derive(Debug, Parser)]
#[command(
    name = "merganser",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Example:\n  merganser merge recipe.yaml -o merged\n\nExit codes: 0 done; 1 the input is at fault; 2 usage \
                  error or a bug; 3 the environment failed and --resume can go on; 130, 143 interrupted."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: Log,
}

#[derive(Debug, Subcommand)]
enum Command {
    Merge(merge::Merge),
    Plan(plan::Plan),
}

/// What is said on stderr, and how.
#[derive(Debug, Args)]
struct Log {
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Log")]
    verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Log")]
    quiet: bool,
    /// How log lines look on stderr
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT", help_heading = "Log")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// The recipe, and what a merge of it may use.
#[derive(Debug, Args)]
struct PlanArgs {
    /// The recipe: a YAML file
    recipe: PathBuf,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Bound on the memory that merganser allocates itself, such as 512MiB [default: a quarter of RAM]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory_budget: Option<u64>,
    /// Seed of every random mask
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Split the output above this size
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    shard_size: u64,
}

impl PlanArgs {
    fn plan(&self) -> Result<crate::plan::Plan> {
        let recipe = crate::recipe::Recipe::load(&self.recipe)?;
        for warning in &recipe.warnings {
            tracing::warn!("{warning}");
        }
        let options = crate::plan::Options {
            threads: self.threads.map_or_else(setup::cores, usize::from),
            memory_budget: self.memory_budget.unwrap_or_else(|| setup::ram_bytes() / 4),
            seed: self.seed,
            shard_bytes: self.shard_size,
        };
        let plan = crate::plan::Plan::new(recipe, options)?;
        for warning in &plan.warnings {
            tracing::warn!("{warning}");
        }
        Ok(plan)
    }
}

fn size(text: &str) -> Result<u64, String> {
    match crate::units::parse_bytes(text) {
        Ok(0) => Err("expected more than 0 bytes".into()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

impl Cli {
    /// Runs the command that the arguments name; its data goes to stdout.
    ///
    /// # Errors
    /// Whatever the command meets; nothing has been printed of it yet.
    pub fn run(self) -> Result<u8> {
        setup::log(&self.log);
        match self.command {
            Command::Merge(args) => args.run(&self.log),
            Command::Plan(args) => args.run(),
        }
    }
}

/// Prints to stdout; a reader that has gone away is not an error.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(crate::Error::io("write to stdout", &e)),
        _ => Ok(()),
    }
}

/// Prints a JSON document, indented, with a newline.
fn print_json(document: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|e| crate::Error::internal(format!("cannot write JSON: {e}")))?;
    print(&(text + "\n"))
}
