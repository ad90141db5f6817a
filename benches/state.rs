//! What a large state costs: entries that are left over from many more that were accepted and acknowledged, among many known devices. How long it
//! takes to build, what it takes on disk and in memory, how long a start takes, and how long a single message takes to its device while checkpoints are
//! written and while everything ends at once. On the disk of the working directory. The store has its threads, but while the state is built; sessions
//! and sockets are left out.
//!
//! What is left over is spread evenly over all batches. That is the worst for trimming: something is live in every segment, and is copied.
//!
//! `cargo bench --bench state` for a million devices, a million entries, 20 million accepted; `-- --help` for others. The last line is JSON.
//!
//! # Measured
//! 10 million devices, 10 million entries left of 500 million accepted in batches of 100,000, on two cores that builds wanted too (but for the starts, which
//! had most of them): a start takes 3.1 s after an orderly end (4.5 s on cores), 5.4 s after a crash (6.4 s). What is on disk and in memory is as below,
//! but for the tables: 404 B a device. Messages waited up to 212 ms while 7.5 million entries ended, and 366 ms while two checkpoints were written.
//! With nothing else to do, and as many live batches (`--accepted 20000000 --targets 4000`), they waited up to 53 and 66 ms while 7.5 million ended in 13
//! and 14 s (two runs); the longest turn took 20 and 16 ms on its core. To build the large one took two hours, mostly of copying what is left in every segment: 22.5 GB.
//!
//! 10 million devices, 10 million entries left of 50 million accepted in batches of 10,000 (so that as many batches are live as with 500 million in
//! batches of 100,000), by the clock of a quiet machine with two cores. Before that one thread took the checkpoint in, maps grew as they were filled, and a
//! start took 6.1 s on cores.
//!
//! | | |
//! |---|---|
//! | a start after an orderly end | 1.7 s (2.8 s on cores) |
//! | a start after a crash, with 512 MB of journal behind the checkpoint | 4.1 s (5.2 s on cores) |
//! | memory a device with one entry | 144 B |
//! | checkpoint a device with one entry; two are kept | 44 B |
//! | journal, of which 223 MB were live, once trimmed; and once nothing was live | 671 MB, 268 MB |
//! | tables a device (300,000 of them) | 335 B (558 before pages were filled) |
//! | single messages while nothing else happens: median, 99 %, longest | 0.3, 1.4, 4 ms |
//! | single messages while two checkpoints are written, in 8.5 s | 4, 92, 136 ms |
//! | single messages while 7.5 million entries end, in 5.2 s | 3, 26, 38 ms |
//!
//! On a busy machine (a load of 7 to 20) starts took 5.3 to 15 and 12 s, and messages waited for up to 354 ms.
//!
//! Single messages (`--targets 1`; a million pending of 2 million, a million devices, 2 million push records): a start takes 4 s on cores after an
//! orderly end, mostly push records, and they end at 23 µs each at a load of 15; 1,008 B each, of which 144 B are the device. Ten million of
//! them don't start in ten seconds.
#![allow(missing_docs)]

mod common;
#[path = "common/driven.rs"]
mod driven;
#[path = "common/probe.rs"]
mod probe;

use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode, Stdio};
use std::sync::atomic::Ordering;

use clap::{Parser, ValueEnum};
use common::{NOW, NoSink, ack, batch, key, resident, seen, session};
use driven::{Driven, on_core, on_cores, on_disk};
use mooring::clock::Clock;
use mooring::push::NewBatch;
use mooring::store::Command;
use mooring::store::checkpoint::CheckpointReader;
use mooring::store::disk::real::RealDisk;
use mooring::store::engine::{Engine, OpenReport};
use mooring::store::options::StoreOptions;
use mooring::store::stats::StoreStats;
use probe::Probed;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

/// Devices that register, and acks, in a group.
const GROUP: u64 = 1_000;
/// Entries between two lines of progress.
const TELL_EVERY: u64 = 2_000_000;
/// Bytes of a device's row in memory, at most.
const ROW_BYTES: usize = 1024;
const SECOND: f64 = 1_000_000.0;
/// Microseconds of messages while nothing else happens.
const QUIET: u64 = 3_000_000;

