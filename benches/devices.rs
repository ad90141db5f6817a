//! What a known device costs: memory and checkpoint when its row is cold, CPU of its ack when the row is cold and when it is warm. Each device
//! has attributes of its own, of about 250 bytes, as phones have. On the disk of the working directory.
//! `cargo bench --bench devices -- 200000` for another number of devices than a million.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::Command as Process;

use common::{NOW, NoSink, ack, batch, key, resident, seen, session};
use mooring::clock::Clock;
use mooring::ids::{DeviceKey, ShardId};
use mooring::push::{Attributes, Seen};
use mooring::store::Command;
use mooring::store::disk::real::RealDisk;
use mooring::store::engine::Engine;
use mooring::store::options::StoreOptions;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::oneshot;

const GROUP: usize = 1_000;
const TARGETS: usize = 10_000;
const BATCHES: usize = 10;
const ACKS: usize = 100;

/// Random attributes can't be compressed, as those of phones can't be by much.
fn phone(n: u64) -> Seen {
    let mut attributes = vec![7; 250];
    SmallRng::seed_from_u64(n).fill(&mut attributes[..60]);
    Seen { attributes: Attributes::whole(attributes.into()), ..seen(n) }
}

fn open(directory: &Path) -> Engine<RealDisk> {
    let (disk, _) = RealDisk::open(directory, None).expect("opens");
    let options =
        StoreOptions { checkpoint_bytes: u64::MAX, max_devices: u64::MAX, ..StoreOptions::default() };
    let opened = Engine::open(disk, &options, Box::new(NoSink), Box::new(|_| true));
    opened.expect("opens").0
}

/// Times of groups of equal size. The median says most of a machine that has something else to do as well.
#[derive(Default)]
struct Times(Vec<u64>);

impl Times {
    fn median(mut self) -> f64 {
        self.0.sort_unstable();
        self.0[self.0.len() / 2] as f64
    }
}

fn settle(engine: &mut Engine<RealDisk>) {
    loop {
        engine.commit(NOW).expect("the disk works");
        if !engine.maintain(NOW).expect("the disk works") {
            return;
        }
    }
}

/// All devices register; then everything is written.
fn fill(directory: &Path, devices: usize) {
    let mut engine = open(directory);
    let (before, clock, mut times) = (resident(), Clock::new(0), Times::default());
    for first in (0..devices).step_by(GROUP) {
        let group: Vec<_> = (first..devices.min(first + GROUP)).map(|n| phone(n as u64)).collect();
        let began = clock.micros();
        for device in group {
            let device = Box::new(device);
            engine.apply(NOW, Command::Seen { device, session: session() }).expect("the disk works");
        }
        times.0.push(clock.micros() - began);
        settle(&mut engine);
    }
    let bytes = (resident() - before) as f64 / devices as f64;
    println!("registered: {:.2} µs, {bytes:.0} bytes in memory a device", times.median() / GROUP as f64);
    let (reply, _) = oneshot::channel();
    engine.apply(NOW, Command::Flush { checkpoint: true, reply }).expect("the disk works");
    engine.commit(NOW).expect("the disk works");
    let entries = std::fs::read_dir(directory).expect("readable").map(|entry| entry.expect("an entry"));
    for entry in entries {
        let (name, bytes) = (entry.file_name(), entry.metadata().expect("there").len());
        let name = name.to_string_lossy();
        if name.ends_with(".ckpt") || name.starts_with("tables") {
            println!("{name}: {:.0} bytes a device", bytes as f64 / devices as f64);
        }
    }
}

fn deliver(engine: &mut Engine<RealDisk>, message: u64, targets: &[DeviceKey]) {
    for (n, targets) in targets.chunks(TARGETS).enumerate() {
        let (reply, mut answer) = oneshot::channel();
        let batch = batch(&format!("b{message}-{n}"), message, targets);
        engine.apply(NOW, Command::Deliver { batch, reply }).expect("the disk works");
        engine.commit(NOW).expect("the disk works");
        assert!(answer.try_recv().expect("answered").is_ok());
    }
}

/// Microseconds an ack, without the commits.
fn acknowledge(engine: &mut Engine<RealDisk>, message: u64, targets: &[DeviceKey]) -> f64 {
    let (clock, mut times) = (Clock::new(0), Times::default());
    for targets in targets.chunks(ACKS) {
        let acks = targets.iter().map(|&device| ack(device, message)).collect();
        let began = clock.micros();
        engine.apply(NOW, Command::Acks { shard: ShardId(0), acks }).expect("the disk works");
        times.0.push(clock.micros() - began);
        engine.commit(NOW).expect("the disk works");
    }
    times.median() / ACKS as f64
}

/// A start with the rows of all devices cold, then acks.
fn start(directory: &Path, devices: usize) {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut numbers: Vec<usize> = (0..TARGETS * BATCHES).map(|_| rng.random_range(0..devices)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut targets: Vec<DeviceKey> = numbers.into_iter().map(|n| key(n as u64)).collect();
    // In no order of the tables.
    targets.sort_unstable();
    let before = resident();
    let mut engine = open(directory);
    println!("after a start: {:.0} bytes in memory a device", (resident() - before) as f64 / devices as f64);
    for (message, rows) in [(1, "cold"), (2, "warm"), (3, "warm")] {
        deliver(&mut engine, message, &targets);
        println!("an ack whose row is {rows}: {:.2} µs", acknowledge(&mut engine, message, &targets));
        settle(&mut engine);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, phase, directory, devices] = &args[..] {
        let devices = devices.parse().expect("a number");
        match phase.as_str() {
            "fill" => fill(Path::new(directory), devices),
            _ => start(Path::new(directory), devices),
        }
        return;
    }
    let devices: usize = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    println!("{devices} devices:");
    let directory = tempfile::tempdir_in(".").expect("a directory");
    // Each in a process of its own: what one has freed is no part of the next one's memory.
    for phase in ["fill", "start"] {
        let program = std::env::current_exe().expect("a path");
        let status = Process::new(program).arg(phase).arg(directory.path()).arg(devices.to_string()).status();
        assert!(status.expect("it runs").success());
    }
}
