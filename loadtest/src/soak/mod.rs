//! `soak`: constant load for as long as one likes, after which nothing may have grown: memory, descriptors, threads, files, latencies.
//!
//! Residents stay connected and get messages at a fixed rate, now and then one to all; guests come and go, and what is pushed to them waits for them,
//! or expires. An edge of our own has small settings, so that all that turns turns many times within minutes: segments, checkpoints, batch ids,
//! push records, caches. What fills first (batch ids for a minute, push records up to their bound) fills during the warm-up.
//!
//! Each second the process, its files and its own counts are looked at; [`judge`] says of each series whether it grows. [`account`] knows every
//! message: each target has one end, and a device gets a message once.

mod account;
mod guests;
mod judge;
mod load;
mod report;
mod sample;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mooring::cli::output::{self, Failure, note};
use mooring::client::Way;
use mooring::client::router::Router;
use mooring::clock::Clock;
use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;

use self::account::Account;
use self::guests::Guests;
use self::load::{Load, Shared, locked, on_events};
use self::report::Report;
use self::sample::Series;
use crate::fleet::Fleet;
use crate::messages::{self, Messages};
use crate::target::{EdgeArgs, Target};

/// Seconds of one window of latencies.
const WINDOW_S: u64 = 10;
/// Seconds without a message's end after which those that are left count as lost.
const STALLED_S: u64 = 60;
/// Milliseconds between two looks whether all has ended.
const LOOK_MS: u64 = 100;
/// Push records of an edge of our own, at least.
const LEAST_RECORDS: u64 = 2_000;
/// Seconds of messages whose push records an edge of our own keeps: they fill within the warm-up.
const RECORDS_S: u64 = 30;

/// Flags of `soak`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// How long, without the warm-up; a fraction is allowed
    #[arg(long, value_name = "MINUTES", default_value = "10", value_parser = minutes)]
    minutes: Duration,
    /// The same load before anything counts, seconds. What is bounded fills within the first minute; what the allocator holds settles within about
    /// five
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    warm_up: u64,
    /// How devices connect; several: an equal part of them in each way
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tcp,tls,quic")]
    transport: Vec<Way>,
    /// Devices that stay connected
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    devices: u32,
    /// Devices that come and go
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    guests: u32,
    /// Messages to one device each, a second; every fifth is for a guest
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Seconds between two messages to all devices that stay
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    to_all_every: u64,
    /// Of what is chosen at random
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// Bytes of a message's body
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(0..=4_000))]
    payload_bytes: u32,
    /// The result as one JSON line, no progress bars
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    edge: EdgeArgs,
}

const EXAMPLES: &str = "\
Examples:
  loadtest soak
  loadtest soak --minutes 60 --devices 5000 --rate 1000 --json
  loadtest soak --transport quic --minutes 3 --seed 7
  loadtest soak --minutes 3 --set store.max_messages=1000000     something that grows: push records without a bound
  loadtest soak --dev data --server-pid 4711

Exit code 1: something grows, or a message was lost, came twice, or ended as it shouldn't.";

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| String::from("a number is needed"))?;
    let time = Duration::try_from_secs_f64(minutes * 60.0).map_err(|e| e.to_string())?;
    if time.is_zero() { Err("more than 0 is needed".into()) } else { Ok(time) }
}

/// Runs `soak`.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let report = runtime.map_err(Failure::failed)?.block_on(measure(args))?;
    report.print(args.json);
    let wrong = report.wrong();
    if wrong.is_empty() { Ok(()) } else { Err(Failure::failed(wrong.join("; "))) }
}

/// What makes everything turn many times in minutes. `--set` goes over it.
fn settings(args: &Args) -> Vec<(String, String)> {
    let records = LEAST_RECORDS.max(args.rate * RECORDS_S);
    let small = [
        ("store.segment_bytes", "4194304".into()),
        ("store.checkpoint_bytes", "1048576".into()),
        ("store.batch_window_s", "60".into()),
        ("store.max_messages", records.to_string()),
        ("store.message_cache_bytes", "1048576".into()),
        ("store.device_cache_bytes", "65536".into()),
        ("store.table_cache_bytes", "1048576".into()),
        ("store.body_cache_bytes", "1048576".into()),
    ];
    small.map(|(key, value): (&str, String)| (key.to_owned(), value)).to_vec()
}

