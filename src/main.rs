//! The `merganser` command: parses, runs, prints the error and its hints, and ends with the exit code of the contract.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use merganser::cli::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done where even this cannot be printed.
            let _ = error.print();
            return ExitCode::from(match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
                ErrorKind::InvalidValue | ErrorKind::ValueValidation => 1,
                _ => 2,
            });
        }
    };
    match cli.run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut text = format!("error: {error}\n");
            for hint in error.hints() {
                text += &format!("hint: {hint}\n");
            }
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
            ExitCode::from(error.exit_code())
        }
    }
}
