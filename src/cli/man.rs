//! `merganser man`: manual pages, made from the command line's own words.

use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;

use super::Cli;
use super::print::print;
use crate::error::{Error, Result};

/// Print the manual page merganser(1), or write the pages of all commands
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merganser man | man -l -
  merganser man -o ~/.local/share/man/man1")]
pub(super) struct ManPages {
    /// Write merganser.1 and a page for each command into this folder instead
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl ManPages {
    pub fn run(self) -> Result<u8> {
        let mut root = Cli::command();
        root.build();
        let Some(folder) = self.out else {
            print(&page(&root, "merganser")?)?;
            return Ok(0);
        };
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(format_args!("create `{}`", folder.display()), &e))?;
        write(&folder, "merganser", &root)?;
        for command in root.get_subcommands() {
            write(&folder, &format!("merganser-{}", command.get_name()), command)?;
        }
        Ok(0)
    }
}

fn write(folder: &Path, name: &str, command: &Command) -> Result<()> {
    let path = folder.join(format!("{name}.1"));
    std::fs::write(&path, page(command, name)?).map_err(|e| Error::io(format_args!("write `{}`", path.display()), &e))
}

/// The page of a command, whose name is to be `name`.
fn page(command: &Command, name: &str) -> Result<String> {
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let more = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // The name of a page is one word, its synopsis has two.
    let usage = name.replacen('-', " ", 1);
    let named = command.clone().name(name).bin_name(usage).disable_help_subcommand(true);
    let man =
        Man::new(named).title(name).section("1").source(concat!("merganser ", env!("CARGO_PKG_VERSION"))).date("");
    let mut text = Vec::new();
    let mut render = || {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut text)?;
        }
        std::io::Result::Ok(())
    };
    render().map_err(|e| Error::internal(format!("{name}.1: {e}")))?;
    let text = String::from_utf8(text).map_err(|e| Error::internal(format!("{name}.1: {e}")))?;
    Ok(text + &closing(&more))
}

/// What stands below a command's help, under headings of its own.
fn closing(help: &str) -> String {
    let (mut out, mut has_notes) = (String::new(), false);
    for part in help.split("\n\n") {
        if let Some(examples) = part.strip_prefix("Examples:\n") {
            let lines: Vec<String> = examples.lines().map(|line| escaped(line.trim_start())).collect();
            out += &format!(".SH EXAMPLES\n.nf\n{}\n.fi\n", lines.join("\n"));
        } else if let Some(codes) = part.strip_prefix("Exit codes: ") {
            out += &format!(".SH EXIT STATUS\n{}\n", escaped(codes));
            has_notes = false;
        } else if !part.trim().is_empty() {
            out += if has_notes { ".PP\n" } else { ".SH NOTES\n" };
            out += &format!("{}\n", escaped(part));
            has_notes = true;
        }
    }
    out
}

/// Text that roff prints as it is.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let line = |line: &str| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_their_parts_under_their_own_headings() {
        let mut root = Cli::command();
        root.build();
        let whole = page(&root, "merganser").unwrap();
        for part in [".TH merganser 1", ".SH SUBCOMMANDS", ".SH EXAMPLES", ".SH EXIT STATUS"] {
            assert!(whole.contains(part), "{part}\n{whole}");
        }
        let merge = page(root.find_subcommand("merge").unwrap(), "merganser-merge").unwrap();
        for part in
            [".TH merganser-merge 1", "\\fBmerganser merge\\fR", "\\-\\-memory\\-budget", ".SH EXAMPLES", ".SH NOTES"]
        {
            assert!(merge.contains(part), "{part}\n{merge}");
        }
        assert!(!merge.contains("EXTRA") && !merge.contains("merganser\\-merge \\fR["), "{merge}");
    }

    #[test]
    fn what_roff_would_take_for_a_request_is_escaped() {
        assert_eq!(escaped(".SH x\n'y\na\\b --c"), "\\&.SH x\n\\&'y\na\\eb \\-\\-c");
    }
}
