//! The edge server and its tools: arguments to a subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mooring::cli;

/// The long-connection edge server of a self-built mobile push channel
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(cli::serve::Args),
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(args) => cli::serve::run(&args),
    }
}
