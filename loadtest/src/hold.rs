//! `hold`: memory of an idle session, as the slope between numbers of sessions, so that what the process needs without any doesn't count.
//!
//! Each device has received and acknowledged three messages, so that what a session keeps after having worked is in it; then all is
//! quiet for `--seconds`, and only then memory is read. Nothing is purged. What the kernel keeps for sockets is the slope of its caches of them,
//! halved, as both ends of each session are here (`process::socket_bytes`; root only). Over QUIC there is no socket a session.

use std::sync::Arc;
use std::time::Duration;

use mooring::cli::output::{self, Failure, note};
use mooring::clock::Clock;

use crate::figures::Figures;
use crate::messages::Messages;
use crate::numbers::{rounded, slope};
use crate::process;
use crate::report::{Line, Plot, Scale};
use crate::stage::Stage;
use crate::target::{self, Target};

/// Messages that each device gets.
const MESSAGES: u64 = 3;
/// Steps up to all devices.
const STEPS: u32 = 3;

/// Flags of `hold`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    target: target::Args,
    /// Targets of one batch
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Quiet before memory is read, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
}

const EXAMPLES: &str = "\
Examples:
  loadtest hold --transport quic
  loadtest hold --devices 3000 --seconds 10 --json
  loadtest hold --dev data --server-pid 4711";

/// Runs `hold`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let figures = runtime.map_err(Failure::failed)?.block_on(measure(args))?;
    figures.publish(&args.target)
}

struct Step {
    sessions: u32,
    rss: u64,
    pss: u64,
    /// Of both ends of each session, which are all on this machine.
    sockets: Option<u64>,
    connect_seconds: f64,
    connect_cpu_us: u64,
    quiet_cpu_us: u64,
}

pub(crate) async fn measure(args: &Args) -> Result<Figures, Failure> {
    let clock = Arc::new(Clock::new(0));
    let target = Target::for_workers(&args.target).await?;
    let messages = Messages::new(&target, &clock, args.target.payload_bytes);
    let mut stage = Stage::new(&args.target, &clock, target, messages, Arc::new(|_, _, _| {})).await?;
    let recorder = stage.record(&args.target);
    let mut steps: Vec<Step> = Vec::new();
    for n in 1..=STEPS {
        let sessions = (u64::from(args.target.devices) * u64::from(n) / u64::from(STEPS)) as u32;
        let step = one_step(args, &mut stage, sessions, u64::from(n - 1) * MESSAGES).await?;
        note(&format!("{sessions} sessions: RSS {} KiB, PSS {} KiB", step.rss / 1024, step.pss / 1024));
        steps.push(step);
    }
    let (sent, received) = (stage.pusher.sent(), stage.fleet.counts.received());
    let plots = recorder.plots();
    let reconnects = stage.end().await?;
    if reconnects > 0 {
        return Err(Failure::failed(format!("{reconnects} sessions broke: the figures would mean nothing")));
    }
    let figures = figures(args, &steps, received, sent.saturating_sub(received));
    Ok(figures.with_plots([over_sessions(&steps)]).with_plots(plots))
}

/// Up to so many sessions, with messages from this number on to those that are new.
async fn one_step(args: &Args, stage: &mut Stage, sessions: u32, message: u64) -> Result<Step, Failure> {
    let new = stage.fleet.size..sessions;
    let (cpu, start) = (stage.target.process.cpu_us()?, stage.clock.micros());
    stage.fleet.grow(&stage.target, sessions, args.target.json).await?;
    let connect_seconds = (stage.clock.micros() - start) as f64 / 1e6;
    let connect_cpu_us = stage.target.process.cpu_us()? - cpu;
    for n in 0..MESSAGES {
        stage.pusher.push_to_all(message + n, new.clone(), args.batch).await?;
    }
    stage.all_arrived().await?;
    stage.pusher.settled().await?;
    let cpu = stage.target.process.cpu_us()?;
    quiet(args.seconds, args.target.json).await;
    let quiet_cpu_us = stage.target.process.cpu_us()? - cpu;
    let memory = stage.target.process.memory()?;
    let sockets = process::socket_bytes();
    Ok(Step {
        sessions,
        rss: memory.rss,
        pss: memory.pss,
        sockets,
        connect_seconds,
        connect_cpu_us,
        quiet_cpu_us,
    })
}

async fn quiet(seconds: u64, silent: bool) {
    let bar = output::bar(seconds, "{bar:40} {pos}/{len} s of quiet", silent);
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
}

/// Memory over sessions, whose slope is the figure.
fn over_sessions(steps: &[Step]) -> Plot {
    let line = |name, value: fn(&Step) -> u64| Line {
        name,
        points: steps.iter().map(|s| (f64::from(s.sessions), value(s) as f64 / 1_048_576.0)).collect(),
    };
    let lines = vec![line("RSS", |s| s.rss), line("PSS", |s| s.pss)];
    Plot::new(
        "Memory of the server over sessions",
        ("sessions", Scale::Linear),
        ("MiB", Scale::Linear),
        lines,
    )
}

fn figures(args: &Args, steps: &[Step], deliveries: u64, lost: u64) -> Figures {
    let over_sessions = |value: fn(&Step) -> u64| {
        let points: Vec<_> = steps.iter().map(|s| (f64::from(s.sessions), value(s) as f64)).collect();
        slope(&points).map(rounded)
    };
    let sockets = |s: &Step| s.sockets.map(|bytes| (f64::from(s.sessions), bytes as f64 / 2.0));
    let sockets: Option<Vec<_>> = steps.iter().map(sockets).collect();
    let devices = f64::from(args.target.devices);
    let connect_seconds: f64 = steps.iter().map(|s| s.connect_seconds).sum();
    let connect_cpu: u64 = steps.iter().map(|s| s.connect_cpu_us).sum();
    let session_seconds: f64 = steps.iter().map(|s| f64::from(s.sessions)).sum::<f64>() * args.seconds as f64;
    let quiet_cpu: u64 = steps.iter().map(|s| s.quiet_cpu_us).sum();
    Figures {
        rss_bytes_per_session: over_sessions(|s| s.rss),
        pss_bytes_per_session: over_sessions(|s| s.pss),
        kernel_bytes_per_session: sockets.and_then(|points| slope(&points)).map(rounded),
        connects_per_s: Some(rounded(devices / connect_seconds.max(1e-9))),
        cpu_us_per_connect: Some(rounded(connect_cpu as f64 / devices)),
        idle_cpu_us_per_session_s: Some(rounded(quiet_cpu as f64 / session_seconds.max(1.0))),
        deliveries: Some(deliveries),
        lost,
        seconds: args.seconds as f64,
        ..Figures::of("hold", &args.target)
    }
}
