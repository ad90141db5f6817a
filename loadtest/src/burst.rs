//! `broadcast` and `flood`: messages to all devices at once, in rounds. A round begins when everybody has acknowledged the last one.
//!
//! `broadcast` is one message in a round; `flood` ten, one behind the other, so that several wait for each socket and may share a write,
//! and their arrivals an Ack. The floor does the same with bare sockets: everything for a device in one write, one acknowledgement for it.
//!
//! What profiles of the edge say (`perf record -e cpu-clock`, 15,000 devices over plain TCP): writes to sockets are half of a broadcast's CPU, as loopback
//! has the writer do the receiver's share of TCP too. So what mattered first was their number: a confirmation of each Ack was a second one. Then
//! what shards pass to and fro between their cores: counters of all, and the count of who holds a message. And a second read for each Ack, that
//! found nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;
use mooring::cli::output::{self, Failure, note};
use mooring::client::Way;
use mooring::clock::Clock;
use mooring::limits;

use crate::figures::{Figures, rounded};
use crate::fleet::Fleet;
use crate::floor;
use crate::messages::{self, Messages};
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
    figures.print(args.target.json);
    Ok(())
}

/// When the round began, and what of it came when.
struct Times {
    /// Microseconds of the clock; 0: nothing counts.
    began: AtomicU64,
    /// When the last message of the round came.
    last: AtomicU64,
    /// Microseconds from the beginning of its round to each message.
    latencies: Mutex<Histogram<u64>>,
}

impl Times {
    fn came(&self, at: u64) {
        let began = self.began.load(Ordering::Acquire);
        if began == 0 {
            return;
        }
        self.last.fetch_max(at, Ordering::AcqRel);
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.saturating_record(at.saturating_sub(began).max(1));
    }
}

async fn measure(args: &Args, scenario: &'static str, messages_a_round: u32) -> Result<Figures, Failure> {
    let clock = Arc::new(Clock::new(0));
    let before = floor_of(args, messages_a_round).await?;
    let target = Target::new(&args.target).await?;
    let messages = Messages::new(&target, &clock, args.target.payload_bytes);
    let times = Arc::new(Times {
        began: AtomicU64::new(0),
        last: AtomicU64::new(0),
        latencies: Mutex::new(Histogram::new_with_bounds(1, 600_000_000, 3).map_err(Failure::failed)?),
    });
    let seen = Arc::clone(&times);
    let on_push = Arc::new(move |_, _: &mooring::wire::pb::device::Push, at| seen.came(at));
    let mut fleet = Fleet::new(&clock, args.target.transport, 0, args.target.seed, on_push);
    fleet.grow(&target, args.target.devices, args.target.json).await?;
    let router = messages::router(&target, &clock, args.target.seed);

    let bar = output::bar(args.rounds.into(), "{bar:40} {pos}/{len} rounds", args.target.json);
    let (mut batches, mut message) = (0, 0);
    let (mut cpu, mut start, mut warm_up) = (0, 0, 0);
    let mut last_device = Vec::new();
    for round in 0..WARM_UP + args.rounds {
        if round == WARM_UP {
            (cpu, start, warm_up) = (target.process.cpu_us()?, clock.micros(), fleet.counts.received());
        }
        let began = clock.micros();
        times.began.store(if round < WARM_UP { 0 } else { began }, Ordering::Release);
        for _ in 0..messages_a_round {
            for first in (0..args.target.devices).step_by(limits::BATCH_TARGETS) {
                let end = args.target.devices.min(first + limits::BATCH_TARGETS as u32);
                let batch = messages.batch(batches, message, first..end, clock.now());
                batches += 1;
                if !router.deliver(batch).await {
                    return Err(Failure::failed("the router has ended"));
                }
            }
            message += 1;
        }
        let all = message * u64::from(args.target.devices);
        fleet.until("all have it", |c| c.received() >= all).await?;
        messages::settled(&router, batches).await?;
        if round >= WARM_UP {
            last_device.push(times.last.load(Ordering::Acquire) - began);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let seconds = (clock.micros() - start) as f64 / 1e6;
    let cpu = target.process.cpu_us()? - cpu;
    let (received, reconnects) = (fleet.counts.received(), fleet.counts.reconnects());
    fleet.end().await;
    drop(router);
    target.end().await?;
    if reconnects > 0 {
        note(&format!("{reconnects} sessions broke during the measurement"));
    }
    let after = floor_of(args, messages_a_round).await?;
    let latencies = times.latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let deliveries = received - warm_up;
    let ms = |quantile: f64| Some(rounded(latencies.value_at_quantile(quantile) as f64 / 1_000.0));
    let floor = before.zip(after);
    Ok(Figures {
        scenario,
        target: "mooring",
        transport: args.target.transport.name(),
        devices: args.target.devices,
        deliveries: Some(deliveries),
        cpu_us_per_delivery: Some(rounded(cpu as f64 / deliveries.max(1) as f64)),
        floor_cpu_us_per_delivery: floor.map(|(b, a)| rounded(f64::midpoint(b.cpu_us, a.cpu_us))),
        deliveries_per_s: Some(rounded(deliveries as f64 / seconds)),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        p999_ms: ms(0.999),
        max_ms: Some(rounded(latencies.max() as f64 / 1_000.0)),
        last_device_ms: Some(rounded(median(&mut last_device) as f64 / 1_000.0)),
        floor_last_device_ms: floor.map(|(b, a)| rounded(f64::midpoint(b.round_ms, a.round_ms))),
        lost: message * u64::from(args.target.devices) - received,
        seconds,
        ..Figures::default()
    })
}

async fn floor_of(args: &Args, messages: u32) -> Result<Option<floor::Cost>, Failure> {
    if !args.floor {
        return Ok(None);
    }
    if args.target.transport != Way::Tcp {
        note("the floor is plain TCP");
    }
    let run = floor::Run {
        devices: args.target.devices,
        rate: 0,
        seconds: 0,
        rounds: args.rounds,
        messages,
        payload_bytes: args.target.payload_bytes,
        seed: args.target.seed,
    };
    floor::measure(run).await.map(Some)
}

/// The one in the middle; 0 of none.
pub(crate) fn median(numbers: &mut [u64]) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [5, 1, 9]), 5);
        assert_eq!(median(&mut []), 0);
    }
}