#[derive(Clone, Debug, Parser)]
struct Args {
    /// Known devices.
    #[arg(long, default_value_t = 1_000_000)]
    devices: u64,
    /// Entries accepted.
    #[arg(long, default_value_t = 20_000_000)]
    accepted: u64,
    /// Entries that are left: the others are acknowledged.
    #[arg(long, default_value_t = 1_000_000)]
    pending: u64,
    /// Targets of a batch.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    targets: u64,
    /// Refuse to begin with fewer GiB free on the disk.
    #[arg(long, default_value_t = 8)]
    free_gib: u64,
    /// A small state, to see that it runs.
    #[arg(long)]
    quick: bool,
    /// One phase only, on this directory: what the phases run as, each in a process of its own.
    #[arg(long, hide = true, requires = "directory")]
    phase: Option<Phase>,
    #[arg(long, hide = true)]
    directory: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Phase {
    /// Makes the state, and ends without a checkpoint, as a crash would.
    Build,
    /// Starts from what a crash left, then ends in order.
    Crashed,
    /// Starts from what an orderly end left.
    Orderly,
    /// Writes a checkpoint beside acks.
    Checkpoint,
    /// Ends all that is pending.
    Expire,
}

impl Args {
    fn checked(mut self) -> Result<Self, String> {
        if self.quick {
            (self.devices, self.accepted, self.pending, self.targets) = (20_000, 100_000, 10_000, 10_000);
        }
        if self.devices == 0 || self.pending == 0 || self.pending > self.accepted {
            return Err("there must be devices, and no more pending than accepted".to_owned());
        }
        if self.targets > self.devices {
            return Err("a batch has each device once: --targets must not be more than --devices".to_owned());
        }
        Ok(self)
    }

