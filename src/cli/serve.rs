//! `serve`.
use std::process::ExitCode;

/// Flags of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:")]
pub struct Args {}

/// Runs `serve`.
pub fn run(_args: Args) -> ExitCode {
    ExitCode::FAILURE
}
