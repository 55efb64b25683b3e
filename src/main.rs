//! The `merganser` command. Everything is in [`merganser::cli`]; here is only what belongs to a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    merganser::cli::install_panic_hook();
    ExitCode::from(merganser::cli::main(std::env::args_os()))
}
