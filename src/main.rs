//! The `mooring` program: arguments to a subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    mooring::cli::run()
}
