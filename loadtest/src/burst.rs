//! `broadcast` and `flood`: messages to all devices at once, in rounds. A round begins when everybody has acknowledged the last one.
//!
//! `broadcast` is one message in a round; `flood` ten, one behind the other, so that several wait for each socket and may share a write,
//! and their arrivals an Ack. The floor does the same with bare sockets: everything for a device in one write, one acknowledgement for it.
//!
//! What profiles of the edge say (`perf record -e cpu-clock`, 15,000 devices over plain TCP): writes to sockets are half of a broadcast's CPU, as loopback
//! has the writer do the receiver's share of TCP too. So what mattered first was their number: a confirmation of each Ack was a second one. Then
//! what shards pass to and fro between their cores: counters of all, and the count of who holds a message. And a second read for each Ack, that
//! found nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mooring::cli::output::{self, Failure};
use mooring::clock::Clock;
use mooring::limits;

use crate::figures::Figures;
use crate::floor;
use crate::latencies::Latencies;
use crate::messages::Messages;
use crate::numbers::{median, rounded};
use crate::stage::Stage;
use crate::target::{self, Target};

/// Rounds before anything counts.
const WARM_UP: u32 = 2;

/// Flags of `broadcast` and `flood`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: target::Args,
    /// How many rounds count
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Run the bare socket loop of the same shape right before and after (plain TCP)
    #[arg(long)]
    floor: bool,
}

/// Runs `broadcast`, with one message a round, or `flood`, with more.
pub(crate) fn run(args: &Args, scenario: &'static str, messages: u32) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let figures = runtime.map_err(Failure::failed)?.block_on(measure(args, scenario, messages))?;
    figures.publish(&args.target)
}

/// When the round began, and what of it came when.
struct Times {
    /// Microseconds of the clock; 0: nothing counts.
    began: AtomicU64,
    /// From the beginning of its round to each message.
    latencies: Latencies,
}

impl Times {
    fn came(&self, at: u64) {
        let began = self.began.load(Ordering::Acquire);
        if began != 0 {
            self.latencies.record(at, at.saturating_sub(began));
        }
    }
}

pub(crate) async fn measure(
    args: &Args,
    scenario: &'static str,
    messages_a_round: u32,
) -> Result<Figures, Failure> {
    let clock = Arc::new(Clock::new(0));
    let floor_run = floor_run(args, messages_a_round);
    let floor = floor::Around::before(args.floor, args.target.transport, floor_run).await?;
    let target = Target::for_workers(&args.target).await?;
    let messages = Messages::new(&target, &clock, args.target.payload_bytes);
    let times = Arc::new(Times { began: AtomicU64::new(0), latencies: Latencies::new()? });
    let seen = Arc::clone(&times);
    let on_push = Arc::new(move |_, _, at| seen.came(at));
    let mut stage = Stage::new(&args.target, &clock, target, messages, on_push).await?;
    let recorder = stage.record(&args.target);
    stage.fleet.grow(&stage.target, args.target.devices, args.target.json).await?;

    let bar = output::bar(args.rounds.into(), "{bar:40} {pos}/{len} rounds", args.target.json);
    let mut start = stage.start()?;
    let (mut message, mut last_device) = (0, Vec::new());
    for round in 0..WARM_UP + args.rounds {
        if round == WARM_UP {
            start = stage.start()?;
        }
        let began = clock.micros();
        times.began.store(if round < WARM_UP { 0 } else { began }, Ordering::Release);
        for _ in 0..messages_a_round {
            let all = 0..args.target.devices;
            stage.pusher.push_to_all(message, all, limits::BATCH_TARGETS as u32).await?;
            message += 1;
        }
        stage.all_arrived().await?;
        stage.pusher.settled().await?;
        if round >= WARM_UP {
            last_device.push(times.latencies.newest().saturating_sub(began));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let load = stage.load(start, stage.seconds(start))?;
    let plots = recorder.plots();
    stage.end().await?;
    let floor = floor.after().await?;
    let latencies = times.latencies.take()?;
    let figures = Figures::of(scenario, &args.target).with_load(load).with_latencies(&latencies);
    Ok(Figures {
        last_device_ms: Some(rounded(median(&mut last_device) as f64 / 1_000.0)),
        floor_last_device_ms: floor.map(|cost| rounded(cost.round_ms)),
        ..figures.with_floor(floor).with_plots(plots)
    })
}

fn floor_run(args: &Args, messages: u32) -> floor::Run {
    floor::Run {
        devices: args.target.devices,
        rate: 0,
        seconds: 0,
        rounds: args.rounds,
        messages,
        payload_bytes: args.target.payload_bytes,
        seed: args.target.seed,
    }
}
