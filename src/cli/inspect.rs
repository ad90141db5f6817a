//! `inspect`.
use std::process::ExitCode;

/// Flags of `inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:")]
pub struct Args {}

/// Runs `inspect`.
pub fn run(_args: &Args) -> ExitCode {
    ExitCode::FAILURE
}