/// All that runs during a measurement.
struct Running {
    target: Target,
    clock: Arc<Clock>,
    account: Shared,
    residents: Vec<Fleet>,
    guest_fleets: Vec<Fleet>,
    guests: Guests,
    router: Arc<Router>,
}

async fn measure(args: &Args) -> Result<Report, Failure> {
    let running = Running::start(args).await?;
    let (stop, batches) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = running.load(args, &stop, &batches);
    let runtime = Handle::current();
    let pushing = tokio::task::spawn_blocking(move || load.run(&runtime));
    let series = running.follow(args).await;
    stop.store(true, Ordering::Release);
    let pushed = pushing.await.map_err(Failure::failed)?;
    let series = series?;
    if !pushed {
        return Err(Failure::failed("the router has ended"));
    }
    running.guests.stay();
    running.settle().await?;
    running.end(args, &series, batches.load(Ordering::Acquire)).await
}

impl Running {
    async fn start(args: &Args) -> Result<Self, Failure> {
        let clock = Arc::new(Clock::new(0));
        let settings = settings(args);
        let settings: Vec<_> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let target = Target::over(&args.edge, &args.transport, args.devices + args.guests, &settings).await?;
        if target.admin.is_none() {
            note("no --dev: disk and the edge's own counts are left out");
        }
        let account: Shared = Arc::new(Mutex::new(Account::new().map_err(Failure::failed)?));
        let told = Arc::clone(&account);
        let on_push = Arc::new(move |n, message, at| locked(&told).came(message, n, at));
        let fleet = |(way, first)| Fleet::new(&clock, way, first, args.seed, Arc::clone(&on_push) as _);
        let parts = parts(args.devices, args.transport.len());
        let ways = || args.transport.iter().copied();
        let mut residents: Vec<_> = ways().zip(parts.iter().map(|part| part.start)).map(fleet).collect();
        for (fleet, part) in residents.iter_mut().zip(&parts) {
            fleet.grow(&target, part.end - part.start, args.json).await?;
        }
        let guest_fleets: Vec<_> = ways().zip(std::iter::repeat(0)).map(fleet).collect();
        let numbers = args.devices..args.devices + args.guests;
        let guests = Guests::start(&target, &guest_fleets, numbers, args.seed)?;
        // A device is known once it was connected.
        guests.until_all_came(args.guests).await?;
        let router = messages::router_telling(
            target.edge()?,
            &clock,
            args.seed,
            Box::new(on_events(&account, &clock)),
        );
        Ok(Self { target, clock, account, residents, guest_fleets, guests, router: Arc::new(router) })
    }

    fn load(&self, args: &Args, stop: &Arc<AtomicBool>, batches: &Arc<AtomicU64>) -> Load {
        Load {
            clock: Arc::clone(&self.clock),
            router: Arc::clone(&self.router),
            messages: Messages::new(&self.target, &self.clock, args.payload_bytes),
            account: Arc::clone(&self.account),
            residents: args.devices,
            guests: args.guests,
            rate: args.rate,
            to_all_every: args.to_all_every * 1_000_000,
            seed: args.seed,
            stop: Arc::clone(stop),
            batches: Arc::clone(batches),
        }
    }

    /// Looks each second after the warm-up.
    async fn follow(&self, args: &Args) -> Result<Series, Failure> {
        let mut series = Series::default();
        let (start, warm_up) = (self.clock.micros(), args.warm_up as f64);
        let all = args.minutes + Duration::from_secs(args.warm_up);
        let bar = output::bar(all.as_secs(), "{bar:30} {pos}/{len} s  {msg}", args.json);
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut window = None;
        loop {
            ticks.tick().await;
            let passed = Duration::from_micros(self.clock.micros() - start);
            let at = passed.as_secs_f64();
            self.healthy()?;
            if passed >= all {
                break;
            }
            if at < warm_up {
                bar.set_message("warming up");
            } else {
                series.look(&self.target, at - warm_up).await?;
                // The first window begins here: what came before doesn't count.
                let since = *window.get_or_insert_with(|| {
                    locked(&self.account).take_latencies();
                    at
                });
                if at - since >= WINDOW_S as f64 {
                    series.latencies(at - warm_up, &locked(&self.account).take_latencies());
                    window = Some(at);
                }
                bar.set_message(self.line(&series));
            }
            bar.set_position(passed.as_secs());
        }
        bar.finish_and_clear();
        Ok(series)
    }

