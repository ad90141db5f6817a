//! `unicast`: messages to one random connected device each, in batches of one target: what a single push costs and how long it takes.
//!
//! Messages have their times by the rate; latency counts from the time at which a message was due, not from when it could be sent, so that
//! a server that stalls can't hide the messages that waited meanwhile (coordinated omission). With `--rate 0` a fixed number is in flight
//! instead, and latency counts from the sending.
//!
//! With `--beside` it does so twice, and a broadcast goes on beside the second time: what the others notice of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use mooring::cli::output::{self, Failure};
use mooring::clock::Clock;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::beside::{self, Broadcast};
use crate::cores;
use crate::figures::{Figures, Load};
use crate::floor;
use crate::latencies::Latencies;
use crate::messages::Messages;
use crate::numbers::rounded;
use crate::stage::Stage;
use crate::syncs;
use crate::target::{self, Kind, Target};

/// Messages in flight with `--rate 0`.
const IN_FLIGHT: usize = 256;
/// Messages of one run, at most: the time of each is kept.
const MESSAGES: u64 = 50_000_000;
/// Seconds of the same load before anything counts.
const WARM_UP_SECONDS: u64 = 2;

/// Flags of `unicast`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    target: target::Args,
    /// Messages a second; 0: as many as it can, 256 in flight
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    rate: u64,
    /// How long, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Twice as long, the second half while messages go out to so many other devices, which are known and away; 0: none
    #[arg(long, value_name = "DEVICES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    beside: u32,
    /// Run the bare socket loop of the same shape right before and after (plain TCP), syncs of a record to disk, and a loop that counts on each core
    #[arg(long)]
    floor: bool,
}

const EXAMPLES: &str = "\
Examples:
  loadtest unicast --rate 5000 --floor
  loadtest unicast --transport tls --devices 5000 --seconds 10 --json
  loadtest unicast --rate 0
  loadtest unicast --rate 500 --beside 100000      p99_ms during a broadcast, and quiet_p99_ms without it";

/// Runs `unicast`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.beside > 0 && args.target.target == Kind::Mqtt {
        return Err(Failure::usage(
            "--beside is for an edge: MQTT has no batches (leave out --beside or --target mqtt)",
        ));
    }
    let messages = args.rate.max(200_000) * args.all_seconds();
    if args.rate > 0 && messages > MESSAGES {
        return Err(Failure::usage(format!(
            "that is over {MESSAGES} messages: a lower --rate or fewer --seconds"
        )));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let figures = runtime.map_err(Failure::failed)?.block_on(measure(args))?;
    figures.publish(&args.target)
}

impl Args {
    /// Seconds of sending, the warm-up included.
    fn all_seconds(&self) -> u64 {
        self.seconds * if self.beside > 0 { 2 } else { 1 } + WARM_UP_SECONDS
    }
}

/// When each message was due, and how long those that count took.
struct Times {
    first: u64,
    due: Vec<AtomicU64>,
    latencies: Latencies,
    /// Messages from this one on count.
    counting_from: AtomicU64,
    /// With `--rate 0`: one permit a message in flight.
    room: Semaphore,
}

impl Times {
    fn came(&self, message_id: u64, at: u64) {
        let n = message_id.wrapping_sub(self.first);
        let Some(due) = self.due.get(n as usize) else { return };
        self.room.add_permits(1);
        if n < self.counting_from.load(Ordering::Acquire) {
            return;
        }
        self.latencies.record(at, at.saturating_sub(due.load(Ordering::Acquire)));
    }
}

