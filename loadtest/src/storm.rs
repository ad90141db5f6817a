//! `storm`: the server is killed while all devices are connected, and started again; all of them try every 50 ms until they are welcome.
//!
//! No client in the field does that (`proto/device.proto` asks for a random wait of up to minutes): it is the worst that a restart could meet. What
//! counts is the time from the start of the new process until the last device is back, and the CPU that this process has used by then, its start
//! included. Admission is as users have it, unless the edge is given otherwise. The devices share the machine with the server, and
//! their attempts in vain cost as well: `load_cpu_s` says how much.
//!
//! Over QUIC nobody tells a device that the server has died: it learns so with its next ping. Here all of them ping once the new process is ready.

use std::sync::Arc;

use mooring::cli::output::{self, Failure};
use mooring::client::{Backoff, Way};
use mooring::clock::Clock;

use crate::figures::Figures;
use crate::fleet::{Counts, Fleet};
use crate::numbers::{per, rounded};
use crate::report::Recorder;
use crate::stage::own_cpu_us;
use crate::target::{self, Target};

/// Milliseconds between two attempts.
const EVERY_MS: u64 = 50;

/// Flags of `storm`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    target: target::Args,
    /// Milliseconds between two attempts of a device
    #[arg(long, value_name = "MS", default_value_t = EVERY_MS, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    retry_ms: u64,
}

const EXAMPLES: &str = "\
Examples:
  loadtest storm --devices 15000
  loadtest storm --transport tls --devices 5000 --json
  loadtest storm --retry-ms 500";

/// Runs `storm`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let figures = runtime.map_err(Failure::failed)?.block_on(measure(args))?;
    figures.publish(&args.target)
}

pub(crate) async fn measure(args: &Args) -> Result<Figures, Failure> {
    let clock = Arc::new(Clock::new(0));
    let mut target = Target::new(&args.target).await?;
    if !target.is_ours() {
        return Err(Failure::usage(
            "what runs already isn't killed: leave out --addr and --dev (a broker: --start 'COMMAND')",
        ));
    }
    let devices = u64::from(args.target.devices);
    let fleet = Fleet::new(&clock, args.target.transport, 0, args.target.seed, Arc::new(|_, _, _| {}));
    let mut fleet = fleet.retrying(Backoff::every(args.retry_ms));
    let recorder = Recorder::start(args.target.report.is_some(), &target, &fleet.counts, &clock);
    fleet.grow(&target, args.target.devices, args.target.json).await?;

    target.kill().await?;
    if args.target.transport != Way::Quic {
        fleet.until("all have noticed", |c| c.connected() == 0).await?;
    }
    let before = fleet.counts.sessions();
    let own = own_cpu_us()?;
    let started = clock.micros();
    let since = |at: u64| (clock.micros() - at) as f64 / 1e6;
    target.start_again()?;
    target.ready().await?;
    let ready_seconds = since(started);
    fleet.probe();
    let bar = output::bar(devices, "{bar:40} {pos}/{len} back  {elapsed}", args.target.json);
    let back = |counts: &Counts| {
        let sessions = counts.sessions() - before;
        bar.set_position(sessions);
        sessions >= devices && counts.connected() >= devices
    };
    fleet.until("all are back", back).await?;
    let seconds = since(started);
    bar.finish_and_clear();
    let cpu_us = target.process.cpu_us()?;
    let own_us = own_cpu_us()? - own;
    let plots = recorder.plots();
    fleet.end().await;
    target.end().await?;
    Ok(Figures {
        connects_per_s: Some(per(devices as f64 / seconds.max(1e-9), 1)),
        cpu_us_per_connect: Some(per(cpu_us as f64, devices)),
        ready_seconds: Some(rounded(ready_seconds)),
        back_cpu_s: Some(rounded(cpu_us as f64 / 1e6)),
        load_cpu_s: Some(rounded(own_us as f64 / 1e6)),
        seconds: rounded(seconds),
        ..Figures::of("storm", &args.target).with_plots(plots)
    })
}