    fn line(&self, series: &Series) -> String {
        let account = locked(&self.account);
        let mib = |name| series.last(name).map_or(0.0, |bytes| bytes / 1_048_576.0);
        let p99 = series.last("p99_ms").map_or(String::new(), |ms| format!("  p99 {ms:.1} ms"));
        format!(
            "RSS {:.1} MiB  disk {:.1} MiB{p99}  {} sent, {} open",
            mib("rss_bytes"),
            mib("disk_bytes"),
            account.sums.sent,
            account.open()
        )
    }

    fn fleets(&self) -> impl Iterator<Item = &Fleet> {
        self.residents.iter().chain(&self.guest_fleets)
    }

    /// An error if a device was turned away for good, or a batch.
    fn healthy(&self) -> Result<(), Failure> {
        if let Some(why) = self.fleets().find_map(|fleet| fleet.counts.failure()) {
            return Err(Failure::Failed(why));
        }
        match &self.router.progress().borrow().first_rejection {
            Some(rejection) => Err(Failure::failed(format!("a batch was rejected: {rejection:?}"))),
            None => Ok(()),
        }
    }

    /// Waits until everything has ended, or nothing more does: the report counts what is left.
    async fn settle(&self) -> Result<(), Failure> {
        let (mut last, mut since) = (u64::MAX, self.clock.micros());
        loop {
            self.healthy()?;
            let open = locked(&self.account).open();
            let stalled = self.clock.micros() - since > STALLED_S * 1_000_000;
            if open == 0 || stalled && open == last {
                return Ok(());
            }
            if open != last {
                (last, since) = (open, self.clock.micros());
            }
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
    }

    async fn end(self, args: &Args, series: &Series, batches: u64) -> Result<Report, Failure> {
        let tally = self.router.progress().borrow().tally;
        let (sums, open) = {
            let account = locked(&self.account);
            (account.sums, account.open())
        };
        let expired_on_arrival: u64 = self.fleets().map(|fleet| fleet.counts.expired()).sum();
        let reconnects = self.residents.iter().map(|fleet| fleet.counts.reconnects()).sum();
        let guest_sessions = self.guests.sessions();
        self.guests.end().await;
        for fleet in self.residents {
            fleet.end().await;
        }
        drop(self.router);
        self.target.end().await?;
        Ok(Report {
            scenario: "soak",
            target: "mooring",
            transports: args.transport.iter().map(|way| way.name()).collect(),
            devices: args.devices,
            guests: args.guests,
            rate: args.rate,
            seed: args.seed,
            warm_up_seconds: args.warm_up,
            seconds: args.minutes.as_secs_f64(),
            batches,
            sent: sums.sent,
            arrived: sums.arrived,
            expired: sums.expired,
            failed_otherwise: sums.failed,
            refused: tally.refused.iter().sum(),
            lost: open + sums.phantoms.saturating_sub(expired_on_arrival),
            duplicates: sums.duplicates,
            conflicts: tally.conflicts,
            expired_on_arrival,
            reconnects,
            guest_sessions,
            series: report::series(&series.judged()),
        })
    }
}

/// Numbers of devices, in so many parts of about the same size.
fn parts(devices: u32, parts: usize) -> Vec<Range<u32>> {
    let at = |part: usize| (u64::from(devices) * part as u64 / parts as u64) as u32;
    (0..parts).map(|part| at(part)..at(part + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_is_in_one_part() {
        assert_eq!(parts(10, 3), [0..3, 3..6, 6..10]);
        assert_eq!(parts(1, 2), [0..0, 0..1]);
    }

    #[test]
    fn minutes_are_a_number_above_zero() {
        assert!(
            minutes("0").is_err() && minutes("x").is_err() && minutes("0.05") == Ok(Duration::from_secs(3))
        );
    }
}
