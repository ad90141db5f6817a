//! `offline`: what it costs to take messages for devices that are away, and whether they are all there when the devices come back.
//!
//! First the devices are made known: each connects once and leaves. Then messages for all of them are pushed in batches, and what counts is the
//! time until the last batch is accepted, which it is once it is durable; the server's CPU until it is quiet again; and what its
//! journal has grown by (`journal::written`).
//!
//! Then the server is killed with SIGKILL and started again on the same data. Once it is ready all devices come back at once, and what counts
//! is the time from there until the last of their messages has come. Each device keeps account of each message, so that one that comes twice
//! can't stand in for one that doesn't come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mooring::cli::output::{self, Failure, note};
use mooring::clock::Clock;

use crate::figures::{Figures, Load};
use crate::fleet::{Fleet, OnPush};
use crate::journal;
use crate::messages::Messages;
use crate::numbers::{per, rounded};
use crate::stage::Stage;
use crate::target::{self, Target};

/// Milliseconds after the last answer in which the server does what it has put off.
const QUIET_MS: u64 = 500;

/// Flags of `offline`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    target: target::Args,
    /// Messages for each device
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    messages: u32,
    /// Targets of one batch
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
}

const EXAMPLES: &str = "\
Examples:
  loadtest offline --devices 10000
  loadtest offline --devices 10000 --messages 100 --batch 1000 --json
  loadtest offline --dev data --server-pid 4711      the first part only: an edge that runs isn't killed

Exit code 1: a message was lost.";

/// Which device got which message.
struct Account {
    first: u64,
    messages: u32,
    /// A bit each, by device and message.
    bits: Vec<AtomicU64>,
    came: AtomicU64,
    last_at: AtomicU64,
}

impl Account {
    fn new(first: u64, devices: u32, messages: u32) -> Self {
        let bits = u64::from(devices) * u64::from(messages);
        Self {
            first,
            messages,
            bits: (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            came: AtomicU64::new(0),
            last_at: AtomicU64::new(0),
        }
    }

    fn came(&self, device: u32, message: u64, at: u64) {
        let message = message.wrapping_sub(self.first);
        if message >= u64::from(self.messages) {
            return;
        }
        let bit = u64::from(device) * u64::from(self.messages) + message;
        let Some(word) = self.bits.get((bit / 64) as usize) else { return };
        let mask = 1 << (bit % 64);
        if word.fetch_or(mask, Ordering::AcqRel) & mask == 0 {
            self.came.fetch_add(1, Ordering::AcqRel);
            self.last_at.fetch_max(at, Ordering::AcqRel);
        }
    }

    fn distinct(&self) -> u64 {
        self.came.load(Ordering::Acquire)
    }
}

/// Runs `offline`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let figures = runtime.map_err(Failure::failed)?.block_on(measure(args))?;
    figures.publish(&args.target)?;
    if figures.lost == 0 {
        Ok(())
    } else {
        Err(Failure::failed(format!("{} messages are lost", figures.lost)))
    }
}

pub(crate) async fn measure(args: &Args) -> Result<Figures, Failure> {
    let clock = Arc::new(Clock::new(0));
    let target = Target::new(&args.target).await?;
    let messages = Messages::new(&target, &clock, args.target.payload_bytes);
    let account = Arc::new(Account::new(messages.first, args.target.devices, args.messages));
    let seen = Arc::clone(&account);
    let on_push: Arc<OnPush> = Arc::new(move |device, message, at| seen.came(device, message, at));
    let mut stage = Stage::new(&args.target, &clock, target, messages, Arc::clone(&on_push)).await?;

    let fleet = Fleet::new(&clock, args.target.transport, 0, args.target.seed, on_push);
    let mut known = std::mem::replace(&mut stage.fleet, fleet);
    let recorder = stage.record(&args.target);
    known.grow(&stage.target, args.target.devices, args.target.json).await?;
    known.end().await;
    stage.target.until_all_left().await?;

    let figures = accept(args, &mut stage).await?;
    let figures = if stage.target.is_ours() {
        come_back(args, &mut stage, &account, figures).await?
    } else {
        note("what runs already isn't killed: the second part is left out");
        figures
    };
    let plots = recorder.plots();
    stage.end().await?;
    Ok(figures.with_plots(plots))
}

