//! The command line: one file a subcommand. Each has `Args` and `run`, says by its exit code how it went (0 done, 1 failed, 2 usage or
//! configuration), writes results to standard output and everything else to standard error.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod admin;
mod allocator;
pub mod apps;
pub mod demo;
pub mod device;
pub mod inspect;
pub mod keys;
pub mod output;
pub mod peer;
pub mod presence;
pub mod push;
pub mod query;
pub mod revoke;
pub mod serve;
mod signals;
pub mod store;
pub mod streams;

/// The long-connection edge server of a self-built mobile push channel.
#[derive(Debug, Parser)]
#[command(name = "mooring", version, propagate_version = true, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  mooring demo                                        the whole ring here, with a kill -9 in the middle
  mooring serve --dev --data-dir data                 an edge to try things with
  mooring device --dev data --device d-1              a device that connects to it
  mooring push --dev data --device d-1 --title Hello  a message to that device";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the edge
    Serve(serve::Args),
    /// Show the whole ring: devices, an edge that is killed in the middle, routers; and the account of it
    Demo(demo::Args),
    /// Connect as a device, or as many, and print what arrives
    Device(device::Args),
    /// Push a message, as a router does, and follow what becomes of it
    Push(push::Args),
    /// Follow who is connected, as a router does
    Presence(presence::Args),
    /// Take a message back, as a router does
    Revoke(revoke::Args),
    /// Ask as a router does what became of a message, or what is known of devices
    Query(query::Args),
    /// Ask an edge's admin port what became of a message, or what it knows of a device
    Inspect(inspect::Args),
    /// Show the apps, suspend or resume one, or set its rates
    Apps(apps::Args),
    /// Show the streams that routers read, or end one
    Streams(streams::Args),
    /// Check a data directory that no edge uses, or show what is in it
    Store(store::Args),
    /// Make app secrets, credentials and certificates
    Keys(keys::Args),
}

/// Parses the arguments and runs the subcommand.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Device(args) => device::run(&args),
        Command::Push(args) => push::run(&args),
        Command::Presence(args) => presence::run(&args),
        Command::Query(args) => query::run(&args),
        Command::Revoke(args) => revoke::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Apps(args) => apps::run(&args),
        Command::Streams(args) => streams::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Keys(args) => keys::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent_and_every_subcommand_has_examples_that_can_be_said() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        has_examples("", &command);
    }

    fn has_examples(above: &str, command: &clap::Command) {
        for subcommand in command.get_subcommands().filter(|c| c.get_name() != "help") {
            let name = format!("{above} {}", subcommand.get_name());
            let help = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = examples(&help);
            assert!(help.contains("Example") && !examples.is_empty(), "mooring{name} --help");
            // It would begin a new line.
            assert!(!help.contains("{n}"), "mooring{name} --help");
            for example in examples {
                let wrong = Cli::try_parse_from(&example).err();
                assert!(wrong.is_none(), "mooring{name} --help: {example:?}: {}", wrong.expect("wrong"));
            }
            has_examples(&name, subcommand);
        }
    }

    /// The words of each command, without pipes, redirections and the remarks behind it.
    fn examples(help: &str) -> Vec<Vec<String>> {
        let joined: Vec<&str> = help.split("\\\n").map(str::trim_start).collect();
        joined.concat().lines().filter_map(command).collect()
    }

    fn command(line: &str) -> Option<Vec<String>> {
        let line = line.strip_prefix("  ")?;
        let at = if line.starts_with("mooring ") { 0 } else { line.find(" mooring ")? + 1 };
        let line = line[at..].split("  ").next()?.split(" > ").next()?;
        // What is quoted is one word.
        let parts = line.split(['\'', '"']).enumerate();
        let words = parts.flat_map(|(n, part)| match n % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        });
        Some(words.collect())
    }
}
