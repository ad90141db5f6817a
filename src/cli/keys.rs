//! `keys`.
use std::process::ExitCode;

/// Flags of `keys`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:")]
pub struct Args {}

/// Runs `keys`.
pub fn run(_args: Args) -> ExitCode {
    ExitCode::FAILURE
}
