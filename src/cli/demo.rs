//! `demo`.
use std::process::ExitCode;

/// Flags of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:")]
pub struct Args {}

/// Runs `demo`.
pub fn run(_args: &Args) -> ExitCode {
    ExitCode::FAILURE
}
