//! `demo`: the whole ring over real sockets on this machine, with the edge killed in the middle, and an account of every message.
//!
//! The edge is a child process; devices and routers live here. What devices say, what the routers say and what the edge says are
//! counted apart, and have to agree. Some of each feature is played: two apps with a stream and a router each (one of them over gRPC), devices that register,
//! two priorities, collapse keys, messages taken back, quotas, an app that is suspended, retention 0, the offline policy `return`, the push
//! switch, bindings, reinstalled apps, devices that come back over the other transport, presence and questions.

mod app;
mod device_events;
mod fleet;
mod plan;
mod questions;
mod report;
mod scenes;
mod show;
mod stage;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args as ClapArgs;

use tokio::signal::unix::{SignalKind, signal};

use self::report::Report;
use self::show::Goal;
use self::stage::Stage;
use super::output::{self, Failure, Paint, line, note};
use crate::client::Way;
use crate::client::local::{self, Scratch};

/// Descriptors that are needed beside those of devices.
const SPARE_DESCRIPTORS: u64 = 256;

/// Flags of `demo`.
#[derive(Debug, ClapArgs)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How many devices, 40 at least; a quarter is offline for most of the time
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
  mooring demo                                      a few seconds
  mooring demo --devices 10000 --shards 4 --json    a quarter of a minute on two cores
  mooring demo --transport tls,quic,tcp
  mooring demo --keep DIR --seed 7                  keeps the edge's data and log

An edge runs as a process of its own on 127.0.0.1; devices and two routers run here, as phones and a push service would. All three count \
messages apart, and the counts are compared. With --json the last line has every figure, and how many milliseconds each stage took.

Exit code 1 if a message was lost, handed to an app twice or out of the order of acceptance of its priority, if what edge, routers and \
devices counted differs, if presence or an answer of the edge differs from that, if accepted = arrived + failed + pending did not hold \
at a check, or if a shard had no session.";

/// Runs `demo`.
pub fn run(args: &Args) -> ExitCode {
    output::exit(start(args))
}

fn start(args: &Args) -> Result<(), Failure> {
    local::enough_descriptors(u64::from(args.devices) + SPARE_DESCRIPTORS).map_err(Failure::usage)?;
    let scratch = Scratch::new(args.keep.as_deref()).map_err(Failure::usage)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let report =
        runtime.map_err(Failure::failed)?.block_on(unless_interrupted(story(args, scratch.dir())))?;
    if args.json {
        note(&report.table(Paint::stderr()));
        line(&report.json().to_string());
    } else {
        line(&report.table(Paint::stdout()));
    }
    let faults = report.faults();
    if faults.is_empty() { Ok(()) } else { Err(Failure::failed(faults.join("; "))) }
}

/// Ctrl-C and SIGTERM end the edge too, and remove its data.
async fn unless_interrupted<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut terminated = signal(SignalKind::terminate()).map_err(Failure::failed)?;
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::failed("interrupted")),
        _ = terminated.recv() => Err(Failure::failed("terminated")),
    }
}

async fn story(args: &Args, dir: &Path) -> Result<Report, Failure> {
    let mut stage = Stage::new(args, args.seed.unwrap_or_else(rand::random), dir).await?;
    match play(args, &mut stage).await {
        Ok(()) => stage.finish().await,
        Err(failure) => Err(stage.failed(&failure)),
    }
}

/// What happens, in order.
async fn play(args: &Args, stage: &mut Stage) -> Result<(), Failure> {
    let (all, offline) = (args.devices, stage.fleet.offline());
    let connect = format!("{all} devices connect; half of them are new and register");
    stage.show.begin("connect", &connect, Goal::Connected(all.into()));
    stage.connect_all().await?;
    stage.show.begin(
        "away",
        &format!("{offline} of them go offline: pushes to them wait from here on"),
        Goal::Unknown,
    );
    stage.send_away().await?;
    stage.check("connected").await?;

    stage.show.begin(
        "push",
        "a push to all, pushes to one device each, and some that can't arrive",
        Goal::Unknown,
    );
    stage.expiring().await?;
    stage.broadcast().await?;
    stage.singles().await?;
    stage.oddities().await?;
    stage.check("first pushes").await?;

    stage.show.begin(
        "early ends",
        "pushes that end early: replaced, taken back, for an account that left, more than a device may have",
        Goal::Unknown,
    );
    stage.accounts().await?;
    stage.collapse().await?;
    stage.take_back().await?;
    stage.flood().await?;
    stage.suspend().await?;
    stage.check("messages that end early").await?;

    let online = u64::from(stage.fleet.online());
    stage.show.begin(
        "kill",
        "a push to all, and in the middle of it kill -9 of the edge",
        Goal::HandedOver(stage.expected + online),
    );
    stage.broadcast_and_kill().await?;
    stage.show.begin(
        "recover",
        "it starts again from its journal; devices come back, routers repeat what was not answered",
        Goal::Connected(online),
    );
    stage.restart().await?;
    stage.check("after the crash").await?;
    stage.broadcast().await?;
    stage.check("pushes after the crash").await?;

    stage.show.begin(
        "return",
        "who was offline comes back, over the other transport, and gets what waited",
        Goal::Connected(all.into()),
    );
    stage.bring_in().await?;
    stage.show.begin("settle", "the last receipts come in; answers of the edge are compared", Goal::Unknown);
    stage.switched_off().await?;
    stage.presence_says(all).await?;
    stage.settle().await?;
    stage.check("the end").await
}
