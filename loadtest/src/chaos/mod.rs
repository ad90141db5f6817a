//! `chaos`: real edges over real sockets, broken again and again; what devices saw and what routers were told decides whether a promise was.
//!
//! Each edge has devices (a third each over TCP, TLS and QUIC) and two routers (one over gRPC), with an app and a stream each. A plan from the
//! seed says what goes wrong when, and in how large parts each edge takes batches. Devices and routers live in this process, so that what they noted survives everything that is done
//! to the edge; a router that vanishes keeps what a database would: its unanswered batches, and the answers and events that it was told.

mod device_log;
mod disk;
mod order;
mod outages;
mod phones;
mod plan;
mod ring;
mod router_log;
mod upstream;
mod verdict;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mooring::cli::output::{self, Failure, note};
use mooring::client::local::{Scratch, enough_descriptors};
use mooring::clock::Clock;
use tokio::task::JoinSet;

use disk::SmallDisk;
use ring::{Done, Make, Ring};
use verdict::Verdict;

/// Milliseconds.
type Millis = u64;

/// Descriptors that are needed beside those of devices.
const SPARE_DESCRIPTORS: u64 = 1_024;

/// Flags of `chaos`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// How long things go wrong; then everything has to settle, which takes under a minute more
    #[arg(long, value_name = "M", default_value_t = 2.0, value_parser = minutes)]
    minutes: f64,
    /// Of the plan: what goes wrong when
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// How many edges, each with its devices and two routers
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    edges: u8,
    /// Devices of each edge
    #[arg(long, value_name = "N", default_value_t = 240, value_parser = clap::value_parser!(u32).range(6..=10_000))]
    devices: u32,
    /// Messages a second to each edge, about
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(2..=50_000))]
    rate: u64,
    /// What a busy machine may add before something counts as late, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    slack_ms: Millis,
    /// Don't give the first edge a small disk that fills (it needs a mount namespace: root, or user namespaces)
    #[arg(long)]
    no_small_disk: bool,
    /// The result as one JSON line, no progress bar
    #[arg(long)]
    json: bool,
    /// The program that is started as the edge; by default the edge of this build
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where edges have their data; by default a temporary directory, which stays only if something was broken
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  loadtest chaos
  loadtest chaos --minutes 10 --seed 1 --json
  loadtest chaos --edges 1 --devices 2000 --rate 2000 --no-small-disk

Exit code 0: lost, late, reordered, duplicates and identity_violations are all 0.";

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    (0.1..=1_440.0).contains(&minutes).then_some(minutes).ok_or("from 0.1 to 1440 minutes".into())
}

/// Runs `chaos`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let devices = u64::from(args.devices) * u64::from(args.edges);
    enough_descriptors(devices + SPARE_DESCRIPTORS).map_err(Failure::usage)?;
    let mut scratch = Scratch::new(args.dir.as_deref()).map_err(Failure::failed)?;
    // Before there are threads.
    let disk = if args.no_small_disk {
        None
    } else {
        // Its data only: the log has to be written all the same.
        let dir = scratch.dir().join("edge-0").join("data");
        std::fs::create_dir_all(&dir).map_err(Failure::failed)?;
        let disk = SmallDisk::mount(&dir);
        Some(disk.map_err(|e| {
            Failure::failed(format!(
                "a small disk can't be mounted: {e}; root may, and whoever may make user namespaces; or --no-small-disk"
            ))
        })?)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.map_err(Failure::failed)?.block_on(torment(args, &scratch, disk));
    let broken = match result {
        Ok((done, verdict, seconds)) => {
            print(args, &done, &verdict, seconds);
            if verdict.is_clean() {
                return Ok(());
            }
            Failure::failed("a promise was broken")
        }
        Err(failure) => failure,
    };
    scratch.keep();
    note(&format!(
        "data and logs of the edges stay in {} (but for what was on a small disk)",
        scratch.dir().display()
    ));
    Err(broken)
}

async fn torment(
    args: &Args,
    scratch: &Scratch,
    mut disk: Option<SmallDisk>,
) -> Result<(Done, Verdict, f64), Failure> {
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe().map_err(Failure::failed)?,
    };
    let clock = Arc::new(Clock::new(0));
    let start = clock.now();
    let mut rings = Vec::new();
    for number in 0..args.edges {
        let dir = scratch.dir().join(format!("edge-{number}"));
        std::fs::create_dir_all(&dir).map_err(Failure::failed)?;
        let make = Make {
            program: &program,
            dir: &dir,
            disk: disk.take(),
            devices: args.devices,
            rate: args.rate,
            seed: args.seed << 8 | u64::from(number),
            part_targets: plan::part_targets(args.seed, number),
            clock: &clock,
        };
        rings.push(Ring::start(make).await?);
    }
    let lasts = Duration::from_secs_f64(args.minutes * 60.0);
    let until = clock.now() + lasts.as_millis() as Millis;
    let (clock_of_bar, quiet) = (Arc::clone(&clock), args.json);
    let bar = tokio::spawn(async move {
        let from = clock_of_bar.now();
        let length = until.saturating_sub(from) / 1_000;
        let bar = output::bar(length, "{bar:40} {pos}/{len} s  {msg}", quiet);
        while clock_of_bar.now() < until {
            bar.set_position((clock_of_bar.now() - from) / 1_000);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        bar.set_message("settling");
        std::future::pending::<()>().await;
    });
    let slack = args.slack_ms;
    let mut running = JoinSet::new();
    for mut ring in rings {
        running.spawn(async move {
            ring.torment(until).await?;
            ring.settle().await?;
            ring.judge(slack).await
        });
    }
    let (mut done, mut verdict) = (Done::new(), Verdict::default());
    while let Some(ended) = running.join_next().await {
        let (did, judged) = ended.map_err(Failure::failed)??;
        for (name, count) in did {
            *done.entry(name).or_default() += count;
        }
        verdict += judged;
    }
    bar.abort();
    Ok((done, verdict, (clock.now() - start) as f64 / 1_000.0))
}

fn print(args: &Args, done: &Done, verdict: &Verdict, seconds: f64) {
    for finding in &verdict.findings {
        note(finding);
    }
    let mut all = match serde_json::to_value(verdict) {
        Ok(serde_json::Value::Object(all)) => all,
        _ => serde_json::Map::new(),
    };
    all.extend(done.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())));
    all.insert("seed".into(), args.seed.into());
    all.insert("edges".into(), args.edges.into());
    let part_targets = (0..args.edges).map(|edge| plan::part_targets(args.seed, edge));
    all.insert("part_targets".into(), part_targets.collect());
    all.insert("devices".into(), (u64::from(args.devices) * u64::from(args.edges)).into());
    all.insert("seconds".into(), seconds.round().into());
    if args.json {
        return output::line(&serde_json::Value::from(all).to_string());
    }
    let rows: Vec<_> = all.iter().map(|(name, value)| (name.replace('_', " "), value.to_string())).collect();
    output::line(&output::table(&rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_bounded() {
        assert_eq!(minutes("0.5"), Ok(0.5));
        for bad in ["0", "-1", "NaN", "1441", "two"] {
            assert!(minutes(bad).is_err(), "{bad}");
        }
    }
}
