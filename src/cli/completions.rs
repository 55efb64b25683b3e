//! `merganser completions`: what shells complete.

use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::print::print;
use crate::error::{Error, Result};
use crate::methods::REGISTRY;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser completions bash > ~/.local/share/bash-completion/completions/merganser
  merganser completions zsh > ~/.zfunc/_merganser      with fpath+=~/.zfunc before compinit
  merganser completions fish > ~/.config/fish/completions/merganser.fish")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<u8> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut hinted(), "merganser", &mut text);
        let text = String::from_utf8(text).map_err(|e| Error::internal(format!("completions: {e}")))?;
        print(&text)?;
        Ok(0)
    }
}

/// The command line, with the words that some arguments take: their own readers say more of a wrong one than that it is
/// none of these.
fn hinted() -> clap::Command {
    let words = |words: Vec<&'static str>| move |arg: clap::Arg| arg.value_parser(PossibleValuesParser::new(words));
    let methods = REGISTRY.iter().map(|spec| spec.name).collect();
    let mut command = Cli::command().mut_subcommand("methods", |c| c.mut_arg("name", words(methods)));
    for name in ["merge", "plan", "bench"] {
        let devices = words(vec!["auto", "cpu", "cuda", "cuda:0"]);
        command = command.mut_subcommand(name, |c| c.mut_arg("device", devices));
    }
    let measured =
        vec!["products", "memory", "files", "paths", "cart", "copies", "eigenvectors", "kernels", "streamed"];
    let shapes = vec!["small", "vit-l-14", "llama-8b"];
    command.mut_subcommand("bench", |c| c.mut_arg("only", words(measured)).mut_arg("cart", words(shapes)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn completions_know_commands_options_and_the_names_of_methods() {
        // fish gets no words for arguments without an option.
        for (shell, method) in
            [(Shell::Bash, "task_arithmetic"), (Shell::Zsh, "task_arithmetic"), (Shell::Fish, "bench")]
        {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut hinted(), "merganser", &mut text);
            let text = String::from_utf8(text).unwrap();
            for word in ["saliency", "memory-budget", method, "vit-l-14", "cuda"] {
                assert!(text.contains(word), "{shell}: {word}");
            }
        }
    }
}