pub(crate) async fn measure(args: &Args) -> Result<Figures, Failure> {
    let clock = Arc::new(Clock::new(0));
    let rate = if args.rate == 0 { 200_000 } else { args.rate };
    let most = (rate * args.all_seconds() + 1).min(MESSAGES);
    let floor = floor::Around::before(args.floor, args.target.transport, floor_run(args)).await?;
    let syncs = syncs::Around::before(args.floor).await?;
    let cores = cores::Around::before(args.floor).await?;

    let target = Target::for_workers(&args.target).await?;
    let messages = Messages::new(&target, &clock, args.target.payload_bytes);
    let times = Arc::new(Times {
        first: messages.first,
        due: (0..most).map(|_| AtomicU64::new(0)).collect(),
        latencies: Latencies::new()?,
        counting_from: AtomicU64::new(u64::MAX),
        room: Semaphore::new(if args.rate == 0 { IN_FLIGHT } else { Semaphore::MAX_PERMITS >> 1 }),
    });
    let seen = Arc::clone(&times);
    let on_push = Arc::new(move |_, message, at| seen.came(message, at));
    let mut stage = Stage::new(&args.target, &clock, target, messages, on_push).await?;
    let recorder = stage.record(&args.target);
    if args.beside > 0 {
        beside::make_known(&args.target, &clock, &stage.target, args.beside).await?;
    }
    stage.fleet.grow(&stage.target, args.target.devices, args.target.json).await?;

    let mut rng = SmallRng::seed_from_u64(args.target.seed);
    let mut sender = Sender { args, clock: &clock, stage: &mut stage, times: &times, rng: &mut rng };
    sender.send(WARM_UP_SECONDS)?;
    sender.stage.all_arrived().await?;
    sender.stage.pusher.settled().await?;
    let mut figures = Figures::of("unicast", &args.target);
    let mut lost_before = 0;
    let broadcast = if args.beside > 0 {
        let (load, latencies) = sender.part().await?;
        lost_before = load.lost;
        figures = figures.with_quiet(&latencies);
        Some(Broadcast::start(&args.target, &clock, &sender.stage.target, args.beside).await?)
    } else {
        None
    };
    let (load, latencies) = sender.part().await?;
    let beside = broadcast.map(Broadcast::end).transpose()?;
    let plots = recorder.plots();
    stage.end().await?;
    let cores = cores.after().await?;
    let syncs = syncs.after().await?;
    let floor = floor.after().await?;
    let load = Load { lost: load.lost + lost_before, ..load };
    let figures =
        figures.with_load(load).with_latencies(&latencies).with_floor(floor).with_syncs(syncs.as_ref());
    let slow = cores.map(rounded);
    let figures = Figures { floor_slow_percent: slow, ..figures.with_plots(plots) };
    Ok(match beside {
        Some(sum) => figures.with_beside(args.beside, sum),
        None => figures,
    })
}

fn floor_run(args: &Args) -> floor::Run {
    floor::Run {
        devices: args.target.devices,
        rate: args.rate,
        seconds: args.seconds,
        rounds: 0,
        messages: 1,
        payload_bytes: args.target.payload_bytes,
        seed: args.target.seed,
    }
}

struct Sender<'a> {
    args: &'a Args,
    clock: &'a Clock,
    stage: &'a mut Stage,
    times: &'a Times,
    rng: &'a mut SmallRng,
}

impl Sender<'_> {
    /// What counts: sends for `--seconds` and waits for all of it.
    async fn part(&mut self) -> Result<(Load, Histogram<u64>), Failure> {
        self.times.counting_from.store(self.stage.pusher.sent(), Ordering::Release);
        let start = self.stage.start()?;
        self.send(self.args.seconds)?;
        let arrived = self.stage.all_arrived().await;
        let seconds = self.stage.seconds(start);
        if arrived.is_ok() {
            self.stage.pusher.settled().await?;
        }
        Ok((self.stage.load(start, seconds)?, self.times.latencies.take()?))
    }

    /// Sends for so many seconds. It has its thread to itself: the runtime's timer counts milliseconds, which is more than a delivery
    /// takes.
    fn send(&mut self, seconds: u64) -> Result<(), Failure> {
        tokio::task::block_in_place(|| self.send_here(seconds))
    }

    fn send_here(&mut self, seconds: u64) -> Result<(), Failure> {
        let bar = output::bar(seconds, "{bar:40} {pos}/{len} s", self.args.target.json);
        let start = self.clock.micros();
        let end = start + seconds * 1_000_000;
        for n in 0.. {
            if self.stage.pusher.sent() as usize + 1 >= self.times.due.len() {
                break;
            }
            // Without a rate, as soon as one in flight has arrived.
            let due = match (n * 1_000_000u64).checked_div(self.args.rate) {
                Some(after) => start + after,
                None => self.when_there_is_room()?,
            };
            if due >= end {
                break;
            }
            let early = due.saturating_sub(self.clock.micros());
            if early > 0 {
                std::thread::sleep(Duration::from_micros(early));
            }
            bar.set_position((due - start) / 1_000_000);
            self.one(due)?;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn when_there_is_room(&self) -> Result<u64, Failure> {
        let permit = Handle::current().block_on(self.times.room.acquire());
        permit.map_err(Failure::failed)?.forget();
        Ok(self.clock.micros())
    }

    fn one(&mut self, due: u64) -> Result<(), Failure> {
        let device = self.rng.random_range(0..self.args.target.devices);
        let n = self.stage.pusher.sent();
        self.times.due[n as usize].store(due, Ordering::Release);
        Handle::current().block_on(self.stage.pusher.push(n, std::iter::once(device)))
    }
}
