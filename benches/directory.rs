//! What the directory costs: bytes an entry, and a look-up and a reconnect among a million and five million sessions, alone and beside another
//! thread; next to the same with other maps.
//!
//! `cargo bench --bench directory`; `-- --help` for other numbers. Each map of each size is a process of its own, as what one has freed is no part
//! of the next one's memory. The last line is JSON.
#![allow(missing_docs)]

use std::hint::black_box;
use std::process::{Command as Process, ExitCode, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::{Parser, ValueEnum};
use mooring::clock::Clock;
use mooring::directory::{Directory, Way};
use mooring::ids::{BuildSpread, DeviceKey, Generation, SessionRef, ShardId};
use mooring::telemetry::Transport;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map as Object, Value, json};

const WAY: Way = Way { since: 1_800_000_000_000, transport: Transport::Tls };

#[derive(Clone, Debug, Parser)]
struct Args {
    /// Entries.
    #[arg(long, value_delimiter = ',', default_value = "1000000,5000000")]
    entries: Vec<usize>,
    /// Look-ups of each measurement.
    #[arg(long, default_value_t = 4_000_000)]
    looks: usize,
    /// Few entries, to see that it runs.
    #[arg(long)]
    quick: bool,
    /// One map only, with the first number of entries: what each runs as.
    #[arg(long, hide = true)]
    of: Option<Kind>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    Directory,
    Papaya,
    Scc,
}

/// What a directory has to do.
trait Sessions: Default + Sync {
    fn enter(&self, device: DeviceKey, session: SessionRef);
    fn leave(&self, device: &DeviceKey);
    fn find(&self, device: &DeviceKey) -> Option<SessionRef>;
}

impl Sessions for Directory {
    fn enter(&self, device: DeviceKey, session: SessionRef) {
        black_box(self.enter(device, session, WAY)).expect("the newest wins");
    }
    fn leave(&self, device: &DeviceKey) {
        let session = self.find(device).expect("there");
        self.leave(device, session.generation);
    }
    fn find(&self, device: &DeviceKey) -> Option<SessionRef> {
        self.find(device)
    }
}

type Papaya = papaya::HashMap<DeviceKey, (SessionRef, Way), BuildSpread>;

impl Sessions for Papaya {
    fn enter(&self, device: DeviceKey, session: SessionRef) {
        black_box(self.pin().insert(device, (session, WAY)));
    }
    fn leave(&self, device: &DeviceKey) {
        self.pin().remove(device);
    }
    fn find(&self, device: &DeviceKey) -> Option<SessionRef> {
        self.pin().get(device).map(|held| held.0)
    }
}

type Scc = scc::HashMap<DeviceKey, (SessionRef, Way), BuildSpread>;

impl Sessions for Scc {
    fn enter(&self, device: DeviceKey, session: SessionRef) {
        black_box(self.upsert_sync(device, (session, WAY)));
    }
    fn leave(&self, device: &DeviceKey) {
        self.remove_sync(device);
    }
    fn find(&self, device: &DeviceKey) -> Option<SessionRef> {
        self.read_sync(device, |_, held| held.0)
    }
}

/// The key of a device: as evenly spread as a digest, and nothing to keep.
fn key(n: u64) -> DeviceKey {
    let mut rng = SmallRng::seed_from_u64(n);
    DeviceKey(rng.random())
}

fn session(n: u64) -> SessionRef {
    SessionRef { generation: Generation(n + 1), slot: n as u32, shard: ShardId(0) }
}

/// Bytes of this process in memory.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split_whitespace().nth(1).expect("Linux");
    pages.parse::<f64>().expect("a number") * 4096.0
}

/// Random devices, made before time is taken.
fn random(entries: usize, looks: usize, seed: u64) -> Vec<DeviceKey> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..looks).map(|_| key(rng.random_range(0..entries as u64))).collect()
}

/// Nanoseconds each, of all.
fn each(clock: &Clock, keys: &[DeviceKey], mut one: impl FnMut(&DeviceKey)) -> f64 {
    let began = clock.micros();
    keys.iter().for_each(&mut one);
    (clock.micros() - began) as f64 * 1e3 / keys.len() as f64
}

/// A device leaves and comes back.
fn reconnect(sessions: &impl Sessions, device: &DeviceKey, generation: u64) {
    sessions.leave(device);
    sessions.enter(*device, session(generation));
}

/// A look-up beside another thread that does something else all the time.
fn beside(
    clock: &Clock,
    keys: &[DeviceKey],
    one: impl Fn(&DeviceKey),
    other: impl Fn(&DeviceKey) + Sync,
    others: &[DeviceKey],
) -> f64 {
    let (barrier, ends) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            barrier.wait();
            for key in others.iter().cycle() {
                other(key);
                if ends.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        barrier.wait();
        let took = each(clock, keys, one);
        ends.store(true, Ordering::Relaxed);
        took
    })
}

fn measure<S: Sessions>(entries: usize, looks: usize) -> Value {
    let clock = Clock::new(0);
    let sessions = S::default();
    let (keys, others) = (random(entries, looks, 1), random(entries, looks / 4, 2));
    let before = resident();
    let began = clock.micros();
    for n in 0..entries as u64 {
        sessions.enter(key(n), session(n));
    }
    let filled = (clock.micros() - began) as f64 * 1e3 / entries as f64;
    let bytes = (resident() - before) / entries as f64;
    let look = |device: &DeviceKey| {
        black_box(sessions.find(device));
    };
    let generation = std::sync::atomic::AtomicU64::new(entries as u64);
    let come_back =
        |device: &DeviceKey| reconnect(&sessions, device, generation.fetch_add(1, Ordering::Relaxed));
    json!({
        "entries": entries,
        "bytes_an_entry": bytes,
        "fill_ns": filled,
        "find_ns": each(&clock, &keys, look),
        "find_beside_a_reader_ns": beside(&clock, &keys, look, look, &others),
        "find_beside_a_writer_ns": beside(&clock, &keys, look, come_back, &others),
        "reconnect_ns": each(&clock, &others, come_back),
        "reconnect_beside_a_reader_ns": beside(&clock, &others, come_back, look, &keys),
    })
}

/// One map in a process of its own.
fn run(args: &Args, kind: Kind, entries: usize) -> Result<Value, String> {
    let name = format!("{kind:?}").to_lowercase();
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut process = Process::new(program);
    process.args(["--of", &name, "--entries", &entries.to_string(), "--looks", &args.looks.to_string()]);
    let output = process.stderr(Stdio::inherit()).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{name} ended with {}", output.status));
    }
    let figures: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    println!("{name}: {}", serde_json::to_string_pretty(&figures).unwrap_or_default());
    Ok(figures)
}

fn all(args: &Args) -> Result<Value, String> {
    let mut figures = Object::new();
    for &entries in &args.entries {
        for kind in [Kind::Directory, Kind::Papaya, Kind::Scc] {
            let name = format!("{kind:?}").to_lowercase();
            figures.insert(format!("{name}_{entries}"), run(args, kind, entries)?);
        }
    }
    Ok(Value::Object(figures))
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        (args.entries, args.looks) = (vec![20_000], 100_000);
    }
    let entries = args.entries.first().copied().unwrap_or_default();
    let figures = match args.of {
        Some(Kind::Directory) => Ok(measure::<Directory>(entries, args.looks)),
        Some(Kind::Papaya) => Ok(measure::<Papaya>(entries, args.looks)),
        Some(Kind::Scc) => Ok(measure::<Scc>(entries, args.looks)),
        None => all(&args),
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
