//! `demo`: the whole ring over real sockets on this machine, with the edge killed in the middle, and an account of every message.
//!
//! The edge is a child process; devices and routers live here. What devices say, what the routers say and what the edge says are
//! counted apart, and have to agree. Some of each feature is played: two apps with a stream and a router each (one of them over gRPC), devices that register,
//! two priorities, collapse keys, messages taken back, quotas, an app that is suspended, retention 0, the offline policy `return`, the push switch, bindings, reinstalled apps, devices that
//! comes back over the other transport, presence and questions.

mod app;
mod device_events;
mod fleet;
mod plan;
mod questions;
mod report;
mod scenes;
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args as ClapArgs;

use self::report::Report;
use self::stage::Stage;
use super::output::{self, Failure, line, note};
use crate::client::Way;
use crate::client::local::{self, Scratch};

/// Descriptors that are needed beside those of devices.
const SPARE_DESCRIPTORS: u64 = 256;

/// Flags of `demo`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How many devices; a quarter is offline for most of the time
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(40..=1_000_000))]
    devices: u32,
    /// How they connect, one after the other
    #[arg(long, value_enum, value_delimiter = ',', num_args = 1.., default_value = "tls,quic")]
    transport: Vec<Way>,
    /// Shards of the edge
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    shards: u32,
    /// Of what is chosen at random: who gets what, who taps
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    deadline: u64,
    /// Keep the edge's data and log in this directory (new or empty), instead of one that goes away
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// End with one JSON line
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  mooring demo
  mooring demo --devices 10000 --shards 4 --json
  mooring demo --transport tls,quic,tcp

Exit code 1 if a message was lost, handed to an app twice or out of the order of acceptance of
its priority, if what edge, routers and devices counted differs, if presence or an answer of
the edge differs from that, if accepted = arrived + failed + pending did not hold at a check,
or if a shard had no session.";

/// Runs `demo`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    local::enough_descriptors(u64::from(args.devices) + SPARE_DESCRIPTORS).map_err(Failure::usage)?;
    let scratch = Scratch::new(args.keep.as_deref()).map_err(Failure::usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let report = runtime.map_err(Failure::failed)?.block_on(story(args, scratch.dir()))?;
    if args.json {
        note(&report.table());
        line(&report.json().to_string());
    } else {
        line(&report.table());
    }
    let faults = report.faults();
    if faults.is_empty() { Ok(()) } else { Err(Failure::failed(faults.join("; "))) }
}

/// What happens, in order.
async fn story(args: &Args, dir: &Path) -> Result<Report, Failure> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut stage = Stage::new(args, seed, dir).await?;
    stage.say(&format!("{} devices connect (seed {seed})", args.devices));
    stage.connect_all().await?;
    let offline = stage.fleet.offline();
    stage.say(&format!("{offline} of them go offline"));
    stage.send_away().await?;
    stage.presence_says(stage.fleet.online()).await?;
    stage.check("connected").await?;

    stage.say("a broadcast, single messages, and some that can't arrive");
    stage.broadcast().await?;
    stage.singles().await?;
    stage.oddities().await?;
    stage.check("first pushes").await?;

    stage.say("newer ones in the place of older ones, one taken back, and more than a device may have");
    stage.accounts().await?;
    stage.collapse().await?;
    stage.take_back().await?;
    stage.flood().await?;
    stage.suspend().await?;
    stage.check("messages that end early").await?;

    stage.say("a broadcast, and in the middle of it SIGKILL");
    stage.broadcast_and_kill().await?;
    stage.say("the edge starts again; devices and routers come back, routers repeat");
    stage.restart().await?;
    stage.check("after the crash").await?;
    stage.broadcast().await?;
    stage.check("pushes after the crash").await?;

    stage.say("those who were offline come in over the other transport, some with push switched off");
    stage.bring_in().await?;
    stage.switched_off().await?;
    stage.presence_says(args.devices).await?;
    stage.settle().await?;
    stage.check("the end").await?;
    stage.finish().await
}
