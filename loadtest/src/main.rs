//! `loadtest`: what a user buys with an edge server is how many devices one machine holds and what one push costs. This measures both, and
//! tries to break what the server promises.
//!
//! The server is another process, and what is measured is that process: its memory by `/proc/PID/smaps_rollup`, its CPU (user and system,
//! all threads) by `/proc/PID/stat`. Without `--dev` or `--addr` an edge is started for the measurement and ended after it.

mod beside;
mod burst;
mod chaos;
mod cores;
mod figures;
mod fleet;
mod floor;
mod hold;
mod journal;
mod latencies;
mod messages;
mod mqtt;
mod numbers;
mod offline;
mod process;
mod pusher;
mod report;
mod soak;
mod stage;
mod storm;
mod syncs;
mod target;
mod unicast;
mod workers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures an edge server: memory a session, CPU a delivery, latencies
#[derive(Debug, Parser)]
#[command(name = "loadtest", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

const EXAMPLES: &str = "\
Examples:
  cargo run --release -p loadtest -- hold --transport tls
  cargo run --release -p loadtest -- unicast --devices 15000 --rate 5000 --floor --json
  loadtest soak --minutes 60 --json
  loadtest hold --dev data --server-pid 4711 --devices 3000 --seconds 10";

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Memory of idle sessions: the slope between a third, two thirds and all of the devices
    Hold(hold::Args),
    /// CPU and latency of messages to one random connected device each
    Unicast(unicast::Args),
    /// Edges killed, stopped, cut off and out of disk: is anything lost, late, reordered or counted twice?
    Chaos(chaos::Args),
    /// Hours at constant load: memory, descriptors, disk and latencies must not grow, and nothing may be lost
    Soak(soak::Args),
    /// The edge itself, which scenarios start: it is the one of the same build
    #[command(hide = true)]
    Serve(mooring::cli::serve::Args),
    /// CPU and latency of one message to all devices at once
    #[command(after_help = "Example:\n  loadtest broadcast --devices 15000 --floor --json")]
    Broadcast(burst::Args),
    /// The same with ten messages, so that several wait for each socket
    #[command(after_help = "Example:\n  loadtest flood --devices 15000 --rounds 5 --floor --json")]
    Flood(burst::Args),
    /// Messages accepted for devices that are away, and the devices coming back for them after a SIGKILL
    Offline(offline::Args),
    /// All devices back after a SIGKILL: how long it takes, and what it costs the server
    Storm(storm::Args),
    /// The server of the floor; started by --floor
    #[command(hide = true)]
    FloorServer(floor::Args),
    /// Devices in a process of their own; started where the descriptors of one don't suffice
    #[command(hide = true)]
    Worker(workers::Args),
}

/// Messages of one round of a flood.
const FLOOD: u32 = 10;

fn main() -> ExitCode {
    mooring::cli::output::exit(match Cli::parse().scenario {
        Scenario::Serve(args) => return mooring::cli::serve::run(&args),
        Scenario::Hold(args) => hold::run(&args),
        Scenario::Unicast(args) => unicast::run(&args),
        Scenario::Chaos(args) => chaos::run(&args),
        Scenario::Soak(args) => soak::run(&args),
        Scenario::Broadcast(args) => burst::run(&args, "broadcast", 1),
        Scenario::Flood(args) => burst::run(&args, "flood", FLOOD),
        Scenario::Offline(args) => offline::run(&args),
        Scenario::Storm(args) => storm::run(&args),
        Scenario::FloorServer(args) => floor::serve(&args),
        Scenario::Worker(args) => workers::serve(&args),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