    /// One in so many stays.
    fn stays(&self) -> u64 {
        self.accepted / self.pending
    }
}

fn options(checkpoint_bytes: u64) -> StoreOptions {
    StoreOptions {
        checkpoint_bytes,
        max_devices: u64::MAX,
        max_pending: u64::MAX,
        max_messages: u64::MAX,
        ..StoreOptions::default()
    }
}

fn open(directory: &Path, options: &StoreOptions) -> (Engine<RealDisk>, OpenReport) {
    let (disk, _) = RealDisk::open(directory, None).expect("opens");
    Engine::open(disk, options, Box::new(NoSink), Box::new(|_| true)).expect("opens")
}

fn build(args: &Args, directory: &Path) -> Map<String, Value> {
    let options = options(StoreOptions::default().checkpoint_bytes);
    // Devices that acknowledge have said Hello before, which brings their rows along: here all rows stay in memory instead.
    let options = StoreOptions { device_cache_bytes: args.devices as usize * ROW_BYTES, ..options };
    let mut driven = Driven::new(open(directory, &options).0);
    let began = driven.clock.micros();
    let mut keys = Vec::with_capacity(args.devices as usize);
    for first in (0..args.devices).step_by(GROUP as usize) {
        for device in (first..args.devices.min(first + GROUP)).map(|n| Box::new(seen(n))) {
            keys.push(device.key);
            let command = Command::Seen { device, session: session() };
            driven.engine.apply(NOW, command).expect("the disk works");
        }
        driven.read_stream();
        driven.settle();
    }
    let registered = driven.clock.micros();
    let registering = std::mem::take(&mut driven.longest);
    eprintln!("{} devices in {:.1} s", args.devices, (registered - began) as f64 / SECOND);
    let (mut deliver_longest, mut acks_longest, mut accepted, mut told_at) = (0, 0, 0, 0);
    while accepted < args.accepted {
        // So many entries are a commit group, at least: else each small batch had a sync of its own.
        let (mut answers, mut acks, round) = (Vec::new(), Vec::new(), accepted + GROUP);
        driven.now += 1;
        while accepted < args.accepted && accepted < round {
            let targets = accepted..args.accepted.min(accepted + args.targets);
            let message = accepted / args.targets + 1;
            let keys: Vec<_> = targets.clone().map(|n| keys[(n % args.devices) as usize]).collect();
            let batch = NewBatch { created_at: driven.now, ..*batch(&format!("b{message}"), message, &keys) };
            let (reply, answer) = oneshot::channel();
            answers.push(answer);
            let began = driven.clock.micros();
            let deliver = Command::Deliver { batch: Box::new(batch), reply };
            driven.engine.apply(driven.now, deliver).expect("the disk works");
            deliver_longest = deliver_longest.max(driven.clock.micros() - began);
            // Shifted by one each time around, so that what is left isn't left on the same devices.
            let shift = accepted / args.devices;
            let gone = targets.zip(&keys).filter(|(n, _)| !(n + shift).is_multiple_of(args.stays()));
            acks.extend(gone.map(|(_, &device)| ack(device, message)));
            accepted += keys.len() as u64;
        }
        driven.commit();
        for mut answer in answers {
            assert!(answer.try_recv().expect("answered").is_ok(), "a batch was refused");
        }
        for acks in acks.chunks(GROUP as usize) {
            let acks = acks.to_vec();
            let began = driven.clock.micros();
            driven.acks(acks);
            acks_longest = acks_longest.max(driven.clock.micros() - began);
            driven.turn();
        }
        driven.read_stream();
        driven.settle();
        if accepted - told_at >= TELL_EVERY {
            told_at = accepted;
            let seconds = (driven.clock.micros() - registered) as f64 / SECOND;
            let pending = driven.pending();
            eprintln!("{accepted} of {} accepted, {pending} pending, {seconds:.0} s", args.accepted);
        }
    }
    let seconds = |micros: u64| micros as f64 / SECOND;
    let done = driven.clock.micros();
    let load = |of: fn(&StoreStats) -> u64| of(driven.engine.stats());
    let figures = json!({
        "register_s": seconds(registered - began),
        "accept_and_ack_s": seconds(done - registered),
        "pending": driven.pending(),
        "registering": registering.json(),
        "accepting": driven.longest.json(),
        "batch_applied_ms": deliver_longest as f64 / 1_000.0,
        "thousand_acks_applied_ms": acks_longest as f64 / 1_000.0,
        "live_bytes": load(|stats| stats.live_bytes.load(Ordering::Relaxed)),
        "copied_bytes": driven.copied(),
        "segments_removed": load(|stats| stats.segments_removed.load(Ordering::Relaxed)),
        "checkpoints": load(|stats| stats.checkpoints.load(Ordering::Relaxed)),
        "disk": on_disk(directory),
        "resident_bytes": resident(),
    });
    object(figures)
}

/// A start, with the checksums of the checkpoint apart, as a start reads it twice: to check it, and to load it.
fn start(args: &Args, directory: &Path, then_end: bool) -> Map<String, Value> {
    let clock = Clock::new(0);
    let (disk, _) = RealDisk::open(directory, None).expect("opens");
    let began = clock.micros();
    drop(CheckpointReader::newest(disk).expect("readable"));
    let checked = clock.micros();
    let (before, cpu) = (resident(), on_cores());
    let (engine, report) = open(directory, &options(u64::MAX));
    let (opened, cpu) = (clock.micros(), on_cores() - cpu);
    let memory = resident().saturating_sub(before);
    let mut driven = Driven::new(engine);
    if then_end {
        driven.checkpoint();
    }
    let figures = json!({
        "start_s": (opened - checked) as f64 / SECOND,
        "start_on_cores_s": cpu,
        "of_which_checking_the_checkpoint_s": (checked - began) as f64 / SECOND,
        "devices": report.devices,
        "pending": report.pending,
        "memory_bytes": memory,
        "memory_bytes_a_device": memory as f64 / args.devices as f64,
        "disk": on_disk(directory),
    });
    object(figures)
}

/// What a device sees while nothing else happens, and while two checkpoints are written; and what is left on disk behind them.
fn checkpoint(args: &Args, directory: &Path) -> Map<String, Value> {
    let probed = Probed::open(directory, StoreOptions { checkpoint_bytes: 1, ..options(u64::MAX) }, NOW);
    let written = |probed: &Probed| probed.stat(|stats| &stats.checkpoints);
    let began = written(&probed);
    let while_written = probed.probe(|n| key(n % args.devices), |probed| written(probed) >= began + 2);
    probed.close();
    let probed = Probed::open(directory, options(u64::MAX), NOW);
    let began = probed.clock.micros();
    let quiet = probed.probe(|n| key(n % args.devices), |probed| probed.clock.micros() - began > QUIET);
    for _ in 0..2 {
        probed.read_stream();
        probed.checkpoint();
        probed.rest();
    }
    let figures = json!({
        "quiet": quiet,
        "while_two_checkpoints": while_written,
        "live_bytes": probed.stat(|stats| &stats.live_bytes),
        "disk_when_trimmed": on_disk(directory),
    });
    probed.close();
    object(figures)
}

/// A quarter of everything ends without threads: the longest commit and slice together, in microseconds on a core. That is how long a message waits at
/// most where nobody else wants the core, and the disk is quick. Without the turns that write the tables, which a thread does else.
fn end_some(directory: &Path) -> u64 {
    let mut driven = Driven::new(open(directory, &options(u64::MAX)).0);
    driven.now = NOW + 3_600_001;
    let (all, mut longest, mut last) = (driven.pending(), 0, 0);
    let written = |driven: &Driven| driven.stat(|stats| stats.table_writes.load(Ordering::Relaxed));
    while driven.pending() > all / 4 * 3 {
        let (began, before) = (on_core(), written(&driven));
        driven.turn();
        // What is over now was written in the turn before.
        if written(&driven) == before {
            longest = longest.max(last);
        }
        last = on_core() - began;
    }
    longest
}

/// Everything ends, as its time has come.
fn expire(args: &Args, directory: &Path) -> Map<String, Value> {
    let longest = end_some(directory);
    let probed = Probed::open(directory, options(StoreOptions::default().checkpoint_bytes), NOW);
    let pending = |probed: &Probed| probed.stat(|stats| &stats.pending);
    probed.clock.raise(NOW + 3_600_001);
    let began = pending(&probed);
    // What is left are probes themselves.
    let ending = probed.probe(|n| key(n % args.devices), |probed| pending(probed) < 100);
    // Now nothing is live: the journal shrinks to its reserve, once checkpoints and the router have come past it.
    for _ in 0..2 {
        probed.read_stream();
        probed.checkpoint();
        probed.rest();
    }
    let figures = json!({
        "longest_turn_on_core_ms": longest as f64 / 1_000.0,
        "pending": began,
        "while_all_ended": ending,
        "live_bytes": probed.stat(|stats| &stats.live_bytes),
        "disk_afterwards": on_disk(directory),
    });
    probed.close();
    object(figures)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

/// A phase in a process of its own: what another one has freed is no part of its memory.
fn run(args: &Args, phase: Phase, directory: &Path) -> Result<Value, String> {
    let name = format!("{phase:?}").to_lowercase();
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut process = Process::new(program);
    process.args(["--phase", &name, "--directory"]).arg(directory);
    for (flag, value) in [
        ("--devices", args.devices),
        ("--accepted", args.accepted),
        ("--pending", args.pending),
        ("--targets", args.targets),
    ] {
        process.arg(flag).arg(value.to_string());
    }
    let output = process.stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("the phase {name} ended with {}", output.status));
    }
    let figures: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    println!("{name}: {}", serde_json::to_string_pretty(&figures).unwrap_or_default());
    Ok(figures)
}