/// The first part.
async fn accept(args: &Args, stage: &mut Stage) -> Result<Figures, Failure> {
    let written = |stage: &Stage| match &stage.target.data_dir {
        Some(dir) => {
            journal::written(dir).map(Some).map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))
        }
        None => Ok(None),
    };
    let disk = written(stage)?;
    let bar = output::bar(args.messages.into(), "{bar:40} {pos}/{len} messages for each", args.target.json);
    let start = stage.start()?;
    for message in 0..args.messages {
        stage.pusher.push_to_all(message.into(), 0..args.target.devices, args.batch).await?;
        bar.inc(1);
    }
    stage.pusher.accepted().await?;
    let seconds = stage.seconds(start);
    bar.finish_and_clear();
    tokio::time::sleep(Duration::from_millis(QUIET_MS)).await;
    let load = stage.load(start, seconds)?;
    let pointers = stage.pusher.sent();
    let grown = written(stage)?.zip(disk).map(|(after, before)| after.saturating_sub(before));
    Ok(Figures {
        pointers: Some(pointers),
        pointers_per_s: Some(per(pointers as f64 / seconds, 1)),
        cpu_us_per_pointer: Some(per(load.cpu_us as f64, pointers)),
        disk_bytes_per_pointer: grown.map(|bytes| per(bytes as f64, pointers)),
        load_cpu_s: Some(rounded(load.own_cpu_us as f64 / 1e6)),
        seconds: rounded(seconds),
        ..Figures::of("offline", &args.target)
    })
}

/// The second part.
async fn come_back(
    args: &Args,
    stage: &mut Stage,
    account: &Account,
    figures: Figures,
) -> Result<Figures, Failure> {
    let device = |n| stage.fleet.client(&stage.target, n);
    let devices = (0..args.target.devices).map(device).collect::<Result<Vec<_>, _>>()?;
    stage.target.kill().await?;
    let started = stage.clock.micros();
    stage.target.start_again()?;
    stage.target.ready().await?;
    let ready_seconds = (stage.clock.micros() - started) as f64 / 1e6;

    let start = stage.start()?;
    let began = stage.clock.micros();
    stage.fleet.launch(devices);
    let expected = stage.pusher.sent();
    // What has not come when nothing more comes is lost.
    if let Err(error) = stage.fleet.until("all messages have come", |_| account.distinct() >= expected).await
    {
        note(&error.to_string());
    }
    let lost = expected - account.distinct();
    let seconds = account.last_at.load(Ordering::Acquire).saturating_sub(began) as f64 / 1e6;
    if lost == 0 {
        stage.pusher.settled().await?;
    }
    let load = Load { lost, deliveries: account.distinct(), ..stage.load(start, seconds)? };
    Ok(Figures {
        ready_seconds: Some(rounded(ready_seconds)),
        back_cpu_s: Some(rounded(load.cpu_us as f64 / 1e6)),
        ..figures.with_load(load)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_twice_does_not_stand_in_for_another() {
        let account = Account::new(1_000, 3, 70);
        for device in 0..3 {
            for message in 0..70 {
                if (device, message) != (1, 64) {
                    account.came(device, 1_000 + message, 5);
                    account.came(device, 1_000 + message, 6);
                }
            }
        }
        assert_eq!(account.distinct(), 3 * 70 - 1);
        // Of an earlier run, and of none.
        account.came(1, 999, 7);
        account.came(1, 1_070, 7);
        account.came(9, 1_000, 7);
        assert_eq!(account.distinct(), 3 * 70 - 1);
        account.came(1, 1_064, 8);
        assert_eq!((account.distinct(), account.last_at.load(Ordering::Acquire)), (210, 8));
    }
}