fn all(args: &Args) -> Result<Value, String> {
    let free = rustix::fs::statvfs(".").map_err(|error| error.to_string())?;
    if free.f_bavail * free.f_frsize < args.free_gib << 30 {
        return Err(format!("less than {} GiB are free on this disk", args.free_gib));
    }
    let directory = tempfile::tempdir_in(".").map_err(|error| error.to_string())?;
    let mut figures = Map::new();
    for phase in [Phase::Build, Phase::Crashed, Phase::Orderly, Phase::Checkpoint, Phase::Expire] {
        figures.insert(format!("{phase:?}").to_lowercase(), run(args, phase, directory.path())?);
    }
    let of = json!({ "devices": args.devices, "accepted": args.accepted, "pending": args.pending });
    figures.insert("of".to_owned(), of);
    Ok(Value::Object(figures))
}

fn main() -> ExitCode {
    let args = match Args::parse().checked() {
        Ok(args) => args,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::from(2);
        }
    };
    let figures = match (args.phase, &args.directory) {
        (Some(phase), Some(directory)) => Ok(Value::Object(match phase {
            Phase::Build => build(&args, directory),
            Phase::Crashed => start(&args, directory, true),
            Phase::Orderly => start(&args, directory, false),
            Phase::Checkpoint => checkpoint(&args, directory),
            Phase::Expire => expire(&args, directory),
        })),
        _ => all(&args),
    };
    match figures {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::FAILURE
        }
    }
}
